"""Walls, ribs, lungs and organs of a thorax made to order. Coordinates are units: 256 rows, columns from the middle."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator

from .tissues import Canvas, Tissue

Knots = list[tuple[float, float]]


def level_of(knots: Knots, at: np.ndarray) -> np.ndarray:
    """Return the monotone cubic through ``knots``, constant beyond them."""
    table = np.asarray(knots, dtype=np.float64)
    return PchipInterpolator(table[:, 0], table[:, 1])(np.clip(at, table[0, 0], table[-1, 0]))


def paint_flesh(canvas: Canvas, body: np.ndarray, depth: np.ndarray, fat: np.ndarray | float) -> None:
    """Paint skin, fat and muscle of a body.

    Args:
        canvas: to paint on.
        body: (n, m) bool.
        depth: (n, m) units below the skin, positive inside.
        fat: thickness of the fat under the skin, units.
    """
    canvas.paint(body, Tissue.SKIN, 1)
    canvas.paint(body & (depth > 1.6), Tissue.FAT, 1)
    strand = np.abs(canvas.noise(9.0)) < 0.07
    canvas.paint(body & (depth > 3) & strand, Tissue.STRAND)
    canvas.paint(body & (depth > fat), Tissue.MUSCLE, 1)
    layers = np.abs(canvas.noise(12.0) + 0.5 * canvas.noise(30.0)) < 0.09  # fat between the muscles
    canvas.paint(body & (depth > fat + 1.5) & layers, Tissue.FAT)


def paint_bone(canvas: Canvas, center: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> None:
    """Paint the cross-section of a bone: dark cortex around brighter marrow."""
    level = np.where(canvas.tissue == Tissue.AIR, -1.0, canvas.ellipse(center, radii, degrees))
    shell = 1.3 / min(radii)
    canvas.paint(level > 0, Tissue.CORTEX, 6)
    canvas.paint(level > shell, Tissue.MARROW, 6)


def paint_ribs(canvas: Canvas, wall: Knots, side: int, rows: tuple[float, float], pitch: float, tilt: float) -> None:
    """Paint ribs along a wall, in the intercostal muscle just outside of it.

    Args:
        canvas: to paint on.
        wall: (row, column) of the pleura.
        side: -1 if the chest wall is on the left of it, 1 if on the right.
        rows: first and last row.
        pitch: distance of the ribs.
        tilt: degrees against the wall.
    """
    away = canvas.vary(4.6, 0.4)
    band = side * (canvas.columns - level_of(wall, canvas.rows))
    inside = (band > 0) & (band < 10) & (canvas.rows > rows[0] - 8) & (canvas.rows < rows[1] + 8)
    canvas.paint(inside & (canvas.tissue != Tissue.AIR), Tissue.MUSCLE, 1)
    canvas.paint(inside & (np.abs(band - 9.6) < 0.7) & (canvas.tissue != Tissue.AIR), Tissue.FAT)
    row = rows[0] + canvas.rng.uniform(0, 0.5 * pitch)
    while row < rows[1]:
        slope = float(level_of(wall, np.array([row + 4]))[0] - level_of(wall, np.array([row - 4]))[0]) / 8
        lean = -np.rad2deg(np.arctan(slope))
        column = float(level_of(wall, np.array([row]))[0]) + side * away * np.hypot(1, slope)
        size = canvas.vary(1.0, 0.1)
        paint_bone(canvas, (row, column), (5.4 * size, 3.0 * size), -lean + side * canvas.vary(tilt, 4))
        row += pitch * canvas.vary(1.0, 0.04)


def paint_spine(canvas: Canvas, width: float) -> None:
    """Paint vertebral bodies, discs and the muscle beside them, seen from the front."""
    middle = 2.0 * np.sin(canvas.rows / canvas.vary(75, 10) + canvas.vary(0, 1))
    across = np.abs(canvas.columns - middle)
    pitch, phase = canvas.vary(16.5, 1.0), canvas.rng.uniform(0, 16)
    grow = 1 + 0.25 * np.clip((canvas.rows - 60) / 160, -0.4, 1)
    along = np.abs((canvas.rows / grow + phase) % pitch - pitch / 2)
    waist = width * grow * (0.72 + 0.1 * (along / (pitch / 2)) ** 2)
    canvas.paint(across < 1.6 * width * grow, Tissue.MUSCLE, 1)
    canvas.paint((across < waist) & (along >= 0), Tissue.DISC, 6)
    canvas.paint((across < waist) & (along < pitch / 2 - 2.4), Tissue.CORTEX, 6)
    canvas.paint((across < waist - 1) & (along < pitch / 2 - 3.2), Tissue.MARROW, 6)


def paint_heart(canvas: Canvas, center: tuple[float, float], radii: tuple[float, float], degrees: float) -> None:
    """Paint fat, muscle and chambers of a heart, its long axis first."""
    rough = 0.05 * canvas.noise(14.0)
    heart = canvas.ellipse(center, radii, degrees) + 0.4 * rough
    canvas.paint(canvas.ellipse(center, radii, degrees) + rough > -0.05, Tissue.FAT, 3)
    canvas.paint(heart > 0, Tissue.MYOCARDIUM, 3)
    angle = np.deg2rad(degrees)
    first = np.array([np.cos(angle), np.sin(angle)]) * radii[0]  # (row, column) of the two half axes
    second = np.array([-np.sin(angle), np.cos(angle)]) * radii[1]
    edge = 0.12 * canvas.noise(7.0)
    for along, across, long, short in ((0.22, 0.3, 0.52, 0.4), (0.12, -0.48, 0.66, 0.36), (-0.62, 0.1, 0.3, 0.62)):
        middle = np.asarray(center) + along * first + across * second
        size = canvas.vary(1.0, 0.06)
        chamber = canvas.ellipse(tuple(middle), (radii[0] * long * size, radii[1] * short * size), degrees)
        canvas.paint((chamber > edge) & (heart > 0.05), Tissue.BLOOD, 3)


def paint_bowel(canvas: Canvas, where: np.ndarray, first_row: float, columns: tuple[float, float]) -> None:
    """Paint loops of bowel in fat."""
    canvas.paint(where, Tissue.FAT, 5)
    canvas.paint(where & (np.abs(canvas.noise(8.0)) < 0.15), Tissue.STRAND)
    lumps = 0.12 * canvas.noise(7.0)
    for _ in range(26):
        lumps = np.roll(lumps, 37, (0, 1))
        center = (first_row + canvas.rng.uniform(0, 95), canvas.rng.uniform(*columns))
        radii = (canvas.rng.uniform(5, 11), canvas.rng.uniform(7, 17))
        loop = canvas.ellipse(center, radii, canvas.rng.uniform(-60, 60)) + lumps
        filling = canvas.rng.choice([Tissue.GAS, Tissue.FLUID, Tissue.SOFT, Tissue.SPLEEN], p=[0.25, 0.2, 0.3, 0.25])
        canvas.paint(where & (loop > 0), Tissue.SOFT, 5)
        canvas.paint(where & (loop > 0.22), filling, 5)


def paint_kidney(canvas: Canvas, where: np.ndarray, center: tuple[float, float], degrees: float) -> None:
    """Paint a kidney with cortex, medulla and the fat of its sinus, in a capsule of fat."""
    size, rough = canvas.vary(1.0, 0.08), canvas.noise(10.0)
    level = canvas.ellipse(center, (31 * size, 15.5 * size), degrees)
    canvas.paint(where & (canvas.ellipse(center, (34 * size, 18 * size), degrees) + 0.06 * rough > 0), Tissue.FAT, 5)
    canvas.paint(where & (level + 0.03 * rough > 0), Tissue.KIDNEY, 5)
    canvas.paint(where & (level > 0.25) & (np.abs(canvas.noise(6.0)) < 0.55), Tissue.MEDULLA, 5)
    inner = (center[0], center[1] - 3 * np.sign(center[1]))
    canvas.paint(where & (canvas.ellipse(inner, (13, 5), degrees) + 0.3 * rough > 0), Tissue.FAT, 5)
