r"""Multi-kernel local correlation (AVSM eq. 2 and 3) as a loss to be minimised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Window:
    """One kind of window: its weight in the sum, samples an axis, voxels between samples, voxels between windows."""

    weight: float
    size: int
    dilation: int = 1
    stride: int = 1

    @property
    def extent(self) -> int:
        """Voxels from the first to the last sample, both counted."""
        return self.dilation * (self.size - 1) + 1

    def count(self, length: int) -> int:
        """Return how many windows fit in an axis; none reaches beyond the border."""
        return max(0, (length - self.extent) // self.stride + 1)


def default_windows(shape: Sequence[int]) -> tuple[Window, ...]:
    """Return the windows of the paper's code for a grid whose shortest axis has S voxels.

    Up to 64: S/2 samples side by side. Up to 128: S/4 and S/2 samples, every other voxel, weights 0.3 and 0.7 (the
    paper's windows, at its S = 80). Beyond: S/16, S/8 and S/4, every other voxel, weights 0.1, 0.3 and 0.6. Windows lie
    a quarter of their samples apart. The paper's stride of S/4 is read as the code has it, of the window.
    """
    shortest = min(shape)
    if shortest > 128:
        kinds, dilation = ((0.1, 16), (0.3, 8), (0.6, 4)), 2
    elif shortest > 64:
        kinds, dilation = ((0.3, 4), (0.7, 2)), 2
    else:
        kinds, dilation = ((1.0, 2),), 1
    sizes = [(weight, max(1, shortest // part)) for weight, part in kinds]
    return tuple(Window(weight, size, dilation, max(1, (size + 1) // 4)) for weight, size in sizes)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Matrix products in true float32: a variance is the small difference of two sums, and TF32 would lose it."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Product(torch.autograd.Function):
    """y[..., k, ...] = sum_i matrix[k, i] x[..., i, ...] along one axis, at full precision there and back."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, matrix: Tensor, axis: int) -> Tensor:
        ctx.matrix, ctx.axis = matrix, axis
        with _full_precision():
            if axis == x.ndim - 1:
                return x @ matrix.mT
            return (matrix @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(grad.contiguous(), ctx.matrix.mT, ctx.axis), None, None


def _members(window: Window, length: int, like: Tensor) -> Tensor:
    """Return (windows, length): 1 where a voxel of an axis is a sample of a window, else 0."""
    offset = torch.arange(length, device=like.device)
    offset = offset - window.stride * torch.arange(window.count(length), device=like.device).unsqueeze(1)
    inside = (offset >= 0) & (offset < window.extent) & (offset % window.dilation == 0)
    return inside.to(like.dtype)


def window_sums(x: Tensor, windows: Sequence[Window]) -> list[Tensor]:
    """Return the sums over all windows of each kind.

    A matrix of zeros and ones along one axis after the other. All kinds share the walk along the first axis, the only
    one that sees every voxel; behind it little is left, as windows lie apart. The whole costs a few operations a voxel,
    whatever the size of the windows.

    Args:
        x: (B, C, *spatial), floating point.
        windows: the kinds; none may be larger than the grid.

    Returns:
        a tensor (B, C, *positions) for each kind.
    """
    first = [_members(w, x.shape[2], x) for w in windows]
    parts = _Product.apply(x, torch.cat(first), 2).split([len(m) for m in first], 2)
    sums = []
    for part, window in zip(parts, windows, strict=True):
        for axis in range(3, x.ndim):
            part = _Product.apply(part, _members(window, x.shape[axis], x), axis)
        sums.append(part)
    return sums


class MultiKernelLNCC(nn.Module):
    """mk-LNCC as a loss: 1 - sum_i w_i (mean correlation over windows of kind i), 0 for moved = a fixed + b.

    The paper writes a similarity that is signed; the code behind its tables squares each correlation, which also takes
    an inverted contrast for a match. Squared is the default, with a loss in [0, 1]; signed it lies in [0, 2].
    Intensities should be scaled to about [0, 1]. Windows without contrast count as correlation 0.

    Args:
        windows: the kinds of windows, weights scaled to a sum of 1; None for ``default_windows`` of each grid.
        squared: mean of cov^2 / (var var + epsilon) instead of cov / sqrt(var var + epsilon).
        epsilon: added to the product of the two sums of squares in a window.

    Example:
        >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> round(float(MultiKernelLNCC()(image, 2 * image - 1)), 5)
        0.0
    """

    def __init__(self, windows: Sequence[Window] | None = None, squared: bool = True, epsilon: float = 1e-5) -> None:
        super().__init__()
        if windows is not None and (not windows or min(min(w.size, w.dilation, w.stride) for w in windows) < 1):
            raise ValueError(f"windows need sizes, dilations and strides of 1 or more, got {windows}")
        self.windows = None if windows is None else tuple(windows)
        self.squared, self.epsilon = squared, epsilon

    def windows_for(self, shape: Sequence[int]) -> tuple[Window, ...]:
        """Return the kinds of windows for a grid.

        Raises:
            ValueError: if one does not fit in.
        """
        windows = default_windows(shape) if self.windows is None else self.windows
        for window in windows:
            if window.extent > min(shape):
                raise ValueError(f"{window} spans {window.extent} voxels, the grid {tuple(shape)} has fewer")
        return windows

    def fixed_statistics(self, fixed: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return for each kind the sums and the sums of squares about the mean, to be kept for one fixed image."""
        return self._moments(_centred(fixed), self.windows_for(fixed.shape[2:]))

    @staticmethod
    def _moments(x: Tensor, windows: tuple[Window, ...]) -> list[tuple[Tensor, Tensor]]:
        ndim = x.ndim - 2
        pairs = zip(windows, window_sums(x, windows), window_sums(x * x, windows), strict=True)
        return [(total, (square - total * total / w.size**ndim).clamp_min(0)) for w, total, square in pairs]

    def forward(
        self,
        fixed: Tensor,
        moved: Tensor,
        mask: Tensor | None = None,
        statistics: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Return the scalar loss, mean over the batch.

        Args:
            fixed: (B, C, *spatial).
            moved: as fixed.
            mask: (B, 1, *spatial) in [0, 1]; a window counts by the share of its samples inside.
            statistics: of the same fixed image, see ``fixed_statistics``.
        """
        windows = self.windows_for(fixed.shape[2:])
        with torch.autocast(fixed.device.type, enabled=False):
            fixed, moved = _centred(fixed), _centred(moved)
            statistics = self._moments(fixed, windows) if statistics is None else statistics
            rows = zip(
                windows, statistics, self._moments(moved, windows), window_sums(fixed * moved, windows), strict=True
            )
            shares = [None] * len(windows) if mask is None else window_sums(mask.to(fixed.dtype), windows)
            total = 0.0
            for (window, (sum_f, var_f), (sum_m, var_m), product), share in zip(rows, shares, strict=True):
                cov = product - sum_f * sum_m / window.size ** (fixed.ndim - 2)
                total = total + window.weight * _mean(self._correlation(cov, var_f * var_m), share)
            return 1 - total / sum(w.weight for w in windows)

    def _correlation(self, cov: Tensor, product: Tensor) -> Tensor:
        return cov * cov / (product + self.epsilon) if self.squared else cov / (product + self.epsilon).sqrt()


def _centred(x: Tensor) -> Tensor:
    """Return x less its mean, single precision at least: correlation does not change, and sums cancel less."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x - x.detach().mean(tuple(range(2, x.ndim)), keepdim=True)


def _mean(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return x.mean()
    weight = weight.expand_as(x)
    axes = tuple(range(1, x.ndim))
    return ((weight * x).sum(axes) / weight.sum(axes).clamp_min(torch.finfo(x.dtype).eps)).mean()
