"""Images and label maps as tensors with their frame, or one sentence that says why not."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import Frame
from .formats import RawFile, load_raw

_VECTOR_INTENTS = (1006, 1007)


@dataclass(frozen=True, eq=False)
class Image:
    """An image in memory.

    Attributes:
        array: (1, *spatial), float32; int32 or int64 for labels.
        frame: its grid, voxel -> RAS mm.
        path: the file it came from.
        dtype: number type in the file.
    """

    array: Tensor
    frame: Frame
    path: Path
    dtype: np.dtype


def read_image(path: str | os.PathLike, what: str = "fixed image", ndim: int = 3) -> Image:
    """Read a scalar image as float32.

    Args:
        path: NIfTI, MGH, MetaImage, NRRD or a picture. Trailing axes of one entry (a single volume) are dropped.
        what: its role in words; it opens the sentence of a fault.
        ndim: spatial dimensions D that are needed, 2 or 3.

    Returns:
        The image, (1, *spatial), intensities as stored (slope and intercept applied).

    Raises:
        InputError: missing, damaged, of another dimension, RGB, complex, empty, constant, with NaN or infinite values,
            beyond float32, or without a valid geometry.
    """
    values, frame, raw = _read_scalar(path, what, ndim)
    _check_finite(values, raw.path, what)
    with np.errstate(over="ignore"):
        array = torch.from_numpy(np.array(values, dtype=np.float32, order="C"))
    low, high = array.min().item(), array.max().item()
    if not np.isfinite([low, high]).all():
        raise InputError(f"{what} {raw.path} has values beyond 3.4e38; scale its intensities down")
    if low == high:
        raise InputError(f"{what} {raw.path} is constant (every voxel is {low:g}); check that it is the right file")
    return Image(array[None], frame, raw.path, values.dtype.newbyteorder("="))


def read_labels(path: str | os.PathLike, what: str = "fixed label", ndim: int = 3) -> Image:
    """Read a label map or mask as integers, int32 where they fit and int64 otherwise.

    Args:
        path: as for `read_image`; floating-point files are taken if their values are whole numbers.
        what: its role in words; it opens the sentence of a fault.
        ndim: spatial dimensions D that are needed, 2 or 3.

    Raises:
        InputError: as for `read_image`, or values that are not whole numbers, or no label at all (every voxel 0).
    """
    values, frame, raw = _read_scalar(path, what, ndim)
    _check_finite(values, raw.path, what)
    whole = values if values.dtype.kind in "iub" else np.rint(values)
    if whole is not values and (broken := np.abs(whole - values) > 1e-4).any():
        example = values[broken].flat[0]
        raise InputError(
            f"{what} {raw.path} has values that are not whole numbers ({example:g}); give a label map, not an image or "
            "a linearly interpolated map"
        )
    if not whole.any():
        raise InputError(f"{what} {raw.path} holds no label (every voxel is 0); check that it is the right file")
    limits = np.iinfo(np.int32)
    fits = limits.min <= whole.min() and whole.max() <= limits.max
    array = np.array(whole, dtype=np.int32 if fits else np.int64, order="C")
    return Image(torch.from_numpy(array)[None], frame, raw.path, values.dtype.newbyteorder("="))


def _read_scalar(path: str | os.PathLike, what: str, ndim: int) -> tuple[np.ndarray, Frame, RawFile]:
    raw = load_raw(path, what)
    if raw.intent in _VECTOR_INTENTS and raw.values.ndim == 5 and raw.values.shape[-1] > 1:
        raise InputError(f"{what} {raw.path} is a displacement field; give the image itself")
    if raw.components > 1:
        raise InputError(
            f"{what} {raw.path} has {raw.components} components a voxel (RGB or vectors); convert it to grey values"
        )
    if raw.values.dtype.kind not in "iufb":
        raise InputError(f"{what} {raw.path} has values of type {raw.values.dtype}; save it with real numbers")
    values = _drop_axes(raw, what, ndim)
    return values, Frame(values.shape, _affine_of(raw, what, ndim)), raw


def _drop_axes(raw: RawFile, what: str, ndim: int) -> np.ndarray:
    shape = raw.values.shape
    shown = "x".join(map(str, shape))
    if 0 in shape or not shape:
        raise InputError(f"{what} {raw.path} has no voxels (shape {shown}); export it again")
    kept = len(shape)
    while kept > 1 and shape[kept - 1] == 1:
        kept -= 1
    if ndim == 3 and (kept < 3 or 1 in shape[:3]):
        raise InputError(
            f"{what} {raw.path} is 2-D (shape {shown}) where a volume is needed; give a 3-D image or "
            "choose a bundle or configuration for 2-D images"
        )
    if kept > 3:
        raise InputError(
            f"{what} {raw.path} is {kept}-D (shape {shown}), more than one volume; save the one volume to register"
        )
    if kept > ndim:
        raise InputError(
            f"{what} {raw.path} is 3-D (shape {shown}) where a 2-D image is needed; save one slice of "
            "it or choose a bundle or configuration for volumes"
        )
    if len(shape) < ndim:
        raise InputError(f"{what} {raw.path} is 1-D (shape {shown}); give a {ndim}-D image")
    return raw.values.reshape(shape[:ndim])


def _affine_of(raw: RawFile, what: str, ndim: int) -> np.ndarray:
    affine = raw.affine
    if ndim == 2:
        through = np.abs([*affine[:2, 2], *affine[2, :2]])
        if through.max() > 1e-4 * np.abs(affine[:2, :2]).max():
            raise InputError(
                f"{what} {raw.path} is a 2-D image whose plane is not axial; set its qform and sform to the axial plane"
            )
        affine = affine[np.ix_([0, 1, 3], [0, 1, 3])]
    spacing = np.linalg.norm(affine[:ndim, :ndim], axis=0)
    if not np.isfinite(affine).all() or (spacing < 1e-9).any():
        shown = " x ".join(f"{size:g}" for size in spacing)
        raise InputError(f"{what} {raw.path} has a voxel size of {shown} mm; write the true geometry into its header")
    if abs(np.linalg.det(affine[:ndim, :ndim] / spacing)) < 1e-6:
        raise InputError(
            f"{what} {raw.path} has a singular affine (two axes point the same way); repair its sform or qform"
        )
    return affine


def _check_finite(values: np.ndarray, path: Path, what: str) -> None:
    if values.dtype.kind == "f" and not (finite := np.isfinite(values)).all():
        count = finite.size - int(finite.sum())
        raise InputError(f"{what} {path} has NaN or infinite values in {count} voxels; replace them, for example by 0")
