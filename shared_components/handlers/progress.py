"""What a run tells about itself: a progress bar, and the terms of the loss on console and TensorBoard."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers.tqdm_logger import ProgressBar

from .training import loss_of, loss_terms

NO_PROGRESS = "MONAI_NO_PROGRESS"


class EpochProgress:
    """Progress bar over the iterations of each epoch, with the loss and its named terms.

    Silent if stderr is not a terminal, if the environment variable MONAI_NO_PROGRESS is set, and on all ranks but 0.

    Args:
        desc: in front of the bar; "Epoch" or, in runs of one epoch, "Iteration" by default.
        refresh_s: the numbers are read that often only, because reading makes a GPU wait.
        stream: where to draw instead of stderr.
    """

    def __init__(self, desc: str | None = None, refresh_s: float = 0.5, stream: TextIO | None = None) -> None:
        self.desc, self.refresh_s, self.stream = desc, refresh_s, stream
        self._shown: dict[str, float] = {}
        self._read_at = -float("inf")

    def enabled(self) -> bool:
        """Tell whether there is somebody to look at the bar."""
        stream = self.stream or sys.stderr
        return bool(stream.isatty()) and not os.environ.get(NO_PROGRESS) and idist.get_rank() == 0

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or evaluator."""
        if not self.enabled():
            return
        bar = ProgressBar(persist=False, desc=self.desc or "", file=self.stream or sys.stderr)
        bar.attach(engine, output_transform=self._numbers(engine))

    def _numbers(self, engine: Engine) -> Callable[[Any], dict[str, float]]:
        def read(output: Any) -> dict[str, float]:
            now = time.monotonic()
            if now - self._read_at >= self.refresh_s:
                loss = loss_of(output)
                named = ({} if loss is None else {"loss": loss}) | loss_terms(engine)
                self._shown, self._read_at = {name: float(value) for name, value in named.items()}, now
            return self._shown

        return read


class StageLossLogger:
    """Average the loss and its named terms over each epoch, and write them to the log and to TensorBoard.

    The terms are read from ``trainer.loss_function.terms``, {name: scalar}, after each iteration, and summed where they
    are, so that a GPU never waits. Means over iterations, over all ranks; also left in ``engine.state.loss_terms``.

    Args:
        log_dir: folder for TensorBoard events, written by rank 0; None writes to the log only.
        summary_writer: an open writer to use instead.
        tag: TensorBoard shows the terms under "tag/name".
        name: of the logger; None takes the engine's.
    """

    def __init__(
        self,
        log_dir: str | None = None,
        summary_writer: Any | None = None,
        tag: str = "train_loss",
        name: str | None = None,
    ) -> None:
        self.log_dir, self.tag, self.name = log_dir, tag, name
        self._writer, self._own_writer = summary_writer, summary_writer is None
        self._sums: dict[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)
        engine.add_event_handler(Events.COMPLETED, self.close)

    def start(self, engine: Engine) -> None:
        """Forget the last epoch."""
        self._sums = {}

    def add(self, engine: Engine) -> None:
        """Add the terms of one iteration."""
        loss = loss_of(engine.state.output)
        terms = ({} if loss is None else {"loss": torch.as_tensor(loss)}) | loss_terms(engine)
        for name, value in terms.items():
            entry = torch.stack([value.double().mean(), value.new_ones((), dtype=torch.float64)])
            self._sums[name] = entry if name not in self._sums else self._sums[name] + entry

    def write(self, engine: Engine) -> None:
        """Write the means of the epoch."""
        means = self._means()
        engine.state.loss_terms = means
        if idist.get_rank() != 0 or not means:
            return
        logger = logging.getLogger(self.name) if self.name else engine.logger
        numbers = ", ".join(f"{name} {value:.5g}" for name, value in means.items())
        logger.info(f"epoch {engine.state.epoch}/{engine.state.max_epochs}: {numbers}")
        writer = self._open()
        if writer is not None:
            for name, value in means.items():
                writer.add_scalar(f"{self.tag}/{name}", value, engine.state.epoch)
            writer.flush()

    def close(self, engine: Engine) -> None:
        """Close the writer if it is our own; a later epoch opens it again."""
        if self._own_writer and self._writer is not None:
            self._writer.close()
            self._writer = None

    def _means(self) -> dict[str, float]:
        if not self._sums:
            return {}
        table = torch.stack([self._sums[name] for name in sorted(self._sums)])
        total = idist.all_reduce(table) if idist.get_world_size() > 1 else table
        means = dict(zip(sorted(self._sums), (total[:, 0] / total[:, 1]).tolist(), strict=True))
        return {name: means[name] for name in self._sums}

    def _open(self) -> Any | None:
        if self._writer is None and self.log_dir is not None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and needs the tensorboard package

            self._writer = SummaryWriter(log_dir=self.log_dir)
        return self._writer
