r"""How alike two images are, as losses to be minimised.

Images are (B, C, *spatial), masks (B, 1, *spatial) in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _moments(fixed: Tensor, moved: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    axes = tuple(range(1, fixed.ndim))
    if mask is None:
        weight = torch.full((1,), 1.0 / fixed[0].numel(), dtype=fixed.dtype, device=fixed.device)
    else:
        mask = mask.expand_as(fixed)
        weight = mask / mask.sum(axes, keepdim=True).clamp_min(torch.finfo(fixed.dtype).eps)
    fixed = fixed - (weight * fixed).sum(axes, keepdim=True)
    moved = moved - (weight * moved).sum(axes, keepdim=True)
    return (weight * fixed * moved).sum(axes), (weight * fixed * fixed).sum(axes), (weight * moved * moved).sum(axes)


def correlation_loss(fixed: Tensor, moved: Tensor, mask: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    """Return 1 - correlation coefficient, mean over the batch: 0 for moved = a fixed + b with a > 0, 2 for a < 0.

    VTN eq. 5-7; ``epsilon`` is added to both variances, so constant images give 1 and a finite gradient.
    """
    fixed, moved = (
        fixed.float() if fixed.dtype.itemsize < 4 else fixed,
        moved.to(torch.promote_types(moved.dtype, torch.float32)),
    )
    cov, var_fixed, var_moved = _moments(fixed, moved, mask)
    return (1 - cov / ((var_fixed + epsilon) * (var_moved + epsilon)).sqrt()).mean()


def mse_loss(fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean squared difference, weighted by ``mask``, mean over the batch."""
    square = (fixed - moved) ** 2
    if mask is None:
        return square.mean()
    mask = mask.expand_as(square)
    axes = tuple(range(1, square.ndim))
    return ((mask * square).sum(axes) / mask.sum(axes).clamp_min(torch.finfo(square.dtype).eps)).mean()


def _box_axis(x: Tensor, radius: int, axis: int) -> Tensor:
    """Sum over 2 radius + 1 neighbours along one axis by doubling: log2 additions, no cancellation, zeros outside."""
    width = 2 * radius + 1
    n = x.shape[axis]
    pad = list(x.shape)
    pad[axis] = radius
    zeros = x.new_zeros(pad)
    part = torch.cat([zeros, x, zeros], axis)
    total, offset, span = None, 0, 1
    while width:
        if width & 1:
            piece = part.narrow(axis, offset, n)
            total = piece if total is None else total + piece
            offset += span
        width >>= 1
        if width:
            length = part.shape[axis] - span
            part = part.narrow(axis, 0, length) + part.narrow(axis, span, length)
            span *= 2
    return total


class _BoxSum(torch.autograd.Function):
    """A symmetric window with zeros outside is its own adjoint, so the gradient is the same filter again."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        for axis in range(2, x.ndim):
            x = _box_axis(x, radius, axis)
        return x

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return _BoxSum.apply(grad, ctx.radius), None


def box_sum(x: Tensor, radius: int) -> Tensor:
    """Return the sum over the (2 radius + 1)**D window around each voxel, (B, C, *spatial), zeros outside.

    Example:
        >>> box_sum(torch.ones(1, 1, 3, 3), 1)[0, 0].tolist()
        [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    return _BoxSum.apply(x, radius)


class LocalNCC(nn.Module):
    """Local normalised cross-correlation as a loss in [0, 1]: 1 - mean over voxels of squared local correlation.

    Windows are boxes of 2 ``radius`` + 1 voxels cut at the border (their true size is used, not zero padding).
    Inputs should be scaled to about [0, 1]; ``epsilon`` (intensity variance) keeps flat windows at correlation 0.
    ``fixed_statistics`` may be kept and handed in again when one fixed image meets many moved ones.
    """

    def __init__(self, radius: int = 4, epsilon: float = 1e-5) -> None:
        super().__init__()
        if radius < 1:
            raise ValueError(f"radius must be at least 1 voxel, got {radius}")
        self.radius, self.epsilon = radius, epsilon

    def fixed_statistics(self, fixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (1 / window size, local mean, local variance) of an image."""
        fixed = fixed.to(torch.promote_types(fixed.dtype, torch.float32))
        weight = 1.0 / box_sum(torch.ones_like(fixed[:1, :1]), self.radius)
        mean = box_sum(fixed, self.radius) * weight
        return weight, mean, (box_sum(fixed * fixed, self.radius) * weight - mean * mean).clamp_min(0)

    def forward(
        self,
        fixed: Tensor,
        moved: Tensor,
        mask: Tensor | None = None,
        statistics: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return the scalar loss; ``mask`` (B, 1, *spatial) says whose windows count."""
        with torch.autocast(fixed.device.type, enabled=False):
            fixed = fixed.to(torch.promote_types(fixed.dtype, torch.float32))
            moved = moved.to(torch.promote_types(moved.dtype, torch.float32))
            weight, mean_f, var_f = statistics if statistics is not None else self.fixed_statistics(fixed)
            mean_m = box_sum(moved, self.radius) * weight
            var_m = (box_sum(moved * moved, self.radius) * weight - mean_m * mean_m).clamp_min(0)
            cross = box_sum(fixed * moved, self.radius) * weight - mean_f * mean_m
            squared = cross * cross / ((var_f + self.epsilon) * (var_m + self.epsilon))
            if mask is None:
                return 1 - squared.mean()
            mask = mask.to(squared.dtype).expand_as(squared)
            axes = tuple(range(1, squared.ndim))
            return 1 - ((mask * squared).sum(axes) / mask.sum(axes).clamp_min(1e-6)).mean()


class GlobalNCC(nn.Module):
    """``correlation_loss`` as a module."""

    def forward(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the scalar loss."""
        return correlation_loss(fixed, moved, mask)


class MeanSquares(nn.Module):
    """``mse_loss`` as a module."""

    def forward(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the scalar loss."""
        return mse_loss(fixed, moved, mask)


def make_similarity(name: str, radius: int = 4) -> nn.Module:
    """Return the loss called ``name``: "cc" (global correlation), "lncc" (local, window 2 radius + 1) or "mse".

    Raises:
        ValueError: for another name.
    """
    makers = {"cc": GlobalNCC, "lncc": lambda: LocalNCC(radius), "mse": MeanSquares}
    if name not in makers:
        raise ValueError(f"similarity must be one of {sorted(makers)}, got '{name}'")
    return makers[name]()
