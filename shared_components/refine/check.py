"""Where fields fold before and after, and how to mend that: what every method of refinement is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from ..metrics import folded_cells, folds_percent, ndv_percent
from ..similarity import box_sum
from .basis import smooth

Folds = tuple[float, float]


def count_folds(ddf: Tensor) -> Folds:
    """Return the folds of (B, D, *spatial), in % of voxels: of central differences, and of simplices."""
    return sum(folds_percent(one[None]) for one in ddf), sum(ndv_percent(one[None]) for one in ddf)


def folded(ddf: Tensor) -> Tensor:
    """Return where cells are turned over, bool (B, 1, *spatial)."""
    return torch.stack([folded_cells(one[None]) for one in ddf])[:, None]


def mended(ddf: Tensor, known: Tensor) -> Tensor:
    """Smooth the field where it folds and was not known to, in ever larger places: a translation cannot fold."""
    for attempt in range(30):
        place = folded(ddf)
        if not (place & ~known).any():
            break
        ddf = smoothed_at(place, ddf, attempt // 10)
    return ddf


def smoothed_at(place: Tensor, x: Tensor, radius: int) -> Tensor:
    """Return (B, C, *spatial) smoothed in and, less so, next to the voxels (B, 1, *spatial) of a mask.

    Args:
        place: bool.
        x: any fields.
        radius: by which the place is widened, in voxels.
    """
    weight = place.float()
    if radius:
        weight = (box_sum(weight, radius) > 0.5).float()
    return x + torch.maximum(smooth(weight), weight) * (smooth(x) - x)


def numbers(before: float, after: float, old: Folds, new: Folds) -> dict[str, float]:
    """Return what a refinement tells of its loss and folds."""
    return {
        "loss_before": before,
        "loss_after": after,
        "folds_before": old[0],
        "folds_after": new[0],
        "strict_folds_before": old[1],
        "strict_folds_after": new[1],
    }
