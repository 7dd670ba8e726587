"""NIfTI files: the same input gives the same bytes, and a file appears whole or not at all."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable
from typing import IO

import nibabel as nib
import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from ..errors import InputError
from ..geometry import Frame
from .files import atomic_path, suffix_of


def write_image(
    path: str | os.PathLike, array: Tensor | np.ndarray, frame: Frame, dtype: DTypeLike | None = None
) -> None:
    """Write a scalar image or a label map.

    Args:
        path: .nii or .nii.gz; its folder is made if missing.
        array: (*spatial) or with leading axes of one entry, such as (1, *spatial).
        frame: its grid.
        dtype: number type of the file; real values are rounded and clipped to an integer type. Default: that of
            ``array``, with bool as uint8, half precision as float32, and int64 as int32 where it fits.

    Raises:
        InputError: another suffix, or the place cannot be written.
        ValueError: the array does not fit the frame.
    """
    values = _numpy(array)
    lead = values.ndim - frame.ndim
    if values.shape[max(lead, 0) :] != frame.shape or values.size != np.prod(frame.shape):
        raise ValueError(f"an image of shape {tuple(array.shape)} does not fit a frame of shape {frame.shape}")
    values = values.reshape(frame.shape)
    values = _storable(values) if dtype is None else _cast(values, np.dtype(dtype))
    write_nifti(path, nifti_of(values, frame))


def nifti_of(values: np.ndarray, frame: Frame) -> nib.Nifti1Image:
    """Return (*spatial, ...) values as a NIfTI image whose sform (and qform, if it can) holds the frame's affine.

    Both get code 1, so that ITK takes the sform: the quaternion of the qform is less exact. A sheared frame cannot be
    told by a qform, which then stays unset.
    """
    affine = np.eye(4)
    axes = [*range(frame.ndim), 3]
    affine[np.ix_(axes, axes)] = frame.affine
    image = nib.Nifti1Image(values, affine, dtype=values.dtype)
    image.set_sform(affine, code=1)
    directions = frame.matrix / frame.spacing
    orthogonal = np.abs(directions.T @ directions - np.eye(frame.ndim)).max() < 1e-4
    image.set_qform(affine if orthogonal else None, code=int(orthogonal))
    image.header.set_xyzt_units("mm")
    return image


def write_nifti(path: str | os.PathLike, image: nib.Nifti1Image, parts: Iterable[np.ndarray] | None = None) -> None:
    """Write a NIfTI image under a temporary name and rename it; compressed bytes carry no time and no name.

    Args:
        path: .nii or .nii.gz.
        image: what to write.
        parts: instead of its values: arrays of its number type that make it up along its last axis, (*spatial) each.

    Raises:
        InputError: the suffix is neither .nii nor .nii.gz, or the place cannot be written.
    """
    suffix = suffix_of(path)
    if suffix not in (".nii", ".nii.gz"):
        raise InputError(f"cannot write {path}: images are written as NIfTI; give a name that ends in .nii or .nii.gz")
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        if suffix.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=_LEVEL, fileobj=stream, mtime=0) as packed:
                _write(packed, image, parts)
        else:
            _write(stream, image, parts)


def _write(stream: IO[bytes], image: nib.Nifti1Image, parts: Iterable[np.ndarray] | None) -> None:
    if parts is None:
        image.to_stream(stream)
        return
    header = image.header.copy()
    header.set_slope_inter(1, 0)  # as nibabel does when it need not scale
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.write_to(stream)  # and four bytes that say that no extension follows
    for part in parts:
        for k in range(part.shape[-1]):  # the first axis runs fastest in the file
            stream.write(part[..., k].tobytes(order="F"))


_LEVEL = 1  # 1 to 9: higher levels cost seconds a field and save a few per cent of floating-point noise


def _numpy(array: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return np.asarray(array)


def _storable(values: np.ndarray) -> np.ndarray:
    """Turn the number types that NIfTI or ITK lack into ones that hold the same values."""
    if values.dtype == bool:
        return values.astype(np.uint8)
    if values.dtype == np.float16:
        return values.astype(np.float32)
    limits = np.iinfo(np.int32)
    if values.dtype == np.int64 and limits.min <= values.min() and values.max() <= limits.max:
        return values.astype(np.int32)
    return values


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if dtype.kind not in "iu" or values.dtype == dtype:
        return _storable(values.astype(dtype, copy=False))
    limits = np.iinfo(dtype)
    low, high = int(limits.min), int(limits.max)
    values = values if values.dtype.kind in "iu" else np.rint(values.astype(np.float64))
    clipped = np.clip(values, low, high)
    result = clipped.astype(dtype)
    if values.dtype.kind == "f":  # 2**63 - 1 has no float64: the largest value would wrap around
        result[values >= high] = high
    return _storable(result)
