"""Many small pairs at once: an affine bundle in one batched call, one pair alone, and classical tools pair by pair."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from register import bundle_code, config_files, find_bundle
from reproducing import meta_affine_peers
from reproducing.runs import read_json
from torch import Tensor

from shared_components.affine_search import AffineSSD, join, normalise
from shared_components.engines import load_weights, resolve_device

from . import machine, tables
from .child import run_child
from .timing import interleave

COLUMNS = {
    "name": ("", ""),
    "pairs": ("pairs", "d"),
    "ms_per_pair": ("ms a pair", ".2f"),
    "pairs_per_second": ("pairs/s", ".1f"),
    "low": ("slowest round", ".1f"),
    "target": ("target", ""),
    "met": ("met", ""),
}
NOTES = """\
Pairs: one blurred random texture a pair, turned by up to 60° and shifted by up to a quarter, on the bundle's grid; from
arrays in memory to the map. *Network*: the learned steps from all starts, the best kept. *Network + solver*: L-BFGS
after it, as `inference.json` sets it. Classical tools: one thread a process, median over pairs, arrays in memory."""
TARGETS = {"cpu": 100.0, "cuda": 10_000.0}
TARGET_ALONE_MS = 60.0
PEERS = ("elastix", "simpleitk")
THREADS = {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
Row = dict[str, Any]


def throughput(
    bundle: str = "meta_affine",
    json: str | None = None,
    device: str = "cpu",
    pairs: int = 1000,
    threads: int = 2,
    repeats: int = 3,
    peer_python: str | None = None,
    peer_pairs: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Time a bundle on many small pairs, print the table, and return it.

    Args:
        bundle: short name or folder of an affine bundle.
        json: write the result here as well.
        device: auto, cpu or cuda:0.
        pairs: in the batched call.
        threads: CPU threads.
        repeats: timed rounds.
        peer_python: a Python that has itk-elastix and SimpleITK; None leaves the tools out.
        peer_pairs: pairs that each tool registers.
        seed: of the pairs.

    Returns:
        {"command", "versions", "machine", "rows"}.
    """
    root, place = find_bundle(bundle), resolve_device(device)
    torch.set_num_threads(threads)
    given = {"bundle": bundle, "device": device, "pairs": pairs, "threads": threads, "repeats": repeats}
    given |= {"peer_pairs": peer_pairs, "seed": seed}
    result: dict[str, Any] = {
        "command": tables.command_line(throughput, given),
        "versions": machine.versions(),
        "machine": machine.facts(place),
    }
    network, polished = shipped(root, place)
    images = random_pairs(pairs, network.size, seed).to(place)
    result["rows"] = own_rows(network, polished, images, repeats)
    result["rows"] += peer_rows(images[:peer_pairs].cpu(), peer_python) if peer_python else []
    print(to_text(result))
    tables.write_json(json, result)
    return result


def shipped(root: Path, device: torch.device) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the bundle's network with its weights, alone and with the solver behind it."""
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in config_files(root, None)]))
    parser["bundle_root"], parser["device#name"] = str(root), str(device)
    with bundle_code(root):
        network, polished = parser.get_parsed_content("network_def"), parser.get_parsed_content("network")
    load_weights(network, root / "models" / "model.pt")
    return network.eval(), polished.eval()


def random_pairs(count: int, size: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return (count, 2, *size): a blurred random texture and the same under a random rotation and shift."""
    generator = torch.Generator().manual_seed(seed)
    ndim = len(size)
    coarse = torch.rand(count, 1, *(n // 8 for n in size), generator=generator)
    image = normalise(torch.nn.functional.interpolate(coarse, size=size, mode="bicubic" if ndim == 2 else "trilinear"))
    angle = (2 * torch.rand(count, generator=generator) - 1) * torch.pi / 3
    A = torch.eye(ndim).repeat(count, 1, 1)
    A[:, 0, 0] = A[:, 1, 1] = angle.cos()
    A[:, 0, 1], A[:, 1, 0] = -angle.sin(), angle.sin()
    shift = torch.rand(count, ndim, generator=generator) - 0.5
    with torch.no_grad():
        fixed = torch.cat(
            [AffineSSD(a, a).moved(x) for a, x in zip(image.split(50), join(A, shift).split(50), strict=True)]
        )
    return torch.cat([fixed, image], 1)


def own_rows(network: torch.nn.Module, polished: torch.nn.Module, images: Tensor, repeats: int) -> list[Row]:
    """Return a row for the network and for network and solver, on all pairs at once and on one alone."""
    parts: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
        "network, one call": (network, images),
        "network + solver, one call": (polished, images),
        "network, one pair": (network, images[:1]),
        "network + solver, one pair": (polished, images[:1]),
    }
    with torch.inference_mode():
        calls = {name: lambda run=run, given=given: run(given) for name, (run, given) in parts.items()}
        found = interleave(calls, repeats, 1, images.device)
    rows = []
    for name, timing in found.items():
        count = len(parts[name][1])
        row = {"name": name, "pairs": count, "ms_per_pair": round(1e3 * timing.seconds / count, 4)}
        row |= {"pairs_per_second": round(count / timing.seconds, 2), "low": round(count / max(timing.samples), 2)}
        rows.append(row | _judge(name, images.device.type, row))
    return rows


def _judge(name: str, device: str, row: Row) -> Row:
    """Return target and verdict: pairs a second for the batched call, ms for one pair on a CPU."""
    batched = "network + solver, one call" if device == "cpu" else "network, one call"
    if name == batched:
        return {"target": f">= {TARGETS[device]:g} pairs/s", "met": row["pairs_per_second"] >= TARGETS[device]}
    if name == "network + solver, one pair" and device == "cpu":
        return {"target": f"<= {TARGET_ALONE_MS:g} ms", "met": row["ms_per_pair"] <= TARGET_ALONE_MS}
    return {}


def peer_rows(images: Tensor, python: str) -> list[Row]:
    """Return a row a classical tool; one that is missing is named on stderr and left out."""
    rows = []
    with TemporaryDirectory() as scratch:
        cases, out = Path(scratch) / "cases.npz", Path(scratch) / "out.json"
        np.savez(cases, image=images.numpy())
        for name in PEERS:
            try:
                run_child([python, meta_affine_peers.__file__, name, str(cases), str(out), str(len(images))], THREADS)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                continue
            seconds = median(read_json(out)["seconds"])
            row = {"name": name, "pairs": len(images), "ms_per_pair": round(1e3 * seconds, 2)}
            rows.append(row | {"pairs_per_second": round(1 / seconds, 2)})
    return rows


def to_text(result: dict[str, Any]) -> str:
    """Return the table in aligned columns."""
    return f"{tables.aligned(tables.cells(result['rows'], COLUMNS))}\n{NOTES}"


def to_markdown(result: dict[str, Any]) -> str:
    """Return command, machine, table and notes."""
    about = tables.describe(result["machine"], result["versions"])
    return "\n\n".join([f"`{result['command']}`", about, tables.markdown(tables.cells(result["rows"], COLUMNS)), NOTES])
