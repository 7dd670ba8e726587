"""How much memory a bundle takes: each part in a process of its own, whose peak the system tells afterwards."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from register import bundle_code, find_bundle
from torch import Tensor, nn

from shared_components.cli import DONE, quiet
from shared_components.engines import resolve_device
from shared_components.mk_lncc import MultiKernelLNCC

from . import blocks, machine, networks, tables
from .child import run_child
from .speed import (
    SCRIPTS,
    check_images,
    chosen_groups,
    demo_images,
    register_command,
)

GROUPS = {
    "process": "What any run needs",
    "command": "The whole command, from files to files",
    "network": "Network alone, one pair, no gradient",
    "training": "One training step: network, loss, gradient and optimiser of train.json",
    "similarity": "Loss with gradient at 128³, one pair",
}
COLUMNS = {"name": ("", ""), "peak_gb": ("peak resident [GB]", ".2f"), "cuda_gb": ("peak CUDA [GB]", ".2f")}
NOTES = "Each row is a process of its own; the peak includes Python, torch and MONAI (first row). GB are 2³⁰ bytes."
LOSS_SIZE = 128
SIZES = ((96, 112, 96), (128, 128, 128), (160, 192, 160))
TRAIN = Path("configs") / "train.json"
Row = dict[str, Any]


def memory(
    bundle: str = "vtn",
    device: str = "auto",
    threads: int | None = None,
    json: str | None = None,
    only: str | Sequence[str] | None = None,
    sizes: Sequence[Sequence[int]] = SIZES,
    refine_steps: int = 10,
    fixed: str | None = None,
    moving: str | None = None,
) -> dict[str, Any]:
    """Measure the peak memory of a bundle's parts, print the table, and return it.

    Args:
        bundle: short name or folder.
        device: auto, cpu or cuda:0.
        threads: CPU threads; default: as many as torch takes.
        json: write the result here as well.
        only: some of process, command, network, training, similarity; default: all.
        sizes: grids of the network beside the shipped and the paper's.
        refine_steps: of the command's refined run; its peak does not depend on their number.
        fixed, moving: images for the command; default: the quickstart's pair.

    Returns:
        {"command", "versions", "machine", "rows"}; a row has "group", "name", "peak_gb" and, on CUDA, "cuda_gb".

    Raises:
        InputError: unknown bundle, device or group.
        RuntimeError: a part that fails, with its last line.
    """
    root, place = find_bundle(bundle), resolve_device(device)
    groups, images = chosen_groups(only, tuple(GROUPS)), check_images(fixed, moving)
    if threads:
        torch.set_num_threads(threads)
    options = {"bundle": bundle, "device": device, "threads": threads, "only": only and ",".join(groups)}
    options |= {
        "sizes": SIZES if sizes is SIZES else [list(size) for size in sizes],
        "refine_steps": refine_steps,
        "fixed": fixed,
        "moving": moving,
    }
    result: dict[str, Any] = {
        "command": tables.command_line(memory, options),
        "versions": machine.versions(),
        "machine": machine.facts(place),
        "rows": [],
    }
    knobs = networks.knobs(root)
    with TemporaryDirectory() as scratch:
        for group in groups:
            print(f"{GROUPS[group]} ...", file=sys.stderr, flush=True)
            if group == "command":
                result["rows"] += _command_rows(root, place, images, refine_steps, Path(scratch))
            else:
                result["rows"] += [_part_row(group, *part, root, place) for part in _parts(group, sizes, knobs)]
    print(to_text(result))
    tables.write_json(json, result)
    return result


def _parts(group: str, sizes: Sequence[Sequence[int]], knobs: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return name and specification of the parts of a group that ``run_part`` knows; ``knobs`` are the network's."""
    if group == "process":
        return [("Python with torch, MONAI and this library", {"part": "import"})]
    if group == "training":
        name, again = "one pair (both orders if train.json says so)", ("with recomputation", "without recomputation")
        if "recompute" not in knobs:
            return [(name, {"part": "training"})]
        return [(f"{name}, {how}", {"part": "training", "recompute": how == again[0]}) for how in again]
    if group == "similarity":
        large = blocks.large_window(LOSS_SIZE)
        theirs = [(f"MONAI's local correlation, window {n}³", n) for n in (blocks.WINDOW, large)]
        return [(name, {"part": "loss", "window": window}) for name, window in [("mk-LNCC", 0), *theirs]]
    grids = [
        ("shipped network, " + " x ".join(map(str, size)), {"part": "network", "size": list(size)}) for size in sizes
    ]
    return [("shipped network as shipped", {"part": "network"}), *grids, ("paper's network", {"part": "paper"})]


def _part_row(group: str, name: str, spec: dict[str, Any], root: Path, device: torch.device) -> Row:
    """Run one part in a process of its own."""
    spec = {**spec, "root": str(root), "device": str(device), "threads": torch.get_num_threads()}
    facts, output = run_child([sys.executable, "-m", "benchmarking.memory", json_format.dumps(spec)], folder=SCRIPTS)
    said = json_format.loads(output.strip().splitlines()[-1])
    return {"group": group, "name": name, "peak_gb": facts["peak_gb"], **said}


def _command_rows(
    root: Path, device: torch.device, images: tuple[str, str] | None, steps: int, scratch: Path
) -> list[Row]:
    """Return a row for register.py with and without refinement and report."""
    images = images or demo_images(scratch)
    rows = []
    for count, report in ((0, False), (0, True), (steps, True)):
        command = register_command(root, images, scratch / "out", device, count, report)
        facts, _ = run_child(command, allowed=DONE)
        run = json_format.loads((scratch / "out" / "run.json").read_text())
        name = f"{'refined' if count else 'not refined'}, {'with' if report else 'without'} report"
        row = {"group": "command", "name": name, "peak_gb": facts["peak_gb"]}
        rows.append(row | ({"cuda_gb": round(run["peak_cuda_mb"] * 1e6 / 2**30, 3)} if "peak_cuda_mb" in run else {}))
    return rows


def run_part(spec: dict[str, Any]) -> Row:
    """Do, in this process, the part whose memory is to be seen; return what CUDA says about it."""
    device = torch.device(spec["device"])
    torch.set_num_threads(spec["threads"])
    if spec["part"] == "training":
        training_step(Path(spec["root"]), device, spec.get("recompute"))
    elif spec["part"] == "loss":
        loss_step(spec["window"], device)
    elif spec["part"] != "import":
        build = networks.paper_network if spec["part"] == "paper" else networks.shipped_network
        size = {"size": spec["size"]} if "size" in spec else {}
        network, image = build(Path(spec["root"]), device, **size)
        with torch.no_grad():
            network(image)
    if device.type != "cuda":
        return {}
    return {"cuda_gb": round(torch.cuda.max_memory_allocated(device) / 2**30, 3)}


def training_step(root: Path, device: torch.device, recompute: bool | None = None) -> None:
    """Take two optimiser steps as train.json sets them up: precision, both orders, loss, optimiser, last phase.

    ``recompute``: the network's knob of that name, if it has one.
    """
    parser = networks.configuration(root, TRAIN)
    parser["device#name"] = str(device)
    if recompute is not None:
        parser["network_def#recompute"] = recompute
    with bundle_code(root):
        network: nn.Module = parser.get_parsed_content("network")
        loss, optimizer = parser.get_parsed_content("loss"), parser.get_parsed_content("optimizer")
        inferer = parser.get_parsed_content("train#inferer")
        prepare = parser.get_parsed_content("train#trainer#prepare_batch")
        if "phases" in parser:
            prepare.phase = parser.get_parsed_content("phases")[-1]
    image = networks.smooth_pair(networks.grid_of(root, parser), device)
    image = image.repeat(int(parser.get("batch_size", 1)), *(1,) * (image.ndim - 1))
    for _ in range(2):
        inputs, targets, args, kwargs = prepare({"image": image}, device)
        optimizer.zero_grad()
        value: Tensor = loss(inferer(inputs, network, *args, **kwargs), targets)
        value.backward()
        optimizer.step()


def loss_step(window: int, device: torch.device) -> None:
    """Calculate a loss and its gradient: MONAI's local correlation in that window, or mk-LNCC for 0."""
    fixed, moved = blocks.loss_pair(LOSS_SIZE, device)
    loss = blocks.monai_lncc(window) if window else MultiKernelLNCC()
    loss(fixed, moved.requires_grad_()).backward()


def to_text(result: dict[str, Any]) -> str:
    """Return the result as aligned tables."""
    lines = [tables.describe(result["machine"], result["versions"])]
    for title, rows in _groups(result):
        lines += ["", title, tables.aligned(tables.cells(rows, COLUMNS))]
    return "\n".join(lines)


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as markdown: the command, the machine, a table a group, what it means."""
    lines = [f"`{result['command']}`", "", tables.describe(result["machine"], result["versions"])]
    for title, rows in _groups(result):
        lines += ["", f"**{title}**", "", tables.markdown(tables.cells(rows, COLUMNS))]
    return "\n".join([*lines, "", NOTES, ""])


def _groups(result: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    found = [(title, [row for row in result["rows"] if row["group"] == group]) for group, title in GROUPS.items()]
    return [(title, rows) for title, rows in found if rows]


if __name__ == "__main__":
    with quiet():
        said = run_part(json_format.loads(sys.argv[1]))
    print(json_format.dumps(said))
