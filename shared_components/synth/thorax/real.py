"""Real slices brought to breathe: the walls and the diaphragm of a ``Thorax`` are found from a lung mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates, maximum_filter

from .borders import MODES, Lungs, find_compartments, find_lungs
from .motion import Compartment, Pulse
from .slices import (
    FINE,
    PLANES,
    SPACING_MM,
    Thorax,
    covered,
    fine_positions,
    fit_pulse,
    on_fine,
    on_voxels,
    rng_of,
    soften,
    visible_landmarks,
)
from .vasculature import VesselLook, add_vessels
from .vessels import apart

FIELD_MM = 384.0
_ABOVE = 0.13  # of the view, above the lungs
_BELOW = 44 / 256  # of the view, beyond its lower border


def thorax_from_slice(
    image: np.ndarray,
    lung_mask: np.ndarray,
    generator: torch.Generator,
    spacing_mm: float | Sequence[float] = SPACING_MM,
    plane: str = "coronal",
    size: Sequence[int] = (256, 256),
    reference: float = 1.0,
    vessels: bool = True,
    landmarks: int = 24,
    mode: str | None = None,
) -> Thorax:
    """Return a real slice as a ``Thorax`` that can breathe.

    The view takes 384 mm, or all rows of a smaller image. The walls follow the outer borders of the mask, smoothed, and
    go straight down below it; the diaphragm is its lower border. Intensities are scaled to [0, 1], nothing else.

    Args:
        image: (h, w), rows from head to foot, columns as radiologists look at them.
        lung_mask: (h, w) bool.
        generator: the only source of randomness.
        spacing_mm: voxel size of rows and columns.
        plane: "coronal" or "sagittal".
        size: (H, W) of the series.
        reference: fullness of the lungs in the slice; breath-hold scans are mostly in inspiration, 1.
        vessels: draw vessels into the lungs, which coarse scans show black.
        landmarks: at most so many: branchings of the drawn vessels, and corners of the picture elsewhere.
        mode: "front" moves both lungs and the heart between them together, "back" keeps what is between them, where
            the spine is; by default "front" where the gap is wider than 75 mm above the diaphragm. For sagittal
            slices "side".

    Raises:
        ValueError: another plane or mode, or a mask without a lung of at least 25 mm.
    """
    if plane not in PLANES or mode not in (None, *MODES):
        raise ValueError(f"plane must be one of {PLANES} and mode one of {MODES}, got {plane!r} and {mode!r}")
    rng, (height, width) = rng_of(generator), (int(size[0]), int(size[1]))
    spacing = np.broadcast_to(np.asarray(spacing_mm, dtype=np.float64), (2,))
    mask = np.asarray(lung_mask) > 0
    if not mask.any():
        raise ValueError("the lung mask of the slice is empty")
    rows, columns, index, voxel = _view(mask, spacing, (height, width))
    picture = _resampled(np.asarray(image, np.float32), index)
    fine = map_coordinates(gaussian_filter(mask.astype(np.float32), 0.4), index, order=1) > 0.5
    lungs = find_lungs(fine, rows, columns, height / 256, plane)
    parts = find_compartments(lungs, rows.size / FINE, 75.0 / voxel, mode)
    labels, body = lungs.labels(parts), gaussian_filter(picture, 2 * FINE) > 0.06
    look = VesselLook(float(rng.uniform(0.3, 0.6)), 0.0, float(rng.uniform(25, 70)))
    places = np.where((labels == 2) & vessels, 2, 0)
    drawn, cover, points, _ = add_vessels(picture, places, lungs.unit * FINE, plane == "sagittal", look, rng)
    points, kinds = _landmarks(points / FINE, drawn, labels, parts, lungs, (height, width), landmarks, rng, reference)
    return Thorax(
        contents=on_fine(drawn, soften(_parenchyma(picture, labels == 2) * (1 - cover))),
        content_labels=on_fine(labels),
        wall=on_voxels(picture, (height, width)),
        wall_labels=on_voxels(body, (height, width)),
        cover=covered(parts, rows, columns, (height, width)),
        landmarks=torch.from_numpy(points.astype(np.float64)),
        landmark_labels=tuple(int(k) for k in kinds),
        compartments=parts,
        pulse=_pulse(labels, lungs, parts) if plane == "coronal" and len(parts) == 1 else None,
        size=(height, width),
        plane=plane,
        reference=reference,
        spacing_mm=voxel,
    )


def _view(
    mask: np.ndarray, spacing: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Return rows and columns of the fine grid in voxels, the positions (2, n, m) in the image, and the voxel in mm."""
    extent = mask.shape[0] * spacing[0]
    field = min(FIELD_MM, extent)
    voxel = field / size[0]
    where = np.argwhere(mask) * spacing
    first = np.clip(where[:, 0].min() - _ABOVE * field, 0, extent - field)
    middle = 0.5 * (where[:, 1].min() + where[:, 1].max())
    below = int(min(np.ceil(_BELOW * size[0]), (extent - first) / voxel - size[0]))
    rows, columns = fine_positions(size, max(below, 0))
    at = np.broadcast_arrays(
        (first + rows * voxel) / spacing[0], (middle + (columns - 0.5 * (size[1] - 1)) * voxel) / spacing[1]
    )
    return rows, columns, np.stack(at), float(voxel)


def _resampled(image: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Return the picture at positions (2, n, m), 0 beyond the image, with 0.85 where the image is bright."""
    bright = max(float(np.percentile(image, 99.5)), 1e-6)
    picture = map_coordinates(image, index, order=3, mode="grid-constant")
    return (0.85 * picture / bright).clip(0, 1).astype(np.float32)


def _parenchyma(picture: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """Return how much of a pixel is parenchyma: what a mask takes along of vessels and heart does not swell."""
    usual = max(float(np.median(picture[lung])), 0.01)
    return lung * (2 - picture / (2 * usual)).clip(0, 1)


def _pulse(labels: np.ndarray, lungs: Lungs, parts: tuple[Compartment, ...]) -> Pulse | None:
    """Return the largest circle between the lungs as the heart, if it has a radius of more than 12 units."""
    deep = distance_transform_edt(labels == 3)
    row, column = np.unravel_index(int(deep.argmax()), deep.shape)
    radius = float(deep.max()) / FINE
    if radius < 12 * lungs.unit:
        return None
    return fit_pulse(Pulse((float(row) / FINE, float(column) / FINE), (1.1 * radius, 1.1 * radius), 0.0), parts)


def _landmarks(
    points: np.ndarray,
    picture: np.ndarray,
    labels: np.ndarray,
    parts: tuple[Compartment, ...],
    lungs: Lungs,
    size: tuple[int, int],
    count: int,
    rng: np.random.Generator,
    reference: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return two thirds of branchings and the rest of corners of the abdomen, with their labels."""
    unit = lungs.unit
    points = points[rng.permutation(len(points))]
    corners = corners_of(picture, (labels == 4) | (labels == 5), 2.0 * unit * FINE) / FINE
    chosen = []
    for candidates, most in ((points, count - count // 3), (corners, count)):
        index = np.rint(candidates * FINE).astype(int)
        kinds = labels[index[:, 0], index[:, 1]] if len(index) else np.zeros(0, int)
        good = candidates[visible_landmarks(candidates, kinds, parts, size, reference)]
        chosen.append(good[apart(good, 9 * unit, most - len(chosen[0]) if chosen else most)])
    points = np.concatenate(chosen)
    index = np.rint(points * FINE).astype(int)
    return points, labels[index[:, 0], index[:, 1]]


def corners_of(picture: np.ndarray, mask: np.ndarray, scale: float) -> np.ndarray:
    """Return (N, 2) pixels of the corners of a picture in a mask, strongest first (Foerstner: det / trace)."""
    smooth = gaussian_filter(picture.astype(np.float64), 0.5 * scale)
    gy, gx = np.gradient(smooth)
    yy, xx, yx = (gaussian_filter(a, scale) for a in (gy * gy, gx * gx, gy * gx))
    strength = (yy * xx - yx * yx) / (yy + xx + 1e-12)
    peak = mask & (strength >= maximum_filter(strength, int(2 * scale) + 1)) & (strength > 1e-9)
    where = np.argwhere(peak)
    return where[np.argsort(-strength[peak], kind="stable")].astype(np.float64)
