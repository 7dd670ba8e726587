r"""How alike two images are, as losses to be minimised.

Images are (B, C, *spatial), masks (B, 1, *spatial) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .features import MindLoss
from .mk_lncc import MultiKernelLNCC


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


def correlation_of_parts(parts: Iterable[tuple[Tensor, Tensor, Tensor]], epsilon: float = 1e-6) -> float:
    """Return the correlation of two images that come in parts, fixed, moved and a bool mask each, in double precision.

    It is 1 - ``correlation_loss``.
    """
    count, means, covariance = 0, torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for fixed, moved, chosen in parts:
        values = torch.stack([fixed[chosen], moved[chosen]]).double()
        more = values.shape[1]
        if more:
            mean = values.mean(1)
            values, away, count = values - mean[:, None], mean - means, count + more
            covariance += values @ values.T + torch.outer(away, away) * ((count - more) * more / count)
            means += away * (more / count)
    cov = covariance / max(count, 1)
    return float(cov[0, 1] / ((cov[0, 0] + epsilon) * (cov[1, 1] + epsilon)).sqrt())


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


class _SquaredCorrelation(torch.autograd.Function):
    """Map of squared local correlation, cov^2 / ((var_fixed + epsilon) (var_moved + epsilon)), and its gradients.

    With <.> the mean over a window, cov = <f m> - <f><m> and var = <m m> - <m>^2, so a gradient with respect to these
    is one with respect to three windowed means, and comes back to the voxels through the same windows. Written out as
    autograd walks through memory twice as often.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        fixed: Tensor,
        moved: Tensor,
        statistics: tuple[Tensor, Tensor, Tensor],
        radius: int,
        epsilon: float,
    ) -> Tensor:
        weight, mean_f, var_f = statistics
        mean_m = _BoxSum.apply(moved, radius).mul_(weight)
        var_m = _BoxSum.apply(moved * moved, radius).mul_(weight).addcmul_(mean_m, mean_m, value=-1)
        cross = _BoxSum.apply(fixed * moved, radius).mul_(weight).addcmul_(mean_f, mean_m, value=-1)
        var_m, var_f = var_m.clamp_min_(0).add_(epsilon), var_f + epsilon
        slope = cross / (var_f * var_m)
        ctx.save_for_backward(fixed, moved, weight, mean_f, mean_m, var_f, var_m, slope, cross)
        ctx.radius, ctx.epsilon = radius, epsilon
        return slope * cross

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        fixed, moved, weight, mean_f, mean_m, var_f, var_m, slope, cross = ctx.saved_tensors
        half = (grad * slope).mul_(weight)  # of the gradient with respect to cov
        inner = _BoxSum.apply(half, ctx.radius)

        def with_respect_to(x: Tensor, other: Tensor, mean: Tensor, mean_other: Tensor, var: Tensor) -> Tensor:
            own = (half * cross).div_(var).mul_(var > ctx.epsilon)  # a variance clamped at 0 has no gradient
            edge = (own * mean).addcmul_(half, mean_other, value=-1)
            total = (other * inner).addcmul_(x, _BoxSum.apply(own, ctx.radius), value=-1)
            return total.add_(_BoxSum.apply(edge, ctx.radius)).mul_(2)

        grad_fixed = with_respect_to(fixed, moved, mean_f, mean_m, var_f) if ctx.needs_input_grad[0] else None
        grad_moved = with_respect_to(moved, fixed, mean_m, mean_f, var_m) if ctx.needs_input_grad[1] else None
        return grad_fixed, grad_moved, None, None, None


class LocalNCC(nn.Module):
    """Local normalised cross-correlation as a loss in [0, 1]: 1 - mean over voxels of squared local correlation.

    Windows are boxes of 2 ``radius`` + 1 voxels cut at the border (their true size is used, not zero padding).
    Inputs should be scaled to about [0, 1]; ``epsilon`` (intensity variance) keeps flat windows at correlation 0.
    ``fixed_statistics`` may be kept and handed in again when one fixed image meets many moved ones.

    Args:
        radius: of the window, in voxels.
        epsilon: added to the variances.
        sharpness: None, or a small number d: each window's squared correlation s then costs
            log((1 + d - s) / d) / log((1 + d) / d) instead of 1 - s, again from 1 at s = 0 to 0 at s = 1. Its slope
            grows towards s = 1, like that of mutual information of Gaussians (d = 0), so windows that nearly match
            are pulled in to the last, where 1 - s lets go.
    """

    def __init__(self, radius: int = 4, epsilon: float = 1e-5, sharpness: float | None = None) -> None:
        super().__init__()
        if radius < 1:
            raise ValueError(f"radius must be at least 1 voxel, got {radius}")
        self.radius, self.epsilon, self.sharpness = radius, epsilon, sharpness

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
            if statistics is None:
                with torch.no_grad():
                    statistics = self.fixed_statistics(fixed)
            gain = self._gain(_SquaredCorrelation.apply(fixed, moved, statistics, self.radius, self.epsilon))
            if mask is None:
                return 1 - gain.mean()
            mask = mask.to(gain.dtype).expand_as(gain)
            axes = tuple(range(1, gain.ndim))
            return 1 - ((mask * gain).sum(axes) / mask.sum(axes).clamp_min(1e-6)).mean()

    def _gain(self, squared: Tensor) -> Tensor:
        if self.sharpness is None:
            return squared
        scale = 1 / (1 + self.sharpness)
        return torch.log1p(-scale * squared) * (1 / math.log1p(-scale))


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
    """Return the loss called ``name``.

    Args:
        name: "cc" (global correlation), "lncc" (squared local correlation), "sharp_lncc" (the same with sharpness
            0.05), "mk_lncc" (windows of several sizes that follow the grid), "mse", "mind" (mean squares of MIND-SSC,
            for images of two kinds; the radius is its own).
        radius: of local windows, in voxels.

    Raises:
        ValueError: for another name.
    """
    makers = {
        "cc": GlobalNCC,
        "lncc": lambda: LocalNCC(radius),
        "sharp_lncc": lambda: LocalNCC(radius, sharpness=0.05),
        "mk_lncc": MultiKernelLNCC,
        "mse": MeanSquares,
        "mind": MindLoss,
    }
    if name not in makers:
        raise ValueError(f"similarity must be one of {sorted(makers)}, got '{name}'")
    return makers[name]()


@runtime_checkable
class KeepsStatistics(Protocol):
    """A similarity that can be told what it already knows about the fixed image.

    It is called as ``similarity(fixed, moved, mask, statistics=similarity.fixed_statistics(fixed))``.
    """

    def fixed_statistics(self, fixed: Tensor) -> Any:
        """Return what depends on the fixed image alone."""
        ...


def against(similarity: nn.Module, fixed: Tensor, mask: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Return the loss as a function of the moved image alone; what the fixed image gives is computed once.

    Example:
        >>> fixed = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> float(against(MeanSquares(), fixed)(fixed))
        0.0
    """
    if not isinstance(similarity, KeepsStatistics):
        return lambda moved: similarity(fixed, moved, mask)
    with torch.no_grad():
        statistics = similarity.fixed_statistics(fixed)
    return lambda moved: similarity(fixed, moved, mask, statistics=statistics)
