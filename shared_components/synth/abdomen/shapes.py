"""Implicit shapes on a cloud of points: each returns a level in about mm, positive inside, negative outside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

Points = np.ndarray  # (N, 3) float32, RAS mm
OUTSIDE = -1e3


def turn(degrees: Sequence[float]) -> np.ndarray:
    """Return the (3, 3) rotation of a rotation vector given in degrees about x, y, z."""
    return Rotation.from_rotvec(np.deg2rad(np.asarray(degrees, dtype=np.float64))).as_matrix()


def ellipsoid(
    points: Points,
    center: Sequence[float],
    radii: Sequence[float],
    rotation: np.ndarray | None = None,
    power: float = 2,
) -> np.ndarray:
    """Return the level (N,) of a (super-)ellipsoid: (1 - ||(p - c) / r||_power) times its smallest radius.

    Args:
        points: (N, 3) mm.
        center: mm.
        radii: mm, along the axes of ``rotation``.
        rotation: (3, 3) whose columns are the axes; default those of the body.
        power: 2 is an ellipsoid, more is squarer.
    """
    away = points - np.asarray(center, dtype=np.float32)
    if rotation is not None:
        away = away @ rotation.astype(np.float32)
    away = np.abs(away / np.asarray(radii, dtype=np.float32))
    norm = np.sqrt((away**2).sum(1)) if power == 2 else (away**power).sum(1) ** np.float32(1 / power)
    return (1 - norm) * np.float32(min(radii))


def smooth_union(first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """Return the union of two levels with a fillet of ``width`` mm (polynomial smooth maximum)."""
    blend = np.clip(0.5 + 0.5 * (first - second) / width, 0, 1)
    return second + (first - second) * blend + width * blend * (1 - blend)


def curve(knots: Sequence[Sequence[float]] | np.ndarray, radii: Sequence[float], step: float = 1.5) -> np.ndarray:
    """Return a tube (M, 4) of centre and radius: a cubic spline through ``knots``, sampled every ``step`` mm."""
    rows = np.column_stack([np.asarray(knots, dtype=np.float64), np.asarray(radii, dtype=np.float64)])
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(rows[:, :3], axis=0), axis=1).clip(1e-3))])
    count = max(2, int(length[-1] / step))
    sampled = CubicSpline(length, rows)(np.linspace(0, length[-1], count))
    sampled[:, 3] = sampled[:, 3].clip(rows[:, 3].min(), rows[:, 3].max())
    return sampled


def tube(points: Points, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where a tube may be: the index (K,) of the points near it and the level (K,) there, radius - distance."""
    reach = line[:, 3].max() + 1
    low, high = line[:, :3].min(0) - reach, line[:, :3].max(0) + reach
    near = np.flatnonzero(((points > low) & (points < high)).all(1))
    distance, nearest = cKDTree(line[:, :3]).query(points[near], distance_upper_bound=reach)
    found = np.isfinite(distance)
    return near[found], (line[nearest[found], 3] - distance[found]).astype(np.float32)


def tube_level(points: Points, line: np.ndarray) -> np.ndarray:
    """Return the level (N,) of a tube at all points, ``OUTSIDE`` far from it."""
    level = np.full(len(points), OUTSIDE, dtype=np.float32)
    near, value = tube(points, line)
    level[near] = value
    return level


class Texture:
    """A smooth random field of about unit variance that belongs to the body, whatever grid it is looked at on.

    Args:
        rng: the only source of randomness.
        grain_mm: distance of its independent random values.
    """

    half_mm = 260.0

    def __init__(self, rng: np.random.Generator, grain_mm: float) -> None:
        self.grain_mm = grain_mm
        count = int(2 * self.half_mm / grain_mm) + 2
        self.lattice = rng.standard_normal((count,) * 3, dtype=np.float32)

    def __call__(self, points: Points) -> np.ndarray:
        """Return the field (N,) at points (N, 3) in mm."""
        position = (points.T + self.half_mm) / self.grain_mm
        return 1.8 * map_coordinates(self.lattice, position, order=1, mode="grid-wrap")
