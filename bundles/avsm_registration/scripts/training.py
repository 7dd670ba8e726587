"""Four phases in one training: one affine step, several, one vSVF step with the affine part frozen, several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor

from shared_components.checkpoints import save_atomically
from shared_components.handlers import PhaseRates, phase_of

from .losses import AVSMLoss
from .network import AVSM


@dataclass(frozen=True)
class Phase:
    """Steps of both parts in a phase; where the vSVF has steps the affine part is frozen."""

    affine_steps: int
    velocity_steps: int

    def options(self) -> dict[str, Any]:
        """Return the arguments of the network call."""
        return vars(self) | {"frozen_affine": self.velocity_steps > 0}


def make_phases(training_affine_steps: int, affine_steps: int, velocity_steps: int) -> tuple[Phase, ...]:
    """Return the four phases.

    Args:
        training_affine_steps: of the second phase; 3 or 5 in the paper.
        affine_steps: of the frozen affine part; 7 in the paper.
        velocity_steps: of the last phase; 2 in the paper.
    """
    return Phase(1, 0), Phase(training_affine_steps, 0), Phase(affine_steps, 1), Phase(affine_steps, velocity_steps)


class PreparePhases:
    """Batch -> (image, targets, (), kwargs) of the phase that runs; ``Phases`` sets it.

    Args:
        symmetric: register both orders of each pair: the batch doubles, its second half has fixed and moving swapped.
    """

    def __init__(self, symmetric: bool = True) -> None:
        self.symmetric = symmetric
        self.phase = Phase(1, 0)

    def __call__(
        self, batch: dict, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor], tuple, dict[str, Any]]:
        """Return inputs, targets, args and kwargs of the network call."""
        image = batch["image"].to(device, non_blocking=non_blocking)
        image = torch.cat([image, image.flip(1)]) if self.symmetric else image
        return image, {"fixed": image[:, :1]}, (), {"return_stages": True} | self.phase.options()


class Phases:
    """Ignite handler: tells network, batches and loss which phase an epoch belongs to.

    A phase begins with a fresh optimizer and a fresh best metric, and validates with its own steps; its last weights
    are kept as ``phase1.pt`` ... ``phase4.pt``. All of it follows from the number of the epoch, so a training that is
    resumed goes on as if nothing had been.

    Args:
        network: an ``AVSM``, or what wraps it for distributed training.
        optimizer: of its parameters.
        prepare: the trainer's ``PreparePhases``.
        loss: whose lambda_ar depends on the epoch.
        phases: see ``make_phases``.
        lengths: epochs of the phases.
        scheduler: of the learning rate, which it attaches.
        validator: the evaluator whose best metric starts anew.
        weights_dir: where the weights of the phases are kept.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        prepare: PreparePhases,
        loss: AVSMLoss,
        phases: Sequence[Phase],
        lengths: Sequence[int],
        scheduler: PhaseRates | None = None,
        validator: Engine | None = None,
        weights_dir: str = ".",
    ) -> None:
        if len(phases) != len(lengths):
            raise ValueError(f"{len(phases)} phases need as many lengths, got {list(lengths)}")
        self.network: AVSM = getattr(network, "module", network)
        self.optimizer, self.prepare, self.loss, self.validator = optimizer, prepare, loss, validator
        self.scheduler = scheduler
        self.phases, self.lengths, self.folder = tuple(phases), tuple(lengths), Path(weights_dir)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start_epoch)
        if self.scheduler is not None:
            self.scheduler.attach(engine, Events.EPOCH_STARTED)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.keep)

    def start_epoch(self, engine: Engine) -> None:
        """Set everything that the epoch's phase decides."""
        number, epoch = phase_of(engine.state.epoch - 1, self.lengths)
        phase = self.prepare.phase = self.phases[number]
        self.network.affine_steps, self.network.velocity_steps = phase.affine_steps, phase.velocity_steps
        self.loss.epoch = engine.state.epoch - 1
        if epoch > 0:
            return
        self.optimizer.state.clear()
        for parameter in self.network.parameters():
            parameter.grad = None  # Adam leaves these alone; zeros would not be the same under weight decay
        if self.validator is not None:
            self.validator.state.best_metric, self.validator.state.best_metric_epoch = -1.0, -1

    def keep(self, engine: Engine) -> None:
        """Write the weights at the end of a phase."""
        number, epoch = phase_of(engine.state.epoch - 1, self.lengths)
        if epoch + 1 == self.lengths[number] and idist.get_rank() == 0:
            save_atomically(self.network.state_dict(), self.folder / f"phase{number + 1}.pt")
