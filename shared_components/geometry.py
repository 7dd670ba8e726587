r"""Grids and the coordinates they live in.

| name | meaning |
|---|---|
| fixed, moving, moved | the image that stays, the image that comes, the moving image brought onto the fixed grid |
| ddf | (B, D, *spatial) displacement in voxels of its own grid, array-axis order, moved(x) = moving(x + ddf(x)) |
| dvf | stationary velocity in the same layout; the ddf is its exponential |
| coords | absolute positions in voxels |
| affine_fixed, affine_moving | (D+1, D+1) voxel -> RAS mm |
| world | (D+1, D+1) map of fixed RAS mm -> moving RAS mm |
| _mm, _norm, _vox | suffix of anything in another unit than its default |

Normalised [-1, 1] coordinates exist only inside ``warp``, LPS only inside ``itk_io``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """A grid in the world: ``shape`` in voxels and ``affine`` (D+1, D+1), voxel -> RAS mm."""

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.asarray(self.affine, dtype=np.float64)
        if affine.shape != (len(shape) + 1, len(shape) + 1):
            raise ValueError(
                f"a {len(shape)}-D frame needs a {len(shape) + 1}x{len(shape) + 1} affine, got {affine.shape}"
            )
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def ndim(self) -> int:
        """Number of spatial dimensions D."""
        return len(self.shape)

    @property
    def matrix(self) -> np.ndarray:
        """(D, D) linear part of the affine, mm per voxel."""
        return self.affine[:-1, :-1]

    @property
    def spacing(self) -> np.ndarray:
        """(D,) voxel size in mm along each array axis."""
        return np.linalg.norm(self.matrix, axis=0)

    @property
    def center_mm(self) -> np.ndarray:
        """(D,) RAS mm of the middle of the grid."""
        return self.to_mm((np.asarray(self.shape) - 1) / 2)

    def to_mm(self, points_vox: np.ndarray) -> np.ndarray:
        """Map (..., D) voxel positions to RAS mm."""
        return apply_affine(self.affine, points_vox)

    def to_vox(self, points_mm: np.ndarray) -> np.ndarray:
        """Map (..., D) RAS mm to voxel positions."""
        return apply_affine(np.linalg.inv(self.affine), points_mm)

    def corners_mm(self) -> np.ndarray:
        """(2**D, D) RAS mm of the outermost voxel centres."""
        ends = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), -1).reshape(-1, self.ndim)
        return self.to_mm(ends)

    def same_grid(self, other: Frame, tolerance_mm: float = 1e-3) -> bool:
        """Tell whether two frames have the same shape and corners that agree to ``tolerance_mm``."""
        if self.shape != other.shape:
            return False
        return bool(np.abs(self.corners_mm() - other.corners_mm()).max() <= tolerance_mm)


def apply_affine(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a (D+1, D+1) homogeneous matrix to (..., D) points.

    Example:
        >>> apply_affine(np.array([[2.0, 0, 1], [0, 2, 0], [0, 0, 1]]), np.array([3.0, 4.0])).tolist()
        [7.0, 8.0]
    """
    points = np.asarray(points, dtype=np.float64)
    return points @ matrix[:-1, :-1].T + matrix[:-1, -1]


def vox_to_vox(source: Frame, target: Frame, world: np.ndarray | None = None) -> np.ndarray:
    """Return the (D+1, D+1) map of ``source`` voxels to ``target`` voxels, through ``world`` (mm -> mm) if given."""
    through = source.affine if world is None else world @ source.affine
    return np.linalg.inv(target.affine) @ through


def canonical_axes(affine: np.ndarray) -> np.ndarray:
    """Return the (D, D) signed permutation P whose columns turn the array axes into those closest to R, A, S.

    ``affine[:D, :D] @ P`` has its largest entries on the diagonal, positive.
    """
    ndim = affine.shape[0] - 1
    orientation = nib.orientations.io_orientation(affine)
    axes = np.zeros((ndim, ndim))
    for array_axis, (world_axis, sign) in enumerate(orientation):
        axes[array_axis, int(world_axis)] = sign
    return axes


def orientation_codes(affine: np.ndarray) -> str:
    """Return the nearest anatomical axis codes of a 3-D affine, such as ``RAS`` or ``LPS``."""
    return "".join(nib.aff2axcodes(affine))


def cut_frame(
    fixed: Frame, size: Sequence[int], spacing: float | Sequence[float], center_mm: np.ndarray | None = None
) -> Frame:
    """Return the grid that a network sees: ``size`` voxels of ``spacing`` mm around ``center_mm``.

    The axes are those of the fixed grid, reordered and flipped to lie closest to R, A, S. They stay oblique where the
    fixed grid is oblique: a scan is planned along the anatomy, so its own axes fit a network better than the scanner's.
    """
    size = tuple(int(n) for n in size)
    step = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (fixed.ndim,))
    directions = (fixed.matrix / fixed.spacing) @ canonical_axes(fixed.affine)
    center = fixed.center_mm if center_mm is None else np.asarray(center_mm, dtype=np.float64)
    affine = np.eye(fixed.ndim + 1)
    affine[:-1, :-1] = directions * step
    affine[:-1, -1] = center - affine[:-1, :-1] @ ((np.asarray(size) - 1) / 2)
    return Frame(size, affine)
