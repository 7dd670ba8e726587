"""Local deformations as numbers, and the field that a sequence of them makes (Sandkuehler et al. 2019, eq. 7-9).

A bump is (centre D, width D, turn 1 or 3, weight D): 7 numbers in 2-D, 12 in 3-D, in array-axis order. Centre, width
and weight are in units in which the image reaches from -1 to 1 along every axis, a unit being (n - 1) / 2 voxels; the
turn is an angle in 2-D and a rotation vector in 3-D, both in radians.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared_components.affine import rotation
from shared_components.warp import compose

COMPOSITIONS = ("add", "compose")


def turn_numbers(ndim: int) -> int:
    """Return how many numbers a rotation has: 1 in 2-D, 3 in 3-D."""
    return ndim * (ndim - 1) // 2


def parameter_names(ndim: int) -> list[str]:
    """Return the names of a bump's numbers.

    Example:
        >>> parameter_names(2)
        ['centre_0', 'centre_1', 'width_0', 'width_1', 'angle', 'weight_0', 'weight_1']
    """
    turn = ["angle"] if ndim == 2 else [f"turn_{axis}" for axis in range(ndim)]
    numbers = {name: [f"{name}_{axis}" for axis in range(ndim)] for name in ("centre", "width", "weight")}
    return [*numbers["centre"], *numbers["width"], *turn, *numbers["weight"]]


def split(parameters: Tensor, ndim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return centre, width, turn and weight, each (..., count), of bumps (..., P)."""
    return parameters.split([ndim, ndim, turn_numbers(ndim), ndim], -1)


def unit_coords(shape: Sequence[int], like: Tensor) -> list[Tensor]:
    """Return the positions -1 ... 1 along each axis, shaped to broadcast over ``shape``."""
    axes = [torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) for n in shape]
    return [x.view(-1, *(1,) * (len(shape) - 1 - axis)) for axis, x in enumerate(axes)]


def to_vox(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Return weights (..., D) in voxels instead of units."""
    return torch.stack([w * ((n - 1) / 2) for w, n in zip(weight.unbind(-1), shape, strict=True)], -1)


def of_finer_grid(parameters: Tensor, shape: Sequence[int], shrink: int, variance: bool = False) -> Tensor:
    """Return bumps (..., P), in units of a grid whose cells are ``shrink`` of this one wide, in units of this one.

    Args:
        parameters: found on the coarser grid, whose outermost voxels lie further in.
        shape: of the grid.
        shrink: 1 changes nothing.
        variance: see ``bumps``. Widths are not along the array's axes: where these differ in length they change by the
            mean, which is not exact.
    """
    if shrink == 1:
        return parameters
    centre, width, turn, weight = split(parameters, len(shape))
    share = parameters.new_tensor([(n - shrink) / max(n - 1, 1) for n in shape])
    mean = share.mean().square() if variance else share.mean()
    return torch.cat([centre * share, width * mean, turn, weight * share], -1)


def bumps(parameters: Tensor, shape: Sequence[int], variance: bool = False) -> Tensor:
    """Return the Gaussians (..., *shape) of bumps (..., P): 1 at the centre, e^-1/2 at one width from it (eq. 8, 9).

    Args:
        parameters: see the module.
        shape: of the grid.
        variance: widths are squared already, which is eq. 9 to the letter.
    """
    ndim = len(shape)
    centre, width, turn, _ = split(parameters, ndim)
    width = width.sqrt() if variance else width
    axes = rotation(turn).mT / width[..., None]  # rows: the Gaussian's own axes, in units of its widths
    view = (..., *(None,) * ndim)
    coords = unit_coords(shape, parameters)
    square = None
    for row in axes.unbind(-2):
        along = None
        for k, x in enumerate(coords):
            part = row[..., k][view] * (x - centre[..., k][view])
            along = part if along is None else along + part
        square = along.square() if square is None else square + along.square()
    return torch.exp(-0.5 * square)


def displacement(bump: Tensor, weight: Tensor) -> Tensor:
    """Return the field (B, D, *shape) in voxels of Gaussians (B, *shape) with weights (B, D) (eq. 8)."""
    shape = bump.shape[1:]
    return to_vox(weight, shape)[(..., *(None,) * len(shape))] * bump[:, None]


def accumulate(ddf: Tensor, step: Tensor, composition: str = "add") -> Tensor:
    """Return the field after one more bump: the sum (eq. 7), or what warping the moved image by the bump gives."""
    return ddf + step if composition == "add" else compose(ddf, step)


def field_of(parameters: Tensor, shape: Sequence[int], variance: bool = False, composition: str = "add") -> Tensor:
    """Return the field of a sequence of bumps, all of them evaluated at once.

    The sum runs over the steps in their order, element by element: the same numbers give the same bits.

    Args:
        parameters: (B, T, P); T = 0 gives no displacement.
        shape: of the grid.
        variance: see ``bumps``.
        composition: "add" or "compose", see ``accumulate``.

    Returns:
        (B, D, *shape) voxels, pull-back.
    """
    ddf = parameters.new_zeros(parameters.shape[0], len(shape), *shape)
    if parameters.shape[1] == 0:
        return ddf
    weights = split(parameters, len(shape))[-1]
    for bump, weight in zip(bumps(parameters, shape, variance).unbind(1), weights.unbind(1), strict=True):
        ddf = accumulate(ddf, displacement(bump, weight), composition)
    return ddf
