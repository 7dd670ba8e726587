"""Transforms of a slice, from the coordinates of its plane into files that every program reads in space."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..geometry import Frame
from ..images.slices import SlicePlane
from ..itk_io import write_field
from ..transform import PhysicalField

DIRECTION = (
    "ddf/frame_K.nii.gz lives on the grid of the fixed frame and takes a point of it to the point of frame K that "
    "belongs there (pull-back): use it to bring frame K onto the fixed frame. inverse_ddf/frame_K.nii.gz does the "
    "reverse: use it to bring the fixed frame, or labels drawn on it, onto frame K."
)
FLAT = "flat image: fields are 2-D"
IN_SPACE = (
    "slice in space: fields are 3-D, the same on two sheets half a thickness before and behind the slice, because "
    "ITK reads no 3-D field of one sheet; plane coordinates are mm along the columns of 'basis' from 'origin_mm', RAS"
)


def in_space(field: PhysicalField, plane: SlicePlane) -> PhysicalField:
    """Return a field of plane coordinates, (2, X, Y), as a 3-D one, (3, X, Y, 2), RAS mm, around the slice."""
    affine = plane.affine.copy()
    affine[:3, 3] -= 0.5 * affine[:3, 2]
    ddf_mm = np.einsum("ij,jxy->ixy", plane.basis, field.ddf_mm).astype(np.float32)
    return PhysicalField(Frame((*field.frame.shape, 2), affine), np.stack([ddf_mm, ddf_mm], -1))


def write_plane_field(path: Path, field: PhysicalField, plane: SlicePlane) -> None:
    """Write a field of a slice as ITK wants it: 2-D for a flat image, else 3-D."""
    write_field(path, field if plane.flat else in_space(field, plane))


def describe_plane(plane: SlicePlane) -> dict[str, object]:
    """Return how the slice lies in space, for transform.json."""
    if plane.flat:
        return {"kind": FLAT}
    return {
        "kind": IN_SPACE,
        "voxel_to_ras_mm": plane.affine.tolist(),
        "basis": plane.basis.tolist(),
        "origin_mm": plane.origin_mm.tolist(),
    }
