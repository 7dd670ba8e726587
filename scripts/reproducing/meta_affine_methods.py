"""The methods of the tables on fixed test cases, each measured once: maps found, seconds, distance to the truth."""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarking.child import run_child
from torch import Tensor

from shared_components.affine_search import (
    AffineSearch,
    compose,
    dimension,
    displacement_error,
    from_matrix_vox,
    initial_guess,
    rotation_starts,
    split,
)
from shared_components.engines import load_weights

from . import meta_affine_peers
from .meta_affine_sets import Cases
from .runs import Recipe, read_json, write_json

Method = Callable[[Tensor], Tensor]  # images (B, 2, *size) -> parameters (B, D (D + 1))
PEERS = tuple(meta_affine_peers.NEEDS)
STARTS = 7  # of multistart
ALONE = 10  # cases that are timed one at a time
DIGITS = 9  # of what is kept, so that measures do not depend on it


def plain(image: Tensor) -> Tensor:
    """The paper's *plain*: L-BFGS from the initial guess, 4 levels of 30 iterations."""
    return AffineSearch()(image[:, :1], image[:, 1:]).x


def multistart(image: Tensor) -> Tensor:
    """*plain* from 7 rotations, of which the best goes on after the coarsest level."""
    turns = rotation_starts(image.ndim - 2, STARTS).to(image)
    guess = initial_guess(image.shape[2:], len(turns), image)
    return AffineSearch()(image[:, :1], image[:, 1:], compose(turns, guess).repeat(len(image), 1)).x


def learn(network: torch.nn.Module) -> Method:
    """The learned steps alone."""
    return network.parameters_of


def comb(network: torch.nn.Module) -> Method:
    """The paper's *comb*: the learned steps, then L-BFGS with 15 iterations a level."""
    return lambda image: AffineSearch(iterations=15)(image[:, :1], image[:, 1:], network.parameters_of(image)).x


def identity(image: Tensor) -> Tensor:
    """The map that leaves everything in place."""
    return torch.eye(image.ndim - 2, image.ndim - 1).T.flatten().repeat(len(image), 1)


def ours(recipe: Recipe, weights: Path) -> Method:
    """The bundle as it is shipped: its inference.json with given weights."""
    parser = recipe.parser(weights=str(weights))
    load_weights(parser.get_parsed_content("network_def"), weights)
    network = parser.get_parsed_content("network").eval()
    return lambda image: from_matrix_vox(network.affine_matrix(image), image.shape[2:])


def fingerprint(*paths: Path) -> str:
    """Return what tells one version of some files from another."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


@torch.no_grad()
def measure(cases: Cases, name: str, make: Callable[[], Method], again: bool = False, version: str = "") -> None:
    """Run a method on all cases in one call, and on a few one at a time; keep the result in the folder of the cases.

    Args:
        cases: see there.
        name: of the method, and of its file.
        make: makes the method, where there is no result yet.
        again: measure even if there is one.
        version: of the weights; a result of another version counts as none.
    """
    path = result_file(cases, name)
    if path.is_file() and not again and read_json(path).get("version", "") == version:
        return
    method, image = make(), cases.image
    method(image[:1])
    begin = _clocks()
    x = method(image)
    wall, cpu = ((now - then) / len(image) for now, then in zip(_clocks(), begin, strict=True))
    alone = [_cpu_seconds(method, one) for one in image[:ALONE].split(1)]
    result = {
        "x": _rounded(x),
        "seconds": wall,
        "cpu_seconds": cpu,
        "alone_cpu_seconds": statistics.median(alone),
        "version": version,
    }
    write_json(path, result)
    _say(cases, name, x, cpu)


def measure_peer(cases: Cases, name: str, python: str, count: int) -> None:
    """Run a classical tool on the first cases in one process of its own, unless that has been done.

    A tool that is not installed is skipped with a line that says so.
    """
    path = result_file(cases, name)
    count = min(count, len(cases.truth))
    if path.is_file() and len(read_json(path)["x"]) == count:
        return
    print(f"  {cases.folder.name}: {name} on {count} cases ...", file=sys.stderr, flush=True)
    threads = {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    with TemporaryDirectory(dir=cases.folder) as scratch:
        out = Path(scratch) / "found.json"
        files = [str((cases.folder / "cases.npz").resolve()), str(out.resolve()), str(count)]
        try:
            run_child([python, meta_affine_peers.__file__, name, *files], threads)
        except RuntimeError as error:
            print(f"  {error}", file=sys.stderr, flush=True)
            return
        found = json.loads(out.read_text())
    still = identity(cases.image[:1])[0].tolist()
    failed = sum(x is None for x in found["x"])
    result = {
        "x": [still if x is None else [float(f"{v:.{DIGITS}g}") for v in x] for x in found["x"]],
        "seconds": statistics.fmean(found["seconds"]),
        "cpu_seconds": statistics.fmean(found["cpu_seconds"]),
        "failed": failed,
        "tool": f"{found['tool']} {found['version']}",
    }
    write_json(path, result)
    _say(cases, name, torch.tensor(result["x"]), result["cpu_seconds"])


def result_file(cases: Cases, name: str) -> Path:
    """Return where a method's result is kept."""
    return cases.folder / (name.replace("@", "_").replace("/", "_") + ".json")


def read_result(cases: Cases, name: str) -> dict[str, Any] | None:
    """Return a method's numbers for the report, or None: those of its file with measures instead of maps."""
    path = result_file(cases, name)
    if not path.is_file():
        return None
    result = read_json(path)
    x = torch.tensor(result.pop("x"), dtype=torch.float64)
    return distances(x, cases.truth[: len(x)]) | result


def distances(x: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """Return the measures of the tables, a value a case.

    Args:
        x: (N, D (D + 1)).
        truth: likewise.

    Returns:
        mse: integral of |phi_x - phi_truth|^2 over Omega (Table 1); epsilon_a: Frobenius norm of A - A_truth (Table
        3); epsilon_b: Euclidean norm of b - b_truth (Table 4).
    """
    x, truth = x.double(), truth.double()
    A, b = split(x - truth)
    found = {"mse": 2 ** dimension(x) * displacement_error(x, truth), "epsilon_a": A.flatten(1).norm(dim=1)}
    return {name: value.tolist() for name, value in (found | {"epsilon_b": b.norm(dim=1)}).items()}


def _say(cases: Cases, name: str, x: Tensor, seconds: float) -> None:
    mse = distances(x, cases.truth[: len(x)])["mse"]
    told = f"mean {statistics.fmean(mse):.4f}, median {statistics.median(mse):.4f}, max {max(mse):.3f}"
    print(f"  {cases.folder.name}: {name}: {told}; {1000 * seconds:.1f} ms", file=sys.stderr, flush=True)


def _rounded(x: Tensor) -> list[list[float]]:
    return [[float(f"{value:.{DIGITS}g}") for value in row] for row in x.tolist()]


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _cpu_seconds(method: Method, image: Tensor) -> float:
    begin = time.process_time()
    method(image)
    return time.process_time() - begin
