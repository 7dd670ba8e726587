"""Cubic B-splines on nested control grids: exact evaluation as a product with one small matrix an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, arange, float64

from ..splines import spline_weights
from .basis import along_axes


def control_points(shape: Sequence[int], stride: float, halvings: int = 0) -> tuple[int, ...]:
    """Return the control points along each axis.

    They reach from the first voxel to the last and by one beyond either; n / stride of them (rounded up, at least 2)
    lie on the grid, so they are (n - 1) / (n / stride - 1) voxels apart. Each halving keeps every other one, counted
    from the first voxel, and one beyond either end again.

    Example:
        >>> control_points((256, 256), 8), control_points((256, 256), 8, 2)
        ((34, 34), (11, 11))
    """
    points = [max(2, math.ceil(n / stride)) + 2 for n in shape]
    for _ in range(halvings):
        points = [n // 2 + 2 for n in points]
    return tuple(points)


def subdivided(control: Tensor, points: Sequence[int]) -> Tensor:
    """Return the control points (B, D, *points) of twice the density that span the same spline, from the first on."""
    mask = control.new_tensor([6 / 8, 4 / 8, 1 / 8, 0])  # B(x) = sum_k mask[|k|] B(2 x - k)
    matrices = []
    for fine, coarse in zip(points, control.shape[2:], strict=True):
        fine, coarse = (arange(-1, n - 1, device=control.device) for n in (fine, coarse))
        matrices.append(mask[(fine[:, None] - 2 * coarse).abs().clamp_max(3)])
    return along_axes(matrices, control)


class Spline:
    """Cubic B-splines over an image, evaluated at the voxels of a grid.

    Args:
        shape: of the finest grid, which says where control points are: see ``control_points``.
        stride: voxels of it between control points.
        halvings: how often the control grid is coarsened.
        grid: voxels over the same extent at which to evaluate; by default ``shape``.
        like: device and type.
    """

    def __init__(
        self, shape: Sequence[int], stride: float, halvings: int, like: Tensor, grid: Sequence[int] | None = None
    ) -> None:
        spans = [n - 3 for n in control_points(shape, stride)]
        self.points = control_points(shape, stride, halvings)
        axes = zip(grid or shape, self.points, spans, strict=True)
        places = [spline_weights(n, m - 3, s / 2**halvings, float64) for n, m, s in axes]
        self.matrices = [place.to(like) for place in places]
        self.transposed = [matrix.T.contiguous() for matrix in self.matrices]

    def field(self, control: Tensor) -> Tensor:
        """Return the spline (B, D, *grid) of control points (B, D, *points)."""
        return along_axes(self.matrices, control)

    def adjoint(self, slope: Tensor) -> Tensor:
        """Return the gradient with respect to the control points, from that with respect to the field."""
        return along_axes(self.transposed, slope)
