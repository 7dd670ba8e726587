"""Successive training: one learned step after the other, then, if asked, all of them together."""

from __future__ import annotations

import math
from typing import Any

import torch
from ignite.engine import Engine, Events

from shared_components.engines import PrepareInference

from .network import MetaAffine


class SuccessiveLayers:
    """Ignite handler: ``epochs`` epochs for each step alone, all others frozen; whatever is left trains all together.

    The linear layers, which all steps share, learn only where all steps do: what they learn with a later step would
    undo the earlier ones. While step k is trained the network stops behind it; the authors' code runs the steps that
    follow as well, which do next to nothing yet. Each phase has a fresh Adam and its own half cosine of the rate.

    Args:
        network: a ``MetaAffine``, or what wraps it for distributed training.
        optimizer: of all its parameters.
        epochs: a step; 30 in the authors' code. 0 trains all steps together from the beginning.
        learning_rate: at the beginning of each phase.
        joint_rate: at the beginning of the last phase.
        constant: keep the rate, as the paper does, instead of lowering it.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        epochs: int = 30,
        learning_rate: float = 0.005,
        joint_rate: float = 0.001,
        constant: bool = False,
    ) -> None:
        self.network: MetaAffine = getattr(network, "module", network)
        self.optimizer, self.epochs, self.constant = optimizer, epochs, constant
        self.rates = learning_rate, joint_rate

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before its checkpoint handler, so that a resumed run sets its phase first."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        engine.add_event_handler(Events.ITERATION_STARTED, self.set_rate)

    def phase(self, epoch: int) -> tuple[int | None, int, int]:
        """Return the step trained in an epoch (from 1 on; None: all), the epoch within its phase (from 0), its length.

        The length of the last phase is 0 here: it ends with the training.
        """
        steps = len(self.network.steps)
        if epoch > steps * self.epochs:
            return None, epoch - 1 - steps * self.epochs, 0
        return (epoch - 1) // self.epochs, (epoch - 1) % self.epochs, self.epochs

    def start_epoch(self, engine: Engine) -> None:
        """Freeze and thaw; forget Adam's moments where a phase begins."""
        step, within, _ = self.phase(engine.state.epoch)
        for index, cell in enumerate(self.network.steps):
            cell.requires_grad_(step is None or index == step)
        for layer in (self.network.inward, self.network.outward):
            layer.requires_grad_(step is None and self.network.linear == "trainable")
        self.network.active = len(self.network.steps) if step is None else step + 1
        if within == 0:
            self.optimizer.state.clear()
        self.optimizer.zero_grad(set_to_none=True)

    def set_rate(self, engine: Engine) -> None:
        """Set the learning rate of this iteration."""
        step, within, length = self.phase(engine.state.epoch)
        if step is None:
            length = engine.state.max_epochs - len(self.network.steps) * self.epochs
        per_epoch = engine.state.epoch_length
        done = within * per_epoch + (engine.state.iteration - 1) % per_epoch
        factor = 1.0 if self.constant else 0.5 * (1 + math.cos(math.pi * done / (length * per_epoch)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rates[step is None] * factor


class PrepareSamples(PrepareInference):
    """Batch -> (image, true parameters, (), {"return_stages": True}) for MONAI's engines."""

    def __call__(
        self, batch: dict, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple:
        """Return inputs, targets, args and kwargs of the network call."""
        image = batch["image"].to(device, non_blocking=non_blocking)
        return image, batch["truth"].to(device, non_blocking=non_blocking), (), {"return_stages": True}
