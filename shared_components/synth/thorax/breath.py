"""The rhythm of a series: how far the diaphragm is down, how the middle sways, where the heart is in its beat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Breath:
    """How somebody breathes.

    Attributes:
        period: frames a cycle; the paper's series have about 21.
        variation: standard deviation of the logarithm of amplitude and period, cycle by cycle.
        drift: how far the end of expiration wanders over the series, in amplitudes.
        sharpness: n of the cos^2n of a cycle: 1 is a sine, more stays longer at the end of expiration.
        sway: sideways motion of the middle at full lift, in shares of the width, between -0.3 and 0.3.
        pulsation: how much the heart's middle shrinks in systole, below 0.5.
        heart_period: frames a heart beat.
    """

    period: float = 21.0
    variation: float = 0.12
    drift: float = 0.1
    sharpness: float = 1.5
    sway: float = 0.04
    pulsation: float = 0.1
    heart_period: float = 3.7


def draw_breath(generator: torch.Generator) -> Breath:
    """Return the way in which a random subject breathes."""
    u = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    return Breath(
        period=16 + 12 * u[0],
        variation=0.06 + 0.12 * u[1],
        drift=0.25 * u[2],
        sharpness=1 + 1.5 * u[3],
        sway=0.06 * u[4],
    )


def respiratory_signal(frames: int, breath: Breath, generator: torch.Generator) -> Tensor:
    """Return how full the lungs are in every frame, (frames,) float64: 0 after expiration, about 1 after inspiration.

    Each cycle is cos^2n of its phase (Lujan et al. 1999) times an amplitude of its own, after a period of its own; the
    series begins at a random phase unless ``variation`` is 0, when it begins at the end of expiration.
    """
    cycles = int(math.ceil(frames / breath.period * math.exp(3 * breath.variation))) + 2
    normal = torch.randn(2, cycles, generator=generator, dtype=torch.float64).clamp(-2, 2)
    amplitude, period = torch.exp(breath.variation * normal).unbind()
    begin = torch.rand((), generator=generator, dtype=torch.float64) if breath.variation else torch.zeros(())
    edges = torch.cat([torch.zeros(1), (breath.period * period).cumsum(0)]).to(torch.float64)
    time = torch.arange(frames, dtype=torch.float64) + begin * edges[1]
    cycle = (torch.searchsorted(edges, time, right=True) - 1).clamp(0, cycles - 1)
    phase = (time - edges[cycle]) / (edges[cycle + 1] - edges[cycle])
    depth = torch.sin(math.pi * phase).abs() ** (2 * breath.sharpness) * amplitude[cycle]
    sign = 1 if torch.rand((), generator=generator) < 0.5 else -1
    return depth + sign * breath.drift * torch.linspace(0, 1, frames, dtype=torch.float64)


def breathing_states(
    frames: int, breath: Breath, amplitude: float, reference: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the states (frames, 3) of a ``Motion`` and the respiratory signal (frames,).

    Args:
        frames: T.
        breath: how to breathe.
        amplitude: of the dome from expiration to inspiration, voxels.
        reference: fullness of the slice that is animated, where the states are zero.
        generator: the only source of randomness.
    """
    signal = respiratory_signal(frames, breath, generator)
    phase = torch.rand((), generator=generator, dtype=torch.float64)
    sign = 1 if torch.rand((), generator=generator) < 0.5 else -1
    lag = torch.roll(signal, 2)  # the chest follows the diaphragm: out and back on different ways
    lag[:2] = signal[:1]
    beat = torch.arange(frames, dtype=torch.float64) / breath.heart_period + phase
    systole = -breath.pulsation * (0.5 - 0.5 * torch.cos(2 * math.pi * beat))
    states = torch.stack([amplitude * (signal - reference), sign * breath.sway * (lag - reference), systole], 1)
    return states, signal
