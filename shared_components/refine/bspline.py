r"""Cubic B-spline free-form deformation for one pair, by Adam with AMSGrad from coarse to fine: the baseline of R2N2.

u(x) = u0(x) + sum_j c_j B(x - x_j): a given field u0 (nothing, an affine map, any ddf) and a tensor-product spline
added to it. Minimised over the control points c is, with the paper's settings,

    MSE(fixed, moving(x + u)) + 0.01 TV(u)                              (Sandkuehler et al. 2019, sec. 4, baseline BS)

The spline is a product with one small matrix an axis, exact at every voxel of every level, and five times as fast as
transposed convolutions (256 x 256, one thread). Its gradient and that of TV are written out, so autograd only sees the
sampling and the similarity. Control grids are nested: the finer one holds the coarser spline exactly (subdivision).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..affine import affine_ddf, from_matrix
from ..regularity import diffusion, isotropic_variation
from ..similarity import KeepsStatistics
from ..warp import coords_grid, sample
from .basis import diffusion_gradient, variation_gradient
from .check import count_folds, folded, numbers, smoothed_at
from .level import Level, RefineSettings, folds_in_turn, level_shape
from .spline import Spline, control_points, subdivided

_POLISHING_STRIDE, _POLISHING_RATE = 3, 0.5  # voxels


@dataclass(frozen=True)
class BsplineSettings:
    """Numbers of a free-form deformation; the defaults are those of the paper's baseline.

    Lengths in the energy and in ``rate`` are halves of the longest axis, "normalised" units, as in ``affine_opt``.

    Attributes:
        iterations: of Adam, one number a level; all zero returns the start.
        levels: factors by which the images are coarsened, from coarse to fine.
        stride: voxels of the last level between control points, about: see ``control_points``. Where images are
            coarser by 2, 4 ... than there, control points are 2, 4 ... times as far apart.
        similarity: see ``make_similarity``.
        radius: of local windows, in voxels of each level.
        tv_weight: lambda of ``regularity.isotropic_variation``.
        diffusion_weight: of ``regularity.diffusion`` in 1 / voxel^2 of each level, none in the paper.
        fold_weight: of ``regularity.fold_penalty`` in the second half of the last level, none in the paper.
        rate: Adam's step.
        settle: let the rate fall to zero over the second half of each level; constant in the paper.
        inside_only: where the map leaves the moving image the similarity does not count, as in AirLab.
    """

    iterations: tuple[int, ...] = (250, 250, 250)
    levels: tuple[int, ...] = (4, 2, 1)
    stride: float = 8.0
    similarity: str = "mse"
    radius: int = 4
    tv_weight: float = 0.01
    diffusion_weight: float = 0.0
    fold_weight: float = 0.0
    rate: float = 1e-3
    settle: bool = False
    inside_only: bool = True

    def __post_init__(self) -> None:
        if not self.levels or len(self.iterations) != len(self.levels) or min(self.iterations) < 0:
            raise ValueError(f"a B-spline needs iterations >= 0 for each level, got {self.iterations}, {self.levels}")
        if min(self.levels) < 1 or list(self.levels) != sorted(self.levels, reverse=True):
            raise ValueError(f"levels of a B-spline go from coarse to fine and are at least 1, got {self.levels}")
        if not self.stride >= 1 or not self.rate > 0:
            raise ValueError(f"a B-spline needs a stride >= 1 and a rate > 0, got {self.stride} and {self.rate}")
        if not min(self.tv_weight, self.diffusion_weight, self.fold_weight) >= 0:
            raise ValueError("weights of a B-spline's regularisers must be >= 0")

    @classmethod
    def polishing(cls, how: RefineSettings, shape: Sequence[int]) -> BsplineSettings:
        """Return what refines a field on a grid of ``shape`` with the terms and the levels of ``RefineSettings``."""
        return cls(
            iterations=tuple(how.steps_of_levels()),
            levels=how.levels,
            stride=_POLISHING_STRIDE,
            similarity=how.similarity,
            radius=how.radius,
            tv_weight=0.0,
            diffusion_weight=how.diffusion_weight,
            fold_weight=how.fold_weight,
            rate=_POLISHING_RATE * how.rate / _half(shape),
            settle=True,
            inside_only=False,
        )


@dataclass(frozen=True, eq=False)
class BsplineResult:
    """What ``bspline_opt`` found.

    Attributes:
        ddf: (B, D, *spatial) voxels, ``start`` plus the spline of the last control points.
        control: (B, D, *points) of each level, voxels of the full grid.
        start: (B, D, *spatial) voxels, u0.
        parameters: numbers of the final spline of one pair.
        numbers: a dictionary a sample, loss and folds before and after.
    """

    ddf: Tensor
    control: tuple[Tensor, ...]
    start: Tensor
    parameters: int
    numbers: list[dict[str, float]]


def bspline_opt(
    fixed: Tensor,
    moving: Tensor,
    start: Tensor | None = None,
    settings: BsplineSettings | None = None,
    mask: Tensor | None = None,
) -> BsplineResult:
    """Register by a cubic B-spline added to a given map; neither loss nor folds grow.

    Args:
        fixed: (B, 1, *spatial), intensities in about [0, 1]; moving likewise, on the same grid.
        moving: as fixed.
        start: u0; (B, D+1, D+1) voxels to voxels, an affine map, or a ddf (B, D, *spatial) in voxels; None for the
            identity.
        settings: see ``BsplineSettings``; None for the paper's.
        mask: (B, 1, *spatial) where the similarity counts; None for everywhere.

    Raises:
        ValueError: images or start of other shapes.
    """
    how, shape = settings or BsplineSettings(), fixed.shape[2:]
    if moving.shape != fixed.shape:
        raise ValueError(f"fixed and moving differ in shape: {tuple(fixed.shape)} and {tuple(moving.shape)}")
    fixed, moving = fixed.float(), moving.float()
    if start is None:
        start = fixed.new_zeros(len(fixed), len(shape), *shape)
    elif start.ndim == 3:
        start = affine_ddf(*from_matrix(start, shape), shape)
    start = start.detach().float()
    if start.shape != (len(fixed), len(shape), *shape):
        raise ValueError(f"a start of shape {tuple(start.shape)} does not fit images {tuple(fixed.shape)}")
    mask = torch.ones_like(fixed) if mask is None else mask.float()
    found = [_one(*(x[i : i + 1] for x in (fixed, moving, start, mask)), how) for i in range(len(fixed))]
    ddfs, controls, facts = zip(*found, strict=True)
    control = tuple(torch.cat(level) for level in zip(*controls, strict=True))
    return BsplineResult(torch.cat(ddfs), control, start, control[-1][0].numel(), list(facts))


def _one(
    fixed: Tensor, moving: Tensor, start: Tensor, mask: Tensor, how: BsplineSettings
) -> tuple[Tensor, list[Tensor], dict[str, float]]:
    """Return field, control points of the levels and numbers of one sample: level after level, then the check."""
    shape = fixed.shape[2:]
    finest = level_shape(shape, how.levels[-1])
    halvings = [round(math.log2(factor / how.levels[-1])) for factor in how.levels]
    control = start.new_zeros(1, len(shape), *control_points(finest, how.stride, halvings[0]))
    controls, reached = [], halvings[0]
    with torch.no_grad():
        for factor, halved, iterations in zip(how.levels, halvings, how.iterations, strict=True):
            while reached > halved:
                reached -= 1
                control = subdivided(control, control_points(finest, how.stride, reached))
            energy = _Energy(fixed, moving, start, mask, factor, how)
            spline = Spline(finest, how.stride, halved, start, level_shape(shape, factor))
            control = energy.minimise(spline, control, iterations, factor == how.levels[-1])
            controls.append(_half(shape) * control)
        judge = energy if factor == 1 else _Energy(fixed, moving, start, mask, 1, how)
        ddf, controls[-1], facts = _checked(judge, Spline(finest, how.stride, 0, start, shape), controls[-1])
    return ddf, controls, facts


def _half(shape: Sequence[int]) -> float:
    """Return half of the longest axis in voxels, the unit of length."""
    return max(1, max(shape) - 1) / 2


class _Energy:
    """What is minimised on one level, whose images are coarser by ``factor``."""

    def __init__(
        self, fixed: Tensor, moving: Tensor, start: Tensor, mask: Tensor, factor: int, how: BsplineSettings
    ) -> None:
        level = Level(fixed, moving, mask, start, factor, RefineSettings(similarity=how.similarity, radius=how.radius))
        self.start, self.moving, self.similarity, self.how = level.ddf, level.moving, level.similarity, how
        self.part = (slice(None), slice(None), *level.window())
        self.fixed, self.mask = (x[self.part].contiguous() for x in (level.fixed, level.mask))
        knows = isinstance(self.similarity, KeepsStatistics)
        self.known = {"statistics": self.similarity.fixed_statistics(self.fixed)} if knows else {}
        full, grid = fixed.shape[2:], level.ddf.shape[2:]
        self.grid = coords_grid(grid, start.device)[self.part]
        scale = [_half(full) * max(m - 1, 1) / max(n - 1, 1) for n, m in zip(full, grid, strict=True)]
        self.unit, self.middle = (
            start.new_tensor(x).view(1, -1, *(1,) * len(full)) for x in (scale, [(m - 1) / 2 for m in grid])
        )  # both in voxels of the level

    def __call__(self, ddf: Tensor) -> Tensor:
        """Return the energy of a field in voxels of the level."""
        how, (moved, weight) = self.how, self._moved(ddf)
        total = self.similarity(self.fixed, moved, weight, **self.known)
        if how.tv_weight:
            total = total + how.tv_weight * isotropic_variation(ddf / self.unit)
        if how.diffusion_weight:
            total = total + how.diffusion_weight * diffusion(ddf)
        return total + how.fold_weight * folds_in_turn(ddf) if how.fold_weight else total

    def _moved(self, ddf: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moved image and the weight of its voxels, in the box around the mask."""
        coords, weight = self.grid + ddf[self.part], self.mask
        if self.how.inside_only:
            with torch.no_grad():
                weight = weight * ((coords - self.middle).abs_().sub_(self.middle).amax(1, keepdim=True) <= 0)
        return sample(self.moving, coords), weight

    def _pull(self, moved: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the dissimilarity with respect to the moved image."""
        if self.how.similarity == "mse":  # autograd walks through memory three times as often
            return (moved - self.fixed).mul_(weight).mul_(2 / weight.sum().clamp_min(1e-6))
        leaf = moved.requires_grad_()
        return torch.autograd.grad(self.similarity(self.fixed, leaf, weight, **self.known), leaf)[0]

    def slope(self, ddf: Tensor, turn: int | None = None) -> Tensor:
        """Return the gradient of the energy with respect to the field; without a ``turn`` not that of folds."""
        how = self.how
        with torch.enable_grad():
            leaf = ddf.detach().requires_grad_()
            moved, weight = self._moved(leaf)
            outputs, pulls = [moved], [self._pull(moved.detach(), weight)]
            if turn is not None and how.fold_weight:
                outputs, pulls = [moved, how.fold_weight * folds_in_turn(leaf, turn)], [*pulls, None]
            (slope,) = torch.autograd.grad(outputs, leaf, pulls)
        if how.tv_weight:  # a component's unit changes the length of its gradient, not the direction
            slope = slope.addcdiv(variation_gradient(ddf), self.unit, value=how.tv_weight)
        if how.diffusion_weight:
            slope = slope.add(diffusion_gradient(ddf), alpha=how.diffusion_weight)
        return slope

    def minimise(self, spline: Spline, control: Tensor, iterations: int, last: bool) -> Tensor:
        """Return the control points, in ``unit``, after so many steps of Adam."""
        how, control = self.how, control.clone()
        start = self.start if self.start.any() else None
        optimizer = torch.optim.Adam([control], lr=how.rate, amsgrad=True)
        for step in range(iterations):
            if how.settle:
                optimizer.param_groups[0]["lr"] = how.rate * min(1.0, 2 * (iterations - step) / iterations)
            ddf = spline.field(self.unit * control)
            ddf = ddf if start is None else ddf.add_(start)
            slope = self.slope(ddf, step if last and 2 * step >= iterations else None)
            control.grad = spline.adjoint(slope).mul_(self.unit)
            optimizer.step()
        return control


def _checked(judge: _Energy, spline: Spline, control: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Mend the control points where the field folds, weaken them, until loss and folds are no worse; else keep u0."""
    start = judge.start
    before, old, known = float(judge(start)), count_folds(start), folded(start)
    for _ in range(8 if control.any() else 0):
        control, ddf = _unfolded(spline, control, start, known)
        after, new = float(judge(ddf)), count_folds(ddf)
        if after < before and all(n <= o for n, o in zip(new, old, strict=True)):
            return ddf, control, numbers(before, after, old, new)
        control = 0.5 * control
    return start, torch.zeros_like(control), numbers(before, before, old, old)


def _unfolded(spline: Spline, control: Tensor, start: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth the control points that reach where the field folds and the start did not, in ever larger places."""
    for attempt in range(20):
        ddf = start + spline.field(control)
        place = folded(ddf) & ~known
        if not place.any():
            break
        control = smoothed_at(spline.adjoint(place.float()) > 0.1 / (1 + attempt), control, attempt // 5)
    return control, ddf
