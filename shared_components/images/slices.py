"""Slices over time (2-D + t): one slice of a body, however it lies in space, in all frames of a file.

A slice is registered in its own plane. Plane coordinates are mm along two directions of the plane, those closest to two
of R, A, S in this order: (R, A) in an axial slice, (R, S) in a coronal and (A, S) in a sagittal one. For a flat image,
whose plane is that of the first two world axes through the origin, they are the world coordinates of any 2-D image.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import Frame
from .formats import RawFile, load_raw
from .read import _VECTOR_INTENTS, _check_finite
from .volumes import Volumes
from .write import nifti_of, write_nifti

_LETTERS = ("LR", "PA", "IS")  # negative and positive end of each RAS axis
_SECONDS = {"msec": 1e-3, "usec": 1e-6}


@dataclass(frozen=True, eq=False)
class SlicePlane:
    """How a slice lies in space.

    Attributes:
        affine: (4, 4) voxel (along the two axes of the slice, through it) -> RAS mm.
        basis: (3, 2) the directions of the two plane coordinates, orthonormal, RAS.
        origin_mm: (3,) RAS mm of plane coordinates (0, 0), the point of the plane that is nearest the world's origin.
    """

    affine: np.ndarray
    basis: np.ndarray
    origin_mm: np.ndarray

    @classmethod
    def of(cls, affine: np.ndarray) -> SlicePlane:
        """Return the plane of the first two axes of a voxel -> RAS mm affine; the third tells the thickness alone."""
        normal = np.cross(affine[:3, 0], affine[:3, 1])
        normal = normal / np.linalg.norm(normal)
        if abs(normal[2]) > 1 - 1e-8:  # within 0.01 degrees: the numbers of the file stay as they are
            normal = np.array([0.0, 0.0, np.sign(normal[2])])
        first, second = (axis for axis in range(3) if axis != np.abs(normal).argmax())
        one = np.eye(3)[first] - normal * normal[first]
        one = one / np.linalg.norm(one)
        two = np.cross(normal, one)
        two = two * np.sign(two[second])
        thick = np.linalg.norm(affine[:3, 2]) or 1.0
        affine = np.array(affine, dtype=np.float64)
        affine[:3, 2] = normal * thick * (-1.0 if affine[:3, 2] @ normal < 0 else 1.0)
        return cls(affine, np.stack([one, two], -1), normal * (normal @ affine[:3, 3]) + 0.0)

    @property
    def flat(self) -> bool:
        """Whether plane coordinates are those of the world, as for a picture: its transforms are 2-D for ITK too."""
        return bool(np.abs(self.basis - np.eye(3)[:, :2]).max() < 1e-6 and np.abs(self.origin_mm).max() < 1e-6)

    @property
    def letters(self) -> tuple[str, str]:
        """Body axis nearest each plane coordinate, its negative end first, such as ("LR", "IS")."""
        return tuple(_LETTERS[int(np.abs(direction).argmax())] for direction in self.basis.T)

    def frame(self, shape: tuple[int, int]) -> Frame:
        """Return the grid of the slice in plane coordinates."""
        affine = np.eye(3)
        affine[:2, :2] = self.basis.T @ self.affine[:3, :2]
        affine[:2, 2] = self.basis.T @ (self.affine[:3, 3] - self.origin_mm)
        return Frame(shape, affine)

    def to_ras(self, points_mm: np.ndarray) -> np.ndarray:
        """Map plane coordinates (..., 2) to RAS mm (..., 3)."""
        return points_mm @ self.basis.T + self.origin_mm


@dataclass(frozen=True, eq=False)
class SliceSeries(Volumes):
    """The frames (N, X, Y) of a slice; ``frame`` is their grid in plane coordinates.

    Attributes:
        plane: how the slice lies in space.
        shape: of the array in the file, for a result that looks like it; () if there was no such file.
        header: of a NIfTI file, or None.
    """

    plane: SlicePlane | None = None
    shape: tuple[int, ...] = ()
    header: Any = None

    @property
    def seconds(self) -> float | None:
        """Time from frame to frame, where the file tells it."""
        return self.steps[-1] if self.steps and self.steps[-1] > 0 else None

    def corners_ras(self) -> np.ndarray:
        """(4, 3) RAS mm of the outermost pixels."""
        return self.plane.to_ras(self.frame.corners_mm())


def read_slice_series(path: str | os.PathLike, what: str = "series") -> SliceSeries:
    """Read a slice over time: X x Y x T, or X x Y x 1 x T, with the axis of length 1 anywhere among the first three.

    Args:
        path: NIfTI, MGH, MetaImage, NRRD or a TIFF of many pages; any orientation.
        what: its role in words; it opens the sentence of a fault.

    Raises:
        InputError: missing, damaged, colours, more than one slice, NaN or infinite values, or no valid geometry.
    """
    raw = load_raw(path, what)
    values = raw.values
    if raw.intent in _VECTOR_INTENTS and values.ndim == 5:
        raise InputError(f"{what} {raw.path} is a displacement field; give the images themselves")
    if raw.components > 1 or values.dtype.kind not in "iufb":
        raise InputError(f"{what} {raw.path} has colours or vectors for voxels; convert it to grey values")
    kept = _slice_axes(values.shape, raw.path, what)
    _check_finite(values, raw.path, what)
    order = [*kept, 3 - sum(kept)]
    affine = raw.affine.copy()
    affine[:3, :3] = raw.affine[:3, order]
    _check_axes(affine[:3, :2], raw.path, what)
    plane = SlicePlane.of(affine)
    size = (values.shape[kept[0]], values.shape[kept[1]])
    frames = np.moveaxis(values.reshape(*size, -1), -1, 0)
    array = torch.from_numpy(np.array(frames, dtype=np.float32, order="C"))
    header, steps = _header(raw)
    return SliceSeries(
        array, plane.frame(size), raw.path, values.dtype, (len(array),), steps, plane, values.shape, header
    )


def _slice_axes(shape: tuple[int, ...], path: Path, what: str) -> tuple[int, int]:
    """Return the two axes of the slice; what lies behind the third, or is the third of three, are frames."""
    shown = "x".join(map(str, shape))
    if 0 in shape or len(shape) < 2:
        raise InputError(f"{what} {path} holds no images (shape {shown}); give one slice over time, X x Y x T")
    single = [axis for axis, n in enumerate(shape[:3]) if n == 1] if len(shape) > 3 else []
    if len(shape) > 3 and not single:
        raise InputError(f"{what} {path} has {shape[2]} slices (shape {shown}); save the one to register")
    through = single[-1] if single else 2
    first, second = (axis for axis in range(3) if axis != through)
    if min(shape[first], shape[second]) == 1:
        raise InputError(f"{what} {path} has frames of a single line (shape {shown}); give images, X x Y x 1 x T")
    return first, second


def _check_axes(axes: np.ndarray, path: Path, what: str) -> None:
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or (spacing < 1e-9).any():
        shown = " x ".join(f"{size:g}" for size in spacing)
        raise InputError(f"{what} {path} has a pixel size of {shown} mm; write the true geometry into its header")
    if np.linalg.norm(np.cross(*(axes / spacing).T)) < 1e-6:
        raise InputError(f"{what} {path} has a singular affine (both axes point one way); repair its sform or qform")


def _header(raw: RawFile) -> tuple[Any, tuple[float, ...]]:
    """Return a NIfTI header and the seconds from frame to frame."""
    image = nib.load(raw.path) if raw.path.name.lower().endswith((".nii", ".nii.gz")) else None
    if image is None:
        return None, ()
    scale = _SECONDS.get(image.header.get_xyzt_units()[1], 1.0)
    return image.header, tuple(float(step) * scale for step in image.header.get_zooms()[3:])


def write_slice_series(path: str | os.PathLike, array: Tensor, like: SliceSeries) -> None:
    """Write frames (N, X, Y) as float32 NIfTI with the header of ``like``, or as X x Y x 1 x N where it has none.

    Raises:
        InputError: another suffix than .nii or .nii.gz, or the place cannot be written.
    """
    values = np.ascontiguousarray(array.to(torch.float32).movedim(0, -1).numpy())
    if like.header is not None:
        header = like.header.copy()
        header.set_data_dtype(np.float32)
        header.set_slope_inter(1.0, 0.0)
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        write_nifti(path, kind(values.reshape(like.shape), None, header))
        return
    size = like.frame.shape
    image = nifti_of(values.reshape(*size, 1, -1), Frame((*size, 1), like.plane.affine))
    image.header.set_xyzt_units("mm", "sec")
    write_nifti(path, image)
