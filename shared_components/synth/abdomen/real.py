"""Organ shapes of a real label map, taken into procedural patients: kidneys and psoas muscles of TotalSegmentator."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from ...errors import InputError
from ...geometry import Frame
from ...images import read_labels

TAKEN = {3: 88, 4: 89, 5: 3, 6: 2}  # ours -> TotalSegmentator's iliopsoas and kidneys, left and right
ANCHOR_MM = (0.0, -41.0, 7.0)  # where the procedural kidneys have their middle
_MARGIN = 12  # voxels around an organ, far enough for every level that is asked for


@dataclass(frozen=True, eq=False)
class OrganShape:
    """Signed distance in mm to the surface of one organ, positive inside, on its own frame in canonical mm."""

    level: np.ndarray
    frame: Frame
    center_mm: np.ndarray

    def __call__(self, points: np.ndarray, rotation: np.ndarray, scale: float, shift_mm: np.ndarray) -> np.ndarray:
        """Return the level (N,) at points (N, 3) of the organ turned and stretched about its middle, and shifted."""
        origin = (points - self.center_mm - shift_mm) @ rotation / scale + self.center_mm
        position = self.frame.to_vox(origin).T
        return scale * map_coordinates(self.level, position, order=1, mode="nearest").astype(np.float32)


@dataclass(frozen=True, eq=False)
class Layout:
    """Real organ shapes by our label. Liver and spleen are missing: the scan cuts them off."""

    shapes: dict[int, OrganShape]

    def levels(self, points: np.ndarray, rng: np.random.Generator) -> dict[int, np.ndarray]:
        """Return each organ's level (N,), every organ a little turned, stretched and shifted by itself."""
        found = {}
        for label, shape in self.shapes.items():
            rotation = Rotation.from_rotvec(np.deg2rad(rng.normal(0, 5, 3).clip(-10, 10))).as_matrix()
            scale = float(np.exp(rng.normal(-0.04, 0.06)))
            found[label] = shape(points, rotation, scale, rng.normal(0, 4, 3).clip(-8, 8))
        return found


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Read real organ shapes from a label map with the numbers of TotalSegmentator's task ``total``.

    The two kidneys and the two iliopsoas muscles are taken; they are moved so that the middle between the kidneys lies
    where the procedural one does.

    Args:
        path: of the label map.

    Raises:
        InputError: the file cannot be read, or lacks one of the four organs.
    """
    image = read_labels(path)
    return make_layout(image.array.numpy().reshape(image.frame.shape), image.frame, Path(path))


def make_layout(labels: np.ndarray, frame: Frame, source: Path | str = "layout") -> Layout:
    """Return the ``Layout`` of a label map on its frame; see ``read_layout``."""
    missing = [theirs for theirs in TAKEN.values() if not (labels == theirs).any()]
    if missing:
        raise InputError(
            f"layout {source} has no label {missing[0]}: give a label map of TotalSegmentator's task 'total' with both "
            "kidneys (2, 3) and both iliopsoas muscles (88, 89)"
        )
    middles = [frame.to_mm(np.argwhere(labels == TAKEN[label])).mean(0) for label in (5, 6)]
    shift = np.asarray(ANCHOR_MM) - np.mean(middles, 0)
    return Layout({label: _organ(labels == theirs, frame, shift) for label, theirs in TAKEN.items()})


def _organ(mask: np.ndarray, frame: Frame, shift: np.ndarray) -> OrganShape:
    where = np.argwhere(mask)
    low = where.min(0) - _MARGIN
    size = where.max(0) + _MARGIN + 1 - low
    part = np.zeros(size, bool)
    part[tuple((where - low).T)] = True
    spacing = tuple(frame.spacing)
    level = distance_transform_edt(part, spacing) - distance_transform_edt(~part, spacing)
    affine = frame.affine.copy()
    affine[:3, 3] = frame.to_mm(low) + shift
    moved = Frame(tuple(size), affine)
    smooth = gaussian_filter(level, 0.7).astype(np.float32)  # takes the steps of the voxels away
    return OrganShape(smooth, moved, moved.to_mm(where - low).mean(0))
