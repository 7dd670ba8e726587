"""The methods of Table 2 on the test pairs, each pair measured once: overlap, surface distance, folds, time."""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_components.metrics import dice, folds_percent, hd95_mm, mean_over_labels
from shared_components.warp import warp_labels

from .pair_rows import Row, TestPairs, clocks, keep_rows, kept_rows, mean, peer_field, result_file, short
from .runs import read_json

Fields = Callable[
    [Tensor, bool], list[Tensor]
]  # image (1, 2, *size), every iteration? -> fields; the last is the result
METHODS = {  # in the results -> in the tables
    "initial": "initial",
    "elastix": "elastix, MI, B-splines",
    "elastix_30mm": "elastix, 30 mm between knots",
    "voxelmorph": "VoxelMorph, MIND",
    "mind": "hand-made MIND + descent",
    "mind_cnn": "MIND-CNN + descent",
    "suits_first": "SUITS, k_back = 1",
    "suits": "SUITS",
    "suits_first_last": "SUITS, k_back = 1, last epoch",
    "suits_last": "SUITS, last epoch",
    "mind_chosen": "hand-made MIND, λ chosen",
    "mind_cnn_chosen": "MIND-CNN, λ chosen",
    "suits_chosen": "SUITS, λ chosen",
    "suits_soft": "SUITS trained at λ 0.25, λ chosen",
    "suits_shipped": "the same, λ as shipped",
}
PEERS = ("elastix", "elastix_30mm")
TIMED = 5  # pairs that a network registers once more, without its iterations being looked at


def still(image: Tensor, every: bool) -> list[Tensor]:
    """No registration."""
    return [image.new_zeros(1, image.ndim - 2, *image.shape[2:])]


def network_fields(network: torch.nn.Module) -> Fields:
    """Return the registration by a network; all iterations of one that descends."""
    device = next(network.parameters()).device

    def fields(image: Tensor, every: bool) -> list[Tensor]:
        image = image.to(device)
        found = network(image, return_stages=True)["ddf"] if every else [network(image)]
        return [ddf.float().cpu() for ddf in found]

    return fields


@torch.no_grad()
def measure(
    pairs: TestPairs,
    method: str,
    make: Callable[[], Fields],
    again: bool = False,
    version: str = "",
    steps: bool = True,
) -> None:
    """Run a method on the pairs that have no row yet; each is kept as soon as it is done.

    Args:
        pairs: see there.
        method: name.
        make: makes it, where anything is left to do.
        again: measure all anew.
        version: of the weights; rows of another count as none.
        steps: Dice after each iteration too.
    """
    rows = kept_rows(pairs, method, version, again)
    if len(rows) >= len(pairs.dataset):
        return
    fields = make()
    fields(pairs.dataset[0]["image"][None], False)  # the first call is slower
    for index in range(len(rows), len(pairs.dataset)):
        item = pairs.dataset[index]
        image, times = item["image"][None], {}
        if index < TIMED:
            begin = clocks()
            fields(image, False)
            wall, cpu = (now - then for now, then in zip(clocks(), begin, strict=True))
            times = {"seconds": round(wall, 4), "cpu_seconds": round(cpu, 4)}
        found = fields(image, steps)
        row = {"pair": item["name"], **measured(pairs, item, found[-1]), **times}
        if steps:
            row["iterations"] = [mean_dice(pairs, item, ddf) for ddf in found]
        rows.append(row)
        keep_rows(pairs, method, version, rows)
    _say(pairs, method, rows)


def measured(pairs: TestPairs, item: Mapping[str, Any], ddf: Tensor) -> Row:
    """Return Dice and HD95 of each organ (those that neither image has are left out), and folds, of a field.

    An organ that was pushed out of the image counts as Dice 0 and has no distance.
    """
    fixed, moved = _labels(item, ddf)
    overlap = dice(fixed, moved, pairs.labels, absent="zero")
    distance = hd95_mm(fixed, moved, pairs.spacing_mm, pairs.labels)
    numbers = {"dice": overlap, "hd95_mm": distance}
    rounded = {name: {str(key): short(value) for key, value in one.items()} for name, one in numbers.items()}
    return rounded | {"folds_percent": short(folds_percent(ddf))}


def _labels(item: Mapping[str, Any], ddf: Tensor) -> tuple[np.ndarray, np.ndarray]:
    moved = warp_labels(item["moving_label"][None], ddf)
    return item["fixed_label"][0].numpy(), moved[0, 0].numpy()


def mean_dice(pairs: TestPairs, item: Mapping[str, Any], ddf: Tensor) -> float:
    """Return the mean Dice over organs after a field."""
    return short(mean_over_labels(dice(*_labels(item, ddf), pairs.labels, absent="zero")))


def measure_peer(pairs: TestPairs, method: str, python: str, count: int, threads: int, again: bool = False) -> None:
    """Register the first pairs by a classical tool in another Python, a process a pair; kept as soon as it is done.

    A tool that is not installed is skipped with a line that says so.
    """
    rows = kept_rows(pairs, method, "", again)
    for index in range(len(rows), min(count, len(pairs.dataset))):
        item = pairs.dataset[index]
        print(f"  {pairs.title}: {method}, pair {index + 1} ...", file=sys.stderr, flush=True)
        try:
            ddf, facts = peer_field(pairs, item, method, python, threads)
        except RuntimeError as error:
            print(f"  {error}", file=sys.stderr, flush=True)
            return
        rows.append({"pair": item["name"], **measured(pairs, item, ddf), **facts})
        keep_rows(pairs, method, "", rows)
    if rows:
        _say(pairs, method, rows)


def read_numbers(pairs: TestPairs, method: str) -> dict[str, Any] | None:
    """Return a method's numbers for the report, or None where there are none.

    "dice", "hd95_mm": mean over organs, one a pair; "organs": {metric: {label: one a pair}}, None where an image
    lacks the organ; "folds_percent"; "seconds", "cpu_seconds": of the pairs that were timed; "iterations": (pairs,
    iterations) Dice; "tool" and "failed" of classical tools.
    """
    path = result_file(pairs, method)
    content = read_json(path) if path.is_file() else {"rows": []}
    if not content["rows"] or content["version"][0] != pairs.version:
        return None
    rows = content["rows"]
    found: dict[str, Any] = {"pairs": [row["pair"] for row in rows], "organs": {}}
    for metric in ("dice", "hd95_mm"):
        found[metric] = [mean(list(row[metric].values())) for row in rows]
        found["organs"][metric] = {str(label): [row[metric].get(str(label)) for row in rows] for label in pairs.labels}
    for name in ("folds_percent", "seconds", "cpu_seconds"):
        found[name] = [row[name] for row in rows if name in row]
    if "iterations" in rows[0]:
        found["iterations"] = [row["iterations"] for row in rows]
    if "tool" in rows[0]:
        found |= {"tool": rows[0]["tool"], "failed": sum(row["failed"] for row in rows)}
    return found


def _say(pairs: TestPairs, method: str, rows: Sequence[Row]) -> None:
    scores = {name: [mean(list(row[name].values())) for row in rows] for name in ("dice", "hd95_mm")}
    means = {
        name: statistics.fmean([v for v in values if v is not None] or [math.nan]) for name, values in scores.items()
    }
    told = f"Dice {means['dice']:.4f}, HD95 {means['hd95_mm']:.2f} mm"
    print(f"  {pairs.title}: {METHODS[method]}: {told} on {len(rows)} pairs", file=sys.stderr, flush=True)
