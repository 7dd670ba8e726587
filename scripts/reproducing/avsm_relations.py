"""What must show in the numbers of AVSM, and whether it does.

Results come as ``{"table1": {set: {method: numbers}}, "table2": {set: {row: {seed: numbers}}}}``, numbers as
``{"pairs": names, "dice": [one a registration], "folds": [...], "symmetry": [...], "cpu_seconds": [...], ...}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from . import avsm_paper as paper
from .avsm_methods import METHODS, STEPS
from .meta_affine_relations import Judged
from .pair_statistics import common, signed_rank
from .tables import number, p_value

LEVEL = 0.01
TITLES = {"longitudinal": "longitudinal", "cross": "across subjects"}
Numbers = Mapping[str, Any]
LITTLE = 0.01  # Dice that symmetry may cost
FREE_SHARE = 95.0  # percent of registrations without a fold


@dataclass(frozen=True)
class Order:
    """A claim that one of two methods (or rows of Table 2) is better.

    Attributes:
        better, worse: keys of the results.
        claim: in words, without the set.
        metric: of the numbers.
        higher: better is higher.
        required: must show.
        told: of the paper, where its tables have no number.
    """

    better: str
    worse: str
    claim: str
    metric: str = "dice"
    higher: bool = True
    required: bool = True
    told: str = "–"


MORE_STEPS = "Figures 8, 10: rises"
ORDERS_1 = {  # set -> orders of Table 1
    "longitudinal": (
        Order("affine_net_7", "affine_net_1", "more affine steps help, 7 > 1", told=MORE_STEPS),
        Order("avsm_3", "avsm_2", "test-time steps raise Dice, 3 > 2"),
        Order("affine_net_7", "affine_opt", "affine-net > affine-opt", required=False),
        Order("avsm_2", "vsvf_opt", "AVSM > vSVF-opt (the paper: not so)", required=False),
        Order("avsm_2", "avsm_1", "vSVF steps at test time, 2 > 1", required=False),
    ),
    "cross": (
        Order("affine_net_7", "affine_net_1", "more affine steps help, 7 > 1", told=MORE_STEPS),
        Order("affine_net_7", "affine_opt", "affine-net > affine-opt"),
        Order("avsm_2", "avsm_1", "vSVF steps at test time, 2 > 1", told=MORE_STEPS),
        Order("avsm_3", "avsm_2", "test-time steps raise Dice, 3 > 2"),
        Order(f"avsm_{STEPS}", "avsm_2", f"test-time steps raise folds, {STEPS} > 2", "folds", told=MORE_STEPS),
        Order("avsm_2", "syn", "AVSM > SyN, correlation", required=False),
        Order("avsm_2", "syn_mi", "AVSM > SyN, mutual information", required=False),
        Order("avsm_2", "demons", "AVSM > Demons", required=False),
        Order("avsm_2", "vsvf_opt", "AVSM > vSVF-opt", required=False),
        Order("avsm_2", "vtn", "AVSM > VTN", required=False),
        Order("refined", "greedy", "AVSM refined > greedy", required=False),
    ),
}
ORDERS_2 = (
    Order("V", "IV", "mk-LNCC > NCC, affine part"),
    Order("VII", "VI", "mk-LNCC > NCC, with vSVF"),
    Order("VIII", "VII", "two vSVF steps > one"),
    Order("IX", "VIII", "the symmetry loss makes maps more symmetric", "symmetry", False, told="Figure 6"),
    Order("II", "I", "regularity helps the affine part", required=False, told="row I fails"),
    Order("III", "II", "several affine steps > one", required=False),
    Order("IV", "III", "symmetry helps the affine part", required=False),
    Order("VI", "IV", "vSVF > affine", required=False),
)


def judge(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return all relations, as plain dictionaries; one that must show but was not measured does not show."""
    found: list[Judged] = []
    for name in TITLES:
        one = results["table1"].get(name, {})
        found += filter(None, (_order(one, order, name, _paper_1(order, name)) for order in ORDERS_1[name]))
        found += _saturation(one, name)
    cross = results["table1"].get("cross", {})
    found += [*_spread(cross), *_free_of_folds(cross), *_speed(cross)]
    for name in TITLES:
        rows = results["table2"].get(name, {})
        found += filter(None, (_row_order(rows, order, name) for order in ORDERS_2))
        found += _cost_of_symmetry(rows, name)
    return [asdict(one) | {"shows": bool(one.shows)} for one in found]  # numpy's bool is no JSON


def of_pairs(numbers: Numbers, metric: str) -> Numbers:
    """Return the mean over the two orders of each pair, which are no two independent samples; None if one has none."""
    found: dict[str, list[float | None]] = {}
    for name, value in zip(numbers["pairs"], numbers[metric], strict=True):
        found.setdefault(" ".join(sorted(name.split("<-"))), []).append(value)
    means = [None if None in values else fmean(values) for values in found.values()]
    return {"pairs": list(found), metric: means}


def of_seeds(by_seed: Mapping[str, Numbers], seeds: Sequence[str], metric: str) -> Numbers:
    """Return the mean over seeds of a metric of a row, one a registration; None where a seed has none."""
    values = [by_seed[seed][metric] for seed in seeds]
    means = [None if None in column else fmean(column) for column in zip(*values, strict=True)]
    return {"pairs": by_seed[seeds[0]]["pairs"], metric: means}


def _order(found: Mapping[str, Numbers], order: Order, name: str, told: str, more: str = "") -> Judged | None:
    """Judge an order of two methods; None where it was not measured and need not show."""
    sign = ">" if order.higher else "<"
    claim = f"{TITLES[name]}: {order.claim}"
    wanted = f"{order.metric} {sign}, p < {LEVEL}"
    if order.better not in found or order.worse not in found:
        return Judged(claim, wanted, "not measured", False, told) if order.required else None
    better, worse = (of_pairs(found[method], order.metric) for method in (order.better, order.worse))
    first, second = common(better, worse, order.metric)
    if not first.size:
        return Judged(claim, wanted, "not measured", False, told) if order.required else None
    p = signed_rank(better, worse, order.metric)
    gain = float((first - second).mean()) * (1 if order.higher else -1)
    digits = {"dice": 3, "folds": 1}.get(order.metric, 2)
    values = ", ".join(number(float(x.mean()), digits) for x in (first, second))
    text = f"{values}; p {p_value(p)}" + more
    return Judged(claim, wanted, text, gain > 0 and p < LEVEL, told, order.required)


def _row_order(rows: Mapping[str, Any], order: Order, name: str) -> Judged | None:
    """Judge an order of two rows of Table 2, pairs' means over the seeds that both have; it must show in each seed."""
    better, worse = rows.get(order.better, {}), rows.get(order.worse, {})
    seeds = [seed for seed in better if seed in worse]
    told = _paper_2(order, name)
    if not seeds:
        return _order({}, order, name, told)
    pair = {key: of_seeds(by, seeds, order.metric) for key, by in ((order.better, better), (order.worse, worse))}
    gains = [np.subtract(*common(better[seed], worse[seed], order.metric)) for seed in seeds]
    means = [float(gain.mean()) if gain.size else 0.0 for gain in gains]
    digits = 3 if order.metric == "dice" else 2
    judged = _order(pair, order, name, told, "; seeds " + ", ".join(f"{mean:+.{digits}f}" for mean in means))
    if judged is None:
        return None
    always = all(mean * (1 if order.higher else -1) > 0 for mean in means)
    return Judged(**{**asdict(judged), "shows": judged.shows and always})


def _paper_1(order: Order, name: str) -> str:
    place = {"dice": 0, "folds": 2}.get(order.metric)
    better, worse = (paper.table_1(method, name) for method in (order.better, order.worse))
    if order.worse == "vtn":
        worse = paper.VOXELMORPH[paper.SETS.index(name)]
    if place is None or better is None or worse is None:
        return order.told
    values = [one[place] / (100 if place == 0 else 1) for one in (better, worse)]
    return ", ".join(number(value, 3 if place == 0 else 1) for value in values)


def _paper_2(order: Order, name: str) -> str:
    values = [paper.dice_2(row, name) for row in (order.better, order.worse)]
    if order.metric != "dice" or None in values:
        return order.told
    return ", ".join(number(value / 100, 3) for value in values if value is not None)


def _mean(found: Mapping[str, Numbers], method: str, metric: str = "dice") -> float | None:
    values = [value for value in found.get(method, {}).get(metric, ()) if value is not None]
    return fmean(values) if values else None


def _saturation(found: Mapping[str, Numbers], name: str) -> Iterator[Judged]:
    claim, wanted = f"{TITLES[name]}: more affine steps saturate", "5 to 7 gains less than 1 to 3"
    values = [_mean(found, f"affine_net_{steps}") for steps in (1, 3, 5, 7)]
    if None in values:
        yield Judged(claim, wanted, "not measured", False, "Figure 10: levels off")
        return
    one, three, five, seven = values
    early, late = three - one, seven - five
    yield Judged(claim, wanted, f"{late:+.3f}, {early:+.3f}", abs(late) < early, "Figure 10: levels off")


def _spread(found: Mapping[str, Numbers]) -> Iterator[Judged]:
    claim, wanted = f"{TITLES['cross']}: affine-net has the smaller spread than affine-opt", "std of Dice <"
    both = ("affine_net_7", "affine_opt")
    told = ", ".join(number(paper.TABLE_1[method][1][1] / 100, 3) for method in both)
    if not all(method in found for method in both):
        yield Judged(claim, wanted, "not measured", False, told)
        return
    ours, other = (float(np.std(values)) for values in common(*(found[method] for method in both), "dice"))
    yield Judged(claim, wanted, f"{ours:.3f}, {other:.3f}", ours < other, told)


def _free_of_folds(found: Mapping[str, Numbers]) -> Iterator[Judged]:
    claim = f"{TITLES['cross']}: AVSM (2-step) does not fold where a field of no regularity does"
    wanted = f"no fold in {FREE_SHARE:g} %; the other folds in each"
    told = f"{paper.TABLE_1['avsm_2'][1][2]:g}, VoxelMorph {paper.VOXELMORPH[1][2]:g} voxels"
    if not all(method in found for method in ("avsm_2", "free")):
        yield Judged(claim, wanted, "not measured", False, told)
        return
    ours, free = common(found["avsm_2"], found["free"], "folds")
    share = 100 * float((ours == 0).mean())
    text = f"none in {share:.0f} %, mean {ours.mean():.1f}; mean {free.mean():.0f}, least {free.min():.0f}"
    yield Judged(claim, wanted, text, share >= FREE_SHARE and free.min() > 0, told)


def _speed(found: Mapping[str, Numbers]) -> Iterator[Judged]:
    if not all(found.get(method, {}).get("cpu_seconds") for method in ("avsm_2", "vsvf_opt")):
        return
    ours, other = (median(found[method]["cpu_seconds"]) for method in ("avsm_2", "vsvf_opt"))
    claim = f"{TITLES['cross']}: {METHODS['avsm_2']} faster than {METHODS['vsvf_opt']}, CPU time"
    theirs = [paper.TABLE_1[method][2] for method in ("avsm_2", "vsvf_opt")]
    told = f"{theirs[0]:g}, {theirs[1]:g} s (GPU)"
    text = f"{ours:.2f}, {other:.1f} s ({other / ours:.0f}×)" if ours else f"{ours:.2f}, {other:.1f} s"
    yield Judged(claim, "≥ 100×", text, other >= 100 * ours, told, False)


def _cost_of_symmetry(rows: Mapping[str, Any], name: str) -> Iterator[Judged]:
    claim = f"{TITLES[name]}: the symmetry loss costs little Dice"
    wanted = f"at most {LITTLE:g}"
    told = f"{(paper.dice_2('VIII', name) - paper.dice_2('IX', name)) / 100:.3f}"
    plain, symmetric = rows.get("VIII", {}), rows.get("IX", {})
    seeds = [seed for seed in plain if seed in symmetric]
    if not seeds:
        yield Judged(claim, wanted, "not measured", False, told)
        return
    costs = [float(np.subtract(*common(plain[seed], symmetric[seed], "dice")).mean()) for seed in seeds]
    text = f"{fmean(costs):+.3f}; seeds " + ", ".join(f"{cost:+.3f}" for cost in costs)
    yield Judged(claim, wanted, text, fmean(costs) <= LITTLE, told)
