"""The numbers of one registration as plain dictionaries, ready for metrics.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..slabs import slabs
from .jacobian import Field, _as_mask, as_field
from .overlap import Labels, as_pair, dice, iou, label_counts, mean_over_labels
from .points import distance_statistics
from .statistics import field_statistics
from .surface import hd95_l2r, hd95_mm

Summary = dict[str, Any]


def plain(value: Any) -> Any:
    """Return results fit for JSON: NaN and infinity become None, numbers are rounded to six significant digits."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def field_summary(ddf_vox: Field, spacing_mm: Sequence[float], mask: Field | None = None) -> Summary:
    """Describe a field: how far it moves, how it changes volume, where it folds.

    Args:
        ddf_vox: (D, *spatial) or (1, D, *spatial), voxels.
        spacing_mm: (D,) voxel size in mm.
        mask: (*spatial), nonzero where to look; ``std_jacobian`` is of the whole grid.

    Returns:
        displacement_mm {mean, p95, max}, all of ``jacobian_statistics``, std_jacobian. None: not defined here.
    """
    field = as_field(ddf_vox)
    chosen = _as_mask(mask, field)
    step = torch.tensor([float(s) for s in spacing_mm], dtype=field.dtype, device=field.device)
    length = (field[0] * step.view(-1, *(1,) * chosen.ndim)).norm(dim=0)[chosen]
    parts = (field[0][:, where] for where in slabs(chosen.shape))
    return plain(
        {"displacement_mm": distance_statistics(length.double().cpu().numpy()), **field_statistics(parts, chosen)}
    )


def label_summary(
    fixed_labels: Labels,
    moved_labels: Labels,
    spacing_mm: Sequence[float],
    labels: Iterable[int] | None = None,
    surfaces: bool = True,
) -> Summary:
    """Compare two label maps, label by label and on average.

    Args:
        fixed_labels: (*spatial) or (1, *spatial) whole numbers, 0 is background.
        moved_labels: likewise, on the same grid.
        spacing_mm: (D,) voxel size in mm.
        labels: only these; None takes all.
        surfaces: also HD95, which takes most of the time.

    Returns:
        mean {dice, iou, hd95_mm, hd95_l2r}, labels {label: {the same}}, and what the means leave out because one
        image lacks it: only_in_fixed, only_in_moved.
    """
    fixed, moved = as_pair(fixed_labels, moved_labels)
    wanted = None if labels is None else [int(label) for label in labels]
    scores = {"dice": dice(fixed, moved, wanted), "iou": iou(fixed, moved, wanted)}
    if surfaces:
        scores["hd95_mm"] = hd95_mm(fixed, moved, spacing_mm, wanted)
        scores["hd95_l2r"] = hd95_l2r(fixed, moved, wanted)
    values, in_fixed, in_moved, _ = label_counts(fixed, moved)
    asked = np.ones_like(values, dtype=bool) if wanted is None else np.isin(values, wanted)
    return plain(
        {
            "mean": {name: mean_over_labels(score) for name, score in scores.items()},
            "labels": {label: {name: scores[name][label] for name in scores} for label in scores["dice"]},
            "only_in_fixed": [int(v) for v in values[asked & (in_moved == 0)]],
            "only_in_moved": [int(v) for v in values[asked & (in_fixed == 0)]],
        }
    )
