r"""The squared difference of two images under an affine map, and its exact gradient: f and grad f of eq. 1.

The value is f(x) = 1/2 h^D sum (T(phi_x(z)) - R(z))^2 over the grid of the fixed image R; the moving image T is
interpolated linearly and has its minimum outside its grid, into which border pixels blend.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .parameters import dimension, pixel, split

_AT_ONCE = 2**17  # samples x pixels in one go where no gradient is recorded: the temporaries stay in the cache
_FAR = 1e6  # parameters beyond it count as not finite, as their positions may be
_RING = 2  # pixels of background around the moving image: a clamped position then lies where all is flat


def normalise(image: Tensor) -> Tensor:
    """Return (B, 1, *spatial) images with zero mean and unit standard deviation; a constant one becomes 0."""
    flat = image.flatten(1)
    number = torch.finfo(flat.dtype)
    noise = (8 * number.eps * flat.abs().amax(1, keepdim=True)).clamp_min(number.tiny)  # what rounding leaves behind
    flat = flat - flat.mean(1, keepdim=True)
    deviation = flat.pow(2).mean(1, keepdim=True).sqrt()
    return (flat * (deviation > noise) / deviation.clamp_min(noise)).view_as(image)


def halved(image: Tensor, factor: int) -> Tensor:
    """Return images (B, C, *spatial) averaged over blocks of ``factor``; Omega and positions in it stay the same.

    The authors' code samples cubic splines without smoothing; a mean neither aliases nor shifts.
    """
    if factor == 1:
        return image
    return (F.avg_pool2d if image.ndim == 4 else F.avg_pool3d)(image, factor)


class AffineSSD:
    """f and grad f for a batch of pairs, in explicit steps: no autograd within, differentiable and exportable.

    Args:
        fixed: (B, 1, *spatial), float32 or float64.
        moving: likewise, on the same grid.
        starts: points of search a pair: sample s belongs to pair s // starts.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, starts: int = 1) -> None:
        self.shape = tuple(fixed.shape[2:])
        self.starts = starts
        self.fixed = fixed.flatten(1)
        low = moving.flatten(1).amin(1).view(-1, 1, *(1,) * len(self.shape))
        self.low = low.view(-1, 1)
        padded = F.pad((moving - low)[:, 0], (_RING, _RING) * len(self.shape))
        self._padded, self._strides = padded.reshape(-1), [prod(padded.shape[k:]) for k in range(1, padded.ndim + 1)]
        axes = [torch.arange(n, dtype=fixed.dtype, device=fixed.device) - (n - 1) / 2 for n in self.shape]
        self._index = [axis.view(-1, *(1,) * (len(axes) - 1 - k)) for k, axis in enumerate(axes)]
        grid = torch.meshgrid(*axes, indexing="ij")
        h = pixel(self.shape)
        self._lever = torch.stack([*(axis.reshape(-1) * h for axis in grid), torch.ones_like(grid[0]).reshape(-1)], 1)

    def __call__(self, x: Tensor, which: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return f (b,) and grad f (b, D (D + 1)); NaN where x is not finite.

        Args:
            x: (b, D (D + 1)).
            which: (b,) index of each sample among the B * starts; None for all of them in order.
        """
        parts = self._parts(x, which)
        if len(parts) == 1:
            return self._evaluate(x, which)
        return tuple(torch.cat(found) for found in zip(*(self._evaluate(*part) for part in parts), strict=True))

    def _parts(self, x: Tensor, which: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Cut a batch into pieces whose temporaries fit into the cache, unless a gradient or a trace is recorded."""
        recorded = torch.jit.is_tracing() or (torch.is_grad_enabled() and x.requires_grad)
        at_once = max(1, _AT_ONCE // len(self._lever))
        if recorded or len(x) <= at_once:
            return [(x, which)]
        which = torch.arange(len(x), device=x.device) if which is None else which
        return list(zip(x.split(at_once), which.split(at_once), strict=True))

    def _evaluate(self, x: Tensor, which: Tensor | None) -> tuple[Tensor, Tensor]:
        fixed, low, pair = self._of(x, which)
        value, slopes = self._sample(x.to(fixed.dtype), pair)
        residual = value - (fixed - low)
        volume = pixel(self.shape) ** len(self.shape)
        pulls = torch.stack([residual * slope for slope in slopes], 1) @ self._lever  # (b, D, D + 1)
        gradient = torch.cat([pulls[..., :-1].flatten(1), pulls[..., -1]], 1) * (volume / pixel(self.shape))
        return 0.5 * volume * residual.square().sum(1), gradient

    def moved(self, x: Tensor) -> Tensor:
        """Return T(phi_x), (B * starts, 1, *spatial)."""
        found = []
        for part, which in self._parts(x, None):
            _, low, pair = self._of(part, which)
            found.append(self._sample(part.to(low.dtype), pair)[0] + low)
        return torch.cat(found).view(x.shape[0], 1, *self.shape)

    def _of(self, x: Tensor, which: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return fixed image (b, N), minimum of the moving one (b, 1), NaN where x is, and pair (b,) of each sample."""
        pair = (torch.arange(x.shape[0], device=x.device) if which is None else which) // self.starts
        one_each = which is None and self.starts == 1  # no copy of the images
        fixed, low = (self.fixed, self.low) if one_each else (self.fixed[pair], self.low[pair])
        return fixed, low.masked_fill(~_usable(x), torch.nan), pair

    def _sample(self, x: Tensor, pair: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return T - min T at phi_x(z), (b, N), and its slope along each axis per pixel, D times (b, N)."""
        ndim = dimension(x)
        A, b = split(torch.where(_usable(x), x, 0.0))  # NaN would become a place outside the memory
        view = (-1, *(1,) * ndim)
        start = (pair * self._strides[0]).view(view)
        fractions = []
        for axis, n in enumerate(self.shape):
            position = (b[:, axis] / pixel(self.shape) + (n - 1) / 2 + _RING).view(view)
            for other, index in enumerate(self._index):
                position = position + A[:, axis, other].view(view) * index
            position = position.clamp(0, n + 2 * _RING - 1)
            cell = position.detach().floor().clamp_max(n + 2 * _RING - 2)
            fractions.append((position - cell).flatten(1))
            start = start + cell.long() * self._strides[axis + 1]
        return _multilinear(self._corners(start.flatten(1)), fractions)

    def _corners(self, start: Tensor) -> list[Tensor]:
        """Return the 2^D corner values of the cells that begin at ``start``, the last axis fastest."""
        steps = product((0, 1), repeat=len(self.shape))
        offsets = [sum(s * stride for s, stride in zip(step, self._strides[1:], strict=True)) for step in steps]
        return [torch.take(self._padded, start + offset if offset else start) for offset in offsets]


def _usable(x: Tensor) -> Tensor:
    """Return (b, 1): is every number of x finite, and small enough for positions to be?"""
    return (x.abs() < _FAR).all(1, keepdim=True)


def _multilinear(corners: list[Tensor], fractions: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return the interpolated value and its derivative along each axis; each pass takes one axis out of the corners."""
    slopes: list[list[Tensor]] = []
    for fraction in reversed(fractions):
        slopes = [[torch.addcmul(a, fraction, b - a) for a, b in _pairs(slope)] for slope in slopes]
        steps = [b - a for a, b in _pairs(corners)]
        corners = [torch.addcmul(a, fraction, step) for a, step in zip(corners[::2], steps, strict=True)]
        slopes.insert(0, steps)
    return corners[0], [slope[0] for slope in slopes]


def _pairs(values: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(values[::2], values[1::2], strict=True))
