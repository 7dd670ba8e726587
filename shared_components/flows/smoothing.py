r"""Smoothing of momenta into velocities with a sum of Gaussians.

The smoother is a convolution, so it is kept as what it does to harmonics: a real factor in [0, 1] for each of them, 1
for the constant. That makes it self-adjoint and positive, whatever way it is computed, and the cost does not depend on
the number of Gaussians.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn

_PADDINGS = ("circular", "zeros")
_METHODS = ("auto", "fft", "separable")
SIGMAS = (0.05, 0.1, 0.15, 0.2, 0.25)
WEIGHTS = (1 / 15, 2 / 15, 3 / 15, 4 / 15, 5 / 15)


def _axis_factors(period: int, sigma_vox: float) -> np.ndarray:
    """Return what a Gaussian on a circle of ``period`` voxels does to the harmonics 0 ... period // 2.

    The Gaussian goes round the circle as often as it reaches. Cut off after half a turn, as the paper's code has it, it
    would have negative factors (-0.01 for a sigma of a quarter turn), and <m, K m> could fall below zero.
    """
    if sigma_vox == 0 or period == 1:
        return np.ones(period // 2 + 1)
    turns = math.ceil(9 * sigma_vox / period) + 1
    lags = np.arange(period)[:, None] + period * np.arange(-turns, turns + 1)
    kernel = np.exp(-0.5 * (lags / sigma_vox) ** 2).sum(1)
    return np.fft.rfft(kernel / kernel.sum()).real.clip(0)


@dataclass(frozen=True)
class _Plan:
    """What one grid needs: the circle of each axis, and the factors of the harmonics of each axis and Gaussian."""

    shape: tuple[int, ...]
    periods: tuple[int, ...]
    factors: list[np.ndarray]  # an axis: (Gaussians, period // 2 + 1)
    weights: np.ndarray
    power: float = 1.0

    def gain(self, harmonics: Sequence[np.ndarray]) -> np.ndarray:
        """Return sum_i w_i prod_d g_id on a grid of harmonics, one array of indices an axis."""
        total = 0.0
        for i, weight in enumerate(self.weights):
            columns = [f[i, k] for f, k in zip(self.factors, harmonics, strict=True)]
            total = total + weight * reduce(np.multiply.outer, columns)
        return total**self.power


class MultiGaussian(nn.Module):
    """The smoother K of v = K m, K = sum_i w_i G(sigma_i) (AVSM sec. 2.2): gain 1 for constants, self-adjoint, >= 0.

    Args:
        sigmas: standard deviations, as parts of a domain in which axis d has the length ``extent[d]`` (first to last
            voxel centre).
        weights: of the Gaussians, scaled to a sum of 1.
        padding: "circular" as in the paper's code: what leaves on one side comes in on the other (a wide Gaussian makes
            this felt). "zeros": no momentum outside, so velocities sink towards the border.
        method: "fft"; "separable", matrix products with those harmonics of each axis that pass; "auto": the products on
            a CPU, where a slow test finds them faster (much so with zeros), the FFT elsewhere, out of reach of TF32.
            They agree to rounding.
        extent: lengths of the axes, None for 1 each. For voxels that are not cubes hand in the extents in mm over the
            largest one: the Gaussians are round in space then.
        power: of K; 0.5 for its root, with which v = K^(1/2) q costs |q|^2 = <m, v>.

    Example:
        >>> K = MultiGaussian()
        >>> torch.allclose(K(torch.ones(1, 2, 8, 9)), torch.ones(1, 2, 8, 9))
        True
    """

    def __init__(
        self,
        sigmas: Sequence[float] = SIGMAS,
        weights: Sequence[float] = WEIGHTS,
        padding: str = "circular",
        method: str = "auto",
        extent: Sequence[float] | None = None,
        power: float = 1.0,
    ) -> None:
        super().__init__()
        if len(sigmas) != len(weights) or min(sigmas) < 0 or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"each Gaussian needs a sigma >= 0 and a weight >= 0, got {sigmas} and {weights}")
        if padding not in _PADDINGS or method not in _METHODS:
            raise ValueError(f"padding must be one of {_PADDINGS}, method one of {_METHODS}, got {padding}, {method}")
        self.sigmas, self.weights = tuple(sigmas), tuple(w / sum(weights) for w in weights)
        self.padding, self.method, self.power = padding, method, power
        self.extent = None if extent is None else tuple(extent)
        self._constants: dict[tuple, tuple[Tensor, ...]] = {}  # by grid, device and dtype; no part of the weights

    def forward(self, momentum: Tensor) -> Tensor:
        """Return the velocity (B, C, *spatial) of a momentum of the same shape and unit."""
        work = torch.promote_types(momentum.dtype, torch.float32)
        method = self.method
        if method == "auto":
            method = "separable" if momentum.device.type == "cpu" else "fft"
        apply = self._by_fft if method == "fft" else self._by_products
        with torch.autocast(momentum.device.type, enabled=False):
            return apply(momentum.to(work)).to(momentum.dtype)

    def _plan(self, shape: tuple[int, ...]) -> _Plan:
        extent = (1.0,) * len(shape) if self.extent is None else self.extent
        if len(extent) != len(shape):
            raise ValueError(f"extent {extent} does not fit a grid of {shape}")
        periods, factors = [], []
        for n, length in zip(shape, extent, strict=True):
            sigmas_vox = [sigma * (n - 1) / length for sigma in self.sigmas]
            room = 0 if self.padding == "circular" else math.ceil(6 * max(sigmas_vox))  # where the widest has died out
            periods.append(n if room == 0 else next_fast_len(n + room, real=True))
            factors.append(np.stack([_axis_factors(periods[-1], s) for s in sigmas_vox]))
        return _Plan(shape, tuple(periods), factors, np.asarray(self.weights), self.power)

    def _by_fft(self, x: Tensor) -> Tensor:
        shape, axes = tuple(map(int, x.shape[2:])), tuple(range(2, x.ndim))  # while tracing lengths are tensors
        key = ("fft", shape, x.device, x.dtype)
        if key not in self._constants:
            plan = self._plan(shape)
            harmonics = [np.minimum(np.arange(p), p - np.arange(p)) for p in plan.periods]
            harmonics[-1] = np.arange(plan.periods[-1] // 2 + 1)
            self._constants[key] = (torch.as_tensor(plan.gain(harmonics)).to(x), torch.tensor(plan.periods))
        gain, periods = self._constants[key]
        periods = periods.tolist()
        smooth = torch.fft.irfftn(torch.fft.rfftn(x, s=periods, dim=axes) * gain, s=periods, dim=axes)
        return smooth[(..., *(slice(n) for n in shape))]

    def _by_products(self, x: Tensor) -> Tensor:
        key = ("separable", tuple(map(int, x.shape[2:])), x.device, x.dtype)
        if key not in self._constants:
            self._constants[key] = self._harmonics(self._plan(key[1]), x)
        *bases, gain = self._constants[key]
        for axis in reversed(range(2, x.ndim)):  # the last axis first: its product is the widest, and contiguous
            x = _along(x, bases[axis - 2], axis)
        x = x * gain
        for axis in range(2, x.ndim):
            x = _along(x, bases[axis - 2].mT, axis)
        return x

    @staticmethod
    def _harmonics(plan: _Plan, like: Tensor) -> tuple[Tensor, ...]:
        """Return for each axis an orthonormal set of harmonics (n, K), and the gains (K1, K2, ...)."""
        bases, harmonics = [], []
        for n, period, factors in zip(plan.shape, plan.periods, plan.factors, strict=True):
            passing = np.flatnonzero(factors.max(0) ** plan.power > torch.finfo(like.dtype).eps)
            angle = 2 * math.pi / period * np.outer(np.arange(n), passing)
            alone = (passing == 0) | (2 * passing == period)  # the constant and the alternating have no sine
            scale = np.sqrt(np.where(alone, 1.0, 2.0) / period)
            bases.append(np.concatenate([np.cos(angle) * scale, (np.sin(angle) * scale)[:, ~alone]], 1))
            harmonics.append(np.concatenate([passing, passing[~alone]]))
        return tuple(torch.as_tensor(part).to(like) for part in (*bases, plan.gain(harmonics)))


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Return y[..., k, ...] = sum_i x[..., i, ...] matrix[i, k] along one axis."""
    if axis == x.ndim - 1:
        return x @ matrix
    rows = matrix.mT @ x.flatten(axis + 1)
    return rows.unflatten(-1, x.shape[axis + 1 :])
