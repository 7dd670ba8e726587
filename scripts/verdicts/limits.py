"""Choose limits on one half of the cases, and what the training images look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared_components.verdict import Limits, describe_view, excess

AGREEMENT = ("correlation", "nmi", "edges", "local", "overlap")
# a brain may lean either way from left to right; noise and background tell a template from a scan, not good from bad
STATISTICS = ("size", "spread_0", "spread_1", "spread_2", "lean_1", "lean_2", "mean", "deviation")
OF_ONE_KIND = ("correlation", "local")  # mean nothing where the two images differ in kind
ENOUGH = 0.85  # of what a number must tell apart, beyond chance, to be given a limit
Record = Mapping[str, Any]


def value_of(record: Record, name: str) -> float | None:
    """Return an agreement number of a record after registration; None where nothing was registered."""
    metrics = record.get("metrics")
    return None if metrics is None else metrics["agreement"][name]["after"]


def choose_least(records: Sequence[Record], name: str, enough: float = 0.2) -> tuple[float, float] | None:
    """Return the limits (check, failed) of a number that should be large, or None where it tells nothing.

    check: where the share of spoilt cases below and that of good cases above are largest together, in the middle of
    the gap; failed: the median of the spoilt cases. It tells nothing if that sum is not above 1 + ``enough``.
    """
    good, bad = ([v for r in records if r["spoilt"] is spoilt and (v := value_of(r, name)) is not None]
                 for spoilt in (False, True))  # fmt: skip
    values = np.unique([*good, *bad])
    gaps = (values[1:] + values[:-1]) / 2
    if not good or not bad or not len(gaps):
        return None
    gain = np.mean(np.asarray(bad)[:, None] < gaps, 0) - np.mean(np.asarray(good)[:, None] < gaps, 0)
    best = np.flatnonzero(gain >= gain.max() - 1e-9)
    widths = (values[1:] - values[:-1])[best]
    check = float(gaps[best[widths.argmax()]])
    return (round(check, 3), round(min(float(np.median(bad)), check), 3)) if gain.max() > enough else None


def choose_unlike(records: Sequence[Record], statistics: Mapping[str, Any]) -> float:
    """Return beyond which excess an input is unlike the training images.

    The 98th percentile of the good cases' larger image, of all statistics the largest, rounded up to a half.
    """
    good = [record["metrics"]["input"] for record in records if not record["spoilt"] and record["metrics"] is not None]
    largest = [max(max(excess(side, statistics).values()) for side in sides.values()) for sides in good]
    return max(0.5, math.ceil(2 * float(np.percentile(largest, 98))) / 2)


def choose_outside(records: Sequence[Record]) -> list[float | None]:
    """Return the limits of content out of sight, %: wider than by default where good pairs need it.

    A wrist runs out of its picture in good pairs as well. check: where 98 % of the good cases lie below, rounded up to
    5 %.
    """
    good = [record["metrics"]["coverage"] for record in records if not record["spoilt"] and record["metrics"]]
    check, failed = Limits().outside_percent
    if good:
        largest = [max(sides.values()) for sides in good]
        check = max(check, 5.0 * math.ceil(float(np.percentile(largest, 98)) / 5))
    return [check, failed if failed > check else None]


def choose_limits(
    records: Sequence[Record], trained_on: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the entry "verdict" of a bundle's metadata from the records of one half.

    Args:
        records: of the cases.
        trained_on: the other entry.
        before: the entry so far; what is not chosen here is kept.
    """
    kept = {name: value for name, value in (before or {}).items() if not name.startswith("least_")}
    fitting = kept.get("similarity", "correlation") in OF_ONE_KIND
    names = [name for name in AGREEMENT if fitting or name not in OF_ONE_KIND]
    chosen = {f"least_{name}": choose_least(records, name, enough=ENOUGH) for name in names}
    limits = {name: list(pair) for name, pair in chosen.items() if pair is not None}
    limits["outside_percent"] = choose_outside(records)
    return {**kept, **limits, "unlike": [choose_unlike(records, trained_on["statistics"]), None]}


def training_statistics(
    views: Sequence[tuple[Any, Sequence[float]]], spacing_mm: tuple[float, float]
) -> dict[str, Any]:
    """Return the entry "trained_on" of a bundle's metadata.

    Args:
        views: (view, spacing) of each training image as the network sees it.
        spacing_mm: least and most voxel size of images that the bundle is meant for.
    """
    found = [describe_view(view, spacing) for view, spacing in views]
    names = [name for name in STATISTICS if name in found[0]]
    ranges = {name: [min(one[name] for one in found), max(one[name] for one in found)] for name in names}
    return {"images": len(found), "spacing_mm": list(spacing_mm), "statistics": ranges}
