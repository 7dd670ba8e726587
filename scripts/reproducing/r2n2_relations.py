"""What must show in the numbers of R2N2, and whether it does.

Table 1 comes as ``{method: {"pairs": names, "tre_mm": [one a pair], "steps_mm": (pairs, steps), ...}}``, the ablation
as ``{network: the same}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

import numpy as np

from . import r2n2_paper as paper
from .meta_affine_relations import Judged
from .pair_statistics import common, signed_rank
from .r2n2_methods import BEYOND
from .r2n2_runs import ABLATION
from .tables import number, p_value

LEVEL = 0.01
PAR, OF_INITIAL, OF_PARAMETERS, TIMES_FASTER = 0.2, 0.25, 0.076, 15.0
DRIFT = 1.1  # the error after twice the steps, in errors after all
Numbers = Mapping[str, Mapping[str, Any]]


def judge(table1: Numbers, ablation: Numbers) -> list[dict[str, Any]]:
    """Return all relations, as plain dictionaries; one that must show but was not measured does not show."""
    parts = (_accuracy(table1), _cost(table1), _tools(table1), _course(table1), _parts(ablation))
    return [asdict(one) for part in parts for one in part]


def _accuracy(found: Numbers) -> Iterator[Judged]:
    means = {name: fmean(values) for name, values in paper.MEANS.items()}
    claim, wanted = "R2N2's landmarks as near as those of the B-spline", f"{1 - PAR:g} to {1 + PAR:g} times"
    told = f"{means['r2n2']:.2f}, {means['bspline']:.2f} mm ({means['r2n2'] / means['bspline']:.2f}×)"
    both = _both(found, "r2n2", "bspline")
    if both is None:
        yield Judged(claim, wanted, "not measured", False, told)
    else:
        ratio = both[0] / both[1]
        text = f"{both[0]:.2f}, {both[1]:.2f} mm ({ratio:.2f}×)"
        yield Judged(claim, wanted, text, 1 - PAR <= ratio <= 1 + PAR, told)
        yield Judged("R2N2's landmarks nearer than those of the B-spline", "less", text, ratio < 1, told, False)
    both = _both(found, "r2n2", "proposed")
    if both is not None:
        claim = "R2N2's landmarks nearer after the polish than before"
        yield Judged(claim, "less", f"{both[0]:.2f}, {both[1]:.2f} mm", both[0] < both[1], "–", False)
    claim, wanted = "R2N2's error a quarter of the initial one", f"< {OF_INITIAL:g}"
    both = _both(found, "r2n2", "identity")
    if both is None:
        yield Judged(claim, wanted, "not measured", False)
    else:
        share = both[0] / both[1]
        yield Judged(claim, wanted, f"{both[0]:.2f} of {both[1]:.2f} mm ({share:.2f})", share < OF_INITIAL)


def _both(found: Numbers, one: str, other: str) -> tuple[float, float] | None:
    """Return the mean errors of two methods on the pairs that both have registered."""
    if one not in found or other not in found:
        return None
    first, second = common(found[one], found[other], "tre_mm")
    return (float(first.mean()), float(second.mean())) if first.size else None


def _cost(found: Numbers) -> Iterator[Judged]:
    claims = {
        "parameters": ("R2N2's transform in few numbers, of the B-spline's", f"≤ {100 * OF_PARAMETERS:g} %"),
        "seconds": ("R2N2 faster than the B-spline", f"≥ {TIMES_FASTER:g}×"),
    }
    theirs = f"{paper.PARAMETERS['r2n2']} of {paper.PARAMETERS['bspline']} (7.6 %)"
    ratio = paper.SECONDS["bspline"] / paper.SECONDS["r2n2"]
    told = {
        "parameters": theirs,
        "seconds": f"{paper.SECONDS['r2n2']:g}, {paper.SECONDS['bspline']:g} s ({ratio:.0f}×)",
    }
    both = [found.get(name, {}) for name in ("r2n2", "bspline")]
    for key, (claim, wanted) in claims.items():
        if not all(numbers.get(key) for numbers in both):
            yield Judged(claim, wanted, "not measured", False, told[key])
        elif key == "parameters":
            ours, other = (numbers[key] for numbers in both)
            text = f"{ours} of {other} ({100 * ours / other:.1f} %)"
            yield Judged(claim, wanted, text, ours / other <= OF_PARAMETERS, told[key])
        else:
            ours, other = (median(numbers[key]) for numbers in both)
            text = f"{ours:.3f}, {other:.2f} s ({other / ours:.1f}×)"
            yield Judged(claim, wanted, text, other / ours >= TIMES_FASTER, told[key])


def _tools(found: Numbers) -> Iterator[Judged]:
    for tool, title in (("elastix", "elastix"), ("greedy_2d", "greedy")):
        both = _both(found, "r2n2", tool)
        if both is not None:
            p = p_value(signed_rank(found["r2n2"], found[tool], "tre_mm"))
            text = f"{both[0]:.2f}, {both[1]:.2f} mm; p {p}"
            yield Judged(f"R2N2's landmarks nearer than those of {title}", "less", text, both[0] < both[1], "–", False)


def _course(found: Numbers) -> Iterator[Judged]:
    numbers = found.get("r2n2", {})
    claims = (
        ("the error falls with every third of the steps", "0 > T/3 > 2T/3 > T"),
        (f"it does not grow beyond T, up to {BEYOND} T", f"≤ {DRIFT:g}×"),
        ("the first third of the bumps larger than the last, width × length", "more"),
        ("the first third where more moves than at the last, share of the largest motion", "more"),
    )
    if "steps_mm" not in numbers:
        yield from (Judged(*claim, "not measured", False) for claim in claims)
        return
    errors = np.array(numbers["steps_mm"]).mean(0)
    steps = (len(errors) - 1) // BEYOND
    third = max(1, steps // 3)
    shown = [float(errors[k]) for k in (0, third, 2 * third, steps)]
    text = " > ".join(f"{value:.2f}" for value in shown) + " mm"
    yield Judged(*claims[0], text, all(a > b for a, b in zip(shown, shown[1:], strict=False)), "falls")
    drift = float(errors[-1] / errors[steps])
    yield Judged(*claims[1], f"{errors[steps]:.2f} → {errors[-1]:.2f} mm ({drift:.2f}×)", drift <= DRIFT)
    sizes = np.array(numbers["widths_mm"]) * np.array(numbers["lengths_mm"])
    for claim, values, digits, unit in (
        (claims[2], sizes, 0, " mm²"),
        (claims[3], np.array(numbers["motions"]), 2, ""),
    ):
        first, last = float(values[:, :third].mean()), float(values[:, steps - third : steps].mean())
        yield Judged(*claim, f"{first:.{digits}f}, {last:.{digits}f}{unit}", first > last, "fig. 7, one pair")


def _parts(found: Numbers) -> Iterator[Judged]:
    for name in list(ABLATION)[1:]:
        claim, wanted = f"worse {ABLATION[name]}, equal budgets", f"more, p < {LEVEL:g}"
        both = _both(found, name, "whole")
        if both is None:
            yield Judged(claim, wanted, "not measured", False)
            continue
        p = signed_rank(found[name], found["whole"], "tre_mm")
        text = f"{number(both[0], 2)}, {number(both[1], 2)} mm; p {p_value(p)}"
        yield Judged(claim, wanted, text, both[0] > both[1] and p < LEVEL)
