"""Slices of any grid as a reader expects to see them.

Pictures are in radiological convention: axes permuted and flipped to lie closest to R, A, S, then right (or, in
sagittal slices, anterior) on the left and superior (in axial slices, anterior) on top. In-plane coordinates of a
picture are mm, x to the right and y DOWN from the centre of its top left pixel. Oblique grids are shown along their
own axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..geometry import Frame, canonical_axes
from ..warp import jacobian_determinant

_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))  # (negative, positive) end of each RAS axis
_LETTERS_2D = (("−x", "+x"), ("−y", "+y"))  # a flat image does not say which body axes it shows
_PLANES = ((0, 1, 2), (0, 2, 1), (1, 2, 0))  # axial, coronal, sagittal as (across, up, normal)
_COARSE = 64  # voxels per axis that decide about windows and slices
_WINDOW = 0.1  # how far from the centre of mass, as a part of the extent, a slice may be chosen


class Display:
    """The grid of ``frame`` with its axes permuted and flipped to lie closest to R, A, S; arrays follow as views."""

    def __init__(self, frame: Frame) -> None:
        axes = canonical_axes(frame.affine)
        self._order = [int(np.flatnonzero(column)[0]) for column in axes.T]
        self._flip = [axis for axis, column in enumerate(axes.T) if column.sum() < 0]
        corner = np.where(axes.sum(1) < 0, np.asarray(frame.shape) - 1, 0)
        turn = np.eye(frame.ndim + 1)
        turn[:-1, :-1], turn[:-1, -1] = axes, corner
        self.frame = Frame(tuple(frame.shape[axis] for axis in self._order), frame.affine @ turn)

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """Turn (..., *shape) into display order without copying."""
        lead = array.ndim - self.frame.ndim
        turned = array.transpose(*range(lead), *(lead + axis for axis in self._order))
        return np.flip(turned, [lead + axis for axis in self._flip])

    @property
    def oblique_degrees(self) -> float:
        """Largest angle between an axis of the grid and the anatomical axis it is named after."""
        cosines = np.diag(self.frame.matrix) / self.frame.spacing
        return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


@dataclass(frozen=True)
class Plane:
    """One slice of a display grid.

    Attributes:
        frame: the display grid.
        across, up, normal: display axes that run to the left and up in the picture, and through it (None in 2-D).
        index: slice along ``normal``.
    """

    frame: Frame
    across: int
    up: int
    normal: int | None
    index: int

    @property
    def name(self) -> str:
        """Name of the plane."""
        return "plane" if self.normal is None else ("sagittal", "coronal", "axial")[self.normal]

    @property
    def position(self) -> str:
        """Where the slice lies, in mm from the origin at its middle."""
        if self.normal is None:
            return ""
        middle = (np.asarray(self.frame.shape) - 1) / 2
        middle[self.normal] = self.index
        value = self.frame.to_mm(middle)[self.normal]
        return f"{_LETTERS[self.normal][int(value >= 0)]} {abs(value):.1f} mm"

    @property
    def letters(self) -> dict[str, str]:
        """Orientation letters at the left, right, top and bottom of the picture."""
        names = _LETTERS_2D if self.normal is None else _LETTERS
        right, left = names[self.across]
        bottom, top = names[self.up]
        return {"left": left, "right": right, "top": top, "bottom": bottom}

    @property
    def step_mm(self) -> tuple[float, float]:
        """Size of a pixel (x, y) in mm."""
        return float(self.frame.spacing[self.across]), float(self.frame.spacing[self.up])

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height of the picture in mm."""
        (dx, dy), shape = self.step_mm, self.frame.shape
        return shape[self.across] * dx, shape[self.up] * dy

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Edges (left, right, bottom, top) in picture coordinates, as imshow wants them with origin="upper"."""
        (dx, dy), (width, height) = self.step_mm, self.size_mm
        return -dx / 2, width - dx / 2, height - dy / 2, -dy / 2

    def _cut(self, array: np.ndarray, where: int | slice) -> np.ndarray:
        if self.normal is None:
            return array
        lead = array.ndim - self.frame.ndim
        return array[(slice(None),) * (lead + self.normal) + (where,)]

    def _hang(self, sheet: np.ndarray) -> np.ndarray:
        """Turn (..., across, up) into (..., rows from the top, columns from the left)."""
        return sheet.swapaxes(-1, -2)[..., ::-1, ::-1]

    def picture(self, array: np.ndarray) -> np.ndarray:
        """Cut (..., *display shape) and return (..., rows, columns) as seen."""
        return self._hang(self._cut(array, self.index))

    def pixels_mm(self) -> np.ndarray:
        """RAS mm of every pixel of the picture, (rows, columns, D)."""
        in_plane = np.indices((self.frame.shape[self.across], self.frame.shape[self.up]))
        voxels = np.full((self.frame.ndim, *in_plane.shape[1:]), float(self.index))
        voxels[[self.across, self.up]] = in_plane
        return self.frame.to_mm(np.moveaxis(self._hang(voxels), 0, -1))

    def project(self, points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project (..., D) points in RAS mm: their (..., 2) picture coordinates and signed distance (...) in mm."""
        voxels = self.frame.to_vox(points_mm)
        x = (self.frame.shape[self.across] - 1 - voxels[..., self.across]) * self.step_mm[0]
        y = (self.frame.shape[self.up] - 1 - voxels[..., self.up]) * self.step_mm[1]
        away = 0 * x if self.normal is None else (voxels[..., self.normal] - self.index) * self._thickness
        return np.stack([x, y], -1), away

    @property
    def _thickness(self) -> float:
        return float(self.frame.spacing[self.normal])

    def jacobian(self, ddf_mm: np.ndarray) -> np.ndarray:
        """Determinant of p -> p + ddf_mm(p) on the slice, (rows, columns); equal to that of the whole volume.

        Central differences, one-sided at the border of the grid, so the slices next to this one are all it takes.
        """
        low = max(self.index - 1, 0)
        slab = np.ascontiguousarray(self._cut(ddf_mm, slice(low, self.index + 2)), dtype=np.float64)
        ddf = np.einsum("ij,j...->i...", np.linalg.inv(self.frame.matrix), slab)
        for axis in range(1, ddf.ndim):
            if ddf.shape[axis] == 1:  # a single voxel has no neighbour to differ from
                ddf = np.repeat(ddf, 2, axis)
        determinant = jacobian_determinant(torch.from_numpy(ddf)[None])[0].numpy()
        determinant = determinant[tuple(slice(n) for n in slab.shape[1:])]
        middle = determinant if self.normal is None else determinant.take(self.index - low, self.normal)
        return self._hang(middle)


def coarse(array: np.ndarray) -> np.ndarray:
    """Every n-th voxel of an array (*spatial), some 64 per axis."""
    return array[tuple(slice(None, None, max(1, n // _COARSE)) for n in array.shape)]


def window(*images: np.ndarray) -> tuple[float, float]:
    """Grey levels of black and white for images shown alike: percentiles 0.5 and 99.5, finite values only."""
    values = np.concatenate([coarse(image).ravel() for image in images]).astype(np.float64)
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, [0.5, 99.5]) if values.size else (0.0, 1.0)
    if high <= low:  # a small object on a flat background
        low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + 1)


def _edges(image: np.ndarray) -> np.ndarray:
    """Sum of absolute differences to the next voxel along each axis."""
    total = np.zeros(image.shape)
    for axis in range(image.ndim):
        total += np.abs(np.diff(image, axis=axis, append=image.take([-1], axis)))
    return total


def _informative(fixed: np.ndarray, label: np.ndarray | None) -> list[int]:
    """Per axis the slice with most to see (edges, labels) near the centre of mass."""
    low, high = window(fixed)
    small = np.nan_to_num(np.clip((coarse(fixed).astype(np.float64) - low) / (high - low), 0, 1))
    marks = _edges(small) * (1 + (0 if label is None else coarse(label) != 0))
    chosen = []
    for axis, n in enumerate(small.shape):
        others = tuple(other for other in range(small.ndim) if other != axis)
        mass, score = small.sum(others), marks.sum(others)
        center = (mass @ np.arange(n)) / mass.sum() if mass.sum() > 0 else (n - 1) / 2
        score = np.where(np.abs(np.arange(n) - center) <= max(0.5, _WINDOW * n), score, -1.0)
        step = max(1, fixed.shape[axis] // _COARSE)
        chosen.append(int(np.argmax(score)) * step if score.max() > 0 else round(center) * step)
    return [min(index, n - 1) for index, n in zip(chosen, fixed.shape, strict=True)]


def choose_planes(display: Display, fixed: np.ndarray, label: np.ndarray | None = None) -> list[Plane]:
    """Return the axial, coronal and sagittal plane to show, or the one plane of a 2-D grid.

    Args:
        display: the display grid.
        fixed: (*display shape) fixed image.
        label: (*display shape) its labels.
    """
    if display.frame.ndim == 2:
        return [Plane(display.frame, 0, 1, None, 0)]
    index = _informative(fixed, label)
    return [Plane(display.frame, across, up, normal, index[normal]) for across, up, normal in _PLANES]
