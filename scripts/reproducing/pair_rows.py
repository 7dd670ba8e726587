"""Rows of a table over test pairs: kept in files as they come, versions by fingerprint; fields of tools elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from benchmarking.child import run_child
from torch import Tensor

from . import pair_peers
from .runs import read_json, write_json

Row = dict[str, Any]


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
    dataset: Sequence[Mapping[str, Any]]
    labels: Sequence[int]
    spacing_mm: Sequence[float]
    version: str


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


def keep_rows(pairs: TestPairs, method: str, version: str, rows: Sequence[Row]) -> None:
    """Write all rows of a method."""
    write_json(result_file(pairs, method), {"version": [pairs.version, version], "rows": list(rows)})


def peer_field(
    pairs: TestPairs, item: Mapping[str, Any], method: str, python: str, threads: int
) -> tuple[Tensor, dict[str, Any]]:
    """Return the tool's field in voxels, and its seconds, CPU seconds, name and whether it gave up (then no field)."""
    environment = {name: str(threads) for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")}
    pairs.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=pairs.folder) as scratch:
        given, out, told = (str(Path(scratch).resolve() / name) for name in ("pair.npz", "ddf.npy", "facts.json"))
        np.savez(given, image=item["image"].numpy(), spacing_mm=np.asarray(pairs.spacing_mm, dtype=float))
        program = os.path.abspath(shutil.which(python) or python)
        script = os.path.abspath(pair_peers.__file__)
        command = [program, script, method, given, out, told, str(threads)]
        run_child(command, environment, scratch)  # transformix leaves a file where it runs
        facts = json.loads(Path(told).read_text())
        if facts["failed"]:
            size = item["image"].shape[1:]
            return item["image"].new_zeros(1, len(size), *size), facts
        return torch.from_numpy(np.load(out))[None].float(), facts


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, or None of nothing."""
    return statistics.fmean(values) if values else None


def short(value: float) -> float:
    """Return a number as it is kept."""
    return float(f"{value:.6g}")


def clocks() -> tuple[float, float]:
    """Return seconds and CPU seconds."""
    return time.perf_counter(), time.process_time()
