"""A thorax slice made to order: ``procedural_thorax``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .anatomy import paint_heart
from .bodies import Chest, draw_coronal, draw_sagittal, paint_front, paint_side
from .curves import Curve, curve_through
from .motion import Compartment, Pulse, share_from_dome
from .organs import (
    paint_abdomen_back,
    paint_abdomen_front,
    paint_abdomen_side,
    paint_lungs,
    paint_mediastinum,
)
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
    shares,
    soften,
    visible_landmarks,
)
from .tissues import Canvas, Tissue, brightness, grain_of, shade
from .vasculature import add_vessels, draw_look
from .vessels import apart

BELOW = 44  # units that are painted below the view, for what comes up from there
_DOMES = {  # rows of the diaphragm below its dome by w, and shares of the lift by w
    "front": (
        ((0, 46), (0.07, 20), (0.17, 4), (0.27, 0), (0.42, 8), (0.56, 14), (0.66, 12), (0.77, 6), (0.87, 12)),
        ((0.93, 30), (1, 52)),
        ((0, 0.8), (0.15, 0.95), (0.27, 1), (0.42, 0.9), (0.55, 0.68), (0.66, 0.75), (0.78, 0.92), (1, 0.75)),
    ),
    "right": (((0, 50), (0.15, 15), (0.45, 0), (0.8, 6), (1, 24)), (), ((0, 0.8), (0.45, 1), (1, 0.8))),
    "left": (((0, 30), (0.2, 12), (0.55, 6), (0.85, 21), (1, 54)), (), ((0, 0.75), (0.55, 0.95), (1, 0.8))),
    "side": (
        ((0, 26), (0.12, 8), (0.36, 0), (0.58, 8), (0.78, 28), (0.92, 54), (1, 66)),
        (),
        ((0, 0.6), (0.36, 1), (0.7, 1.05), (1, 0.85)),
    ),
}


def procedural_thorax(
    generator: torch.Generator, size: Sequence[int] = (256, 256), plane: str = "coronal", landmarks: int = 24
) -> Thorax:
    """Return a random thorax slice in MR at the end of expiration.

    A coronal slice lies in front, through heart and trachea, or at the back, through spine and kidneys; a sagittal one
    in the right or the left half. Everything scales with the number of rows, of which 256 are 384 mm.

    Args:
        generator: the only source of randomness.
        size: (H, W) voxels.
        plane: "coronal" (the patient's right on the left) or "sagittal" (the face to the left).
        landmarks: at most so many.

    Raises:
        ValueError: another plane.
    """
    if plane not in PLANES:
        raise ValueError(f"plane must be one of {', '.join(PLANES)}, got {plane!r}")
    rng, (height, width) = rng_of(generator), (int(size[0]), int(size[1]))
    unit = height / 256
    rows, columns = fine_positions((height, width), int(np.ceil(BELOW * unit)))
    middle = (width - 1) / 2
    canvas = Canvas(rows / unit, (columns - middle) / unit, float(rows[1, 0] / unit), rng)
    chest = draw_coronal(canvas) if plane == "coronal" else draw_sagittal(canvas)
    (paint_front if plane == "coronal" else paint_side)(canvas, chest)
    parts = _compartments(canvas, chest, plane, unit, middle)
    stays, stays_labels = canvas.tissue.copy(), on_voxels(canvas.label, (height, width))
    below = _below(parts, rows, columns) / unit
    heart = _paint_contents(canvas, chest, below, plane)
    table, texture = brightness(rng, bool(rng.random() < 0.6)), grain_of(canvas)
    inside = np.any([(w > 0) & (w < 1) for w in (shares(part, rows, columns) for part in parts)], axis=0)
    look = draw_look(rng, table[Tissue.BLOOD])
    picture, cover, points, labels = add_vessels(
        shade(canvas.tissue, table, texture), canvas.label * inside, 1 / canvas.pixel, plane == "sagittal", look, rng
    )
    points = points / FINE
    good = rng.permutation(np.flatnonzero(visible_landmarks(points, labels, parts, (height, width), 0.0)))
    good = good[apart(points[good], 9 * unit, landmarks)]
    return Thorax(
        contents=on_fine(soften(picture), soften((canvas.tissue == Tissue.LUNG) * (1 - cover))),
        content_labels=on_fine(canvas.label),
        wall=on_voxels(soften(shade(stays, table, texture)), (height, width)),
        wall_labels=stays_labels,
        cover=covered(parts, rows, columns, (height, width)),
        landmarks=torch.from_numpy(points[good].astype(np.float64)),
        landmark_labels=tuple(int(k) for k in labels[good]),
        compartments=parts,
        pulse=None if heart is None else fit_pulse(_pulse(heart, unit, middle), parts),
        size=(height, width),
        plane=plane,
        reference=0.0,
        spacing_mm=SPACING_MM * 256 / height,
    )


def _compartments(canvas: Canvas, chest: Chest, plane: str, unit: float, middle: float) -> tuple[Compartment, ...]:
    """Return what moves: both lungs with the heart between, each lung by itself, or the lung seen from the side."""
    sides = ("right", "left") if chest.posterior else ("front",) if plane == "coronal" else ("side",)

    def wall(knots: Sequence[Sequence[float]]) -> Curve:
        return curve_through([(y, x + middle / unit) for y, x in knots], 9.0, (unit, unit))

    parts = []
    for side in sides:
        left, right = chest.left, chest.right
        gap = canvas.vary(19, 1)
        if side == "right":
            right = [(0, -gap), (chest.dome, -gap), (310, -gap - 14)]
        if side == "left":
            left = [(0, gap), (chest.dome, gap), (310, gap + 14)]
        first, second, portions = _DOMES[side]
        lower = [(w, chest.dome + canvas.vary(row, 1.0 + 0.08 * row)) for w, row in first + second]
        portions = [(w, canvas.vary(value, 0.04)) for w, value in portions]
        dome, share = curve_through(lower, 0.05, (1, unit)), curve_through(portions, 0.1)
        share = share_from_dome(share, dome) if side == sides[0] else share
        limits = (chest.apex - 4, chest.dome + 70, 256 + BELOW)
        parts.append(Compartment(wall(left), wall(right), dome, share, *(unit * row for row in limits), 0.45))
    return tuple(parts)


def _below(parts: tuple[Compartment, ...], rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return how far below the diaphragm the fine pixels are, voxels; negative above it."""
    below = np.empty((rows.size, columns.size))
    for k, part in enumerate(parts):
        w = shares(part, rows, columns)
        value = rows - part.dome(torch.from_numpy(w)).numpy()
        mine = (columns > 0.5 * columns[0, -1]) if k else np.ones_like(columns, bool)
        mine = np.broadcast_to(mine, w.shape)
        below[mine] = value[mine]
    return below


def _paint_contents(
    canvas: Canvas, chest: Chest, below: np.ndarray, plane: str
) -> tuple[tuple[float, float], tuple[float, float], float] | None:
    """Paint all that moves; return centre, radii and angle of the heart where there is one."""
    if plane == "coronal":
        paint_lungs(canvas, chest, below, (-45.0, 45.0), 34.0)
        if chest.posterior:
            paint_abdomen_back(canvas, chest, below)
            return None
        size = canvas.vary(1.0, 0.08)
        heart = ((chest.dome - canvas.vary(19, 3), canvas.vary(15, 3)), (43 * size, 31 * size), canvas.vary(48, 8))
        paint_abdomen_front(canvas, chest, below)
        paint_mediastinum(canvas, chest, below, heart)
        return heart
    right = bool(canvas.rng.random() < 0.55)
    center = np.interp(chest.apex, *np.array([chest.left, chest.right]).mean(0).T)
    paint_lungs(canvas, chest, below, (float(center),), 52.0)
    paint_abdomen_side(canvas, chest, below, right)
    if right:
        return None
    heart = ((chest.dome - canvas.vary(26, 3), canvas.vary(-24, 3)), (31.0, 24.0), canvas.vary(25, 10))
    kept = canvas.tissue.copy(), canvas.label.copy()
    paint_heart(canvas, *heart)
    canvas.tissue[below >= 0], canvas.label[below >= 0] = kept[0][below >= 0], kept[1][below >= 0]
    return heart


def _pulse(heart: tuple[tuple[float, float], tuple[float, float], float], unit: float, middle: float) -> Pulse:
    (row, column), radii, degrees = heart
    center = (row * unit, column * unit + middle)
    return Pulse(center, (radii[0] * unit * 1.15, radii[1] * unit * 1.15), float(np.deg2rad(degrees)))
