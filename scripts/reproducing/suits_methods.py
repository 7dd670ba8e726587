"""The methods of Table 2 on the test pairs, each pair measured once: overlap, surface distance, folds, time."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from benchmarking.child import run_child
from torch import Tensor

from shared_components.metrics import dice, folds_percent, hd95_mm, mean_over_labels
from shared_components.pairs import PairDataset
from shared_components.warp import warp_labels

from . import suits_peers
from .runs import read_json, write_json

Fields = Callable[
    [Tensor, bool], list[Tensor]
]  # image (1, 2, *size), every iteration? -> fields; the last is the result
Row = dict[str, Any]
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


@dataclass(frozen=True)
class TestPairs:
    """The pairs on which a set's numbers are measured.

    Attributes:
        title: for the console.
        folder: results are kept here.
        dataset: on the network's grid.
        labels: of organs.
        spacing_mm: of the grid.
        version: of the images and labels.
    """

    __test__ = False  # no test of pytest's

    title: str
    folder: Path
    dataset: PairDataset
    labels: Sequence[int]
    spacing_mm: Sequence[float]
    version: str


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


def result_file(pairs: TestPairs, method: str) -> Path:
    """Return where a method's rows are kept."""
    return pairs.folder / f"{method}.json"


def kept_rows(pairs: TestPairs, method: str, version: str, again: bool) -> list[Row]:
    """Return the pairs that an earlier start has measured with these images and this version of the method."""
    path = result_file(pairs, method)
    if again or not path.is_file():
        return []
    content = read_json(path)
    return content["rows"] if content["version"] == [pairs.version, version] else []


def _keep(pairs: TestPairs, method: str, version: str, rows: Sequence[Row]) -> None:
    write_json(result_file(pairs, method), {"version": [pairs.version, version], "rows": list(rows)})


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
            begin = _clocks()
            fields(image, False)
            wall, cpu = (now - then for now, then in zip(_clocks(), begin, strict=True))
            times = {"seconds": round(wall, 4), "cpu_seconds": round(cpu, 4)}
        found = fields(image, steps)
        row = {"pair": item["name"], **measured(pairs, item, found[-1]), **times}
        if steps:
            row["iterations"] = [mean_dice(pairs, item, ddf) for ddf in found]
        rows.append(row)
        _keep(pairs, method, version, rows)
    _say(pairs, method, rows)


def measured(pairs: TestPairs, item: Mapping[str, Any], ddf: Tensor) -> Row:
    """Return Dice and HD95 of each organ (those that neither image has are left out), and folds, of a field.

    An organ that was pushed out of the image counts as Dice 0 and has no distance.
    """
    fixed, moved = _labels(item, ddf)
    overlap = dice(fixed, moved, pairs.labels, absent="zero")
    distance = hd95_mm(fixed, moved, pairs.spacing_mm, pairs.labels)
    numbers = {"dice": overlap, "hd95_mm": distance}
    rounded = {name: {str(key): _short(value) for key, value in one.items()} for name, one in numbers.items()}
    return rounded | {"folds_percent": _short(folds_percent(ddf))}


def _labels(item: Mapping[str, Any], ddf: Tensor) -> tuple[np.ndarray, np.ndarray]:
    moved = warp_labels(item["moving_label"][None], ddf)
    return item["fixed_label"][0].numpy(), moved[0, 0].numpy()


def mean_dice(pairs: TestPairs, item: Mapping[str, Any], ddf: Tensor) -> float:
    """Return the mean Dice over organs after a field."""
    return _short(mean_over_labels(dice(*_labels(item, ddf), pairs.labels, absent="zero")))


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def measure_peer(pairs: TestPairs, method: str, python: str, count: int, threads: int, again: bool = False) -> None:
    """Register the first pairs by a classical tool in another Python, a process a pair; kept as soon as it is done.

    A tool that is not installed is skipped with a line that says so.
    """
    rows = kept_rows(pairs, method, "", again)
    for index in range(len(rows), min(count, len(pairs.dataset))):
        item = pairs.dataset[index]
        print(f"  {pairs.title}: {method}, pair {index + 1} ...", file=sys.stderr, flush=True)
        try:
            ddf, facts = _peer_field(pairs, item, method, python, threads)
        except RuntimeError as error:
            print(f"  {error}", file=sys.stderr, flush=True)
            return
        rows.append({"pair": item["name"], **measured(pairs, item, ddf), **facts})
        _keep(pairs, method, "", rows)
    if rows:
        _say(pairs, method, rows)


def _peer_field(
    pairs: TestPairs, item: Mapping[str, Any], method: str, python: str, threads: int
) -> tuple[Tensor, dict[str, Any]]:
    """Return the tool's field in voxels, and its seconds, CPU seconds, name and whether it gave up (then no field)."""
    environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")}
    pairs.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=pairs.folder) as scratch:
        given, out, told = (str(Path(scratch).resolve() / name) for name in ("pair.npz", "ddf.npy", "facts.json"))
        np.savez(given, image=item["image"].numpy(), spacing_mm=np.asarray(pairs.spacing_mm, dtype=float))
        program = os.path.abspath(shutil.which(python) or python)
        script = os.path.abspath(suits_peers.__file__)
        command = [program, script, method, given, out, told, str(threads)]
        run_child(command, environment, scratch)  # transformix leaves a file where it runs
        facts = json.loads(Path(told).read_text())
        if facts["failed"]:
            return still(item["image"][None], False)[0], facts
        return torch.from_numpy(np.load(out))[None].float(), facts


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
        found[metric] = [_mean(list(row[metric].values())) for row in rows]
        found["organs"][metric] = {str(label): [row[metric].get(str(label)) for row in rows] for label in pairs.labels}
    for name in ("folds_percent", "seconds", "cpu_seconds"):
        found[name] = [row[name] for row in rows if name in row]
    if "iterations" in rows[0]:
        found["iterations"] = [row["iterations"] for row in rows]
    if "tool" in rows[0]:
        found |= {"tool": rows[0]["tool"], "failed": sum(row["failed"] for row in rows)}
    return found


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _say(pairs: TestPairs, method: str, rows: Sequence[Row]) -> None:
    scores = {name: [_mean(list(row[name].values())) for row in rows] for name in ("dice", "hd95_mm")}
    means = {
        name: statistics.fmean([v for v in values if v is not None] or [math.nan]) for name, values in scores.items()
    }
    told = f"Dice {means['dice']:.4f}, HD95 {means['hd95_mm']:.2f} mm"
    print(f"  {pairs.title}: {METHODS[method]}: {told} on {len(rows)} pairs", file=sys.stderr, flush=True)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()
