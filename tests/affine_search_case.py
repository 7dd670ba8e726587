"""An object without symmetries on a dark ground, and known poses of it: for the tests of the affine search."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shared_components.affine_search import join, pixel

_BLOBS = (  # place, width, height
    ((0.05, -0.1, 0.05), 0.28, 1.0),
    ((-0.35, 0.1, 0.2), 0.13, 0.8),
    ((0.22, 0.33, -0.3), 0.11, 0.6),
    ((0.3, -0.35, 0.1), 0.09, 0.9),
)


def phantom(shape: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return (1, 1, *shape), the same object in Omega on every grid."""
    axes = [pixel(shape) * (torch.arange(n).double() - (n - 1) / 2) for n in shape]
    z = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    image = torch.zeros(*shape, dtype=torch.float64)
    for place, width, height in _BLOBS:
        middle = torch.tensor(place[: len(shape)]).double()
        image = image + height * torch.exp(-((z - middle) ** 2).sum(-1) / (2 * width**2))
    return image[None, None].to(dtype)


def poses(ndim: int, batch: int, degrees: float, shift: float, seed: int = 0) -> Tensor:
    """Return float64 rotations of up to ``degrees`` about any axis with shifts, (batch, D (D + 1))."""
    generator = torch.Generator().manual_seed(seed)
    planes = ndim * (ndim - 1) // 2
    axis = torch.randn(batch, planes, generator=generator, dtype=torch.float64)
    angle = math.radians(degrees) * (2 * torch.rand(batch, 1, generator=generator, dtype=torch.float64) - 1)
    turn = torch.zeros(batch, ndim, ndim, dtype=torch.float64)
    rows, columns = torch.triu_indices(ndim, ndim, 1)
    turn[:, rows, columns] = angle * axis / axis.norm(dim=1, keepdim=True)
    moves = shift * (2 * torch.rand(batch, ndim, generator=generator, dtype=torch.float64) - 1)
    return join(torch.matrix_exp(turn - turn.mT), moves)


def quarter_turn(ndim: int) -> Tensor:
    """Return the turn by 90 degrees in the plane of the first two axes, (1, D (D + 1)); it maps voxels on voxels."""
    A = torch.eye(ndim).double()
    A[:2, :2] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    return join(A, torch.zeros(ndim).double())[None]
