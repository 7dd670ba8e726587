"""One step of the descent, and the way between control points and voxels (SUITS eq. 4-7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.solvers import Method, find_method, gauss_newton_step
from shared_components.solvers.axes import kept

UPSAMPLING = ("box", "spline")
EXPORT_ITERATIONS = 12


def exporting() -> bool:
    """Whether the network is being traced or compiled: then nothing may depend on the data."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class Step(nn.Module):
    """``update`` by one method. While exporting: so many spectral iterations, more than enough, and no look at them.

    Args:
        method: of the linear solve.
        grad_A: let gradients through the matrix too.
    """

    def __init__(self, method: Method, grad_A: bool = False) -> None:  # noqa: N803 (as in the paper)
        super().__init__()
        self.method, self.grad_A = method, grad_A

    def forward(self, moved: Tensor, fixed: Tensor, ddf: Tensor, smoothness: float) -> Tensor:
        """Return the step, see ``update``."""
        method = self.method
        if exporting():
            method = find_method("spectral", tolerance=None, max_iterations=EXPORT_ITERATIONS)
        return update(moved, fixed, ddf, smoothness, method, self.grad_A)


def slopes(features: Tensor) -> Tensor:
    """Return the gradient (B, C, D, *grid) of features (B, C, *grid): central differences, the border repeated."""
    ndim = features.ndim - 2
    found = []
    for axis in range(2, ndim + 2):
        n = features.shape[axis]
        ahead = torch.cat([features.narrow(axis, 1, n - 1), features.narrow(axis, n - 1, 1)], axis)
        behind = torch.cat([features.narrow(axis, 0, 1), features.narrow(axis, 0, n - 1)], axis)
        found.append(0.5 * (ahead - behind))
    return torch.stack(found, 2)


def update(
    moved: Tensor,
    fixed: Tensor,
    ddf: Tensor,
    smoothness: float,
    method: Method | str,
    grad_A: bool = False,  # noqa: N803
) -> Tensor:
    """Return the step z (B, D, *grid) from features (B, C, *grid) of the moved and the fixed image, eq. 6.

    Args:
        moved: features as seen through ``ddf``.
        fixed: features.
        ddf: the displacement so far, (B, D, *grid), in spacings of the control points, like z.
        smoothness: lambda.
        method: of the linear solve.
        grad_A: let gradients through the matrix too.
    """
    return gauss_newton_step(slopes(moved), moved - fixed, ddf, smoothness, method, grad_A=grad_A).z


def dense(ddf: Tensor, factor: int, shape: Sequence[int], upsampling: str = "box") -> Tensor:
    """Return the field (B, D, *shape) in voxels of control points (B, D, *ceil(shape / factor)) in their spacing.

    Control point i is the middle of a cell of ``factor`` voxels; beyond the first and the last they repeat. "box" is
    linear interpolation, then the mean over 5 voxels, as in the paper; "spline" the quadratic B-spline that the paper
    says this is. A constant stays what it is, times the factor.
    """
    if factor == 1:
        return ddf
    for n in shape:  # contracts the first spatial axis and appends the new one
        ddf = torch.tensordot(ddf, upsampling_weights(n, factor, upsampling).to(ddf), dims=([2], [1]))
    return factor * ddf.contiguous()


@kept(64)
def upsampling_weights(length: int, factor: int, upsampling: str) -> Tensor:
    """Return the weights (length, ceil(length / factor)) of control points along an axis, float64; rows sum to 1."""
    cells = -(-length // factor)
    eye = torch.eye(cells, dtype=torch.float64)
    if upsampling == "box":
        fine = F.interpolate(eye[None], scale_factor=factor, mode="linear")
        return F.avg_pool1d(F.pad(fine, (2, 2), mode="replicate"), 5, 1)[0].T[:length].contiguous()
    position = (torch.arange(length, dtype=torch.float64) - (factor - 1) / 2) / factor
    away = (position[:, None] - torch.arange(-1, cells + 1)).abs()
    near, far = 0.75 - away**2, 0.5 * (1.5 - away).clamp_min(0) ** 2
    weights = torch.where(away <= 0.5, near, far)
    weights[:, 1] += weights[:, 0]
    weights[:, -2] += weights[:, -1]
    return weights[:, 1:-1].contiguous()
