"""Uniform cubic B-splines, evaluated axis by axis as small matrix products.

With S spans along an axis of n voxels the control points sit at 0 ... S spans plus one before and one after, and the
(n, S + 3) weights of an axis are sparse, positive and sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def spline_weights(length: int, spans: int, last: float | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the cubic B-spline weights (length, spans + 3) of one axis: values = weights @ control points.

    Args:
        length: number of voxels.
        spans: number of intervals between control points over the axis.
        last: position of the last voxel in spans; by default ``spans``, so that the voxels reach from the first control
            point inside to the last one.
        dtype: of the weights.
    """
    last = spans if last is None else last
    position = torch.linspace(0, last, length, dtype=torch.float64)
    knot = torch.arange(-1, spans + 2, dtype=torch.float64)
    away = (position[:, None] - knot[None, :]).abs()
    near = 2 / 3 - away**2 + away**3 / 2
    far = (2 - away).clamp_min(0) ** 3 / 6
    return torch.where(away < 1, near, far).to(dtype)


def evaluate_spline(control: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the tensor-product spline (B, C, *shape) of control points (B, C, *m); weights[k] is (shape[k], m[k])."""
    for weight in weights:  # contracts the first spatial axis and appends the new one: after D turns the order is back
        control = torch.tensordot(control, weight.to(control), dims=([2], [1]))
    return control.contiguous()
