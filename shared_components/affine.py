r"""Affine maps: parameters <-> matrices <-> fields, composition and inverse.

Network parameters are ``A`` (B, D, D), the deviation from identity, and ``b`` (B, D), in voxels about the middle of the
grid: displacement f(x) = A (x - c) + b with c = (n - 1) / 2 (VTN eq. 11; the paper leaves c out, but a small A must not
shift the whole image). Homogeneous matrices are (B, D+1, D+1), voxels of one grid to voxels of the same grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .warp import affine_coords, coords_grid


def _center(shape: Sequence[int], like: Tensor) -> Tensor:
    return (torch.tensor(tuple(shape), dtype=like.dtype, device=like.device) - 1) / 2


def to_matrix(A: Tensor, b: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the homogeneous (B, D+1, D+1) matrix of x -> x + A (x - c) + b on a grid of ``shape``."""
    ndim = A.shape[-1]
    matrix = torch.eye(ndim + 1, dtype=A.dtype, device=A.device).repeat(A.shape[0], 1, 1)
    matrix[:, :ndim, :ndim] += A
    matrix[:, :ndim, ndim] = b - (A * _center(shape, A)).sum(-1)  # no matmul: autocast would halve its precision
    return matrix


def from_matrix(matrix: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return (A, b) of a homogeneous (B, D+1, D+1) matrix: the inverse of ``to_matrix``."""
    ndim = matrix.shape[-1] - 1
    A = matrix[:, :ndim, :ndim] - torch.eye(ndim, dtype=matrix.dtype, device=matrix.device)
    return A, matrix[:, :ndim, ndim] + (A * _center(shape, matrix)).sum(-1)


def affine_ddf(A: Tensor, b: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the field f(x) = A (x - c) + b as ddf (B, D, *shape) in voxels."""
    return affine_coords(to_matrix(A, b, shape), shape) - coords_grid(shape, A.device, A.dtype)


def compose_affine(A: Tensor, b: Tensor, ddf: Tensor) -> Tensor:
    """Return the ddf of the affine map after ``ddf``: (I + A) ddf + f(x), without interpolation and border clamp."""
    shape = ddf.shape[2:]
    with torch.autocast(ddf.device.type, enabled=False):
        turned = torch.einsum("bij,bj...->bi...", A, ddf)
    return ddf + turned + affine_ddf(A, b, shape)


def compose_params(outer: tuple[Tensor, Tensor], inner: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return (A, b) of x -> outer(inner(x)): (I + A1)(I + A2) - I and (I + A1) b2 + b1, both about the same middle."""
    (A1, b1), (A2, b2) = outer, inner
    with torch.autocast(A1.device.type, enabled=False):
        return A1 + A2 + A1 @ A2, b2 + b1 + (A1 @ b2.unsqueeze(-1)).squeeze(-1)


def compose_affines(outer: Tensor, inner: Tensor) -> Tensor:
    """Return x -> outer(inner(x)); all are (B, D, D+1), the matrix itself beside the shift, of any one coordinates."""
    ndim = outer.shape[-2]
    with torch.autocast(outer.device.type, enabled=False):
        joined = outer[..., :ndim] @ inner
    return torch.cat([joined[..., :ndim], joined[..., ndim:] + outer[..., ndim:]], -1)


def invert_params(A: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return (A, b) of the inverse map.

    Raises:
        torch.linalg.LinAlgError: if I + A is singular.
    """
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    inverse = torch.linalg.inv(eye + A)
    return inverse - eye, -(inverse * b.unsqueeze(1)).sum(-1)


def rotation(turn: Tensor) -> Tensor:
    """Return matrices (..., D, D) of angles (..., 1) or rotation vectors (..., 3), smooth also at no rotation."""
    if turn.shape[-1] == 1:
        cos, sin = turn.cos(), turn.sin()
        return torch.stack([torch.cat([cos, -sin], -1), torch.cat([sin, cos], -1)], -2)
    x, y, z = turn.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    angle = (turn.square().sum(-1) + 1e-12).sqrt()[..., None, None] / torch.pi
    eye = torch.eye(3, dtype=turn.dtype, device=turn.device)
    square = (cross[..., None] * cross[..., None, :, :]).sum(-2)  # a product of matrices, but not under autocast
    return eye + torch.sinc(angle) * cross + 0.5 * torch.sinc(angle / 2).square() * square
