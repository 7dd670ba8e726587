"""One resolution of a refinement: the images, the field so far, and the descent on the coefficients of an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..regularity import diffusion, fold_penalty
from ..similarity import against, make_similarity
from ..warp import coords_grid, resize, sample, warp_image
from .basis import Basis, diffusion_gradient, smooth


@dataclass(frozen=True)
class RefineSettings:
    """Numbers of a refinement.

    Attributes:
        steps: Adam steps over all levels together; 0 returns the field untouched.
        similarity: "sharp_lncc", "lncc", "mk_lncc", "cc", "mse", or "mind" for images of two kinds; see
            ``make_similarity``.
        radius: of local windows, in voxels of each level.
        diffusion_weight: of ``regularity.diffusion`` of the whole field, 1 / voxel^2.
        fold_weight: of ``regularity.fold_penalty``, in the last third of the last level's steps.
        rate: Adam's step, in voxels of each level.
        levels: factors by which the grid is coarsened.
        shares: part of the steps that each level gets.
        spacings: of the nodes that span the update, in voxels of each level; the last entry is the last level's.
        start_spacing: the given field is first smoothed to nodes so many voxels apart, 1 leaves it as it is: what a
            network found in the large is kept, its detail is found anew.
    """

    steps: int = 0
    similarity: str = "sharp_lncc"
    radius: int = 2
    diffusion_weight: float = 2.0
    fold_weight: float = 60.0
    rate: float = 1.0
    levels: tuple[int, ...] = (4, 2, 1)
    shares: tuple[float, ...] = (0.25, 0.35, 0.4)
    spacings: tuple[float, ...] = (2, 2, 1)
    start_spacing: int = 4

    def __post_init__(self) -> None:
        fits = len(self.shares) == len(self.levels) <= len(self.spacings)
        if self.steps < 0 or not fits or min(self.levels) < 1 or self.start_spacing < 1:
            raise ValueError(f"refinement needs steps >= 0, a share and a spacing for each level, got {self}")

    def steps_of_levels(self) -> list[int]:
        """Return the steps of each level; they sum up to ``steps``."""
        steps = [round(self.steps * share / sum(self.shares)) for share in self.shares]
        steps[-1] = self.steps - sum(steps[:-1])
        return steps


def level_shape(shape: Sequence[int], factor: float) -> list[int]:
    """Return the grid that is coarser by ``factor``; no axis is cut below 8 voxels."""
    return [max(min(n, 8), math.ceil(n / factor)) for n in shape]


def fitting_radius(radius: int, shape: Sequence[int]) -> int:
    """Return the radius, or the largest whose window fits into the grid."""
    return max(1, min(radius, (min(shape) - 1) // 2))


def shrink(x: Tensor, factor: int) -> Tensor:
    """Return (B, C, *spatial) smoothed and sampled on the grid of ``level_shape``."""
    shape = level_shape(x.shape[2:], factor)
    if factor == 1:
        return x
    x = smooth(x) if factor > 2 else x
    mode = {4: "bilinear", 5: "trilinear"}[x.ndim]
    return F.interpolate(smooth(x), size=shape, mode=mode, align_corners=True)


def folds_in_turn(ddf: Tensor, turn: int = 0) -> Tensor:
    """Return the penalty on folds; one-sided differences look at two corners of a voxel, ``turn`` says at which two."""
    axis = turn % (ddf.shape[1] + 1)
    if axis:  # the field as seen in a mirror
        sign = torch.ones(ddf.shape[1], device=ddf.device)
        sign[axis - 1] = -1
        ddf = ddf.flip(axis + 1) * sign.view(1, -1, *(1,) * (ddf.ndim - 2))
    return fold_penalty(ddf, margin=0.1)


class Level:
    """One resolution: its images, the field so far, and what an update of it costs.

    Args:
        fixed, moving, mask, ddf: on the full grid, see ``refine``.
        factor: by which the grid is coarsened.
        how: the settings.
    """

    def __init__(self, fixed: Tensor, moving: Tensor, mask: Tensor, ddf: Tensor, factor: int, how: RefineSettings):
        shape = level_shape(fixed.shape[2:], factor)
        self.fixed, self.moving, self.mask = (shrink(x, factor) for x in (fixed, moving, mask))
        self.ddf, self.how = resize(ddf, shape), how
        self.spacing = how.spacings[how.levels.index(factor) - len(how.levels)] if factor in how.levels else 1
        self.fold_weight = how.fold_weight if factor == how.levels[-1] else 0.0
        self.radius = fitting_radius(how.radius, shape)
        self.similarity = make_similarity(how.similarity, self.radius)

    def loss(self, ddf: Tensor) -> Tensor:
        """Similarity and regularity of a field on this level."""
        total = self.similarity(self.fixed, warp_image(self.moving, ddf), self.mask)
        return total + self.how.diffusion_weight * diffusion(ddf) + self._folds(ddf)

    def _folds(self, ddf: Tensor, turn: int = 0) -> Tensor | float:
        return self.fold_weight * folds_in_turn(ddf, turn) if self.fold_weight else 0.0

    def run(self, steps: int) -> Tensor:
        """Return the update after ``steps`` of Adam, in voxels of this level."""
        basis = Basis(self.ddf.shape[2:], self.spacing, self.ddf.device)
        dissimilarity = self.dissimilarity()
        values = self.ddf.new_zeros(*self.ddf.shape[:2], *basis.nodes).requires_grad_()
        optimizer = torch.optim.Adam([values], lr=self.how.rate)
        for step in range(steps):
            for group in optimizer.param_groups:  # settle at the end of each level
                group["lr"] = self.how.rate * min(1.0, 2 * (steps - step) / steps)
            optimizer.zero_grad(set_to_none=True)
            ddf = self.ddf + basis.field(values)
            loss = dissimilarity(ddf)
            if 3 * step >= 2 * steps:
                loss = loss + self._folds(ddf, step)
            pull = self.how.diffusion_weight * diffusion_gradient(ddf.detach())
            torch.autograd.backward([loss, ddf], [None, pull])
            optimizer.step()
        return basis.field(values.detach())

    def dissimilarity(self) -> Callable[[Tensor], Tensor]:
        """Return the similarity loss as a function of the field; only the box around the mask is looked at."""
        part = (slice(None), slice(None), *self.window())
        fixed, mask = (x[part].contiguous() for x in (self.fixed, self.mask))
        grid = coords_grid(self.ddf.shape[2:], self.ddf.device)[part]
        dissimilarity = against(self.similarity, fixed, mask)
        return lambda ddf: dissimilarity(sample(self.moving, grid + ddf[part]))

    def window(self) -> list[slice]:
        """Return the box outside which the mask is 0, wide enough for the windows of the similarity."""
        window = []
        for axis in range(2, self.mask.ndim):
            on = self.mask.movedim(axis, 0).flatten(1).amax(1).nonzero()
            low, high = (int(on[0]), int(on[-1])) if len(on) else (0, self.mask.shape[axis] - 1)
            window.append(slice(max(0, low - self.radius), high + self.radius + 1))
        return window
