"""Checkpoints: read without executing anything, safe against a kill at any moment, gone on from to the bit."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LambdaLR

from .errors import InputError
from .images.files import sha256_of

SUMS = "SHA256SUMS"  # of released weights, beside them, as the command sha256sum writes it


def read_tensors(path: str | Path, what: str = "weights") -> Any:
    """Read what ``torch.save`` wrote with ``weights_only=True``: tensors, numbers and texts, never code.

    Where a ``SHA256SUMS`` lies beside the file and names it, its bytes must be those.

    Args:
        path: of the file.
        what: its role in words.

    Raises:
        InputError: not such a file, or not the one that was released.
    """
    path = Path(path)
    wanted = released_sums(path.parent).get(path.name)
    if wanted is not None and sha256_of(path) != wanted:
        raise InputError(
            f"{what} {path} are not those that were released (sha256 {sha256_of(path)[:12]}... instead of "
            f"{wanted[:12]}... in {SUMS}); get the file again, or, if you put your own there, take its line out"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a broken or hostile file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{what} {path} cannot be read as a plain state dict ({reason}); get the file again") from None


def released_sums(folder: Path) -> dict[str, str]:
    """Return {name: sha256} of SHA256SUMS; empty where there is none."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name.lstrip(" *"): digest for digest, _, name in (line.partition(" ") for line in lines)}


def _forget_sum(path: Path) -> None:
    """Weights of one's own take the place of released ones."""
    known = released_sums(path.parent)
    if known.pop(path.name, None) is not None:
        (path.parent / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in known.items()))


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

    def _clean(self) -> None:
        """Remove what a process that was killed left half written; nobody else trains into the same folder."""
        for path in (self.path, self.weights):
            for left in path.parent.glob(f".{path.name}.*.tmp"):
                left.unlink(missing_ok=True)

    def _load(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            self._clean()
        if not self.resume:
            return
        if not self.path.is_file():
            raise InputError(f"there is no checkpoint {self.path} to resume from; start without --resume")
        state, wanted = read_tensors(self.path, "checkpoint"), engine.state.max_epochs
        try:
            for name, item in self.save_dict.items():
                (self._model() if name == "model" else item).load_state_dict(state[name])
            engine.load_state_dict(state["trainer"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            raise InputError(
                f"checkpoint {self.path} is of another training than the configuration describes; resume with the "
                "settings that it began with, or start without --resume"
            ) from None
        engine.state.max_epochs = wanted
        if engine.state.epoch >= wanted:
            raise InputError(f"{self.path} has all of its {engine.state.epoch} epochs; raise --max_epochs to go on")
        for item in self.save_dict.values():
            _set_rates(item)
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
            _forget_sum(self.weights)
            save_atomically(self._model().state_dict(), self.weights)


def _set_rates(item: Any) -> None:
    """Let a schedule that was made for another number of epochs than the checkpoint's say the rate of this epoch."""
    if isinstance(item, LambdaLR):
        pairs = zip(item.base_lrs, item.lr_lambdas, strict=True)
        item._last_lr = [base * factor(item.last_epoch) for base, factor in pairs]
        for group, rate in zip(item.optimizer.param_groups, item._last_lr, strict=True):
            group["lr"] = rate
