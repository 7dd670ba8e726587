"""What is being done right now, for somebody who waits in front of a terminal."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from ..handlers.progress import NO_PROGRESS

CLEAR_LINE = "\r\x1b[K"


class ShowStages:
    """Ignite handler: one line on stderr that is rewritten as a pair is read, predicted and finished.

    Silent if stderr is not a terminal or if the environment variable MONAI_NO_PROGRESS is set.

    Args:
        stream: where to write instead of stderr.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        stream = self.stream or sys.stderr
        if not stream.isatty() or os.environ.get(NO_PROGRESS):
            return
        for event, doing in (
            (Events.GET_BATCH_STARTED, "reading"),
            (Events.ITERATION_STARTED, "predicting the field"),
            (IterationEvents.FORWARD_COMPLETED, "refining if asked, measuring, writing"),
            (Events.ITERATION_COMPLETED, None),
        ):
            engine.add_event_handler(event, self._show, doing, stream)

    @staticmethod
    def _show(engine: Engine, doing: str | None, stream: TextIO) -> None:
        done, total = engine.state.iteration, engine.state.epoch_length
        pair = min(done + (doing == "reading"), total or 1)
        stream.write(CLEAR_LINE + (f"[{pair}/{total}] {doing} ..." if doing else ""))
        stream.flush()
