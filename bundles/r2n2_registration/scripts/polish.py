"""The network's bumps fitted to the very pair they belong to: Levenberg-Marquardt over their few numbers.

The network proposes where, how wide and how far. What is left is a least-squares problem with 7 unknowns a bump in 2-D,
12 in 3-D, and good first values for all of them:

    min  mean_x (moving(x + u(x)) - fixed(x))^2  +  sum |(number - proposed) / leash|^2

over x that come from inside the moving image. Ours, not the paper's. The result is as many bumps again; their widths
are bounded from below only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from shared_components.affine import rotation
from shared_components.errors import InputError
from shared_components.metrics import folded_cells
from shared_components.warp import coords_grid, sample, warp_image

from .deformation import field_of, split


@dataclass(frozen=True)
class PolishSettings:
    """How bumps are fitted.

    Attributes:
        iterations: of Levenberg-Marquardt, steps that help.
        tries: to find one, each more damped than the last; it ends where none helps.
        leash: the larger, the further numbers may go from those proposed: centre and weight in widths, widths in
            factors of e, turns in radians.
        least_width: voxels; no bump gets narrower, unless it was proposed so.
        points: that the images are compared at, at most; of a finer grid every second, third ... voxel along each axis.
        damping: at first, as a share of the diagonal of the normal matrix.
        down: damping is divided by this after a step that helped.
        up: and multiplied by this after one that did not, which is taken back.
    """

    iterations: int = 6
    tries: int = 5
    leash: float = 100.0
    least_width: float = 2.0
    points: int = 2**14
    damping: float = 1e-3
    down: float = 4.0
    up: float = 8.0


class _Bumps(NamedTuple):
    """Bumps of one pair, T of them: centre and weight in units, logarithm of widths in units, axes as columns.

    "turned" is the sum of all turns so far, in radians about the bump's own axes.
    """

    centre: Tensor
    log_width: Tensor
    axes: Tensor
    weight: Tensor
    turned: Tensor


class _Look(NamedTuple):
    """What bumps make of the pair; N points."""

    scaled: Tensor  # (T, D, N) distance from the centre along the bump's axes, in widths
    bump: Tensor  # (T, N)
    residual: Tensor  # (N,) moved - fixed, 0 outside
    slope: Tensor  # (D, N) of the moving image where it was sampled, per unit, 0 outside
    count: Tensor  # of voxels that come from inside
    energy: Tensor


class Polished(nn.Module):
    """``network(image) -> ddf`` of bumps that are fitted to the pair in the end; see the module.

    Training passes through to the network, and so does everything if there are no iterations.

    Args:
        network: an ``R2N2``, which proposes.
        iterations: see ``PolishSettings``; 0 for none.
        leash: likewise.

    Raises:
        InputError: a number that makes no sense, or bumps that are not added.
    """

    def __init__(
        self, network: nn.Module, iterations: int = PolishSettings.iterations, leash: float = PolishSettings.leash
    ) -> None:
        super().__init__()
        if not isinstance(iterations, int) or iterations < 0:
            raise InputError(f"polish must be a whole number from 0 on, not {iterations}")
        if not leash > 0:
            raise InputError(f"leash must be above 0, not {leash}")
        if iterations and network.composition != "add":
            raise InputError(f"bumps put together by '{network.composition}' cannot be polished; set polish to 0")
        self.network, self.how = network, PolishSettings(iterations=iterations, leash=leash)

    def forward(self, image: Tensor, return_stages: bool = False, **options: Any) -> Any:
        """Return the ddf that pulls moving onto fixed, or the stages, as ``R2N2`` does; no gradient passes.

        Stages hold the polished "parameters", and those "proposed"; the last "ddf" and "moved" are the polished ones.
        """
        if self.training or not self.how.iterations:
            return self.network(image, return_stages=return_stages, **options)
        stages = self.network(image, return_stages=True, **options)
        seen = self.network.standardised(image)
        numbers = polish(stages["parameters"], seen, self.network.variance, self.how)
        ddf = self.network.field_of(numbers, image.shape[2:])
        if not return_stages:
            return ddf
        moved = warp_image(seen[:, 1:2], ddf, padding=self.network.padding)
        last = {"ddf": [*stages["ddf"][:-1], ddf], "moved": [*stages["moved"][:-1], moved]} if stages["ddf"] else {}
        return {**stages, **last, "parameters": numbers, "proposed": stages["parameters"]}


@torch.no_grad()
def polish(parameters: Tensor, image: Tensor, variance: bool, how: PolishSettings) -> Tensor:
    """Return bumps that fit their images better, with no more folded voxels than before; pair by pair.

    Args:
        parameters: (B, T, P), see ``deformation``; added, not composed. What has no weight stays out of it, as after a
            pair that stopped early.
        image: (B, 2, *shape), fixed and moving, intensities of about unit spread.
        variance: the bumps' widths are squared.
        how: see ``PolishSettings``.
    """
    with torch.autocast(image.device.type, enabled=False):
        image = image.to(parameters.dtype)
        pairs = zip(parameters, image, strict=True)
        return torch.stack([_one(numbers, pair, variance, how) for numbers, pair in pairs])


def _one(parameters: Tensor, pair: Tensor, variance: bool, how: PolishSettings) -> Tensor:
    shape = pair.shape[1:]
    active = split(parameters, len(shape))[-1].any(-1)
    if not active.any() or not parameters.isfinite().all():
        return parameters
    fit = _Fit(parameters[active], pair, variance, how)
    folds = _folds(parameters, shape, variance)
    for limit in (None, folds):  # looking for folds at every step takes as long as the step
        numbers = parameters.clone()
        numbers[active] = _numbers(fit.run(limit), variance, len(shape))
        if _folds(numbers, shape, variance) <= folds:
            return numbers
    return parameters


class _Fit:
    """The least-squares problem of one pair."""

    def __init__(self, parameters: Tensor, pair: Tensor, variance: bool, how: PolishSettings) -> None:
        self.shape, self.how = pair.shape[1:], how
        self.variance = variance
        centre, width, turn, weight = split(parameters, len(self.shape))
        width = width.sqrt() if variance else width
        self.proposed = _Bumps(centre, width.log(), rotation(turn), weight, torch.zeros_like(turn))
        self.half = parameters.new_tensor([max(n - 1, 1) / 2 for n in self.shape])
        every = (..., *(slice(None, None, self._stride()) for _ in self.shape))
        grid = coords_grid(self.shape, pair.device)[0].to(pair.dtype)[every]
        self.points, self.grid = grid.shape[1:], grid.flatten(1)
        self.unit = self.grid / self.half[:, None] - 1
        slopes = torch.gradient(pair[1], dim=tuple(range(pair.ndim - 1)))
        self.fixed, self.moving = pair[0][every].flatten(), torch.stack([pair[1], *slopes])[None]
        self.least = torch.minimum((how.least_width / self.half).log().expand_as(width), width.log())
        reach = how.leash * width.mean(-1, keepdim=True).expand_as(width)
        turns = torch.full_like(turn, how.leash)
        self.stiff = torch.cat([reach, torch.full_like(width, how.leash), turns, reach], -1).pow(-2)

    def run(self, folds: int | None) -> _Bumps:
        """Return the fitted bumps.

        Args:
            folds: more folded cells than these make a step a bad one; None: they are not looked for.
        """
        at, damping = self.proposed, self.how.damping
        here = self._look(at)
        for _ in range(self.how.iterations):
            normal = self._normal(at, here)
            for _ in range(self.how.tries):
                there = self._moved(at, self._step(*normal, damping))
                seen = self._look(there)
                if bool(seen.energy < here.energy) and (folds is None or self._folds(there) <= folds):
                    break
                damping *= self.how.up
            else:
                return at
            at, here, damping = there, seen, damping / self.how.down
        return at

    def _look(self, at: _Bumps) -> _Look:
        scaled = self._across(at) @ (self.unit - at.centre[..., None])
        bump = torch.exp(-0.5 * scaled.square().sum(1))
        ddf = (at.weight * self.half).T @ bump
        coords = self.grid + ddf
        inside = ((coords >= 0) & (coords <= 2 * self.half[:, None])).all(0)
        seen = sample(self.moving, coords.unflatten(1, self.points)[None])[0].flatten(1) * inside
        residual = seen[0] - self.fixed * inside
        count = inside.sum().clamp_min(1)
        energy = residual.square().sum() / count + (self.stiff * self._gone(at).square()).sum()
        return _Look(scaled, bump, residual, seen[1:] * self.half[:, None], count, energy)

    def _across(self, at: _Bumps) -> Tensor:
        """Return (T, D, D): rows are the axes, divided by their widths."""
        return at.axes.mT / at.log_width.exp()[..., None]

    def _normal(self, at: _Bumps, here: _Look) -> tuple[Tensor, Tensor]:
        """Return the normal matrix and the right-hand side of Gauss-Newton, in double precision.

        In single precision the rounding of the images would show in the field a thousand times larger.
        """
        across, away = self._across(at), self.unit - at.centre[..., None]
        pull = (at.weight @ here.slope) * here.bump  # (T, N): how the residual follows the height of the bump
        centre = pull[:, None] * (across.mT @ here.scaled)
        width = pull[:, None] * here.scaled.square()
        turns = [(here.scaled * (one @ away)).sum(1) for one in self._turned(at)]
        turn = torch.stack(turns, 1) * -pull[:, None]
        weight = here.bump[:, None] * here.slope
        rows = torch.cat([centre, width, turn, weight], 1).flatten(0, 1).double()
        stiff, gone = self.stiff.double(), self._gone(at).double()
        matrix = rows @ rows.T / here.count + stiff.flatten().diag()
        return matrix, -(rows @ here.residual.double() / here.count + (stiff * gone).flatten())

    def _turned(self, at: _Bumps) -> list[Tensor]:
        """Return how ``_across`` changes with a small turn about each of the bump's own axes."""
        ndim = len(self.shape)
        found = []
        for i, j in ((0, 1),) if ndim == 2 else ((1, 2), (2, 0), (0, 1)):
            turn = at.axes.new_zeros(ndim, ndim)
            turn[i, j], turn[j, i] = -1.0, 1.0
            found.append(turn.T @ at.axes.mT / at.log_width.exp()[..., None])
        return found

    def _step(self, matrix: Tensor, right: Tensor, damping: float) -> Tensor:
        lifted = matrix + (damping * matrix.diag() + 1e-9).diag()
        return torch.linalg.solve(lifted, right).view_as(self.stiff).to(self.stiff)

    def _moved(self, at: _Bumps, step: Tensor) -> _Bumps:
        centre, width, turn, weight = split(step, len(self.shape))
        log_width = torch.maximum(at.log_width + width.clamp(-0.5, 0.5), self.least)
        axes, turned = at.axes @ rotation(turn), at.turned + turn
        return _Bumps(at.centre + centre, log_width, axes, at.weight + weight, turned)

    def _gone(self, at: _Bumps) -> Tensor:
        """Return how far the numbers are from those proposed."""
        first = self.proposed
        moved = at.centre - first.centre, at.log_width - first.log_width, at.turned, at.weight - first.weight
        return torch.cat(moved, -1)

    def _folds(self, at: _Bumps) -> int:
        return _folds(_numbers(at, self.variance, len(self.shape)), self.shape, self.variance)

    def _stride(self) -> int:
        stride = 1
        while math.prod(-(-n // stride) for n in self.shape) > self.how.points:
            stride += 1
        return stride


def _folds(parameters: Tensor, shape: Sequence[int], variance: bool) -> int:
    return int(folded_cells(field_of(parameters[None], shape, variance)).sum())


def _numbers(found: _Bumps, variance: bool, ndim: int) -> Tensor:
    """Return bumps (T, P) as ``deformation`` has them."""
    if ndim == 2:
        turn = torch.atan2(found.axes[:, 1, :1], found.axes[:, 0, :1]) % torch.pi  # half a turn changes nothing
    else:
        turns = Rotation.from_matrix(found.axes.double().cpu().numpy()).as_rotvec()
        turn = torch.from_numpy(np.asarray(turns)).to(found.axes)
    width = (found.log_width * (2 if variance else 1)).exp()
    return torch.cat([found.centre, width, turn, found.weight], -1)
