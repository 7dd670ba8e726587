"""What must show in the numbers of SUITS, and whether it does.

Results come as ``{set: {method: {"dice": [one a pair], "hd95_mm": [...], "cpu_seconds": [...], ...}}}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

from . import suits_paper as paper
from .meta_affine_relations import Judged
from .pair_statistics import common, signed_rank
from .suits_runs import SETS
from .tables import number, p_value

LEVEL = 0.01
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
SHORT = {
    "initial": "initial",
    "elastix": "elastix",
    "elastix_30mm": "elastix with 30 mm",
    "voxelmorph": "VoxelMorph",
    "mind": "hand-made MIND",
    "mind_cnn": "MIND-CNN",
    "suits_first": "training at k_back = 1",
    "suits": "SUITS",
    "suits_first_last": "training at k_back = 1 as long",
    "suits_last": "SUITS of the last epoch",
    "mind_chosen": "hand-made MIND, λ chosen",
    "mind_cnn_chosen": "MIND-CNN, λ chosen",
    "suits_chosen": "SUITS, λ chosen",
    "suits_soft": "SUITS trained at λ 0.25",
}
ORDERS = (  # better, worse, metric, p must be small, must show
    ("suits", "mind_cnn", "dice", True, True),
    ("mind_cnn", "initial", "dice", True, True),
    ("suits_last", "suits_first_last", "dice", True, True),
    ("suits", "suits_first", "dice", False, False),
    ("suits", "mind_cnn", "hd95_mm", False, False),
    ("mind_cnn", "initial", "hd95_mm", False, False),
    ("mind_cnn", "mind", "dice", False, False),
    ("suits", "mind", "dice", False, False),
    ("suits", "voxelmorph", "dice", False, False),
    ("suits", "elastix", "dice", False, False),
    ("suits_chosen", "mind_cnn_chosen", "dice", False, False),
    ("suits_soft", "mind_cnn_chosen", "dice", False, False),
    ("suits_soft", "mind_chosen", "dice", False, False),
    ("suits_soft", "suits_chosen", "dice", False, False),
    ("suits_soft", "elastix_30mm", "dice", False, False),
)


def judge(results: Results) -> list[dict[str, Any]]:
    """Return all relations, as plain dictionaries; one that must show but was not measured does not show."""
    parts = [part for name in SETS for part in (_orders(results, name), _speed(results, name))]
    return [asdict(one) for part in parts for one in part]


def _orders(results: Results, name: str) -> Iterator[Judged]:
    found = results.get(name, {})
    for better, worse, metric, sure, required in ORDERS:
        higher = metric == "dice"
        word = "Dice" if higher else "HD95"
        sign = ">" if higher else "<"
        claim = f"{SETS[name].title}: {SHORT[better]} {sign} {SHORT[worse]}, {word}"
        wanted = ("higher" if higher else "lower") + (f", p < {LEVEL}" if sure else "")
        told = _theirs(better, worse, metric) if SETS[name].paper else "–"
        if better not in found or worse not in found:
            if required:
                yield Judged(claim, wanted, "not measured", False, told)
            continue
        first, second = common(found[better], found[worse], metric)
        p = signed_rank(found[better], found[worse], metric)
        gain = float((first - second).mean()) if first.size else 0.0
        shows = gain > 0 if higher else gain < 0
        digits = 3 if higher else 2
        values = ", ".join(number(float(x.mean()) if x.size else None, digits) for x in (first, second))
        yield Judged(claim, wanted, f"{values}; p {p_value(p)}", shows and (not sure or p < LEVEL), told, required)


def _theirs(better: str, worse: str, metric: str) -> str:
    table, tests = (paper.DICE, paper.P_DICE) if metric == "dice" else (paper.HD95_MM, paper.P_HD95)
    if better not in table or worse not in table:
        return "–"
    text = ", ".join(f"{table[method][6]:g}" for method in (better, worse))
    return f"{text}; p {p_value(tests[worse])}" if better == "suits" else text


def _speed(results: Results, name: str) -> Iterator[Judged]:
    found = results.get(name, {})
    claim, told = f"{SETS[name].title}: SUITS faster than elastix, CPU time a pair", "–"
    if SETS[name].paper:
        told = f"{paper.SECONDS['suits']:.0f} s (GPU), {paper.SECONDS['elastix']:.0f} s"
    if not all(found.get(method, {}).get("cpu_seconds") for method in ("suits", "elastix")):
        yield Judged(claim, "less", "not measured", False, told)
        return
    ours, other = (median(found[method]["cpu_seconds"]) for method in ("suits", "elastix"))
    times = f"{other / ours:.1f}×" if ours else "–"
    yield Judged(claim, "less", f"{ours:.1f}, {other:.1f} s ({times})", ours < other, told)
