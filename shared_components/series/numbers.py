"""The numbers of a series: what each frame's metrics amount to over all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..verdict import worst

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
CURVES = {
    "correlation before": ("similarity", "correlation", "initial"),
    "correlation after": ("similarity", "correlation", "after"),
    "displacement mean": ("field", "displacement_mm", "mean"),
    "displacement p95": ("field", "displacement_mm", "p95"),
    "displacement max": ("field", "displacement_mm", "max"),
    "expected error": ("expected_error_mm", "mean"),
}
_ROWS = {
    "displacement, mean": (("field", "displacement_mm", "mean"), "mm"),
    "displacement, largest": (("field", "displacement_mm", "max"), "mm"),
    "folds (central J <= 0)": (("field", "folds_percent"), "%"),
    "SD of log J": (("field", "sdlogj"), ""),
    "inverse consistency error, mean": (("field", "inverse_consistency_mm", "mean"), "mm"),
    "expected error, mean": (("expected_error_mm", "mean"), "mm"),
}


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield (*path, key), float(value)


def _value(tree: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = tree
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def summarise(frames: Sequence[Mapping[str, Any]], fixed: int) -> dict[str, Any]:
    """Return every number of the frames' metrics as {"mean", "min", "max"} over all frames but the fixed one."""
    summary: dict[str, Any] = {}
    moving = [frame for frame in frames if frame["frame"] != fixed]
    for path in dict.fromkeys(path for frame in moving for path, _ in _leaves(frame) if path != ("frame",)):
        values = [value for frame in moving if (value := _value(frame, path)) is not None and math.isfinite(value)]
        place = summary
        for key in path:
            place = place.setdefault(key, {})
        if values:
            place |= {"mean": sum(values) / len(values), "min": min(values), "max": max(values)}
    return summary


def verdict_of(frames: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the verdict on a series: the worst level of its frames, and each reason once with the frames it holds for.

    Numbers differ from frame to frame; that of the first one is told.
    """
    told: dict[str, list[Any]] = {}
    for frame in frames:
        for reason in frame["verdict"]["reasons"]:
            told.setdefault(_NUMBER.sub("#", reason), [reason]).append(frame["frame"])
    reasons = []
    for reason, first, *more in told.values():
        others = f" and {len(more)} other{'s' if len(more) > 1 else ''}" if more else ""
        reasons.append(f"frame {first}{others}: {reason}")
    return {"level": worst(frame["verdict"]["level"] for frame in frames), "reasons": reasons}


def table(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows a person reads first: {name: {before, after, unit}}, means over the frames but for the extremes.

    "lowest" and "largest" are over all frames.
    """
    rows: dict[str, Any] = {}
    for name, kind in (("mean over frames", "mean"), ("lowest frame", "min")):
        sides = [_value(summary, ("similarity", "correlation", stage, kind)) for stage in ("initial", "after")]
        rows[f"correlation, {name}"] = {"before": sides[0], "after": sides[1], "unit": ""}
    for name, (path, unit) in _ROWS.items():
        value = _value(summary, (*path, "max" if path[-1] == "max" else "mean"))
        if value is not None:
            rows[name] = {"before": None, "after": value, "unit": unit}
    return rows


def plot_rows(frames: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the curves over time of a report, {name: a number a frame}; those that no frame has are left out."""
    rows = {name: [_value(frame, path) for frame in frames] for name, path in CURVES.items()}
    return {
        name: [math.nan if value is None else float(value) for value in values]
        for name, values in rows.items()
        if any(value is not None for value in values)
    }
