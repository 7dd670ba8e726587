"""Walls and diaphragm from a lung mask: smooth curves along which the contents of a chest can slide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import binary_closing, binary_fill_holes, center_of_mass, label

from .curves import Curve, curve_of_samples, curve_through
from .motion import Compartment, share_from_dome
from .slices import FINE, shares

MODES = ("front", "back", "side")
_SHARES = {  # of the lift by w; lung by lung in a slice through the spine
    "front": (((0, 0.8), (0.15, 0.95), (0.27, 1), (0.42, 0.9), (0.55, 0.7), (0.66, 0.75), (0.78, 0.92), (1, 0.75)),),
    "back": (((0, 0.8), (0.45, 1), (1, 0.8)), ((0, 0.8), (0.55, 1), (1, 0.8))),
    "side": (((0, 0.6), (0.36, 1), (0.7, 1.0), (1, 0.85)),),
}
_BINS = 48


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs of a slice on the fine grid.

    Attributes:
        masks: one or two (n, m) bool; of two the one on the left of the picture first.
        rows, columns: positions of the fine pixels in voxels.
        unit: voxels a unit, of which the view has 256 rows.
        plane: "coronal" or "sagittal".
    """

    masks: tuple[np.ndarray, ...]
    rows: np.ndarray
    columns: np.ndarray
    unit: float
    plane: str

    def labels(self, parts: tuple[Compartment, ...]) -> np.ndarray:
        """Return the labels (n, m) uint8 of what is between the walls; all below the diaphragm is 5, "other"."""
        lung = np.any(self.masks, axis=0)
        found = np.zeros(lung.shape, np.uint8)
        for part in parts:
            w = shares(part, self.rows, self.columns)
            below = self.rows > part.dome(torch.from_numpy(w)).numpy()
            inside = (w >= 0) & (w <= 1)
            found[inside] = np.where(lung, 2, np.where(below, 5, np.where(self.rows > part.top, 3, 1)))[inside]
        return found


def find_lungs(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray, unit: float, plane: str) -> Lungs:
    """Clean a mask: holes filled, gaps closed, small pieces dropped; two lungs at most in a coronal slice, else one.

    Raises:
        ValueError: no piece has the area of 17 x 17 units, about 25 mm.
    """
    closed = binary_closing(np.pad(mask, 8), iterations=max(1, round(2 * unit * FINE)))[8:-8, 8:-8]
    parts, count = label(binary_fill_holes(closed))
    areas = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-areas, kind="stable")[: 2 if plane == "coronal" else 1]
    large = [k + 1 for k in order if areas[k] > (17 * unit * FINE) ** 2 and areas[k] > 0.2 * areas.max()]
    if not large:
        raise ValueError("the mask has no lung of at least 25 mm in the view")
    masks = sorted((parts == k for k in large), key=lambda lung: center_of_mass(lung)[1])
    return Lungs(tuple(masks), rows, columns, unit, plane)


def find_compartments(lungs: Lungs, bottom: float, gap: float, mode: str | None = None) -> tuple[Compartment, ...]:
    """Return what moves: see ``thorax_from_slice``.

    Args:
        lungs: of the slice.
        bottom: last row that is known, voxels.
        gap: voxels between the lungs above the diaphragm, beyond which there is a heart between them.
        mode: "front", "back" or "side" instead of the rule.
    """
    if mode is None:
        mode = "side" if lungs.plane == "sagittal" else "front" if _gap(lungs) > gap else "back"
    if mode == "back" and len(lungs.masks) == 2:
        groups = [[lung] for lung in lungs.masks]
    else:
        groups = [list(lungs.masks)]
    knots = _SHARES[mode] if len(_SHARES[mode]) == len(groups) else _SHARES["side"]
    parts = [_compartment(group, lungs, bottom, share) for group, share in zip(groups, knots, strict=True)]
    return tuple(parts)


def _gap(lungs: Lungs) -> float:
    """Voxels between two lungs at a third of their height above their lower end; endless where there is one lung."""
    if len(lungs.masks) < 2:
        return np.inf
    left, right = lungs.masks
    low, high = (f([np.flatnonzero(m.any(1))[k] for m in lungs.masks]) for f, k in ((max, 0), (min, -1)))
    row = int(high - 0.3 * max(high - low, 0))
    first, second = np.flatnonzero(left[row]), np.flatnonzero(right[row])
    return float(second[0] - first[-1]) / FINE if len(first) and len(second) else np.inf


def _compartment(
    masks: list[np.ndarray], lungs: Lungs, bottom: float, share: tuple[tuple[float, float], ...]
) -> Compartment:
    unit = lungs.unit
    left, right = _wall(masks[0], unit, -1), _wall(masks[-1], unit, 1)
    both = np.any(masks, axis=0)
    apex = float(np.flatnonzero(both.any(1))[0]) / FINE
    flat = curve_through([(0, bottom), (1, bottom)], 0.05)
    draft = Compartment(left, right, flat, flat, apex, bottom, bottom, 0.0)
    dome = _dome(both, shares(draft, lungs.rows, lungs.columns), lungs)
    lift = share_from_dome(curve_through(share, 0.1), dome)
    highest = float(dome(torch.linspace(0.1, 0.9, 81)).min())
    deep = bottom > (256 + 30) * unit
    rest = min(highest + 70 * unit, bottom - 75 * unit)
    return Compartment(left, right, dome, lift, apex - 4 * unit, rest, bottom, 0.45 if deep else 0.0)


def _wall(mask: np.ndarray, unit: float, side: int) -> Curve:
    """Return the outer border of a lung by row, held where the lung turns away from the wall above its lower tip."""
    known = np.flatnonzero(mask.any(1))
    border = np.full(len(mask), np.nan)
    border[known] = mask.argmax(1)[known] if side < 0 else mask.shape[1] - 1 - mask[:, ::-1].argmax(1)[known]
    outward = side * border
    widest = int(np.nanargmax(outward))
    after = np.arange(len(mask)) > widest
    border[after & (outward < outward[widest] - 5 * unit * FINE)] = np.nan
    return curve_of_samples(border / FINE - side * 0.4 * unit, 0.0, 1 / FINE, 9.0 * unit)


def _dome(mask: np.ndarray, w: np.ndarray, lungs: Lungs) -> Curve:
    """Return the lower border of the lungs by w; where a heart lies on the diaphragm, bridged from its neighbours."""
    index, column = np.nonzero(mask)
    bins = (w[index, column] * _BINS).astype(int)
    lowest = np.full(_BINS, np.nan)
    for k in range(_BINS):
        found = index[bins == k]
        lowest[k] = found.max() / FINE if len(found) else np.nan
    lowest[lowest < np.nanmedian(lowest) - 22 * lungs.unit] = np.nan
    return curve_of_samples(lowest, 0.5 / _BINS, 1 / _BINS, 0.05)
