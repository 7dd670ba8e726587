"""Checkpoints that survive a kill at any moment and let a training go on exactly where it stopped."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from .errors import InputError


def save_atomically(content: Any, path: str | Path) -> None:
    """Write with ``torch.save`` beside the target, flush to disk, then rename: the old file or the new one, never half.

    MONAI's CheckpointSaver switches Ignite's atomic writing off (its temporary files lose group permissions).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class TrainingCheckpoint:
    """Save everything a training needs after each epoch, the best weights apart, and resume.

    Attach it after the ValidationHandler, so that an epoch's validation counts. Rank 0 writes, every rank resumes.

    Args:
        output_dir: ``checkpoint.pt`` (all of ``save_dict``, the best metric) is kept here.
        save_dict: name -> object with ``state_dict`` and ``load_state_dict``; "model" is the network. The trainer's own
            state is added under "trainer".
        validator: the evaluator whose key metric decides; None keeps the last weights.
        weights_dir: ``model.pt``, a plain state dict of the best epoch, is kept here; None takes ``output_dir``.
        resume: go on from ``checkpoint.pt``.
    """

    def __init__(
        self,
        output_dir: str,
        save_dict: Mapping[str, Any],
        validator: Engine | None = None,
        weights_dir: str | None = None,
        resume: bool = False,
    ) -> None:
        self.path = Path(output_dir) / "checkpoint.pt"
        self.weights = Path(weights_dir or output_dir) / "model.pt"
        self.save_dict, self.validator, self.resume = dict(save_dict), validator, resume
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _model(self) -> torch.nn.Module:
        network = self.save_dict["model"]
        return getattr(network, "module", network)  # inside DistributedDataParallel

    def _load(self, engine: Engine) -> None:
        if not self.resume:
            return
        if not self.path.is_file():
            raise InputError(f"there is no checkpoint {self.path} to resume from; start without --resume")
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, item in self.save_dict.items():
            (self._model() if name == "model" else item).load_state_dict(state[name])
        wanted = engine.state.max_epochs
        engine.load_state_dict(state["trainer"])
        engine.state.max_epochs = wanted
        if engine.state.epoch >= wanted:
            raise InputError(f"{self.path} has all of its {engine.state.epoch} epochs; raise --max_epochs to go on")
        if self.validator is not None:
            self.validator.state.best_metric = state["best_metric"]
            self.validator.state.best_metric_epoch = state["best_metric_epoch"]
        self.logger.info("resumed from %s after epoch %d", self.path, engine.state.epoch)

    def _save(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        state = {n: (self._model() if n == "model" else item).state_dict() for n, item in self.save_dict.items()}
        state["trainer"] = dict(engine.state_dict())
        metric, epoch = -1.0, engine.state.epoch
        if self.validator is not None:
            metric, epoch = float(self.validator.state.best_metric), int(self.validator.state.best_metric_epoch)
        save_atomically({**state, "best_metric": metric, "best_metric_epoch": epoch}, self.path)
        if epoch == engine.state.epoch:
            save_atomically(self._model().state_dict(), self.weights)
