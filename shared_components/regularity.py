r"""What keeps a transformation plausible, as losses. Fields are ddf (B, D, *spatial) in voxels."""

from __future__ import annotations

import torch
from torch import Tensor

from .warp import compose, jacobian_determinant


def total_variation(ddf: Tensor) -> Tensor:
    """Return 1/(D |Omega|) sum_x sum_i |f(x + e_i) - f(x)|^2, mean over the batch (VTN eq. 8).

    Forward differences: a checkerboard costs most, where a central difference would not see it. Steps that leave the
    grid count as zero, |Omega| is the number of voxels.
    """
    ndim = ddf.ndim - 2
    voxels = ddf[0, 0].numel()
    total = sum(torch.diff(ddf, dim=axis).square().sum() for axis in range(2, ddf.ndim))
    return total / (ndim * voxels * ddf.shape[0])


def isotropic_variation(field: Tensor) -> Tensor:
    """Return the mean length of each component's forward differences: isotropic total variation, (B, D, *spatial).

    Only voxels that have a next one along every axis count. Steps are not divided by the voxel size, so the value
    doubles where the same field is sampled half as finely. The gradient where nothing changes is 0.
    """
    ndim = field.ndim - 2
    first = field[(..., *(slice(None, -1),) * ndim)]
    square = torch.zeros_like(first)
    for axis in range(ndim):
        ahead = (slice(1, None) if k == axis else slice(None, -1) for k in range(ndim))
        square = square + (field[(..., *ahead)] - first).square()
    rough = square > 0
    return torch.where(rough, torch.where(rough, square, 1.0).sqrt(), 0.0).mean()


def diffusion(ddf: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean over voxels and axes of squared forward differences, summed over components.

    Unlike ``total_variation`` each axis is averaged over the differences that exist; ``weight`` (B, 1, *spatial)
    weighs the voxel a difference starts from.
    """
    ndim = ddf.ndim - 2
    terms = []
    for axis in range(2, ddf.ndim):
        square = torch.diff(ddf, dim=axis).square().sum(1, keepdim=True)
        if weight is None:
            terms.append(square.mean())
        else:
            part = weight.narrow(axis, 0, square.shape[axis])
            terms.append((square * part).sum() / part.sum().clamp_min(1e-6))
    return torch.stack(terms).sum() / ndim


def fold_penalty(ddf: Tensor, margin: float = 0.0) -> Tensor:
    """Return the mean of relu(margin - det J): zero where the Jacobian determinant stays above ``margin``.

    Forward and backward differences are taken, the corners of the voxel, so that folds hidden from central
    differences are seen.
    """
    ahead = jacobian_determinant(ddf, "forward")
    axes = tuple(range(2, ddf.ndim))
    behind = jacobian_determinant(-ddf.flip(axes), "forward")
    return (torch.relu(margin - ahead).mean() + torch.relu(margin - behind).mean()) / 2


def orthogonality(A: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Return -2D + sum(lambda^2 + lambda^-2) over the singular values of I + A, mean over the batch (VTN eq. 9).

    A: (B, D, D), D = 2 or 3. From the characteristic polynomial of C = (I + A)^T (I + A) + epsilon I, without an SVD:
    trace and (sum of principal minors of size D - 1) / det; zero for any rotation, large towards singular matrices.
    """
    ndim = A.shape[-1]
    eye = torch.eye(ndim, dtype=A.dtype, device=A.device)
    with torch.autocast(A.device.type, enabled=False):
        C = (eye + A).mT @ (eye + A) + epsilon * eye
    trace = C.diagonal(dim1=-2, dim2=-1).sum(-1)
    if ndim == 2:
        minors, det = trace, C[:, 0, 0] * C[:, 1, 1] - C[:, 0, 1] * C[:, 1, 0]
    else:
        minors = (trace**2 - (C * C.mT).sum((-2, -1))) / 2
        det = torch.linalg.det(C)
    return (trace + (1 + epsilon) ** 2 * minors / det - 2 * ndim * (1 + epsilon)).mean()


def determinant(A: Tensor) -> Tensor:
    """Return (det(I + A) - 1)^2, mean over the batch (VTN eq. 10): 0 for rotations, 4 for reflections."""
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return (torch.linalg.det(eye + A) - 1).square().mean()


def central_half(x: Tensor) -> Tensor:
    """Return the middle half of every spatial axis: the first and last quarter are cut off."""
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        x = x.narrow(axis, n // 4, n - 2 * (n // 4))
    return x


def inverse_consistency(f12: Tensor, f21: Tensor, crop: bool = True) -> Tensor:
    """Return the mean over voxels of |f12 * f21|^2 + |f21 * f12|^2 (VTN eq. 12), in voxels squared.

    ``crop``: only the central half of each axis counts, as in the paper. The norm is a mean per voxel: as a sum over
    64^3 voxels a residual of one voxel would outweigh everything else.
    """
    cut = central_half if crop else (lambda x: x)
    return sum(cut(compose(a, b)).square().sum(1).mean() for a, b in ((f12, f21), (f21, f12)))
