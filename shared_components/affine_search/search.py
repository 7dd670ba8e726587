"""Classical search for the affine map: L-BFGS from coarse to fine, from one start a pair or from many.

The paper's methods are settings of ``AffineSearch``: *plain* begins at the initial guess with 30 iterations a level,
*comb* at what the learned optimiser found with 15. *multistart*, a rival the paper does not have, begins at several
rotations and keeps the best after the coarsest level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..solvers.lbfgs import Lbfgs
from .parameters import compose, initial_guess, inverse, join
from .ssd import AffineSSD, halved, normalise


@dataclass(frozen=True)
class SearchResult:
    """Where the search of each pair ended.

    Attributes:
        x: parameters, (B, D (D + 1)).
        value: f there on the finest level, (B,).
        evaluations: of f and its gradient per pair and level, all starts together, (B, levels).
    """

    x: Tensor
    value: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class AffineSearch:
    """L-BFGS on levels of rising resolution; defaults are the paper's *plain*.

    Attributes:
        strides: of the levels: images are averaged over blocks of so many pixels. Levels that would leave fewer than
            4 pixels along an axis, or that do not divide the grid, are left out.
        iterations: at most, on each level.
        scaled, tolerance: see ``Lbfgs``; off in the paper.
        kept: starts a pair that go on to the second level, the best by f; 1 keeps the best alone.
    """

    strides: Sequence[int] = (8, 4, 2, 1)
    iterations: int = 30
    scaled: bool = False
    tolerance: float = 0.0
    kept: int = 1

    def __call__(self, fixed: Tensor, moving: Tensor, start: Tensor | None = None) -> SearchResult:
        """Return the best map of each pair.

        Args:
            fixed: (B, 1, *spatial), normalised here.
            moving: likewise, on the same grid.
            start: (B * S, D (D + 1)), S starts a pair, one after another; None is the initial guess.
        """
        fixed, moving = normalise(fixed), normalise(moving)
        x = initial_guess(fixed.shape[2:], len(fixed), fixed) if start is None else start.to(fixed.dtype)
        solver = Lbfgs(iterations=self.iterations, scaled=self.scaled, tolerance=self.tolerance)
        counts, value = [], fixed.new_zeros(len(x))
        with torch.no_grad():
            for stride in usable_strides(self.strides, fixed.shape[2:]):
                objective = AffineSSD(halved(fixed, stride), halved(moving, stride), len(x) // len(fixed))
                found = solver.minimise(objective, x)
                counts.append(found.evaluations.view(len(fixed), -1).sum(1))
                x, value = best(found.x, found.value, len(fixed), self.kept)
        x, value = best(x, value, len(fixed), 1)
        return SearchResult(x, value, torch.stack(counts, 1))


def usable_strides(strides: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Return the strides that divide a grid and leave 4 pixels an axis; the full grid alone if none does."""
    found = [s for s in strides if all(n % s == 0 and n // s >= 4 for n in shape)]
    return found or [1]


def best(x: Tensor, value: Tensor, pairs: int, kept: int) -> tuple[Tensor, Tensor]:
    """Return the ``kept`` points of each pair with the lowest values, (pairs * kept, n) and (pairs * kept,)."""
    if len(x) <= pairs * kept:
        return x, value
    value = torch.where(value.isfinite(), value, torch.inf).view(pairs, -1)
    value, order = value.topk(kept, dim=1, largest=False)
    chosen = order + torch.arange(pairs, device=x.device).unsqueeze(1) * (x.shape[0] // pairs)
    return x[chosen.flatten()], value.flatten()


def best_of(fixed: Tensor, moving: Tensor, x: Tensor, stride: int = 1) -> Tensor:
    """Return of S points a pair (B * S, n) the one with the lowest f, (B, n), on images averaged over ``stride``."""
    if len(x) == len(fixed):
        return x
    fixed, moving = halved(normalise(fixed), stride), halved(normalise(moving), stride)
    value, _ = AffineSSD(fixed, moving, len(x) // len(fixed))(x)
    return best(x, value, fixed.shape[0], 1)[0]


def rotation_starts(ndim: int, count: int, largest: float = 60.0) -> Tensor:
    """Return ``count`` rotations about the middle that cover all up to ``largest`` degrees, (count, D (D + 1)).

    In 2-D the middles of equal parts of [-largest, largest]: 3 starts of 60 degrees leave 20 to be found. In 3-D the
    means of as many clusters of a lattice of rotation vectors (Lloyd's algorithm); the first is the identity.
    """
    limit = math.radians(largest)
    if ndim == 2:
        turns = ((2 * torch.arange(count) + 1.0) / count - 1).unsqueeze(1) * limit
    else:
        turns = _cluster_means(limit, count)
    matrices = torch.zeros(count, ndim, ndim)
    rows, columns = torch.triu_indices(ndim, ndim, 1)
    matrices[:, rows, columns] = -turns
    return join(torch.matrix_exp(matrices - matrices.transpose(1, 2)), torch.zeros(count, ndim))


def _cluster_means(limit: float, count: int) -> Tensor:
    axis = torch.linspace(-limit, limit, 15)
    lattice = torch.cartesian_prod(axis, axis, axis)
    lattice = lattice[lattice.norm(dim=1) <= 1.001 * limit]
    means = torch.zeros(1, 3)
    while len(means) < count:  # the point farthest from all means so far
        far = torch.cdist(lattice, means).amin(1).argmax()
        means = torch.cat([means, lattice[far][None]])
    for _ in range(30):
        nearest = torch.cdist(lattice, means).argmin(1)
        means = torch.stack([lattice[nearest == k].mean(0) for k in range(count)])
        means[0] = 0
    return means


def align_group(images: Tensor, rounds: int = 3, search: AffineSearch | None = None) -> Tensor:
    """Return the affine maps of the group's mean to each image, (N, D (D + 1)), for images that lie roughly alike.

    Each round aligns the mean of the images, as aligned so far, with every one of them; the maps are then divided by
    their mean, so that the group's size and place stay.

    Args:
        images: (N, 1, *spatial).
        rounds: of averaging.
        search: default: strides 4, 2, 1, 30 iterations each.
    """
    images = normalise(images)
    search = search or AffineSearch(strides=(4, 2, 1), scaled=True, tolerance=1e-4)
    x = initial_guess(images.shape[2:], len(images), images)
    mean = images.mean(0, keepdim=True)
    for _ in range(rounds):
        x = search(mean.expand_as(images), images, x).x
        x = compose(x, inverse(x.mean(0, keepdim=True)).expand_as(x))
        mean = AffineSSD(images, images).moved(x).mean(0, keepdim=True)
    return x
