"""Time several things in turns: A, B, A, B, ..., so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one thing, one number a round."""

    samples: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """The median: one disturbed round does not move it."""
        return median(self.samples)

    def facts(self, digits: int = 5) -> dict[str, float]:
        """Return median, fastest and slowest round, and how many there were."""
        numbers = {"seconds": self.seconds, "low": min(self.samples), "high": max(self.samples)}
        return {key: round(value, digits) for key, value in numbers.items()} | {"rounds": len(self.samples)}


def synchronise(device: torch.device | None = None) -> None:
    """Wait for what a CUDA device still has to do; nothing elsewhere."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    parts: Mapping[str, Callable[[], object]],
    repeats: int = 5,
    warm_up: int = 1,
    device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Call each part once a round, and time it.

    Args:
        parts: what to call, by name.
        repeats: timed rounds.
        warm_up: rounds before that are not timed: first calls allocate, choose kernels, read files.
        device: synchronised before and after each call if it is a CUDA device.
        clock: seconds.

    Returns:
        a Timing a part, rounds in the same order, so that ``ratio`` can compare round with round.

    Raises:
        ValueError: if there are no timed rounds.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    samples: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(-warm_up, repeats):
        for name, part in parts.items():
            synchronise(device)
            begin = clock()
            part()
            synchronise(device)
            if turn >= 0:
                samples[name].append(clock() - begin)
    return {name: Timing(tuple(found)) for name, found in samples.items()}


def ratio(a: Timing, b: Timing) -> dict[str, float]:
    """Return a / b compared round by round: median "ratio", and the "low" and "high" of the rounds.

    The two of a round lie seconds apart and saw the same machine; two medians may come from different minutes.

    Raises:
        ValueError: if they were not timed in the same rounds.
    """
    if len(a.samples) != len(b.samples):
        raise ValueError(f"ratio of {len(a.samples)} to {len(b.samples)} rounds; time both in one interleave")
    found = [x / y for x, y in zip(a.samples, b.samples, strict=True)]
    return {"ratio": round(median(found), 4), "low": round(min(found), 4), "high": round(max(found), 4)}
