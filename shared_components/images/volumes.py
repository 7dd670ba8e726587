"""Files of one volume or many (time series, channels), moved as they are: every voxel kept, no demand on contrast."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..geometry import Frame
from .formats import NIBABEL_SUFFIXES, load_raw
from .read import _VECTOR_INTENTS, _affine_of, _check_finite
from .write import _cast, nifti_of, write_nifti


@dataclass(frozen=True, eq=False)
class Volumes:
    """All volumes of a file.

    Attributes:
        array: (N, *spatial), float32; int64 for labels.
        frame: their grid.
        path: the file.
        dtype: number type in the file.
        further: shape of the axes behind the spatial ones, of product N; () for one volume.
        steps: length of a step along each of those axes (for time series the repetition time).
    """

    array: Tensor
    frame: Frame
    path: Path
    dtype: np.dtype
    further: tuple[int, ...] = ()
    steps: tuple[float, ...] = ()


def read_frame(path: str | os.PathLike, what: str = "reference", ndim: int = 3) -> Frame:
    """Return the grid of any image, label map or displacement field.

    Raises:
        InputError: missing, damaged, of fewer than ``ndim`` dimensions, or without a valid geometry.
    """
    raw = load_raw(path, what)
    _check_ndim(raw.values, raw.path, what, ndim)
    return Frame(raw.values.shape[:ndim], _affine_of(raw, what, ndim))


def read_volumes(path: str | os.PathLike, what: str = "image", ndim: int = 3, labels: bool = False) -> Volumes:
    """Read a file of one or many scalar volumes.

    Args:
        path: NIfTI, MGH, MetaImage, NRRD or a picture.
        what: its role in words; it opens the sentence of a fault.
        ndim: spatial dimensions D, 2 or 3; axes behind them count volumes.
        labels: whole numbers are demanded and kept exactly.

    Raises:
        InputError: missing, damaged, RGB, a displacement field, NaN or infinite values, or labels that are no whole
            numbers.
    """
    raw = load_raw(path, what)
    values = raw.values
    if raw.intent in _VECTOR_INTENTS and values.ndim == 5:
        raise InputError(f"{what} {raw.path} is a displacement field; hand it over with --transform")
    if raw.components > 1 or values.dtype.kind not in "iufb":
        raise InputError(f"{what} {raw.path} has colours or vectors for voxels; split it into images of grey values")
    _check_ndim(values, raw.path, what, ndim)
    _check_finite(values, raw.path, what)
    if labels and values.dtype.kind == "f" and (np.abs(values - np.rint(values)) > 1e-4).any():
        raise InputError(f"{what} {raw.path} has values that are not whole numbers; move it with --image")
    frame = Frame(values.shape[:ndim], _affine_of(raw, what, ndim))
    first = np.moveaxis(values.reshape(*frame.shape, -1), -1, 0)
    work = (np.rint(first) if first.dtype.kind == "f" else first).astype(np.int64) if labels else first
    array = torch.from_numpy(np.array(work, dtype=np.int64 if labels else np.float32, order="C"))
    return Volumes(array, frame, raw.path, values.dtype, values.shape[ndim:], _steps(raw.path, ndim))


def write_volumes(path: str | os.PathLike, volumes: Volumes) -> None:
    """Write volumes as NIfTI, in their number type, with the axes and steps that they were read with.

    Raises:
        InputError: another suffix than .nii or .nii.gz, or the place cannot be written.
    """
    frame = volumes.frame
    values = np.moveaxis(volumes.array.numpy(), 0, -1).reshape(*frame.shape, *volumes.further)
    image = nifti_of(_cast(values, np.dtype(volumes.dtype)), frame)
    if volumes.steps and values.ndim == 3 + len(volumes.steps):
        image.header.set_zooms((*image.header.get_zooms()[:3], *volumes.steps))
        image.header.set_xyzt_units("mm", "sec")
    write_nifti(path, image)


def mean_frame(frames: Tensor) -> int:
    """Return the number of the frame of (N, ...) whose mean intensity is nearest the mean of all; ties: the first.

    In free breathing that frame lies near the middle of the respiratory cycle (Sandkuehler et al. 2019).
    """
    means = frames.flatten(1).mean(1, dtype=torch.float64)
    return int((means - means.mean()).abs().argmin())


def _check_ndim(values: np.ndarray, path: Path, what: str, ndim: int) -> None:
    shown = "x".join(map(str, values.shape))
    if 0 in values.shape:
        raise InputError(f"{what} {path} has no voxels (shape {shown}); export it again")
    if values.ndim < ndim:
        raise InputError(
            f"{what} {path} is {values.ndim}-D (shape {shown}), the transform {ndim}-D; give a {ndim}-D image"
        )


def _steps(path: Path, ndim: int) -> tuple[float, ...]:
    if ndim != 3 or not str(path).lower().endswith(NIBABEL_SUFFIXES[:2]):
        return ()
    header = nib.load(path).header
    scale = {"msec": 1e-3, "usec": 1e-6}.get(header.get_xyzt_units()[1], 1.0)
    return tuple(float(step) * scale for step in header.get_zooms()[3:])
