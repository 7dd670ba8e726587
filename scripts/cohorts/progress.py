"""How far a cohort is and when it will be done: a bar in a terminal, a line a pair in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from .summary import Row

NO_PROGRESS = "MONAI_NO_PROGRESS"  # the same switch as for the progress bars of training


class Progress:
    """Tell of each finished pair on stderr.

    Args:
        total: pairs to come.
        stream: where to write instead.
        clock: seconds.
    """

    def __init__(self, total: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self.stream, self.clock = stream or sys.stderr, clock
        self.first_at = 0.0  # when the first was done: loading the network says nothing about the pairs
        shown = self.stream.isatty() and not os.environ.get(NO_PROGRESS)
        self.bar = tqdm(total=total, unit="pair", file=self.stream, dynamic_ncols=True) if shown else None

    def add(self, row: Row) -> None:
        """Tell of one pair; faults stay to be read."""
        self.done += 1
        self.first_at = self.clock() if self.done == 1 else self.first_at
        self.failed += row["status"] != "ok"
        told = f"{row['name']}: {row['fault']}" if row.get("fault") else row["name"]
        told += f" ({row['note']})" if row.get("note") else ""
        if self.bar is None:
            seconds = f", {row['seconds']} s" if row.get("seconds") is not None else ""
            self._line(f"[{self.done}/{self.total}] {row['status']} {told}{seconds}{self._left()}")
            return
        if row.get("fault") or row.get("note"):
            self.bar.write(f"{row['status']} {told}", file=self.stream)
        self.bar.set_postfix({"failed": self.failed} if self.failed else {}, refresh=False)
        self.bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()

    def _line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _left(self) -> str:
        left = self.total - self.done
        if not left or self.done == 1:
            return ""
        return f", {duration((self.clock() - self.first_at) / (self.done - 1) * left)} left"


def duration(seconds: float) -> str:
    """Return a duration to read.

    Example:
        >>> duration(7.4), duration(200), duration(9000)
        ('7 s', '3 min', '2 h 30 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
