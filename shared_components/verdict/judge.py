"""From numbers to ok, check or failed, with a sentence for every reason. Nothing here looks at an image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .limits import Limits, Pair

LEVELS = ("ok", "check", "failed")
Reason = tuple[str, str]
PERFECT = 0.98  # agreement at the start from which there is nothing left to be gained
WORDS = {
    "correlation": "correlation",
    "nmi": "normalised mutual information",
    "edges": "agreement of edges",
    "local": "local correlation",
    "overlap": "overlap of the contents",
}
_AXES = {  # of slices nobody knows how they lie in the body
    2: ("along x", "along y"),
    3: ("from left to right", "from back to front", "from feet to head"),
}
STATISTICS = {
    "mean": ("its mean intensity", ""),
    "deviation": ("its contrast", ""),
    "saturated": ("its share of saturated voxels", ""),
    "noise": ("its noise", ""),
    "floor": ("the intensity of its background", ""),
}


def statistic(name: str, ndim: int) -> tuple[str, str]:
    """Return what a number of ``describe_view`` is in words, and its unit.

    Example:
        >>> statistic("spread_2", 3), statistic("size", 2)
        (('the extent of its content from feet to head', 'mm'), ('the size of its content', 'cm²'))
    """
    if name == "size":
        return "the size of its content", {2: "cm²", 3: "ml"}[ndim]
    kind, _, axis = name.partition("_")
    if kind in ("spread", "lean"):
        words, unit = {"spread": ("the extent of its content", "mm"), "lean": ("how its content leans", "")}[kind]
        return f"{words} {_AXES[ndim][int(axis)]}", unit
    return STATISTICS.get(name, (name, ""))


def judge(
    metrics: Mapping[str, Any], limits: Limits | None = None, trained_on: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the verdict on a registration.

    Args:
        metrics: what metrics.json holds. "field" and "agreement" are judged where they are there, so are "coverage",
            "volume", "input" and "expected_error_mm"; a field whose numbers are not defined has failed.
        limits: None takes the default of each.
        trained_on: "spacing_mm" [least, most] of the images that a bundle was trained on, and "statistics"
            {name: [least, most]} of what ``numbers.describe_view`` says of them; None: inputs are not judged.

    Returns:
        {"level": "ok" | "check" | "failed", "reasons": [sentences]}, those of the worst level first.
    """
    limits = limits or Limits()
    found = [
        *_field(metrics.get("field", {}), limits),
        *_agreement(metrics.get("agreement", {}), limits),
        *_content(metrics.get("coverage", {}), limits),
        *_volume(metrics.get("volume", {}), limits),
        *_expected(metrics.get("expected_error_mm"), limits),
        *_inputs(metrics.get("input", {}), limits, trained_on or {}),
    ]
    found.sort(key=lambda reason: -LEVELS.index(reason[0]))
    return {"level": worst(level for level, _ in found), "reasons": [text for _, text in found]}


def worst(levels: Any) -> str:
    """Return the worst of some levels; "ok" of none."""
    return max(levels, key=LEVELS.index, default="ok")


def _over(value: float | None, pair: Pair) -> str | None:
    """Return the level of a number that should be small, or None where it is."""
    if value is None or math.isnan(value):
        return None
    check, failed = pair
    if failed is not None and value > failed:
        return "failed"
    return "check" if check is not None and value > check else None


def _under(value: float | None, pair: Pair) -> str | None:
    """Return the level of a number that should be large."""
    return None if value is None else _over(-value, tuple(None if x is None else -x for x in pair))


def _limit(level: str, pair: Pair) -> str:
    return _number(pair[LEVELS.index(level) - 1])


def _number(value: float | None) -> str:
    return f"{value:.3g}" if value is None or abs(value) < 1000 else f"{value:.0f}"


def _field(field: Mapping[str, Any], limits: Limits) -> Iterator[Reason]:
    """Not a number at all, folds, and an inverse that does not invert."""
    if not field:
        return
    if (field.get("displacement_mm") or {}).get("max") is None:
        yield "failed", "the field has values that are not finite"
        return
    folds, pair = field.get("folds_percent"), limits.folds_percent
    if level := _over(folds, pair):
        yield level, f"{_number(folds)} % of the content is folded; more than {_limit(level, pair)} %"
    error, pair = (field.get("inverse_consistency_mm") or {}).get("mean"), limits.inverse_consistency_mm
    if level := _over(error, pair):
        there = f"{_number(error)} mm from where it began in the mean; more than {_limit(level, pair)} mm"
        yield level, f"there and back through the inverse a point ends {there}"


def _agreement(numbers: Mapping[str, Any], limits: Limits) -> Iterator[Reason]:
    """Images that agree less than before, or little."""
    chosen = numbers.get(limits.similarity) or {}
    before, after = chosen.get("initial"), chosen.get("after")
    if before is not None and after is not None and before < PERFECT:
        if level := _over(before - after, limits.loss):
            what = f"{WORDS[limits.similarity]} {_number(after)} after, {_number(before)} before"
            yield level, f"the images do not agree better than before the registration: {what}"
    for name, words in WORDS.items():
        value, pair = (numbers.get(name) or {}).get("after"), getattr(limits, f"least_{name}")
        if level := _under(value, pair):
            yield level, f"the images agree little: {words} {_number(value)}; less than {_limit(level, pair)}"


def _content(numbers: Mapping[str, Any], limits: Limits) -> Iterator[Reason]:
    """Content that the transform takes out of sight."""
    pair = limits.outside_percent
    for side, other in (("fixed", "moving"), ("moving", "fixed")):
        value = numbers.get(f"{side}_outside_percent")
        if level := _over(value, pair):
            where = f"lies outside the {other} image's field of view; more than {_limit(level, pair)} %"
            yield level, f"{_number(value)} % of the {side} image's content {where}"


def _volume(numbers: Mapping[str, Any], limits: Limits) -> Iterator[Reason]:
    """Volumes that grow or shrink beyond belief, and mirrors."""
    affine = numbers.get("affine")
    if affine is not None and affine <= 0:
        yield "failed", f"the affine stage mirrors the image or flattens it: its determinant is {_number(affine)}"
    elif level := _over(_factor(affine), limits.affine_factor):
        limit = _limit(level, limits.affine_factor)
        words = f"by a factor of {_number(affine)}; more than {limit} or 1/{limit}"
        yield level, f"the affine stage changes volumes {words}"
    for name, words in (("low", "stretched"), ("high", "shrunk")):
        value = numbers.get(name)
        factor = math.inf if value is not None and value <= 0 else _factor(value)
        if level := _over(factor, limits.local_factor):
            limit = _limit(level, limits.local_factor)
            shown = f"by a factor of {_number(factor)} or more" if math.isfinite(factor) else "beyond folding"
            yield level, f"a hundredth of the content is {words} {shown}; more than {limit}"


def _factor(determinant: float | None) -> float | None:
    return None if determinant is None or determinant <= 0 else max(determinant, 1 / determinant)


def _expected(error: Mapping[str, Any] | None, limits: Limits) -> Iterator[Reason]:
    value, pair = (error or {}).get("mean"), limits.expected_error_mm
    if level := _over(value, pair):
        yield level, f"the expected error is {_number(value)} mm in the mean; more than {_limit(level, pair)} mm"


def excess(numbers: Mapping[str, Any], ranges: Mapping[str, Any]) -> dict[str, float]:
    """Return how far each number lies beyond its range [low, high], in widths of that; negative within.

    Example:
        >>> excess({"size": 14.0, "mean": 0.5}, {"size": [8, 12], "mean": [0, 1], "noise": [0, 1]})
        {'size': 0.5, 'mean': -0.5}
    """
    known = {name: pair for name, pair in ranges.items() if numbers.get(name) is not None}
    return {
        name: max(low - numbers[name], numbers[name] - high) / max(high - low, 1e-6)
        for name, (low, high) in known.items()
    }


def _inputs(sides: Mapping[str, Any], limits: Limits, trained_on: Mapping[str, Any]) -> Iterator[Reason]:
    """Images unlike those that a bundle was trained on."""
    spacing = trained_on.get("spacing_mm")
    for side, numbers in sides.items():
        steps = [] if spacing is None else sorted(set(numbers.get("spacing", [])))
        if strange := [step for step in steps if not spacing[0] <= step <= spacing[1]]:
            known = f"between {_number(spacing[0])} and {_number(spacing[1])} mm"
            shown = " and ".join(dict.fromkeys(map(_number, strange)))
            yield "check", f"the {side} image has voxels of {shown} mm; the bundle knows such {known}"
        beyond = excess(numbers, trained_on.get("statistics", {}))
        found = {name: level for name, value in beyond.items() if (level := _over(value, limits.unlike))}
        if found:
            first = max(found, key=lambda name: beyond[name])
            more = f", and {len(found) - 1} more of its numbers" if len(found) > 1 else ""
            words = statistic(first, len(numbers.get("spacing", "RAS")))
            told = _told(words, numbers[first], *trained_on["statistics"][first])
            yield worst(found.values()), f"the {side} image is unlike the training images: {told}{more}"


def _told(statistic: tuple[str, str], value: float, low: float, high: float) -> str:
    words, unit = statistic
    known = f"{_number(low)} to {_number(high)} {unit}".strip()
    return f"{words} is {_number(value)} {unit}".strip() + f", theirs {known}"
