"""Choose limits on one half of the cases, and what the training images look like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shared_components.verdict import Limits, describe_view, excess, judge

AGREEMENT = ("correlation", "nmi", "edges", "local", "overlap")
# a brain may lean either way from left to right; noise and background tell a template from a scan, not good from bad
STATISTICS = ("size", "spread_0", "spread_1", "spread_2", "lean_1", "lean_2", "mean", "deviation")
OF_ONE_KIND = ("correlation", "local")  # mean nothing where the two images differ in kind
WORTH = 0.01  # that a number must add to the share of spoilt cases flagged, less that of good ones, to be given a limit
CLEAR = 0.85  # that share of a number by itself, from which it is given a limit of failure in any case
Record = Mapping[str, Any]


def value_of(record: Record, name: str) -> float | None:
    """Return an agreement number of a record after registration; None where nothing was registered."""
    metrics = record.get("metrics")
    return None if metrics is None else metrics["agreement"][name]["after"]


def choose_least(
    records: Sequence[Record], name: str, enough: float = 0.2, flagged: Sequence[bool] | None = None
) -> tuple[float, float, float] | None:
    """Return limits (check, failed) of a number that should be large, and what it gains; None where it tells nothing.

    check: where the share of flagged spoilt cases, less that of flagged good ones, is largest, in the middle of the
    widest gap; failed: the median of the spoilt cases.

    Args:
        records: of the cases.
        name: of the number.
        enough: that share, below which the number tells nothing.
        flagged: cases that have been flagged for other reasons.
    """
    flagged = flagged or [False] * len(records)
    known = [(value_of(r, name), r["spoilt"], before) for r, before in zip(records, flagged, strict=True)]
    good, bad = ([v for v, spoilt, _ in known if spoilt is side and v is not None] for side in (False, True))
    values = np.unique([value for value, _, before in known if value is not None and not before])
    gaps = (values[1:] + values[:-1]) / 2
    if not good or not bad or not len(gaps):
        return None
    found: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for value, spoilt, before in known:
        found[spoilt].append(np.full(len(gaps), True) if before else gaps > (np.inf if value is None else value))
    gain = np.mean(found[True], 0) - np.mean(found[False], 0)
    best = np.flatnonzero(gain >= gain.max() - 1e-9)
    check = float(gaps[best[(values[1:] - values[:-1])[best].argmax()]])
    limits = round(check, 3), round(min(float(np.median(bad)), check), 3)
    return (*limits, float(gain.max())) if gain.max() > enough else None


def choose_together(records: Sequence[Record], names: Sequence[str], flagged: Sequence[bool]) -> dict[str, list[float]]:
    """Return {"least_NAME": [check, failed]} of numbers that together tell good from spoilt cases.

    The number that adds most to what is flagged already gets a limit, then the one that adds most to that, and so on,
    as long as it adds ``WORTH``.
    """
    chosen: dict[str, list[float]] = {}
    flags, left = list(flagged), list(names)
    while left:
        spoilt = np.array([record["spoilt"] for record in records])
        so_far = np.mean(np.array(flags)[spoilt]) - np.mean(np.array(flags)[~spoilt])
        offers = {name: choose_least(records, name, so_far + WORTH, flags) for name in left}
        offers = {name: offer for name, offer in offers.items() if offer is not None}
        if not offers:
            break
        best = max(offers, key=lambda name: offers[name][2])
        check, failed, _ = offers[best]
        chosen[f"least_{best}"] = [check, failed]
        flags = [f or ((v := value_of(r, best)) is not None and v < check) for r, f in zip(records, flags, strict=True)]
        left.remove(best)
    return chosen


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
    kept["outside_percent"] = choose_outside(records)
    kept["unlike"] = [choose_unlike(records, trained_on["statistics"]), None]
    clear = {name: offer for name in names if (offer := choose_least(records, name, CLEAR))}
    failures = {f"least_{name}": [None, failed] for name, (_, failed, _) in clear.items()}
    others = [_flagged(record, Limits.of({**kept, **failures}), trained_on) for record in records]
    return {**kept, **failures, **choose_together(records, names, others)}


def _flagged(record: Record, limits: Limits, trained_on: Mapping[str, Any]) -> bool:
    metrics = record["metrics"]
    return metrics is None or judge(metrics, limits, trained_on)["level"] != "ok"


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
