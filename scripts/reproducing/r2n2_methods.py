"""The methods of R2N2's Table 1 on the test pairs, each pair measured once: landmarks, folds, time, and the bumps."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_components.metrics import folds_percent, tre_mm
from shared_components.pairs import FramePair
from shared_components.refine import BsplineSettings, bspline_opt
from shared_components.transform import PhysicalField, carry
from shared_components.warp import fixed_points_to_moving

from .pair_rows import Row, TestPairs, clocks, keep_rows, kept_rows, peer_field, short
from .r2n2_sets import share_of_motion

Item = Mapping[str, Any]
Fields = Callable[[Item], tuple[Tensor, Row]]  # pair -> ddf (1, 2, *size) in voxels of its images, what else is known
METHODS = {  # in the results -> in the tables
    "identity": "identity",
    "bspline": "B-spline (BS)",
    "elastix": "elastix, MI, B-splines",
    "greedy_2d": "greedy, correlation",
    "proposed": "R2N2, not polished",
    "r2n2": "R2N2",
}
PEERS = ("elastix", "greedy_2d")
OF_BUMPS = ("widths_mm", "lengths_mm", "motions")
BEYOND = 2  # times the steps of training, for the error over t
BSPLINE = BsplineSettings()


def still(item: Item) -> tuple[Tensor, Row]:
    """No registration."""
    return item["image"].new_zeros(1, 2, *item["image"].shape[1:]), {}


def bspline(item: Item) -> tuple[Tensor, Row]:
    """The paper's baseline on the images as they are."""
    begin = clocks()
    fixed, moving = item["image"][None].split(1, 1)
    found = bspline_opt(fixed, moving, settings=BSPLINE)
    return found.ddf, {**_since(begin), "parameters": found.parameters}


def peer_fields(pairs: TestPairs, method: str, python: str, threads: int) -> Fields:
    """Return the registration by a classical tool in another Python, a process each."""

    def fields(item: Item) -> tuple[Tensor, Row]:
        print(f"  {pairs.title}: {method}, {item['name']} ...", file=sys.stderr, flush=True)
        return peer_field(pairs, item, method, python, threads)

    return fields


def network_fields(
    whole: torch.nn.Module, network: torch.nn.Module, size: Sequence[int], course: bool = True
) -> Fields:
    """Return the registration by an R2N2, and how it came about.

    The time runs from the images in memory to the field on their grid in memory, the way to the network's frame and
    back included. Beside it, not timed: "steps_mm", the error after t = 0 ... ``BEYOND`` T steps, and for each of these
    steps "widths_mm" (geometric mean of both axes), "lengths_mm" (of the displacement at the bump's centre) and
    "motions" (how far tissue there moves, in shares of the largest motion).

    Args:
        whole: what registers, the polish included.
        network: that proposes, whose steps are told.
        size: of the grid of its images.
        course: tell how it came about.
    """
    frame = FramePair(size, "fit", "header", "grid")

    def fields(item: Item) -> tuple[Tensor, Row]:
        begin, pair = clocks(), item["pair"]
        image = frame({"pair": pair, "name": item["name"]})["image"][None]
        field = carry(whole(image), pair.network, pair.fixed.frame, after=pair.initial)
        facts = _since(begin) | {"parameters": network.steps * len(BUMP)}
        if not course:
            return field.voxel_ddf(), facts
        stages = network(image, return_stages=True, steps=BEYOND * network.steps)
        return field.voxel_ddf(), facts | _course(item, stages)

    return fields


BUMP = ("centre_0", "centre_1", "width_0", "width_1", "angle", "weight_0", "weight_1")


def _course(item: Item, stages: Mapping[str, Any]) -> Row:
    """Return error, size and place of the bumps step by step; see ``network_fields``."""
    pair = item["pair"]
    fixed, moving = (torch.from_numpy(pair.network.to_vox(pair.points_mm[side]))[None] for side in ("fixed", "moving"))
    spacing = torch.from_numpy(pair.network.spacing)
    arrived = [fixed, *(fixed_points_to_moving(fixed, ddf.double()) for ddf in stages["ddf"])]
    errors = [float(((there - moving) * spacing).norm(dim=-1).mean()) for there in arrived]
    unit = (np.asarray(pair.network.shape) - 1) / 2
    numbers = stages["parameters"][0].double().numpy()
    centres = pair.fixed.frame.to_vox(pair.network.to_mm((numbers[:, :2] + 1) * unit))
    width = np.sqrt(np.prod(numbers[:, 2:4] * unit * pair.network.spacing, 1))
    length = np.linalg.norm(numbers[:, 5:] * unit * pair.network.spacing, axis=1)
    found = {"steps_mm": errors, "widths_mm": width, "lengths_mm": length}
    found["motions"] = share_of_motion(item["truth"], centres)
    return {name: [short(float(value)) for value in values] for name, values in found.items()}


def _since(begin: tuple[float, float]) -> Row:
    wall, cpu = (round(now - then, 4) for now, then in zip(clocks(), begin, strict=True))
    return {"seconds": wall, "cpu_seconds": cpu}


def measured(item: Item, ddf: Tensor) -> Row:
    """Return the distance of landmarks, mean and largest in mm, and folds in percent, of a field."""
    pair = item["pair"]
    world = np.einsum("ij,jxy->ixy", pair.fixed.frame.matrix, ddf[0].double().numpy())
    field = PhysicalField(pair.fixed.frame, world)
    error = tre_mm(pair.points_mm["fixed"], pair.points_mm["moving"], field.map_points)
    return {
        "tre_mm": short(error["mean"]),
        "worst_mm": short(error["max"]),
        "folds_percent": short(folds_percent(ddf)),
    }


@torch.no_grad()
def measure(
    pairs: TestPairs,
    method: str,
    make: Callable[[], Fields],
    again: bool = False,
    version: str = "",
    count: int | None = None,
) -> None:
    """Run a method on the pairs that have no row yet; each is kept as soon as it is done.

    Args:
        pairs: see there.
        method: name, of the file too.
        make: makes it, where anything is left to do.
        again: measure all anew.
        version: of weights and settings; rows of another count as none.
        count: the first so many pairs; None for all.
    """
    rows = kept_rows(pairs, method, version, again)
    wanted = len(pairs.dataset) if count is None else min(count, len(pairs.dataset))
    if len(rows) >= wanted:
        return
    fields = make()
    if method not in PEERS and method != "bspline":
        fields(pairs.dataset[0])  # the first call is slower
    for index in range(len(rows), wanted):
        item = pairs.dataset[index]
        ddf, facts = fields(item)
        rows.append({"pair": item["name"], "slice": item["slice"], **measured(item, ddf), **facts})
        keep_rows(pairs, method, version, rows)
    error = statistics.fmean(row["tre_mm"] for row in rows)
    told = f"landmarks {error:.3f} mm from theirs, {len(rows)} pairs"
    print(f"  {pairs.title}: {METHODS.get(method, method)}: {told}", file=sys.stderr, flush=True)


def measure_peer(pairs: TestPairs, method: str, python: str, count: int, threads: int) -> None:
    """Measure a classical tool on the first pairs; one that is not installed is skipped with a line that says so."""
    try:
        measure(pairs, method, lambda: peer_fields(pairs, method, python, threads), count=count)
    except RuntimeError as error:
        print(f"  {error}", file=sys.stderr, flush=True)


def read_numbers(pairs: TestPairs, method: str, version: str = "") -> dict[str, Any] | None:
    """Return a method's numbers for the report, or None where there are none of this version.

    "pairs", "slices", "tre_mm", "worst_mm", "folds_percent", "seconds", "cpu_seconds": one a pair; "parameters" of a
    transform; "steps_mm", "widths_mm", "lengths_mm", "motions": (pairs, steps); "tool" and "failed" of tools.
    """
    rows = kept_rows(pairs, method, version, False)
    if not rows:
        return None
    keys = ("tre_mm", "worst_mm", "folds_percent", "seconds", "cpu_seconds")
    keys += ("steps_mm", *OF_BUMPS)
    found: dict[str, Any] = {"pairs": [row["pair"] for row in rows], "slices": [row["slice"] for row in rows]}
    found |= {key: [row[key] for row in rows] for key in keys if key in rows[0]}
    found |= {key: rows[0][key] for key in ("parameters", "tool") if key in rows[0]}
    return found | ({"failed": sum(row["failed"] for row in rows)} if "failed" in rows[0] else {})
