"""Real thorax scans of a folder as slices: volumes with a lung mask beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from ...errors import InputError
from ...images import read_image, read_labels

_MASK = "_mask.nii.gz"
_IMAGES = ("_h1.nii.gz", "_image.nii.gz", ".nii.gz")
_FULL = {"coronal": 0.6, "sagittal": 0.75}  # slices with so much of the largest lung area are taken


@dataclass(frozen=True, eq=False)
class RealSlice:
    """One slice of a scan, rows from head to foot, columns as radiologists look at them.

    Attributes:
        image: (h, w) float32.
        mask: (h, w) bool, the lungs.
        spacing_mm: of rows and columns.
        plane: "coronal" or "sagittal".
    """

    image: np.ndarray
    mask: np.ndarray
    spacing_mm: tuple[float, float]
    plane: str


def find_scans(folder: str | os.PathLike[str]) -> dict[str, tuple[Path, Path]]:
    """Return image and mask of every subject, sorted: SUBJECT_mask.nii.gz beside SUBJECT_h1, _image or plain .nii.gz.

    Raises:
        InputError: there is no such pair.
    """
    found = {}
    for mask in sorted(Path(folder).glob("*" + _MASK)):
        subject = mask.name[: -len(_MASK)]
        images = [mask.with_name(subject + ending) for ending in _IMAGES]
        image = next((path for path in images if path.is_file()), None)
        if image is not None:
            found[subject] = (image, mask)
    if not found:
        raise InputError(
            f"{folder} has no thorax scan with a lung mask; give a folder with SUBJECT.nii.gz and SUBJECT{_MASK}"
        )
    return found


def read_slices(image_path: Path, mask_path: Path, planes: Sequence[str]) -> list[RealSlice]:
    """Read slices of one scan, evenly spread over where the lungs are large.

    Args:
        image_path: a volume of any orientation.
        mask_path: its lungs, other than 0, on the same grid.
        planes: one for every slice that is wanted.

    Raises:
        InputError: a file cannot be read, or the two differ in their grids.
    """
    image, mask = read_image(image_path, "thorax scan"), read_labels(mask_path, "lung mask")
    if not image.frame.same_grid(mask.frame, 0.1):
        raise InputError(f"lung mask {mask_path} is not on the grid of {image_path}; resample it there")
    turn = nib.orientations.io_orientation(image.frame.affine)
    volume = nib.orientations.apply_orientation(image.array[0].numpy(), turn)
    lungs = nib.orientations.apply_orientation(mask.array[0].numpy() > 0, turn)
    spacing = image.frame.spacing[np.argsort(turn[:, 0])]
    slices: list[RealSlice] = []
    for plane in ("coronal", "sagittal"):
        axis = 1 if plane == "coronal" else 0
        area = lungs.sum(tuple(k for k in range(3) if k != axis))
        full = np.flatnonzero(area >= _FULL[plane] * area.max())
        wanted = sum(name == plane for name in planes)
        for k in full[np.linspace(0, len(full) - 1, wanted + 2)[1:-1].round().astype(int)]:
            picture, inside = (np.take(part, k, axis)[::-1, ::-1].T for part in (volume, lungs))
            steps = (float(spacing[2]), float(spacing[0 if plane == "coronal" else 1]))
            slices.append(RealSlice(np.ascontiguousarray(picture), np.ascontiguousarray(inside), steps, plane))
    return slices
