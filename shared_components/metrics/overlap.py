"""How well label maps cover each other. Computed in numpy with one count per voxel, however many labels there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
from torch import Tensor

from ..errors import InputError

Labels = np.ndarray | Tensor
Absent = Literal["skip", "zero"]
_CHUNK = 1 << 19  # voxels counted at once
_DENSE = 1 << 20  # up to this label value a table indexed by the label is cheaper than sorting the voxels


def as_labels(labels: Labels, what: str = "labels") -> np.ndarray:
    """Return labels as an integer array of the same shape.

    Raises:
        InputError: if a value is not a whole number, as after linear interpolation.
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind not in "iu" or array.dtype == np.uint64:
        with np.errstate(invalid="ignore"):
            whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            raise InputError(f"{what} hold values that are not whole numbers; warp labels with nearest neighbour")
        return whole
    return array


def as_pair(fixed_labels: Labels, moved_labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Return both label maps as integer arrays of one shape.

    Raises:
        InputError: if the shapes differ.
    """
    fixed, moved = as_labels(fixed_labels, "fixed labels"), as_labels(moved_labels, "moved labels")
    if fixed.shape != moved.shape:
        raise InputError(f"label maps differ in shape, {fixed.shape} and {moved.shape}; bring them onto one grid first")
    return fixed, moved


def label_counts(fixed: np.ndarray, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (labels found in either, voxels in fixed, in moved, in both); the background 0 is left out."""
    fixed, moved = fixed.ravel(), moved.ravel()
    low = min(int(fixed.min(initial=0)), int(moved.min(initial=0)))
    high = max(int(fixed.max(initial=0)), int(moved.max(initial=0)))
    values: np.ndarray | None = None
    if low < 0 or high >= _DENSE:
        values, codes = np.unique(np.concatenate([fixed, moved]), return_inverse=True)
        fixed, moved, high = codes[: fixed.size], codes[fixed.size :], len(values) - 1
    in_fixed, in_moved, in_both = np.zeros((3, high + 1), np.int64)
    for start in range(0, fixed.size, _CHUNK):  # bincount turns all it gets into 64-bit numbers
        a, b = (x[start : start + _CHUNK] for x in (fixed, moved))
        for counts, values_here in ((in_fixed, a), (in_moved, b), (in_both, a[a == b])):
            counts += np.bincount(values_here, minlength=high + 1)
    values = np.arange(high + 1) if values is None else values
    keep = (in_fixed + in_moved > 0) & (values != 0)
    return values[keep], in_fixed[keep], in_moved[keep], in_both[keep]


def _scores(
    counts: tuple[np.ndarray, ...], scores: np.ndarray, labels: Iterable[int] | None, absent: Absent
) -> dict[int, float]:
    if absent not in ("skip", "zero"):
        raise ValueError(f"absent must be 'skip' or 'zero', got {absent!r}")
    found, in_fixed, in_moved, _ = counts
    in_each = (in_fixed > 0) & (in_moved > 0)
    wanted = None if labels is None else {int(label) for label in labels}
    keep = in_each if absent == "skip" else np.ones_like(in_each)
    return {
        int(label): float(score)
        for label, score, kept in zip(found, scores, keep, strict=True)
        if kept and (wanted is None or int(label) in wanted)
    }


def dice(
    fixed_labels: Labels, moved_labels: Labels, labels: Iterable[int] | None = None, absent: Absent = "skip"
) -> dict[int, float]:
    """Return the Dice coefficient of each label, 2 |A n B| / (|A| + |B|).

    Args:
        fixed_labels: (*spatial) or (1, *spatial) whole numbers, 0 is background.
        moved_labels: likewise, on the same grid.
        labels: only these; None takes all.
        absent: a label found in one image only is left out ("skip") or counts as 0 ("zero"). A label found in neither
            is always left out. Learn2Reg skips what the fixed or the *unwarped* moving image lacks and gives 0 to what
            the warp pushed out: ``dice(fixed, moved, common_labels(fixed, moving), absent="zero")``.

    Returns:
        {label: Dice in [0, 1]}.
    """
    counts = label_counts(*as_pair(fixed_labels, moved_labels))
    _, in_fixed, in_moved, in_both = counts
    return _scores(counts, 2 * in_both / (in_fixed + in_moved), labels, absent)


def iou(
    fixed_labels: Labels, moved_labels: Labels, labels: Iterable[int] | None = None, absent: Absent = "skip"
) -> dict[int, float]:
    """Return the Jaccard index of each label, |A n B| / |A u B|; arguments as for ``dice``.

    VTN's IoU warps a 0/255 mask linearly and takes what exceeds 128; hand in the result of that.
    """
    counts = label_counts(*as_pair(fixed_labels, moved_labels))
    _, in_fixed, in_moved, in_both = counts
    return _scores(counts, in_both / (in_fixed + in_moved - in_both), labels, absent)


def common_labels(fixed_labels: Labels, moving_labels: Labels) -> list[int]:
    """Return the labels other than 0 that both images hold, sorted; the images may lie on different grids."""
    found = [np.unique(as_labels(labels)) for labels in (fixed_labels, moving_labels)]
    return [int(label) for label in np.intersect1d(*found) if label != 0]


def mean_over_labels(scores: Mapping[int, float]) -> float:
    """Return the mean of per-label scores, each label counting the same; NaN if there are none."""
    return float(np.mean(list(scores.values()))) if scores else float("nan")
