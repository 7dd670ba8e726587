"""Two phases in one training: the features learn to be MIND-SSC, then to serve the descent (Blendowski, sec. 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from shared_components.checkpoints import save_atomically
from shared_components.errors import InputError

from .losses import classes_of, one_hot


class DrawTraining:
    """Augmentation of a pair that adds "draw" (1 + D,), uniform in [0, 1): all that training draws besides.

    Args:
        augment: ``augment(item, generator) -> item`` before it, such as ``AugmentPair``, or None.
    """

    def __init__(self, augment: Callable[[dict, torch.Generator], dict] | None = None) -> None:
        self.augment = augment

    def __call__(self, item: dict, generator: torch.Generator) -> dict:
        """Return the pair with its draw."""
        item = dict(item if self.augment is None else self.augment(item, generator))
        return item | {"draw": torch.rand(item["image"].ndim, generator=generator)}


class PreparePhases:
    """Batch -> (image, targets, (), kwargs) of the phase that runs.

    In the first phase: a random crop of each pair. In the second: the number of steps k_back, of which all but the last
    run on the labels, uniform in 1 ... ``max_steps`` for the batch (the paper's 0 would train nothing), and the labels.

    Args:
        labels: values of the label maps that are organs; anything else is background.
        max_steps: 15 in the paper; 1 trains the first step alone.
        crop: voxels of the first phase's crop, None for all of the image, as in the paper.
    """

    def __init__(self, labels: Sequence[int], max_steps: int = 15, crop: Sequence[int] | None = None) -> None:
        self.labels, self.max_steps, self.crop = list(labels), max_steps, crop
        self.first = True

    def __call__(
        self, batch: dict, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor], tuple, dict[str, Any]]:
        """Return inputs, targets, args and kwargs of the network call.

        Raises:
            InputError: pairs without labels in the second phase.
        """
        image, draw = batch["image"].to(device, non_blocking=non_blocking), batch["draw"]
        if self.first:
            return self._cropped(image, draw), {}, (), {"return_stages": True, "target": True}
        if "fixed_label" not in batch:
            raise InputError(
                f"pair {batch.get('name')} has no labels, which the second phase learns from; label the images, or end "
                "training with the first phase: --max_epochs as --pretrain_epochs"
            )
        classes = [classes_of(batch[f"{side}_label"].to(device), self.labels) for side in ("fixed", "moving")]
        labels = torch.stack([one_hot(one, len(self.labels) + 1) for one in classes], 1)
        steps = 1 + int(float(draw[0, 0]) * self.max_steps)
        return image, {"fixed_label": classes[0]}, (), {"return_stages": True, "labels": labels, "steps": steps}

    def _cropped(self, image: Tensor, draw: Tensor) -> Tensor:
        if self.crop is None:
            return image
        size = [min(n, wanted) for n, wanted in zip(image.shape[2:], self.crop, strict=True)]
        rooms = [n - length + 1 for n, length in zip(image.shape[2:], size, strict=True)]
        crops = []
        for one, numbers in zip(image, draw[:, 1:].tolist(), strict=True):
            for axis, (number, room, length) in enumerate(zip(numbers, rooms, size, strict=True), 1):
                one = one.narrow(axis, int(number * room), length)
            crops.append(one)
        return torch.stack(crops)


class TwoPhases:
    """Ignite handler: which phase an epoch belongs to, its learning rate, a fresh optimizer at its beginning.

    What the first phase reaches is kept as ``pretrained.pt``.

    Args:
        network: a ``SUITS``, or what wraps it for distributed training.
        optimizer: of its parameters.
        prepare: the trainer's ``PreparePhases``.
        pretrain_epochs: length of the first phase.
        rates: learning rates of the two phases; 1e-3 and 1e-5 in the paper.
        weights_dir: where ``pretrained.pt`` is kept.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        prepare: PreparePhases,
        pretrain_epochs: int,
        rates: Sequence[float] = (1e-3, 1e-5),
        weights_dir: str = ".",
    ) -> None:
        self.network, self.optimizer, self.prepare = getattr(network, "module", network), optimizer, prepare
        self.pretrain_epochs, self.rates, self.path = pretrain_epochs, tuple(rates), Path(weights_dir) / "pretrained.pt"

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.keep)

    def start_epoch(self, engine: Engine) -> None:
        """Set phase and rate; forget Adam's moments where the second phase begins."""
        self.prepare.first = engine.state.epoch <= self.pretrain_epochs
        if engine.state.epoch == self.pretrain_epochs + 1:
            self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[0 if self.prepare.first else 1]

    def keep(self, engine: Engine) -> None:
        """Write ``pretrained.pt`` at the end of the first phase."""
        if engine.state.epoch == self.pretrain_epochs and idist.get_rank() == 0:
            save_atomically(self.network.state_dict(), self.path)
