"""The solvers of diffusion-regularised steps beside pyamg and scipy: one pair set up and solved, then a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.ndimage import gaussian_filter
from scipy.sparse.linalg import cg
from torch import Tensor

from shared_components.engines import resolve_device
from shared_components.errors import InputError
from shared_components.solvers import Method, System, find_method, normal_equations, prepare
from shared_components.solvers.amg import assemble, hierarchy

from . import machine, tables
from .timing import Timing, interleave, ratio, synchronise

OURS = ("spectral", "multigrid", "pcg", "spectral, float64", "spectral, float64 mixed", "multigrid, float64")
PEERS = ("pyamg ruge_stuben", "pyamg smoothed_aggregation", "scipy cg")
TARGETS = {"cpu": 40.0, "cuda": 1000.0, "batch": 1.5}
COLUMNS = {
    "name": ("", ""),
    "seconds": ("seconds", ".3f"),
    "low": ("fastest", ".3f"),
    "high": ("slowest", ".3f"),
    "iterations": ("iterations", "d"),
    "residual": ("residual", ".1e"),
    "error": ("error", ".1e"),
    "speed_up": ("times as fast", ".1f"),
}
NOTES = """\
Seconds: median of rounds in which every method takes its turn, from data blocks and right-hand side to the solution,
set-up included; assembling the sparse matrix for pyamg and scipy is left out. scipy cg: with Jacobi preconditioner.
Peers compute in float64, ours in float32 unless the name says otherwise; mixed: iterations in float32, residual and
solution in float64. Residual: |b - A z| / |b| in float64 from the
solution returned, which in float32 rounding of z alone raises. Error: |z - z*| / |z*|, z* solved to 1e-12. Times as
fast: as the better of the two pyamg hierarchies in the same round. The last line takes our fastest solution whose
residual is within the tolerance or whose error is no larger than the better pyamg's."""
Row = dict[str, Any]


def solver(
    json: str | None = None,
    device: str = "cpu",
    shape: Sequence[int] = (46, 62, 64),
    channels: int = 12,
    lam: float = 10.0,
    tolerance: float = 1e-5,
    repeats: int = 3,
    threads: int = 1,
    batch: int = 8,
    batch_threads: int = 2,
    batch_repeats: int = 7,
    seed: int = 0,
) -> dict[str, Any]:
    """Time all solvers, print the tables and, last, the ratio against the better pyamg; return everything.

    Args:
        json: write the result here as well.
        device: of our solvers, auto, cpu or cuda:0; the peers run on the CPU.
        shape: grid of the feature maps.
        channels: features.
        lam: lambda.
        tolerance: relative residual.
        repeats: timed rounds.
        threads: CPU threads of the comparison.
        batch: pairs solved together, and one by one; 0 leaves that out.
        batch_threads: CPU threads of that.
        batch_repeats: timed rounds of that.
        seed: of the random features.

    Returns:
        {"command", "versions", "machine", "settings", "rows", "batch", "ratio"}.

    Raises:
        InputError: unknown device, or a grid that is none.
    """
    place = resolve_device(device)
    shape = tuple(int(n) for n in shape)
    if len(shape) not in (2, 3) or min(shape) < 2:
        raise InputError(f"--shape {shape} is no grid; give two or three numbers of at least 2, such as 46,62,64")
    settings = {"shape": list(shape), "channels": channels, "lam": lam, "tolerance": tolerance, "seed": seed}
    given = {"device": device, "shape": ",".join(map(str, shape)), "channels": channels, "lam": lam}
    result: dict[str, Any] = {
        "command": tables.command_line(solver, given | {"tolerance": tolerance, "repeats": repeats, "seed": seed}),
        "versions": machine.versions() | _peer_versions(),
        "machine": machine.facts(place) | {"threads": threads},
        "settings": settings,
    }
    case = random_case(shape, channels, lam, max(batch, 1), seed)
    with torch_threads(threads):
        result["rows"] = compare(case, tolerance, repeats, place)
    result["batch"] = batch_rows(case, tolerance, batch_repeats, batch_threads, place) if batch > 1 else []
    result["ratio"] = headline(result["rows"], tolerance) | {"target": TARGETS[place.type]}
    print(to_text(result))
    tables.write_json(json, result)
    return result


def headline(rows: Sequence[Row], tolerance: float) -> Row:
    """Return name and ratio of our fastest method whose solution counts, and the ratio of the fastest in float64.

    A solution counts if its residual, as returned, is within the tolerance, or if it is no further from the exact one
    than that of the better pyamg: rounding z to float32 leaves a residual, as lambda L makes noise of it, but no error.
    """
    ours = [row for row in rows if row["name"] in OURS]
    better = min((row for row in rows if row["name"] in PEERS[:2]), key=lambda row: row["seconds"])
    met = [row for row in ours if row["residual"] <= tolerance or row["error"] <= better["error"]]
    best = max(met or ours, key=lambda row: row["speed_up"])
    double = max(row["speed_up"] for row in ours if "float64" in row["name"])
    return {"name": best["name"], "ratio": best["speed_up"], "float64_ratio": double}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch and the sparse libraries use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _peer_versions() -> dict[str, str]:
    import pyamg
    import scipy

    return {"scipy": scipy.__version__, "pyamg": pyamg.__version__}


def random_case(shape: Sequence[int], channels: int, lam: float, batch: int, seed: int) -> tuple[System, Tensor]:
    """Return systems and right-hand sides of smooth random features around 1/2, as descriptors in [0, 1] are.

    White noise smoothed by a Gaussian of 2 voxels, standard deviation 0.15: sum_c |J_c|^2 is about 0.1 a voxel with 12
    channels. Pair after pair, so that a pair does not depend on how many follow. float64.
    """
    random, found = np.random.default_rng(seed), []
    for _ in range(batch):
        noise = random.standard_normal((2, channels, *shape))
        smooth = gaussian_filter(noise, (0, 0, *(2.0,) * len(shape)))
        found.append(torch.from_numpy(0.5 + 0.15 * smooth / smooth.std()))
    fixed, moving = torch.stack(found, 1)
    jacobian = torch.stack(torch.gradient(moving, dim=tuple(range(2, moving.ndim))), 2)
    return normal_equations(jacobian, moving - fixed, None, lam)


def compare(case: tuple[System, Tensor], tolerance: float, repeats: int, device: torch.device) -> list[Row]:
    """Return a row a method for the first pair."""
    system, b = take(case, slice(0, 1))
    matrix = assemble(system.blocks[0].numpy(), system.weights, float(system.lam[0]))
    vector = b[0].flatten(1).T.ravel().numpy()
    truth = prepare(system, find_method("spectral", tolerance=1e-12))(b)[0]
    solutions: dict[str, tuple[np.ndarray, int]] = {}
    parts: dict[str, Callable[[], object]] = {}
    for name in PEERS:
        parts[name] = lambda name=name: solutions.update({name: peer(name, matrix, vector, tolerance)})
    for name in OURS:
        local = move((system, b), torch.float64 if "float64" in name else torch.float32, device)
        mixed = {"mixed": True} if "mixed" in name else {}
        method = find_method(name.partition(",")[0], tolerance=tolerance, **mixed)

        def run(name: str = name, local: tuple[System, Tensor] = local, method: Method = method) -> None:
            z, facts = prepare(local[0], method)(local[1])
            solutions[name] = z[0], facts.iterations

        run()  # first calls allocate and choose kernels
        parts[name] = run
    timings = interleave(parts, repeats, 0, device)
    best = Timing(tuple(map(min, *(timings[name].samples for name in PEERS[:2]))))
    rows = []
    for name, timing in timings.items():
        z, iterations = solutions[name]
        if isinstance(z, Tensor):
            z = z.flatten(1).T.reshape(-1).double().cpu().numpy()
        exact = truth[0].flatten(1).T.ravel().numpy()
        row = {"name": name, **timing.facts(), "iterations": int(iterations)}
        row["residual"] = float(np.linalg.norm(vector - matrix @ z) / np.linalg.norm(vector))
        row["error"] = float(np.linalg.norm(z - exact) / np.linalg.norm(exact))
        rows.append(row | {"speed_up": ratio(best, timing)["ratio"]})
    return rows


def peer(name: str, matrix: sparse.bsr_array, b: np.ndarray, tolerance: float) -> tuple[np.ndarray, int]:
    """Return solution and iterations of conjugate gradients with pyamg's hierarchy, set up here, or with Jacobi."""
    steps = 0

    def count(_: np.ndarray) -> None:
        nonlocal steps
        steps += 1

    tool, _, kind = name.partition(" ")
    if tool == "pyamg":
        levels = hierarchy(matrix, kind)
        return levels.solve(b, tol=tolerance, accel="cg", maxiter=500, callback=count), steps
    plain = sparse.csr_array(matrix)
    jacobi = sparse.diags_array(1 / plain.diagonal())
    return cg(plain, b, rtol=tolerance, maxiter=5000, M=jacobi, callback=count)[0], steps


def take(case: tuple[System, Tensor], pairs: slice) -> tuple[System, Tensor]:
    """Return some pairs."""
    system, b = case
    return System(system.blocks[pairs], system.lam[pairs], system.weights), b[pairs]


def move(case: tuple[System, Tensor], dtype: torch.dtype, device: torch.device) -> tuple[System, Tensor]:
    """Return the case in another precision on another device."""
    system, b = case
    moved = System(system.blocks.to(device, dtype), system.lam.to(device, dtype), system.weights)
    return moved, b.to(device, dtype)


def batch_rows(
    case: tuple[System, Tensor], tolerance: float, repeats: int, threads: int, device: torch.device
) -> list[Row]:
    """Return a row a method: seconds a pair, all pairs together against one by one on as many threads and on one."""
    rows, pairs = [], len(case[1])
    system, b = move(case, torch.float32, device)
    single = [take((system, b), slice(k, k + 1)) for k in range(pairs)]
    for name in ("spectral", "multigrid"):
        method = find_method(name, tolerance=tolerance)

        def run(groups: list[tuple[System, Tensor]], count: int, method: Method = method) -> None:
            with torch_threads(count):
                for part, right in groups:
                    prepare(part, method)(right)
                    synchronise(device)

        parts = {"together": ([(system, b)], threads), "alone": (single, threads), "alone, one thread": (single, 1)}
        found = interleave({key: lambda given=given: run(*given) for key, given in parts.items()}, repeats, 1, device)
        row: Row = {"name": name, "pairs": pairs, "threads": threads}
        row |= {key: round(timing.seconds / pairs, 5) for key, timing in found.items()}
        row |= {"gain": ratio(found["alone"], found["together"])["ratio"]}
        rows.append(row | {"gain, one thread": ratio(found["alone, one thread"], found["together"])["ratio"]})
    return rows


def to_text(result: dict[str, Any]) -> str:
    """Return the tables for a terminal, the ratio on the last line."""
    grid = " x ".join(map(str, result["settings"]["shape"]))
    lines = [tables.describe(result["machine"], result["versions"]), "", _title(result, grid)]
    lines += [tables.aligned(tables.cells(result["rows"], COLUMNS)), "", *_batch_lines(result), NOTES, ""]
    best = result["ratio"]
    lines.append(f"float64: {best['float64_ratio']:.1f} times as fast as the better pyamg")
    lines.append(f"{best['name']}: {best['ratio']:.1f} times as fast as the better pyamg (target {best['target']:.0f})")
    return "\n".join(lines)


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as markdown: the command, the machine, the tables, what the columns mean."""
    grid = " x ".join(map(str, result["settings"]["shape"]))
    lines = [f"`{result['command']}`", "", tables.describe(result["machine"], result["versions"]), ""]
    lines += [_title(result, grid), "", tables.markdown(tables.cells(result["rows"], COLUMNS)), ""]
    return "\n".join([*lines, *_batch_lines(result), NOTES, ""])


def _title(result: dict[str, Any], grid: str) -> str:
    given = result["settings"]
    text = f"{grid} x {len(given['shape'])} unknowns, {given['channels']} features, lambda {given['lam']:g}, "
    return text + f"relative residual {given['tolerance']:g}, {result['machine']['threads']} thread(s)"


def _batch_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for row in result["batch"]:
        text = f"{row['name']}, {row['pairs']} pairs on {row['threads']} threads: {row['together']:.4f} s a pair, "
        text += (
            f"{row['alone']:.4f} s one by one ({row['gain']:.2f} times), {row['alone, one thread']:.4f} s one by one "
        )
        lines.append(text + f"on one thread ({row['gain, one thread']:.2f} times, target {TARGETS['batch']})")
    return [*lines, ""] if lines else []
