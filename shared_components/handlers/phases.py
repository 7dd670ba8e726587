"""Trainings that go through phases: which one an epoch belongs to, its learning rate, and what else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers.param_scheduler import ParamScheduler


def phase_of(epoch: int, lengths: Sequence[int]) -> tuple[int, int]:
    """Return (phase, epoch within it), all from 0; what comes after the last phase belongs to it.

    Example:
        >>> [phase_of(epoch, (2, 0, 1)) for epoch in range(4)]
        [(0, 0), (0, 1), (2, 0), (2, 1)]
    """
    for phase, length in enumerate(lengths[:-1]):
        if epoch < length:
            return phase, epoch
        epoch -= length
    return len(lengths) - 1, epoch


class PhaseRates(ParamScheduler):
    """Ignite scheduler of the learning rate, by epoch: each phase begins with its own, which is halved now and then.

    Args:
        optimizer: whose rate it sets.
        lengths: epochs of the phases.
        rates: first learning rate of each phase; 5e-4 in AVSM.
        halve_every: epochs between two halvings, from a phase's beginning; one for all phases (60 in AVSM) or one each.

    Raises:
        ValueError: where there is not one number a phase.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lengths: Sequence[int],
        rates: Sequence[float],
        halve_every: int | Sequence[int] = 60,
    ) -> None:
        super().__init__(optimizer, "lr")
        every = [halve_every] * len(lengths) if isinstance(halve_every, int) else list(halve_every)
        for what, numbers in (("learning rates", rates), ("epochs between halvings", every)):
            if len(numbers) != len(lengths):
                raise ValueError(f"{len(lengths)} phases need as many {what}, got {list(numbers)}")
        self.lengths, self.rates, self.halve_every = tuple(lengths), tuple(rates), tuple(every)

    def get_param(self) -> float:
        """Return the rate of the epoch that begins."""
        phase, epoch = phase_of(self.event_index, self.lengths)
        return self.rates[phase] * 0.5 ** (epoch // self.halve_every[phase])


class PhaseValues:
    """Set an attribute of an object at the beginning of each epoch, by phase, such as the steps of a recurrent network.

    Args:
        target: whose attribute it is.
        name: of the attribute; it must be there.
        lengths: epochs of the phases; the last one goes on.
        values: one a phase.

    Raises:
        ValueError: where there is not one value a phase, or no such attribute.
    """

    def __init__(self, target: Any, name: str, lengths: Sequence[int], values: Sequence[Any]) -> None:
        if len(values) != len(lengths):
            raise ValueError(f"{len(lengths)} phases need as many values of '{name}', got {list(values)}")
        if not hasattr(target, name):
            raise ValueError(f"a {type(target).__name__} has no '{name}' to set by phase")
        self.target, self.name, self.lengths, self.values = target, name, tuple(lengths), tuple(values)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer; resuming in the middle of a phase is no matter."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the value of the epoch that begins."""
        setattr(self.target, self.name, self.values[phase_of(engine.state.epoch - 1, self.lengths)[0]])
