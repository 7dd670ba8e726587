r"""The unknowns of affine registration, x = (A by rows, b) with phi_x(z) = A z + b, and how far two of them are apart.

Positions z live in Omega, which is centred on the grid and has side 2 along its longest axis: z = h (index - (n - 1)/2)
with h = 2 / max(n), so that a rotation of z is a rotation of the (isotropic) grid. x is (B, D D + D).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def dimension(x: Tensor) -> int:
    """Return D of parameters (..., D (D + 1)).

    Example:
        >>> dimension(torch.zeros(3, 12))
        3
    """
    return (math.isqrt(4 * x.shape[-1] + 1) - 1) // 2


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return A (..., D, D) and b (..., D) of x (..., D (D + 1))."""
    ndim = dimension(x)
    return x[..., : ndim * ndim].unflatten(-1, (ndim, ndim)), x[..., ndim * ndim :]


def join(A: Tensor, b: Tensor) -> Tensor:
    """Return x (..., D (D + 1)) of A (..., D, D) and b (..., D)."""
    return torch.cat([A.flatten(-2), b], -1)


def pixel(shape: Sequence[int]) -> float:
    """Return h, the size of a pixel of a grid in Omega."""
    return 2.0 / max(shape)


def initial_guess(shape: Sequence[int], batch: int = 1, like: Tensor | None = None) -> Tensor:
    """Return where every search starts, (B, D (D + 1)): A = 1.005 I, b = sqrt(2) h.

    Slightly off the identity, as in the authors' code: there every sample would lie exactly on a grid point, where
    linear interpolation has no derivative.
    """
    ndim = len(shape)
    x = torch.zeros(ndim * (ndim + 1)) if like is None else like.new_zeros(ndim * (ndim + 1))
    x[: ndim * ndim : ndim + 1] = 1.005
    x[ndim * ndim :] = math.sqrt(2) * pixel(shape)
    return x.repeat(batch, 1)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Return the parameters of z -> phi_outer(phi_inner(z))."""
    (A1, b1), (A2, b2) = split(outer), split(inner)
    return join(A1 @ A2, (A1 @ b2.unsqueeze(-1)).squeeze(-1) + b1)


def inverse(x: Tensor) -> Tensor:
    """Return the parameters of the inverse map.

    Raises:
        torch.linalg.LinAlgError: if A is singular.
    """
    A, b = split(x)
    back = torch.linalg.inv(A)
    return join(back, -(back @ b.unsqueeze(-1)).squeeze(-1))


def displacement_error(x: Tensor, truth: Tensor) -> Tensor:
    """Return the mean over Omega = [-1, 1]^D of |phi_x(z) - phi_truth(z)|^2, (B,): eq. 8 in closed form.

    With E = A - A_truth and e = b - b_truth it is |E|_F^2 / 3 + |e|^2; on the m^D cell centres of a grid 1/3 becomes
    (1 - 1/m^2)/3. The tables of the paper hold its integral, 4 times as much in 2-D.

    Args:
        x: (B, D (D + 1)).
        truth: likewise.
    """
    ndim = dimension(x)
    difference = (x - truth) ** 2
    return difference[..., : ndim * ndim].sum(-1) / 3 + difference[..., ndim * ndim :].sum(-1)


def matrix_vox(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return phi_x as homogeneous matrices (B, D+1, D+1), voxels of a grid of ``shape`` to voxels of the same grid."""
    A, b = split(x)
    ndim = A.shape[-1]
    center = (torch.tensor(tuple(shape), dtype=x.dtype, device=x.device) - 1) / 2
    column = b / pixel(shape) + center - (A * center).sum(-1)  # no matmul: autocast would halve its precision
    last = torch.zeros_like(x[:, : ndim + 1])
    last[:, ndim] = 1
    return torch.cat([torch.cat([A, column.unsqueeze(-1)], -1), last.unsqueeze(1)], 1)


def from_matrix_vox(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    """Return x of voxel matrices (B, D+1, D+1): the inverse of ``matrix_vox``."""
    ndim = matrix.shape[-1] - 1
    center = (torch.tensor(tuple(shape), dtype=matrix.dtype, device=matrix.device) - 1) / 2
    A = matrix[:, :ndim, :ndim]
    return join(A, (matrix[:, :ndim, ndim] - center + (A * center).sum(-1)) * pixel(shape))
