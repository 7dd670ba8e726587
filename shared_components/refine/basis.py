"""Smooth fields from the values at the nodes of a coarser grid, and the pull of regularisers on them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..similarity import box_sum


def smooth(x: Tensor) -> Tensor:
    """Return the mean over 3 neighbours along each axis, twice; windows are cut at the border. (B, C, *spatial)."""
    weight = 1.0 / box_sum(torch.ones_like(x[:1, :1]), 1)
    for _ in range(2):
        x = box_sum(x, 1) * weight
    return x


def along_axes(matrices: Sequence[Tensor], x: Tensor) -> Tensor:
    """Multiply one matrix (n_out, n_in) into each spatial axis of (B, C, *n_in); returns (B, C, *n_out).

    Example:
        >>> along_axes([torch.ones(1, 2), 2 * torch.eye(3)], torch.ones(1, 1, 2, 3))[0, 0].tolist()
        [[4.0, 4.0, 4.0]]
    """
    for axis, matrix in enumerate(matrices, 2):
        tail = x.shape[axis + 1 :]
        x = (matrix @ x.flatten(axis + 1)).unflatten(axis + 1, tail) if tail else x @ matrix.T
    return x


def _linear(n: int, nodes: int, device: torch.device) -> Tensor:
    """Linear interpolation from ``nodes`` to ``n`` points over the same extent."""
    place = torch.arange(n, device=device) * ((nodes - 1) / max(n - 1, 1))
    return (1 - (place[:, None] - torch.arange(nodes, device=device)).abs()).clamp_min(0)


class Basis:
    """Fields spanned by nodes: smoothed on the grid of nodes, then interpolated linearly, much like B-splines.

    As products of one matrix an axis the interpolation and its gradient cost a fifth of ``F.interpolate``'s.

    Args:
        shape: of the fields, in voxels.
        spacing: voxels between two nodes.
        device: of everything.
    """

    def __init__(self, shape: Sequence[int], spacing: float, device: torch.device) -> None:
        self.nodes = tuple(min(n, max(2, -(-n // spacing))) for n in shape)
        same = self.nodes == tuple(shape)
        self.matrices = None if same else [_linear(n, h, device) for n, h in zip(shape, self.nodes, strict=True)]

    def field(self, values: Tensor) -> Tensor:
        """Return the field (B, D, *shape) of the values (B, D, *nodes), in their unit."""
        values = smooth(values)
        return values if self.matrices is None else along_axes(self.matrices, values)


def diffusion_gradient(ddf: Tensor) -> Tensor:
    """Return the gradient of ``regularity.diffusion`` with respect to the field, same shape.

    Written out: a discrete Laplacian in a few passes through memory, where autograd takes several times as many.
    """
    gradient = torch.zeros_like(ddf)
    for axis in range(2, ddf.ndim):
        n = ddf.shape[axis]
        if n > 1:
            step = torch.diff(ddf, dim=axis)
            scale = 2.0 * ddf.shape[1] / ((ddf.ndim - 2) * step.numel())
            gradient.narrow(axis, 0, n - 1).sub_(step, alpha=scale)
            gradient.narrow(axis, 1, n - 1).add_(step, alpha=scale)
    return gradient


def variation_gradient(ddf: Tensor, least: float = 1e-4) -> Tensor:
    """Return the gradient of ``regularity.isotropic_variation``, same shape.

    Below a length of ``least`` it falls to zero, where the length has a kink.
    """
    steps = [_ahead(ddf, axis) - _ahead(ddf) for axis in range(2, ddf.ndim)]
    square = steps[0] * steps[0]
    for step in steps[1:]:
        square.addcmul_(step, step)
    weight = square.clamp_min_(least**2).rsqrt_().div_(square.numel())
    gradient = torch.zeros_like(ddf)
    for axis, step in enumerate(steps, 2):
        step.mul_(weight)
        _ahead(gradient, axis).add_(step)
        _ahead(gradient).sub_(step)
    return gradient


def _ahead(x: Tensor, axis: int | None = None) -> Tensor:
    """Return a view of the voxels that have a next one along every axis, or of their next ones along ``axis``."""
    for k in range(2, x.ndim):
        if x.shape[k] > 1:
            x = x.narrow(k, int(k == axis), x.shape[k] - 1)
    return x
