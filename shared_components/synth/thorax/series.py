"""A slice brought to life: frames, true fields and landmarks of a breathing thorax."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..intensities import add_rician_noise, bias_field
from .breath import Breath, breathing_states
from .motion import Motion
from .slices import Thorax

AMPLITUDES = (10.0, 25.0)  # of the dome, voxels of 256 rows
_STEEPEST = 0.75  # beyond, lung would be pressed to a quarter of its height


@dataclass(frozen=True)
class Look:
    """What the scanner adds.

    Attributes:
        noise: standard deviation of the Rician noise; brightness is in [0, 1].
        bias: bound on the logarithm of the coil's sensitivity, which does not move.
        swelling: how much of its brightness the parenchyma loses from expiration to inspiration, below 1.
        gamma: log of a power that changes the contrast, drawn within this bound.
    """

    noise: float = 0.02
    bias: float = 0.35
    swelling: float = 0.4
    gamma: float = 0.15


PLAIN = Look(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class BreathingSeries:
    """A 2-D + t series with its truth.

    Attributes:
        frames: (T, 1, H, W) float32 in [0, 1].
        landmarks: (T, N, 2) float64, row and column in voxels, in every frame.
        landmark_labels: N labels, see ``LABELS``: 2 lung, 4 liver, others.
        motion: the truth; ``ddf(fixed, moving)`` and more.
        signal: (T,) float64, how full the lungs are: 0 after expiration, about 1 after inspiration.
        amplitude: of the dome from expiration to inspiration, voxels.
        thorax: the slice that is animated.
    """

    frames: Tensor
    landmarks: Tensor
    landmark_labels: tuple[int, ...]
    motion: Motion
    signal: Tensor
    amplitude: float
    thorax: Thorax = field(repr=False)

    def ddf(self, fixed: int, moving: int) -> Tensor:
        """Return the true field (1, 2, H, W), voxels, pull-back: x in frame ``fixed`` is x + ddf(x) in ``moving``."""
        return self.motion.ddf(fixed, moving)

    def labels(self, frame: int) -> Tensor:
        """Return the labels (1, 1, H, W) uint8 of a frame, see ``LABELS``."""
        return self.thorax.labels(self.motion, frame)


def breathing_series(
    thorax: Thorax,
    frames: int,
    generator: torch.Generator,
    amplitude: float | None = None,
    breath: Breath | None = None,
    look: Look | None = None,
) -> BreathingSeries:
    """Animate a slice over breathing cycles.

    Args:
        thorax: the slice.
        frames: T.
        generator: the only source of randomness; bias field, contrast and noise are drawn from it as well.
        amplitude: of the diaphragm's dome from expiration to inspiration, voxels; drawn from 10 to 25 at 256 rows,
            less where a slice is too shallow for that.
        breath: rhythm; default as ``Breath``.
        look: what the scanner adds; ``PLAIN`` for nothing, so that frames agree under the true field.

    Raises:
        ValueError: the given amplitude is so large that lung would be pressed flat.
    """
    breath, look = breath or Breath(), look or Look()
    unit = thorax.size[0] / 256
    drawn = amplitude is None
    if amplitude is None:
        low, high = AMPLITUDES
        amplitude = unit * (low + (high - low) * float(torch.rand((), generator=generator)))
    states, signal = breathing_states(frames, breath, amplitude, thorax.reference, generator)
    steepest = max(part.steepest(float(states[:, 0].abs().max())) for part in thorax.compartments)
    if steepest > _STEEPEST and drawn:  # a shallow slice: breathe as deep as it allows
        amplitude *= _STEEPEST / steepest
        states[:, 0] *= _STEEPEST / steepest
    elif steepest > _STEEPEST:
        raise ValueError(
            f"an amplitude of {amplitude:.1f} voxels presses the lung to {1 - steepest:.0%} of its height; "
            f"ask for at most {amplitude * _STEEPEST / steepest:.1f}"
        )
    motion = Motion(thorax.compartments, thorax.pulse, states, thorax.size)
    swelling = -look.swelling * (signal - thorax.reference) / max(1 - look.swelling * thorax.reference, 0.1)
    clean = torch.cat([thorax.render(motion, t, float(swelling[t])) for t in range(frames)])
    return BreathingSeries(
        frames=_seen(clean, look, generator),
        landmarks=motion.track(thorax.landmarks),
        landmark_labels=thorax.landmark_labels,
        motion=motion,
        signal=signal,
        amplitude=float(amplitude),
        thorax=thorax,
    )


def _seen(clean: Tensor, look: Look, generator: torch.Generator) -> Tensor:
    """Return what the scanner shows of pictures (T, 1, H, W): one coil, one contrast and one scale for the series."""
    power = torch.exp(look.gamma * (2 * torch.rand((), generator=generator) - 1))
    bias = bias_field(clean.shape[2:], generator, strength=look.bias, control_points=3)
    seen = clean.clamp_min(0) ** power * bias
    seen = seen * (0.85 / torch.quantile(seen[0].flatten(), 0.995).clamp_min(1e-6))
    return (add_rician_noise(seen, look.noise, generator) if look.noise > 0 else seen).clamp(0, 1)
