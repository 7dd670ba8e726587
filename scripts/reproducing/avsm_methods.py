"""The methods of AVSM's Table 1, each pair measured once in both orders: overlap, folds, symmetry, truth, time."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shared_components.metrics import (
    common_labels,
    diagonal_folds_percent,
    dice,
    folds_percent,
    hd95_mm,
    log_asymmetry,
    mean_over_labels,
)
from shared_components.refine import AffineOptSettings, RefineField, VsvfSettings, affine_opt, vsvf_opt
from shared_components.similarity import against, make_similarity
from shared_components.warp import jacobian_determinant, warp_image, warp_labels

from .avsm_sets import Item, both_orders
from .pair_rows import Row, TestPairs, clocks, keep_rows, kept_rows, peer_field, short

Found = Mapping[str, tuple[Tensor, Mapping[str, Any]]]  # method -> ddf (1, 3, *size) in voxels, seconds and the like
Fields = Callable[[Item, bool], Found]  # pair, timed? -> what the methods of a group found
SHOWN_AFFINE_STEPS, AFFINE_STEPS = (1, 3, 5, 7), 10  # in the table, in the figure
SHOWN_STEPS, STEPS = 4, 6
METHODS = {  # in the results -> in the tables
    "identity": "identity",
    "affine_opt": "affine-opt",
    **{f"affine_net_{n}": f"affine-net ({n}-step)" for n in SHOWN_AFFINE_STEPS},
    "demons": "Demons (SimpleITK)",
    "syn": "SyN, correlation (ANTsPy)",
    "syn_mi": "SyN, mutual information (ANTsPy)",
    "greedy": "greedy, correlation",
    "vsvf_opt": "vSVF-opt",
    "vtn": "VTN, shipped weights",
    "free": "affine-net + free field",
    **{f"avsm_{n}": f"AVSM ({n}-step)" for n in range(1, SHOWN_STEPS + 1)},
    "refined": "AVSM (2-step) + refinement",
}
PEERS = ("demons", "syn", "syn_mi", "greedy")
PLAIN_STEPS = 2  # AVSM as it is trained; what is refined
TIMED = 5  # pairs on which the steps of a network are timed
MARGIN = 10  # voxels from the border: outside, methods treat the image in their own ways
AFFINE_OPT, VSVF_OPT = AffineOptSettings(), VsvfSettings()
FREE_ITERATIONS, FREE_RATE = 60, 0.1  # voxels a step
REFINE_STEPS = 90
METRICS = ("dice", "hd95_mm", "folds", "fold_size", "folds_percent", "diagonal_folds", "symmetry", "error_mm")


def still(item: Item, timed: bool) -> Found:
    """No registration."""
    size = item["image"].shape[1:]
    return {"identity": (item["image"].new_zeros(1, len(size), *size), {})}


def optimised(item: Item, timed: bool) -> Found:
    """The paper's optimisation counterparts; seconds of the second one include those of the first."""
    fixed, moving = item["image"][None].split(1, 1)
    begin = clocks()
    affine = affine_opt(fixed, moving, settings=AFFINE_OPT)
    between = _since(begin)
    ddf = vsvf_opt(fixed, moving, affine.matrix, VSVF_OPT).ddf
    return {"affine_opt": (affine.ddf, between), "vsvf_opt": (ddf, _since(begin))}


def network_fields(network: torch.nn.Module) -> Fields:
    """Return the registrations by an AVSM after so many steps of each part."""

    def fields(item: Item, timed: bool) -> Found:
        found = {}
        for steps in range(1, AFFINE_STEPS + 1):
            found[f"affine_net_{steps}"] = _run(network, item, affine_steps=steps, velocity_steps=0)
        stages = network(_image(network, item), return_stages=True, velocity_steps=STEPS)["ddf"]
        found |= {f"avsm_{steps}": (ddf.float().cpu(), {}) for steps, ddf in enumerate(stages, 1)}
        for steps in range(1, SHOWN_STEPS + 1) if timed else ():
            name = f"avsm_{steps}"
            found[name] = (found[name][0], _run(network, item, velocity_steps=steps)[1])
        return found

    return fields


def own_fields(network: torch.nn.Module, method: str) -> Fields:
    """Return the registration by a network as it is, under a name."""
    return lambda item, timed: {method: _run(network, item)}


def improved(network: torch.nn.Module) -> Fields:
    """Return what takes the network's result further: its affine map by a field of no regularity, all of it by vSVF."""

    def fields(item: Item, timed: bool) -> Found:
        affine, seconds = _run(network, item, velocity_steps=0)
        begin = clocks()
        free = free_field(item["image"][None], affine)
        found = {"free": (free, _sum(seconds, _since(begin)))}
        ddf, seconds = _run(network, item, velocity_steps=PLAIN_STEPS)
        begin = clocks()
        refined = RefineField(REFINE_STEPS, "vsvf")({"image": item["image"][None], "pred": ddf})["pred"]
        return found | {"refined": (refined, _sum(seconds, _since(begin)))}

    return fields


def free_field(image: Tensor, start: Tensor) -> Tensor:
    """Return a field that AVSM's similarity alone has formed, by Adam over the displacements themselves.

    Args:
        image: (1, 2, *size) in [0, 1].
        start: (1, 3, *size) voxels.
    """
    dissimilarity = against(make_similarity("mk_lncc"), image[:, :1])
    more = torch.zeros_like(start, requires_grad=True)
    descent = torch.optim.Adam([more], lr=FREE_RATE)
    for _ in range(FREE_ITERATIONS):
        descent.zero_grad()
        with torch.enable_grad():
            dissimilarity(warp_image(image[:, 1:], start + more)).backward()
        descent.step()
    return start + more.detach()


def peer_fields(pairs: TestPairs, method: str, python: str, threads: int) -> Fields:
    """Return the registration by a classical tool in another Python, a process each."""

    def fields(item: Item, timed: bool) -> Found:
        print(f"  {pairs.title}: {method}, {item['name']} ...", file=sys.stderr, flush=True)
        return {method: peer_field(pairs, item, method, python, threads)}

    return fields


def _image(network: torch.nn.Module, item: Item) -> Tensor:
    return item["image"][None].to(next(network.parameters()).device)


def _run(network: Callable[..., Tensor], item: Item, **steps: int) -> tuple[Tensor, dict[str, float]]:
    image = _image(network, item)
    begin = clocks()
    ddf = network(image, **steps).float().cpu()
    return ddf, _since(begin)


def _since(begin: tuple[float, float]) -> dict[str, float]:
    names = ("seconds", "cpu_seconds")
    return {name: round(now - then, 4) for name, now, then in zip(names, clocks(), begin, strict=True)}


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: round(a[name] + b[name], 4) for name in a}


@torch.no_grad()
def measure(
    pairs: TestPairs,
    group: str,
    make: Callable[[], Fields],
    again: bool = False,
    version: str = "",
    count: int | None = None,
) -> None:
    """Run a group of methods on the pairs that have no rows yet, in both orders; kept as soon as a pair is done.

    Args:
        pairs: see there.
        group: name of the file.
        make: makes what registers, where anything is left to do.
        again: measure all anew.
        version: of weights and settings; rows of another count as none.
        count: the first so many pairs; None for all.
    """
    rows = kept_rows(pairs, group, version, again)
    wanted = len(pairs.dataset) if count is None else min(count, len(pairs.dataset))
    if len(rows) >= 2 * wanted:
        return
    fields = make()
    for index in range(len(rows) // 2, wanted):
        orders = list(both_orders(pairs.dataset[index]))
        found = [fields(item, index < TIMED) for item in orders]
        for item, this, other in zip(orders, found, reversed(found), strict=True):
            methods = {name: measured(pairs, item, this[name][0], other[name][0]) | this[name][1] for name in this}
            rows.append({"pair": item["name"], "methods": methods})
        keep_rows(pairs, group, version, rows)
    _say(pairs, rows)


def measure_peer(pairs: TestPairs, method: str, python: str, count: int, threads: int) -> None:
    """Measure a classical tool on the first pairs; one that is not installed is skipped with a line that says so."""
    try:
        measure(pairs, method, lambda: peer_fields(pairs, method, python, threads), count=count)
    except RuntimeError as error:
        print(f"  {error}", file=sys.stderr, flush=True)


def measured(pairs: TestPairs, item: Item, ddf: Tensor, back: Tensor) -> Row:
    """Return the numbers of a field; see ``METRICS``.

    Args:
        pairs: of which the item is one.
        item: the pair.
        ddf: (1, 3, *size) voxels.
        back: of the pair in the other order.

    Returns:
        dice, hd95_mm: mean over the labels of both images (one that was pushed out counts as 0 and has no distance);
        folds, fold_size: voxels whose determinant is below 0, and the sum of its magnitude there; folds_percent: with
        those of 0; diagonal_folds: voxels in which the product of the diagonal is below 0, which the authors' code
        counts; symmetry: ``log_asymmetry``, None if nothing moves; error_mm: mean distance to the truth in the brain.
    """
    moved = warp_labels(item["moving_label"][None], ddf)[0]
    labels = common_labels(item["fixed_label"], item["moving_label"])
    det = jacobian_determinant(ddf)[0]
    row = {
        "dice": mean_over_labels(dice(item["fixed_label"], moved, labels, absent="zero")),
        "hd95_mm": mean_over_labels(hd95_mm(item["fixed_label"], moved, pairs.spacing_mm, labels)),
        "folds": int((det < 0).sum()),
        "fold_size": float(-det.clamp_max(0).sum()),
        "folds_percent": folds_percent(ddf),
        "diagonal_folds": round(diagonal_folds_percent(ddf) / 100 * det.numel()),
        "symmetry": log_asymmetry(ddf, back, MARGIN),
    }
    if "truth" in item:
        step = torch.tensor(pairs.spacing_mm).view(1, -1, 1, 1, 1)
        error = ((ddf - item["truth"][0]) * step).norm(dim=1)[0]
        row["error_mm"] = float(error[item["image"][0] > 0].mean())
    return {name: None if value is None or not math.isfinite(value) else short(value) for name, value in row.items()}


def read_numbers(pairs: TestPairs, group: str, version: str = "") -> dict[str, dict[str, Any]]:
    """Return the numbers of a group: {method: {"pairs": names, metric: [one a pair and order, or None]}}.

    None of another version. Beside ``METRICS`` "seconds" and "cpu_seconds" of the registrations that were timed, and
    "tool" and "failed" of tools.
    """
    rows, found = kept_rows(pairs, group, version, False), {}
    for method in rows[0]["methods"] if rows else ():
        numbers = [row["methods"][method] for row in rows]
        known = {"pairs": [row["pair"] for row in rows]}
        known |= {metric: [one.get(metric) for one in numbers] for metric in METRICS if metric in numbers[0]}
        known |= {name: [one[name] for one in numbers if name in one] for name in ("seconds", "cpu_seconds")}
        if "tool" in numbers[0]:
            known |= {"tool": numbers[0]["tool"], "failed": sum(one["failed"] for one in numbers)}
        found[method] = known
    return found


def _say(pairs: TestPairs, rows: Sequence[Row]) -> None:
    for method in rows[0]["methods"]:
        score = statistics.fmean(row["methods"][method]["dice"] or 0.0 for row in rows)
        folds = statistics.fmean(row["methods"][method]["folds"] for row in rows)
        told = f"Dice {score:.4f}, folds {folds:.1f}, {len(rows)} registrations"
        print(f"  {pairs.title}: {METHODS.get(method, method)}: {told}", file=sys.stderr, flush=True)
