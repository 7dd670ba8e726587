r"""The optimisation counterpart of AVSM's second half: a stationary velocity for one pair, by L-BFGS (vSVF-opt).

The map is phi = phi0 o exp(-v), v = K m, where phi0 is a given affine or any field. Minimised over the momentum m is

    dissimilarity(fixed, moving o phi) + lambda <m, v>                                   (AVSM sec. 2.2 and 3)

What L-BFGS sees is q = K^(1/2) m: <m, v> = |q|^2 and v = K^(1/2) q, the same energy, much better conditioned. Where
phi0 does not fold, phi does not either but for what its sampling adds; that is checked, and mended in the velocity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..affine import affine_ddf, from_matrix, invert_params
from ..flows import MultiGaussian, advect, inverse_map
from ..flows.smoothing import SIGMAS, WEIGHTS
from ..regularity import fold_penalty
from ..solvers import Lbfgs
from ..warp import compose, coords_of, invert, resize
from .check import count_folds, folded, mended, numbers, smoothed_at
from .level import Level, RefineSettings, level_shape

_SIGMAS_VOX, _LAMBDA_VOX = (1.7, 3.4, 6.8, 17.0), 0.006  # of brains at 2 mm, 80 x 112 x 88 voxels


@dataclass(frozen=True)
class VsvfSettings:
    """Numbers of a registration by one stationary velocity; the defaults are the paper's.

    Attributes:
        iterations: of L-BFGS, one number a level; all zero returns the start.
        levels: factors by which the grid is coarsened.
        similarity: see ``make_similarity``.
        radius: of local windows, in voxels of each level.
        velocity_weight: lambda of <m, v>, a mean over voxels in units of the longest axis.
        sigmas, weights, padding: of the smoother K, see ``MultiGaussian``; sigmas as parts of the longest axis.
        spacing: size of a voxel along each axis, where these differ; only ratios count.
        coarsening: the velocity lives on a grid coarser by this factor than the images, 2 in the paper.
        time_steps: of the integration, see ``advect``; the velocity is clamped accordingly.
        fold_weight: of ``regularity.fold_penalty`` of the map on the velocity's grid, none in the paper.
        first_step: length of the first step of each level, in voxels of its velocity, root mean square.
        memory: pairs kept by L-BFGS.
        tolerance: a level ends after a step that lowers the energy by less than this part.
    """

    iterations: tuple[int, ...] = (60, 60, 60)
    levels: tuple[int, ...] = (4, 2, 1)
    similarity: str = "mk_lncc"
    radius: int = 4
    velocity_weight: float = 10.0
    sigmas: tuple[float, ...] = SIGMAS
    weights: tuple[float, ...] = WEIGHTS
    padding: str = "circular"
    spacing: tuple[float, ...] | None = None
    coarsening: int = 2
    time_steps: int = 10
    fold_weight: float = 0.0
    first_step: float = 0.25
    memory: int = 7
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        fits = len(self.iterations) == len(self.levels) and min(self.levels) >= 1
        if not fits or min(self.iterations) < 0 or self.coarsening < 1 or self.time_steps < 1:
            raise ValueError(f"a velocity needs iterations >= 0 for each level and coarsening >= 1, got {self}")

    @classmethod
    def polishing(cls, how: RefineSettings, shape: Sequence[int]) -> VsvfSettings:
        """Return what refines a field on a grid of ``shape`` with the similarity and the levels of ``RefineSettings``.

        The paper's smoother is made for what an affine map leaves, and its narrowest Gaussian spans many voxels. Here
        they are narrower, and count voxels; lambda follows ``diffusion_weight``.
        """
        longest = max(shape) - 1
        return cls(
            iterations=tuple(how.steps_of_levels()),
            levels=how.levels,
            similarity=how.similarity,
            radius=how.radius,
            velocity_weight=_LAMBDA_VOX * how.diffusion_weight * longest**2,
            sigmas=tuple(sigma / longest for sigma in _SIGMAS_VOX),
            weights=(1.0,) * len(_SIGMAS_VOX),
            fold_weight=how.fold_weight,
        )


@dataclass(frozen=True, eq=False)
class VsvfResult:
    """What ``vsvf_opt`` found.

    Attributes:
        ddf: (B, D, *spatial) voxels, of phi.
        dvf: (B, D, *coarser) voxels of its own grid per unit of time.
        start: (B, D+1, D+1) or (B, D, *spatial), phi0.
        time_steps: of the integration.
        numbers: a dictionary a sample, dissimilarity and folds before and after.
    """

    ddf: Tensor
    dvf: Tensor
    start: Tensor
    time_steps: int
    numbers: list[dict[str, float]]

    def inverse(self, corrections: int = 10) -> Tensor:
        """Return the ddf of phi^-1 = exp(v) o phi0^-1, (B, D, *spatial) voxels; a field phi0 is inverted for it.

        Args:
            corrections: steps of the fixed point of phi o phi^-1 = id, which undo what the grids add.
        """
        shape = self.ddf.shape[2:]
        if self.start.ndim == 3:
            back = affine_ddf(*invert_params(*from_matrix(self.start, shape)), shape)
        else:
            back = torch.cat([invert(one[None])[0] for one in self.start])
        back = inverse_map(self.dvf, back, self.time_steps)
        last = torch.tensor(shape, device=back.device).view(1, -1, *(1,) * len(shape)) - 1
        for _ in range(corrections):
            coords = coords_of(back)
            known = ((coords >= 0) & (coords <= last)).all(1, keepdim=True)  # beyond the border phi is not
            back = back - 0.7 * known * compose(self.ddf, back)
        return back


def vsvf_opt(
    fixed: Tensor, moving: Tensor, start: Tensor, settings: VsvfSettings, mask: Tensor | None = None
) -> VsvfResult:
    """Register by one stationary velocity in front of a given map; neither dissimilarity nor folds grow.

    Args:
        fixed: (B, 1, *spatial), intensities in about [0, 1]; moving likewise, on the same grid.
        moving: as fixed.
        start: phi0; (B, D+1, D+1) voxels to voxels, an affine map, or a ddf (B, D, *spatial) in voxels.
        settings: see ``VsvfSettings``.
        mask: (B, 1, *spatial) where the similarity counts; None for everywhere.
    """
    fixed, moving, start = fixed.float(), moving.float(), start.detach().float()
    mask = torch.ones_like(fixed) if mask is None else mask.float()
    found = [_one(*(x[i : i + 1] for x in (fixed, moving, start, mask)), settings) for i in range(len(fixed))]
    ddfs, dvfs, starts, facts = zip(*found, strict=True)
    return VsvfResult(torch.cat(ddfs), torch.cat(dvfs), torch.cat(starts), settings.time_steps, list(facts))


def _one(
    fixed: Tensor, moving: Tensor, start: Tensor, mask: Tensor, how: VsvfSettings
) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
    """Return map, velocity, phi0 and numbers of one sample: level after level, then the check."""
    unknown, given = None, start
    if start.ndim > 3:
        start = mended(start, torch.zeros_like(mask, dtype=torch.bool))
    for factor, iterations in zip(how.levels, how.iterations, strict=True):
        unknown = _Energy(fixed, moving, start, mask, factor, how).minimise(unknown, iterations)
    with torch.no_grad():
        judge = _Energy(fixed, moving, start, mask, 1, how)
        return _checked(judge, resize(unknown, judge.grid), given)


class _Energy:
    """What is minimised on one level; ``factor`` coarsens the images, the velocity at least by ``how.coarsening``."""

    def __init__(
        self, fixed: Tensor, moving: Tensor, start: Tensor, mask: Tensor, factor: int, how: VsvfSettings
    ) -> None:
        shape = fixed.shape[2:]
        affine = start.ndim == 3
        ddf = affine_ddf(*from_matrix(start, shape), shape) if affine else start
        images = RefineSettings(similarity=how.similarity, radius=how.radius)
        level = Level(fixed, moving, mask, ddf, factor, images)
        self.start, self.ddf, self.dissimilarity = start, level.ddf, level.dissimilarity()
        self.grid, self.how = level_shape(shape, max(factor, how.coarsening)), how
        # an affine map is the initial condition, exact beyond the border; a field would lose its detail that way
        self.initial = resize(ddf, self.grid) if affine else None
        spacing = how.spacing or (1.0,) * len(shape)
        lengths = [max(n - 1, 1) * size for n, size in zip(shape, spacing, strict=True)]
        extent = [length / max(lengths) for length in lengths]
        self.root = MultiGaussian(how.sigmas, how.weights, how.padding, extent=extent, power=0.5)
        units = [length / max(n - 1, 1) for length, n in zip(extent, self.grid, strict=True)]
        self.units = torch.tensor(units, device=fixed.device).view(1, -1, *(1,) * len(shape))

    def flow(self, dvf: Tensor) -> Tensor:
        """Return the ddf of exp(-v), or of an affine phi0 in front of it, on the grid of the velocity."""
        initial = torch.zeros_like(dvf) if self.initial is None else self.initial
        return advect(initial, dvf, self.how.time_steps)

    def map(self, flow: Tensor) -> Tensor:
        """Return the ddf of phi0 o exp(-v) on the level."""
        flow = resize(flow, self.ddf.shape[2:])
        return compose(self.ddf, flow) if self.initial is None else flow

    def __call__(self, unknown: Tensor) -> Tensor:
        """Return the energy of q (1, D, *grid)."""
        flow = self.flow(self.root(unknown))
        total = self.dissimilarity(self.map(flow))
        if self.how.fold_weight:
            total = total + self.how.fold_weight * fold_penalty(flow, margin=0.1)
        return total + self.how.velocity_weight * (self.units * unknown).square().sum(1).mean()

    def minimise(self, unknown: Tensor | None, iterations: int) -> Tensor:
        """Return the unknown after L-BFGS from that of a coarser level, or from zero."""
        like = self.start.new_zeros(1, len(self.grid), *self.grid)
        unknown = like if unknown is None else resize(unknown, self.grid)
        length = self.how.first_step * like.numel() ** 0.5  # Lbfgs starts with a step of length 1

        def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                q = (length * x).view_as(like).requires_grad_()
                value = self(q)
                (slope,) = torch.autograd.grad(value, q)
            return value.detach().view(1), length * slope.view(1, -1)

        lbfgs = Lbfgs(iterations, self.how.memory, tolerance=self.how.tolerance, scaled=True)
        return length * lbfgs.minimise(objective, unknown.reshape(1, -1) / length).x.view_as(like)


def _checked(judge: _Energy, unknown: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, float]]:
    """Return ``_one``, with no more loss and folds than phi0 has: mended, weakened, and as given at the last."""
    ddf = given if given.ndim > 3 else judge.ddf
    before, old, dvf = float(judge.dissimilarity(ddf)), count_folds(ddf), judge.root(unknown)
    known = folded(ddf) & folded(judge.ddf)
    for _ in range(8):
        dvf, found = _unfolded(judge, dvf, known)
        after, new = float(judge.dissimilarity(found)), count_folds(found)
        if after < before and all(n <= o for n, o in zip(new, old, strict=True)):
            return found, dvf, judge.start, numbers(before, after, old, new)
        dvf = 0.5 * dvf
    return ddf, torch.zeros_like(dvf), given, numbers(before, before, old, old)


def _unfolded(judge: _Energy, dvf: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Smooth the velocity, in ever larger places, where its map folds and the start did not."""
    for attempt in range(20):
        ddf = judge.map(judge.flow(dvf))
        place = folded(ddf)
        if not (place & ~known).any():
            break
        pool = F.adaptive_max_pool3d if dvf.ndim == 5 else F.adaptive_max_pool2d
        dvf = smoothed_at(pool(place.float(), dvf.shape[2:]) > 0, dvf, attempt // 5)
    return dvf, ddf
