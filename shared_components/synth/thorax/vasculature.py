"""The vessels of lungs and liver in a painted or a real slice, with their branching points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import center_of_mass, distance_transform_edt, label

from .vessels import draw_tubes, grow_tree, scatter_spots


@dataclass(frozen=True)
class VesselLook:
    """How vessels show.

    Attributes:
        lung: brightness of the widest in the lung.
        liver: relative brightness in the liver, negative where they are darker than it.
        spots: vessels across the slice, for a lung of 100 x 100 units.
    """

    lung: float
    liver: float
    spots: float = 45.0


def draw_look(rng: np.random.Generator, blood: float) -> VesselLook:
    """Draw how vessels show in one scan whose blood is so bright."""
    liver = rng.uniform(0.2, 0.5) if rng.random() < 0.6 else rng.uniform(-0.35, -0.15)
    return VesselLook(float(blood * rng.uniform(0.6, 1.0)), float(liver), float(rng.uniform(25, 70)))


def add_vessels(
    picture: np.ndarray, labels: np.ndarray, unit: float, side_view: bool, look: VesselLook, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw vessels into lungs (label 2) and liver (label 4).

    Args:
        picture: (n, m) float32 on the fine grid.
        labels: (n, m).
        unit: fine pixels a unit; 256 units are the rows of the view.
        side_view: in a sagittal slice they come from the middle of the lung, otherwise from its side to the heart.
        look: how they show.
        rng: the only source of randomness.

    Returns:
        the picture, the coverage by lung vessels, branching points (N, 2) in pixels, widest first, and their labels.
    """
    lung_lines, lung_points = _lung_trees(labels == 2, unit, side_view, look, rng)
    cover = draw_tubes(picture.shape, lung_lines) * (labels == 2)
    picture = picture + cover * (look.lung - picture).clip(0)
    liver_lines, liver_points = _liver_trees(labels == 4, unit, rng)
    picture = picture * (1 + look.liver * draw_tubes(picture.shape, liver_lines) * (labels == 4))
    points = np.concatenate([lung_points, liver_points])
    kinds = np.repeat([2, 4], [len(lung_points), len(liver_points)])
    return picture.astype(np.float32), cover, points, kinds


def _lung_trees(
    mask: np.ndarray, unit: float, side_view: bool, look: VesselLook, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    parts, count = label(mask)
    lines, points = [np.zeros((0, 6))], [np.zeros((0, 2))]
    for k in range(1, count + 1):
        lung = parts == k
        area = float(lung.sum()) / unit**2
        if area < 800:
            continue
        inner = distance_transform_edt(lung) > 1.5 * unit
        starts, headings = _hilum(lung, side_view, unit, rng)
        reach, width = np.sqrt(area) * rng.uniform(0.2, 0.27) * unit, rng.uniform(1.7, 2.4) * unit
        tree, nodes = grow_tree(inner, starts, headings, reach, width, rng)
        spots = scatter_spots(inner, int(look.spots * area / 1e4), 1.5 * unit, rng)
        lines += [tree, spots]
        points.append(nodes)
    return np.concatenate(lines), np.concatenate(points)


def _hilum(lung: np.ndarray, side_view: bool, unit: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return where the first branches of a lung begin and where they go."""
    row, column = center_of_mass(lung)
    if side_view:
        headings = np.linspace(0, 2 * np.pi, rng.integers(4, 7), endpoint=False) + rng.uniform(0, 2 * np.pi)
        headings = headings + rng.normal(0, 0.2, len(headings))
        starts = np.array([row, column]) + rng.normal(0, 7 * unit, (len(headings), 2))
        return starts, headings
    left = column > 0.5 * lung.shape[1]  # of the patient
    headings = np.deg2rad(np.linspace(-75, 75, rng.integers(5, 8)))
    headings = headings + rng.normal(0, 0.15, len(headings))
    rows = row + np.linspace(-14, 14, len(headings)) * unit + rng.normal(0, 3 * unit, len(headings))
    starts = []
    for y in rows:
        found = np.flatnonzero(lung[int(np.clip(y, 0, len(lung) - 1))])
        found = found if len(found) else np.array([int(column)])
        starts.append((y, float(found[0] if left else found[-1])))
    return np.array(starts), headings if left else np.pi - headings


def _liver_trees(mask: np.ndarray, unit: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if mask.sum() < 600 * unit**2:
        return np.zeros((0, 6)), np.zeros((0, 2))
    deep = distance_transform_edt(mask)
    inner = deep > 3 * unit
    lines, points = [], []
    for _ in range(2):  # portal and hepatic veins
        candidates = np.argwhere(deep > 0.55 * deep.max())
        start = candidates[rng.integers(len(candidates))]
        headings = rng.uniform(0, 2 * np.pi) + np.array([0, 2.0, 4.1])
        starts, (reach, width) = np.repeat(start[None], 3, 0).astype(float), unit * rng.uniform((14, 1.3), (20, 2.0))
        tree, nodes = grow_tree(inner, starts, headings, reach, width, rng)
        lines.append(tree)
        points.append(nodes)
    return np.concatenate(lines), np.concatenate(points)
