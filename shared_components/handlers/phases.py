"""Trainings that go through phases: which one an epoch belongs to, and its learning rate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
