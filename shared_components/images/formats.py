"""The values and the geometry that a file holds, before anything is asked of them.

NIfTI and MGH are read by nibabel; MetaImage and NRRD by SimpleITK or, where that is absent, by itk; pictures by Pillow.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import InputError
from . import pictures
from .files import existing_file, suffix_of

NIBABEL_SUFFIXES = (".nii", ".nii.gz", ".mgh", ".mgz")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
_DAMAGED = (
    OSError,  # nibabel: fewer bytes than the header says; gzip: no gzip file, wrong checksum
    EOFError,
    ValueError,
    OverflowError,
    KeyError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawFile:
    """What a file holds.

    Attributes:
        path: the file.
        values: (*grid) or, where ``components`` > 1 and the format is none of nibabel's, (*grid, components).
        affine: (4, 4) voxel -> RAS mm; the third axis of a 2-D file is that of a slice 1 mm thick.
        components: numbers a voxel (3 for RGB).
        intent: NIfTI intent code, 0 if none.
    """

    path: Path
    values: np.ndarray
    affine: np.ndarray
    components: int = 1
    intent: int = 0


def load_raw(path: str | os.PathLike, what: str) -> RawFile:
    """Read any supported file.

    Args:
        path: .nii, .nii.gz, .mgh, .mgz, .mha, .mhd, .nrrd, .nhdr, .png, .jpg, .jpeg, .bmp, .tif or .tiff.
        what: the role of the file in words, for the sentence.

    Raises:
        InputError: missing, of another format, damaged, or without a voxel size.
    """
    path = existing_file(path, what)
    suffix = suffix_of(path)
    if suffix in NIBABEL_SUFFIXES:
        return _load_nibabel(path, what, suffix)
    if suffix in ITK_SUFFIXES:
        return _load_itk(path, what)
    if suffix in pictures.SUFFIXES:
        return _load_picture(path, what)
    known = ", ".join(NIBABEL_SUFFIXES + ITK_SUFFIXES + pictures.SUFFIXES)
    raise InputError(f"{what} {path} has a format that is not read here; convert it to one of {known}")


def grid_of(path: str | os.PathLike) -> tuple[int, ...] | None:
    """Return the shape that a file's header tells, nothing else being read; None where it does not."""
    try:
        suffix = suffix_of(path)
        if suffix in NIBABEL_SUFFIXES:
            return tuple(int(n) for n in nib.load(path).shape)
        if suffix in ITK_SUFFIXES:
            import SimpleITK as sitk

            reader = sitk.ImageFileReader()
            reader.SetFileName(str(path))
            reader.ReadImageInformation()
            return tuple(int(n) for n in reader.GetSize())
        return pictures.grid_of(path) if suffix in pictures.SUFFIXES else None
    except (ImportError, RuntimeError, *_DAMAGED):
        return None


def _damaged(path: Path, what: str, reason: object) -> InputError:
    reason = " ".join(str(reason).split())[:160]
    return InputError(f"{what} {path} is damaged or cut short ({reason}); copy or export it again")


def _load_nibabel(path: Path, what: str, suffix: str) -> RawFile:
    try:
        length = _gzip_length(path) if suffix in (".nii.gz", ".mgz") else path.stat().st_size
        image = nib.load(path)
        _check_length(image, length)
        values = np.asanyarray(image.dataobj)
    except MemoryError as error:
        raise InputError(f"{what} {path} needs more memory than there is; crop or downsample it") from error
    except _DAMAGED as error:
        raise _damaged(path, what, error) from error
    components = len(values.dtype.names) if values.dtype.names else 1
    if isinstance(image, (nib.Nifti1Image, nib.Nifti2Image)):
        affine = _nifti_affine(image, path, what)
        return RawFile(path, values, affine, components, int(image.header["intent_code"]))
    return RawFile(path, values, np.asarray(image.affine, dtype=np.float64), components)


def _gzip_length(path: Path) -> int:
    """Count the bytes; at the end is the checksum: nibabel stops after the last voxel and misses flipped bits."""
    length = 0
    with gzip.open(path) as stream:
        while block := stream.read(1 << 20):
            length += len(block)
    return length


def _check_length(image: nib.spatialimages.SpatialImage, length: int) -> None:
    """Compare header and file first: nibabel would set aside what the header asks for, however much that is."""
    header = image.header
    claimed = [int(n) for n in header.get_data_shape()]
    if min(claimed, default=0) < 1:
        raise ValueError(f"its header claims a size of {_times(np.array(claimed))} voxels")
    needed = header.get_data_offset() + math.prod(claimed) * header.get_data_dtype().itemsize
    if needed > length:
        raise ValueError(f"its header asks for {needed} bytes, there are {length}")


def _nifti_affine(image: nib.Nifti1Image, path: Path, what: str) -> np.ndarray:
    """Return the voxel -> RAS mm affine that ITK, ANTs and Slicer see, so that our transforms fit what they load.

    It is nibabel's (the sform, else the qform) but in two cases. An sform of code 2 or more that contradicts the qform
    gives way to the qform; a file with neither has its first voxel at 0 and its axes towards L, P, S.
    """
    header = image.header
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code > 0 and (sform_code == 1 or qform_code == 0):
        return np.asarray(header.get_sform(), dtype=np.float64)
    if sform_code > 0:
        return _sform_or_qform(header, path, what)
    _check_voxel_size(image, path, what)
    if qform_code > 0:
        try:
            return np.asarray(header.get_qform(), dtype=np.float64)
        except ValueError as error:
            raise InputError(f"{what} {path} has an invalid qform ({error}); repair its header") from error
    _log.warning("%s %s says nothing of its orientation: its axes are taken to be L, P, S, as ITK does", what, path)
    steps = np.ones(3)
    zooms = np.abs(header.get_zooms()[:3])
    steps[: len(zooms)] = zooms
    return _LPS_TO_RAS @ np.diag([*steps, 1.0])


def _sform_or_qform(header: nib.Nifti1Header, path: Path, what: str) -> np.ndarray:
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except ValueError:
        return sform
    if not np.isfinite(qform).all() or abs(np.linalg.det(qform[:3, :3])) < 1e-12:
        return sform
    shape = [*header.get_data_shape()[:3], 1, 1, 1][:3]
    corners = np.array([[i, j, k, 1] for i in (0, shape[0]) for j in (0, shape[1]) for k in (0, shape[2])])
    apart_mm = np.linalg.norm(corners @ (sform - qform).T, axis=1).max()
    if apart_mm <= 0.05 * np.linalg.norm(qform[:3, :3], axis=0).min():
        return sform  # the same but for rounding, which is smaller in the sform
    _log.warning("sform and qform of %s %s lie %.1f mm apart: the qform is used, as ITK does", what, path, apart_mm)
    return qform


def _check_voxel_size(image: nib.Nifti1Image, path: Path, what: str) -> None:
    """Look at the header as it is on disk, because nibabel quietly puts 1 mm where it finds 0."""
    opener = gzip.open if suffix_of(path).endswith(".gz") else open
    with opener(path, "rb") as stream:
        header = type(image.header).from_fileobj(stream, check=False)
    sizes = np.asarray(header["pixdim"][1 : 1 + min(3, image.ndim)], dtype=np.float64)
    if not np.isfinite(sizes).all() or (sizes == 0).any():
        raise InputError(
            f"{what} {path} has a voxel size of {_times(sizes)} mm; write the true voxel size into its header"
        )


def _times(numbers: np.ndarray) -> str:
    return " x ".join(f"{number:g}" for number in numbers)


def _load_itk(path: Path, what: str) -> RawFile:
    try:
        array, components, spacing, origin, direction = _read_with_itk(path)
    except ImportError as error:
        raise InputError(f"{what} {path} needs the package SimpleITK; run pip install SimpleITK") from error
    except (RuntimeError, TypeError, ValueError, KeyError) as error:  # itk: TypeError where it lacks the pixel type
        if "Zero-valued spacing" in str(error):
            raise InputError(
                f"{what} {path} has a voxel size of 0; write the true voxel size into its header"
            ) from error
        raise _damaged(path, what, "SimpleITK or itk cannot read it") from error
    ndim = len(spacing)
    values = array.transpose(*reversed(range(ndim)), *range(ndim, array.ndim))
    affine = np.eye(4)
    kept = min(ndim, 3)
    affine[:kept, :kept] = (direction * spacing)[:kept, :kept]
    affine[:kept, 3] = origin[:kept]
    return RawFile(path, values, _LPS_TO_RAS @ affine, components)


def _read_with_itk(path: Path) -> tuple[np.ndarray, int, np.ndarray, np.ndarray, np.ndarray]:
    """Return values (axes reversed, components last), components, spacing mm, origin LPS mm, direction (D, D)."""
    try:
        import SimpleITK as sitk
    except ImportError:
        return _read_with_python_itk(path)
    shows_warnings = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # our sentence replaces them
    try:
        image = sitk.ReadImage(str(path))
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shows_warnings)
    ndim = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(ndim, ndim)
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    return sitk.GetArrayFromImage(image), image.GetNumberOfComponentsPerPixel(), spacing, origin, direction


def _read_with_python_itk(path: Path) -> tuple[np.ndarray, int, np.ndarray, np.ndarray, np.ndarray]:
    import itk

    image = itk.imread(str(path))
    direction = itk.array_from_matrix(image.GetDirection())
    spacing, origin = np.array(image.GetSpacing()), np.array(image.GetOrigin())
    return itk.array_from_image(image), image.GetNumberOfComponentsPerPixel(), spacing, origin, direction


def _load_picture(path: Path, what: str) -> RawFile:
    """Read a picture in the geometry of ITK: first axis columns, second rows, towards L and P, first pixel at 0."""
    try:
        values, components, (x_mm, y_mm) = pictures.decode(path)
    except (MemoryError, pictures.TooLarge) as error:
        raise InputError(f"{what} {path} needs more memory than there is; crop or downsample it") from error
    except pictures.DAMAGED as error:
        raise _damaged(path, what, str(error).replace(str(path), "it")) from error
    return RawFile(path, values, _LPS_TO_RAS @ np.diag([x_mm, y_mm, 1.0, 1.0]), components)
