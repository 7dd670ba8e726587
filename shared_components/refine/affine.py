r"""The optimisation counterpart of AVSM's first half: an affine map for one pair, by gradient descent (affine-opt).

Images are (B, 1, *spatial). The unknowns are A and b of x -> x + A x + b about the middle of the grid, lengths counted
in halves of the longest axis, so that a rate means the same on every grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..affine import affine_ddf, from_matrix, to_matrix
from ..similarity import against, make_similarity
from ..warp import affine_coords, sample
from .level import fitting_radius, level_shape, shrink


@dataclass(frozen=True)
class AffineOptSettings:
    """Numbers of a search for an affine map; the defaults are those of the paper's code.

    Attributes:
        iterations: of gradient descent, one number a level.
        levels: factors by which the grid is coarsened.
        rate: of the descent, in which A is a number and b counts halves of the longest axis (the paper names 1e-4).
        momentum: Nesterov's.
        similarity: see ``make_similarity``.
        radius: of local windows, in voxels of each level.
    """

    iterations: tuple[int, ...] = (200, 200, 50)
    levels: tuple[int, ...] = (4, 2, 1)
    rate: float = 5e-4
    momentum: float = 0.9
    similarity: str = "mk_lncc"
    radius: int = 4

    def __post_init__(self) -> None:
        fits = len(self.iterations) == len(self.levels) and min(self.levels) >= 1 and min(self.iterations) >= 0
        if not fits or not self.rate > 0 or not 0 < self.momentum < 1:
            raise ValueError(f"descent needs iterations >= 0 for each level, a rate and a momentum, got {self}")


@dataclass(frozen=True, eq=False)
class AffineOptResult:
    """What ``affine_opt`` found.

    Attributes:
        matrix: (B, D+1, D+1), fixed voxels to moving voxels.
        ddf: (B, D, *spatial) voxels, of the same map.
        numbers: a dictionary a sample: "loss_before" and "loss_after", dissimilarity at full resolution.
    """

    matrix: Tensor
    ddf: Tensor
    numbers: list[dict[str, float]]


def affine_opt(
    fixed: Tensor,
    moving: Tensor,
    start: Tensor | None = None,
    settings: AffineOptSettings | None = None,
    mask: Tensor | None = None,
) -> AffineOptResult:
    """Find the affine map of each pair from coarse to fine; one that is no better than the start is not returned.

    Args:
        fixed: (B, 1, *spatial), intensities in about [0, 1]; moving likewise, on the same grid.
        moving: as fixed.
        start: (B, D+1, D+1) voxels to voxels, None for the identity.
        settings: see ``AffineOptSettings``; None for the paper's.
        mask: (B, 1, *spatial) where the similarity counts, None for everywhere.
    """
    how, shape = settings or AffineOptSettings(), fixed.shape[2:]
    fixed, moving = fixed.float(), moving.float()
    eye = torch.eye(len(shape) + 1, device=fixed.device).repeat(len(fixed), 1, 1)
    start = eye if start is None else start.detach().float()
    masks = [None] * len(fixed) if mask is None else mask.float().split(1)
    found = [_one(*pair, how) for pair in zip(fixed.split(1), moving.split(1), start.split(1), masks, strict=True)]
    matrix = torch.cat([one for one, _ in found])
    return AffineOptResult(matrix, affine_ddf(*from_matrix(matrix, shape), shape), [facts for _, facts in found])


def _one(
    fixed: Tensor, moving: Tensor, start: Tensor, mask: Tensor | None, how: AffineOptSettings
) -> tuple[Tensor, dict[str, float]]:
    shape = fixed.shape[2:]
    half = (max(shape) - 1) / 2
    A, b = (x.clone() for x in from_matrix(start, shape))
    unknowns = [A.requires_grad_(), (b / half).requires_grad_()]
    for factor, iterations in zip(how.levels, how.iterations, strict=True):
        loss = _loss(fixed, moving, mask, factor, how)
        descent = torch.optim.SGD(unknowns, lr=how.rate, momentum=how.momentum, nesterov=True)
        for _ in range(iterations):
            descent.zero_grad()
            with torch.enable_grad():
                loss(unknowns[0], half * unknowns[1]).backward()
            descent.step()
    with torch.no_grad():
        judge = _loss(fixed, moving, mask, 1, how)
        A, b = unknowns[0].detach(), half * unknowns[1].detach()
        before, after = float(judge(*from_matrix(start, shape))), float(judge(A, b))
    if after < before:
        return to_matrix(A, b, shape), {"loss_before": before, "loss_after": after}
    return start, {"loss_before": before, "loss_after": before}


def _loss(
    fixed: Tensor, moving: Tensor, mask: Tensor | None, factor: int, how: AffineOptSettings
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the dissimilarity on a level as a function of (A, b) in voxels of the full grid."""
    shape, grid = fixed.shape[2:], level_shape(fixed.shape[2:], factor)
    fixed, moving = shrink(fixed, factor), shrink(moving, factor)
    mask = None if mask is None else shrink(mask, factor)
    dissimilarity = against(make_similarity(how.similarity, fitting_radius(how.radius, grid)), fixed, mask)
    scale = _scale(shape, grid, fixed)

    def loss(A: Tensor, b: Tensor) -> Tensor:
        matrix = to_matrix(scale[:, None] * A / scale, scale * b, grid)
        return dissimilarity(sample(moving, affine_coords(matrix, grid)))

    return loss


def _scale(shape: Sequence[int], grid: Sequence[int], like: Tensor) -> Tensor:
    """Return voxels of ``grid`` a voxel of ``shape``, (D,)."""
    return like.new_tensor([max(small - 1, 1) / max(n - 1, 1) for n, small in zip(shape, grid, strict=True)])
