"""How long a bundle takes: its networks beside the machine's limit, the whole command, its blocks beside MONAI's."""

from __future__ import annotations

import json as json_format
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from register import find_bundle

from shared_components.cli import DONE, quiet
from shared_components.engines import resolve_device
from shared_components.errors import InputError

from . import machine, tables
from .blocks import block_rows
from .networks import REST, flops, paper_network, shipped_network, time_stages
from .timing import Timing, interleave, ratio

SCRIPTS = Path(__file__).resolve().parent.parent
GROUPS = {
    "paper": "The paper's network, random weights, one pair",
    "shipped": "The shipped network, one pair",
    "command": "The whole command, from files to files",
    "blocks": "Building blocks beside MONAI's, both in one run",
}
TARGETS: dict[str, dict[str, float]] = {
    "vtn_registration": {"paper": 2.5, "paper_cuda": 0.030, "shipped": 1.5, "command": 6.0},
    "suits_registration": {"paper": 2.5, "paper_cuda": 0.4},
    "avsm_registration": {"paper": 2.5, "paper_cuda": 0.060, "paper_between": 0.2},
    "r2n2_registration": {"paper": 2.5, "paper_cuda": 0.040},
}
COLUMNS = {
    "name": ("", ""),
    "seconds": ("seconds", ".4f"),
    "low": ("fastest", ".4f"),
    "high": ("slowest", ".4f"),
    "inside": ("without start-up", ".2f"),
    "gflop": ("GFLOP", ".2f"),
    "times_limit": ("times the limit", ".2f"),
    "share": ("share", ".2f"),
    "monai_seconds": ("MONAI", ".4f"),
    "speed_up": ("times as fast", ".2f"),
    "difference": ("difference", ".1e"),
    "target": ("target", ""),
    "met": ("met", ""),
}
NOTES = """\
Medians of rounds, in which everything of a group takes its turn. *Times the limit*: seconds over the operations of all
convolution and linear layers at the rate of a float32 matrix product in the same round. *Difference*: largest between
the two warps; between the values of the two losses, on images that are zero at the border, where windows differ."""
Row = dict[str, Any]


def speed(
    bundle: str = "vtn",
    device: str = "auto",
    threads: int | None = None,
    json: str | None = None,
    only: str | Sequence[str] | None = None,
    repeats: int = 5,
    refine_steps: int = 60,
    fixed: str | None = None,
    moving: str | None = None,
) -> dict[str, Any]:
    """Time a bundle, print the table, and return it.

    Args:
        bundle: short name or folder.
        device: auto, cpu or cuda:0.
        threads: CPU threads; default: as many as torch takes.
        json: write the result here as well.
        only: some of paper, shipped, command, blocks; default: all.
        repeats: timed rounds (of the whole command three at most).
        refine_steps: of the command's refined runs.
        fixed, moving: images for the command; default: the quickstart's pair.

    Returns:
        {"command", "versions", "machine", "rows"}: facts and limits of the machine, and a row a thing timed.

    Raises:
        InputError: unknown bundle, device or group.
    """
    root, place = find_bundle(bundle), resolve_device(device)
    groups = chosen_groups(only)
    images = check_images(fixed, moving)
    if threads:
        torch.set_num_threads(threads)
    options = {
        "bundle": bundle,
        "device": device,
        "threads": threads,
        "only": only and ",".join(groups),
        "repeats": repeats,
    }
    options |= {"refine_steps": refine_steps, "fixed": fixed, "moving": moving}
    result = {
        "command": tables.command_line(speed, options),
        "versions": machine.versions(),
        "machine": machine.facts(place) | machine.limits(place, repeats),
        "rows": [],
    }
    makers: dict[str, Callable[[], list[Row]]] = {
        "paper": lambda: network_rows("paper", root, place, repeats, result["machine"]["matmul_size"]),
        "shipped": lambda: network_rows("shipped", root, place, repeats, result["machine"]["matmul_size"]),
        "command": lambda: command_rows(root, place, refine_steps, images, min(repeats, 3)),
        "blocks": lambda: block_rows(place, repeats),
    }
    with quiet():
        for group in groups:
            print(f"{GROUPS[group]} ...", file=sys.stderr, flush=True)
            result["rows"] += makers[group]()
    print(to_text(result))
    tables.write_json(json, result)
    return result


def chosen_groups(only: str | Sequence[str] | None, known: Sequence[str] = tuple(GROUPS)) -> list[str]:
    """Return the names of what to measure, in the order of the table."""
    words = list(known) if only is None else only.split(",") if isinstance(only, str) else list(only)
    unknown = sorted(set(words) - set(known))
    if unknown:
        raise InputError(f"--only {unknown[0]} is not known; give some of {', '.join(known)}")
    return [group for group in known if group in words]


def check_images(fixed: str | None, moving: str | None) -> tuple[str, str] | None:
    """Return the pair that was given, absolute paths, or None for the quickstart's."""
    if (fixed is None) != (moving is None):
        raise InputError("give both --fixed and --moving, or neither for the quickstart's pair")
    return None if fixed is None else (str(Path(fixed).absolute()), str(Path(moving).absolute()))


def network_rows(group: str, root: Path, device: torch.device, repeats: int, matmul_size: int) -> list[Row]:
    """Return a row for the network, timed in turns with a matrix product, and one a stage."""
    network, image = {"paper": paper_network, "shipped": shipped_network}[group](root, device)
    layers = flops(network, image)
    product = machine.matmul_probe(matmul_size, device)
    with torch.no_grad():
        found = interleave({"product": product.run, "network": lambda: network(image)}, repeats, 1, device)
    grid = " x ".join(str(n) for n in image.shape[2:])
    name = f"{getattr(network, 'cascade', type(network).__name__)}, {grid}"
    amount = sum(layers.values())
    times = ratio(found["network"], found["product"])["ratio"] * product.amount / amount
    whole = {"group": group, "name": name, **found["network"].facts(), "gflop": round(amount / 1e9, 3)}
    whole |= {"matmul_gflops": round(product.rate(found["product"]), 1), "times_limit": round(times, 3)}
    rows = [whole | _judge(root, group, device, whole)]
    for part, timing in time_stages(network, image, repeats).items():
        own = sum(
            count for layer, count in layers.items() if layer.split(".")[: part.count(".") + 1] == part.split(".")
        )
        row = {"group": group, "name": f"- {part}", **timing.facts(), "gflop": round(own / 1e9, 3) or None}
        rows.append(row | (_judge_rest(root, group, row, whole) if part == REST else {}))
    return rows


def _judge(root: Path, group: str, device: torch.device, row: Row) -> Row:
    """Return the target of a row and whether it is met; the paper's is a multiple of the limit on a CPU."""
    known = TARGETS.get(root.name, {})
    if group == "paper" and device.type == "cpu":
        limit, value, unit = known.get(group), row["times_limit"], "times the limit"
    else:
        limit, value, unit = known.get("paper_cuda" if group == "paper" else group), row["seconds"], "s"
    return {} if limit is None else {"target": f"{limit} {unit}", "met": value <= limit}


def _judge_rest(root: Path, group: str, row: Row, whole: Row) -> Row:
    """Return the target of what a network does between its stages, a share of the whole, and whether it is met."""
    limit = TARGETS.get(root.name, {}).get(f"{group}_between")
    share = row["seconds"] / whole["seconds"]
    return (
        {}
        if limit is None
        else {"share": round(share, 3), "target": f"{limit:.0%} of the whole", "met": share <= limit}
    )


def command_rows(
    root: Path, device: torch.device, steps: int, images: tuple[str, str] | None, repeats: int
) -> list[Row]:
    """Return a row for register.py with and without refinement and report, each run a process of its own."""
    with TemporaryDirectory() as scratch:
        pair = images or demo_images(Path(scratch))
        variants = {
            f"refine {count}, {'with' if report else 'without'} report": (count, report)
            for count in dict.fromkeys((0, steps))
            for report in (True, False)
        }
        inside: dict[str, list[float]] = {name: [] for name in variants}

        def run(name: str) -> None:
            count, report = variants[name]
            inside[name].append(register(root, pair, Path(scratch) / "out", device, count, report)["seconds"])

        found = interleave({name: lambda name=name: run(name) for name in variants}, repeats)
    rows = []
    for name, timing in found.items():
        row = {"group": "command", "name": name, **timing.facts(3)}
        row["inside"] = Timing(tuple(inside[name][-repeats:])).seconds
        rows.append(row | (_judge(root, "command", device, row) if variants[name][0] == 0 else {}))
    return rows


def demo_images(folder: Path) -> tuple[str, str]:
    """Make the quickstart's pair and return its images."""
    from shared_components.synth import make_demo_pair  # seconds to import, and needs nilearn

    pair = make_demo_pair(folder / "pair")
    return pair["fixed"], pair["moving"]


def register_command(
    root: Path, images: tuple[str, str], output: Path, device: torch.device, steps: int, report: bool
) -> list[str]:
    """Return the command that a user types."""
    named = ["--fixed", images[0], "--moving", images[1], "--output_dir", str(output), "--device", str(device)]
    named += ["--refine_steps", str(steps), "--threads", str(torch.get_num_threads())]
    return [sys.executable, str(SCRIPTS / "register.py"), str(root), *named, *([] if report else ["--no_report"])]


def register(*arguments: Any) -> dict[str, Any]:
    """Run ``register_command(*arguments)`` and return its run.json: seconds without start-up, memory."""
    command = register_command(*arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in DONE:
        raise InputError(f"the registration to be timed failed: {done.stderr.strip().splitlines()[-1]}")
    return json_format.loads((arguments[2] / "run.json").read_text())


def to_text(result: dict[str, Any]) -> str:
    """Return the result as aligned tables."""
    lines = [tables.describe(result["machine"], result["versions"])]
    for group, title in GROUPS.items():
        rows = [row for row in result["rows"] if row["group"] == group]
        if rows:
            lines += ["", title, tables.aligned(tables.cells(rows, COLUMNS))]
    return "\n".join(lines)


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as markdown: the command, the machine, a table a group, what the columns mean."""
    lines = [f"`{result['command']}`", "", tables.describe(result["machine"], result["versions"])]
    for group, title in GROUPS.items():
        rows = [row for row in result["rows"] if row["group"] == group]
        if rows:
            lines += ["", f"**{title}**", "", tables.markdown(tables.cells(rows, COLUMNS))]
    return "\n".join([*lines, "", NOTES, ""])
