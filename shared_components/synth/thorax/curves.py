"""Smooth functions of one variable: uniform cubic B-splines that can be evaluated anywhere and written as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter1d
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Curve:
    """A cubic B-spline on [first, first + (M - 3) * step], constant in value beyond.

    Attributes:
        first: where it begins.
        step: distance of its knots.
        control: (M,) float64, M >= 4; control point k sits at first + (k - 1) * step.
    """

    first: float
    step: float
    control: Tensor

    def __call__(self, at: Tensor) -> Tensor:
        """Return the values at any positions, float64, in the shape of ``at``."""
        spans = len(self.control) - 3
        position = ((at.to(torch.float64) - self.first) / self.step).clamp(0, spans)
        knot = position.floor().clamp_max(spans - 1)
        t = position - knot
        rows = self._polynomials().to(at.device)[knot.long()]
        return ((rows[..., 3] * t + rows[..., 2]) * t + rows[..., 1]) * t + rows[..., 0]

    def _polynomials(self) -> Tensor:
        """(M - 3, 4) coefficients of 1, t, t^2, t^3 in every span: one gather a point instead of four."""
        a, b, c, d = (self.control[k : len(self.control) - 3 + k] for k in range(4))
        return torch.stack([a + 4 * b + c, 3 * (c - a), 3 * (a - 2 * b + c), d - a + 3 * (b - c)], 1) / 6

    def to_dict(self) -> dict[str, Any]:
        """Return its numbers, which JSON keeps exactly."""
        return {"first": self.first, "step": self.step, "control": self.control.tolist()}

    @classmethod
    def from_dict(cls, numbers: dict[str, Any]) -> Curve:
        """Return the curve that ``to_dict`` wrote."""
        return cls(numbers["first"], numbers["step"], torch.tensor(numbers["control"], dtype=torch.float64))


def curve_through(knots: Sequence[Sequence[float]], step: float, scale: tuple[float, float] = (1.0, 1.0)) -> Curve:
    """Return a smooth curve close to (position, value) ``knots`` without overshoot, rounded at the scale of ``step``.

    Args:
        knots: (K, 2), positions increasing; between them a monotone cubic (PCHIP).
        step: distance of the curve's own knots, in positions.
        scale: factors on positions and values of the result.
    """
    table = np.asarray(knots, dtype=np.float64)
    spans = max(1, int(np.ceil((table[-1, 0] - table[0, 0]) / step)))
    step = (table[-1, 0] - table[0, 0]) / spans
    at = (table[0, 0] + step * np.arange(-1, spans + 2)).clip(table[0, 0], table[-1, 0])
    control = torch.from_numpy(PchipInterpolator(table[:, 0], table[:, 1])(at) * scale[1])
    return Curve(float(table[0, 0] * scale[0]), float(step * scale[0]), control)


def curve_of_samples(values: np.ndarray, first: float, spacing: float, step: float) -> Curve:
    """Return a smooth curve close to evenly spaced samples; NaN is filled from its neighbours.

    Args:
        values: (K,) at first, first + spacing, ...
        first: position of the first sample.
        spacing: distance of the samples.
        step: distance of the curve's knots; detail below it is smoothed away.

    Raises:
        ValueError: fewer than two samples are numbers.
    """
    at = first + spacing * np.arange(len(values))
    known = np.isfinite(values)
    if known.sum() < 2:
        raise ValueError("a curve needs at least two samples that are numbers")
    whole = np.interp(at, at[known], np.asarray(values, dtype=np.float64)[known])
    smooth = gaussian_filter1d(whole, 0.5 * step / spacing, mode="nearest")
    return curve_through(np.stack([at, smooth], 1), step)
