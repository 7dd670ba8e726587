"""What registering images of several sizes takes: seconds and memory, as it comes and at the least, by bundle."""

from __future__ import annotations

import json as json_format
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from register import config_files, find_bundle
from torch import Tensor

from shared_components.cli import DONE, FAULT_OF_INPUT
from shared_components.engines import resolve_device
from shared_components.geometry import Frame
from shared_components.images import write_image
from shared_components.warp import coords_grid, warp_image

from . import machine, tables
from .child import run_child
from .speed import SCRIPTS

BUNDLES = ("vtn", "avsm", "suits", "meta_affine+inference_3d", "r2n2", "meta_affine")
SIZES = {3: ((64, 64, 64), (128, 128, 128), (192, 192, 160)), 2: ((256, 256), (512, 512), (1024, 1024))}
EXTENT_MM = 190.0  # of the longest side
_LEAST = re.compile(r"at least ([0-9.]+) GB are needed")
COLUMNS = {
    "name": ("", ""),
    "size": ("fixed and moving image", ""),
    "seconds": ("command [s]", ".1f"),
    "inside": ("without start-up [s]", ".1f"),
    "peak_gb": ("peak resident [GB]", ".2f"),
    "cuda_gb": ("peak CUDA [GB]", ".2f"),
    "least_gb": ("least --max_memory_gb", ".2f"),
    "least_seconds": ("command at that [s]", ".1f"),
    "least_peak_gb": ("peak at that [GB]", ".2f"),
    "same": ("same bytes", ""),
}
NOTES = """\
The whole command, from files to files, with its report, one pair of synthetic images without labels, each run a process
of its own. GB are 2³⁰ bytes; the peak includes Python, torch and MONAI. The least is what the command itself says that
it needs; *same bytes*: images and fields written within that budget are those written without."""
Row = dict[str, Any]


def budget(
    bundles: str | Sequence[str] = BUNDLES,
    device: str = "auto",
    threads: int | None = None,
    json: str | None = None,
    sizes: Sequence[Sequence[int]] | None = None,
    refine_steps: int = 0,
    least: bool = True,
) -> dict[str, Any]:
    """Measure commands on images of several sizes, print the table, and return it.

    Args:
        bundles: short names or folders, each with "+NAME" for one of its configurations on top.
        device: auto, cpu or cuda:0.
        threads: CPU threads; default: as many as torch takes.
        json: write the result here as well, after each row; a run that was stopped goes on.
        sizes: grids of the images; default: ``SIZES``. Bundles take those of their dimension.
        refine_steps: of each command.
        least: also run within the smallest budget that a command says that it can keep.

    Returns:
        {"command", "versions", "machine", "rows"}.

    Raises:
        InputError: unknown bundle or device.
        RuntimeError: a command that fails, with its last line.
    """
    names = bundles.split(",") if isinstance(bundles, str) else list(bundles)
    place, found = resolve_device(device), {name: _find(name) for name in names}
    if threads:
        torch.set_num_threads(threads)
    options = {"bundles": BUNDLES if tuple(names) == BUNDLES else ",".join(names), "device": device}
    options |= {"threads": threads, "sizes": sizes, "refine_steps": refine_steps, "least": least}
    result: dict[str, Any] = {
        "command": tables.command_line(budget, options),
        "versions": machine.versions(),
        "machine": machine.facts(place),
        "rows": [],
    }
    done = _rows_so_far(json, result)
    with TemporaryDirectory() as scratch:
        for name, (words, ndim) in found.items():
            for shape in [tuple(size) for size in sizes or SIZES[ndim] if len(size) == ndim]:
                if row := done.get((name, _times(shape))):
                    result["rows"].append(row)
                    continue
                print(f"{name}, {_times(shape)} ...", file=sys.stderr, flush=True)
                folder = Path(scratch) / _times(shape)
                pair = make_pair(folder, shape) if not folder.exists() else _files(folder)
                more = ["--device", str(place), "--threads", str(torch.get_num_threads())]
                more += ["--refine_steps", str(refine_steps)]
                command = [sys.executable, str(SCRIPTS / "register.py"), *words, *pair, *more]
                result["rows"].append({"name": name, "size": _times(shape), **_measured(command, folder, least)})
                tables.write_json(json, result | {"unfinished": True})
    print(to_text(result))
    tables.write_json(json, result)
    return result


def _rows_so_far(path: str | None, result: dict[str, Any]) -> dict[tuple[str, str], Row]:
    """Return the rows of a file that the same command began on the same machine and did not finish."""
    if path is None or not Path(path).is_file():
        return {}
    known = json_format.loads(Path(path).read_text())
    known["machine"] = known.get("machine", {}) | {"load_before": result["machine"]["load_before"]}
    if not known.get("unfinished") or any(known.get(key) != result[key] for key in ("command", "versions", "machine")):
        return {}
    return {(row["name"], row["size"]): row for row in known["rows"]}


def _find(name: str) -> tuple[list[str], int]:
    """Return the words of a command that choose a bundle, and its dimension."""
    bundle, _, config = name.partition("+")
    root = find_bundle(bundle)
    known = [json_format.loads(file.read_text()) for file in config_files(root, config or None)]
    size = [one["size"] for one in known if "size" in one][-1]
    return [str(root), *(["--config", config] if config else [])], len(size)


def _measured(command: list[str], folder: Path, least: bool) -> Row:
    """Run a command, and again within the least budget that it can keep."""
    facts, run = _run(command, folder / "out")
    row = {"seconds": facts["command_seconds"], "inside": run["seconds"], "peak_gb": facts["peak_gb"]}
    if "peak_cuda_mb" in run:
        row["cuda_gb"] = round(run["peak_cuda_mb"] * 1e6 / 2**30, 3)
    if least:
        amount = _least(command, folder)
        within, _ = _run([*command, "--max_memory_gb", str(amount)], folder / "least")
        row |= {"least_gb": amount, "least_seconds": within["command_seconds"], "least_peak_gb": within["peak_gb"]}
        row["same"] = all(
            (folder / "out" / file.name).read_bytes() == file.read_bytes() for file in (folder / "least").glob("*.gz")
        )
    return row


def _run(command: list[str], output: Path) -> tuple[dict[str, float], Row]:
    facts, _ = run_child([*command, "--output_dir", str(output)], allowed=DONE)
    return facts, json_format.loads((output / "run.json").read_text())


def _least(command: list[str], folder: Path) -> float:
    """Ask for next to nothing and read what would be enough."""
    try:
        run_child([*command, "--max_memory_gb", "0.001", "--output_dir", str(folder / "none")], allowed=())
    except RuntimeError as error:
        if told := _LEAST.search(str(error)):
            return float(told.group(1))
        raise
    raise RuntimeError(f"a command that needs memory did not end with code {FAULT_OF_INPUT} within 0.001 GB")


def make_pair(folder: Path, shape: Sequence[int]) -> list[str]:
    """Write a textured ellipsoid and the same under a smooth deformation; return them as options of register.py."""
    generator = torch.Generator().manual_seed(0)

    def smooth(channels: int, nodes: int) -> Tensor:
        coarse = torch.randn(1, channels, *(nodes,) * len(shape), generator=generator)
        mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
        return F.interpolate(coarse, size=tuple(shape), mode=mode, align_corners=True)

    middle = torch.tensor([(n - 1) / 2 for n in shape]).view(1, -1, *(1,) * len(shape))
    away = ((coords_grid(shape) - middle) / (0.8 * middle)).square().sum(1, keepdim=True)
    image = (away < 1) * (2 + 0.5 * smooth(1, 12))
    moved = warp_image(image, 0.02 * max(shape) * smooth(len(shape), 4))
    affine = np.diag([*(EXTENT_MM / max(shape),) * len(shape), 1.0])
    for name, values in (("fixed", image), ("moving", moved)):
        scaled = (500 * values[0, 0].clamp_min(0)).round().to(torch.int16)
        write_image(folder / f"{name}.nii.gz", scaled, Frame(tuple(shape), affine))
    return _files(folder)


def _files(folder: Path) -> list[str]:
    return ["--fixed", str(folder / "fixed.nii.gz"), "--moving", str(folder / "moving.nii.gz")]


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def to_text(result: dict[str, Any]) -> str:
    """Return the result as an aligned table."""
    table = tables.aligned(tables.cells(result["rows"], COLUMNS))
    return "\n".join([tables.describe(result["machine"], result["versions"]), "", table])


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as markdown: the command, the machine, the table, what it means."""
    head = [f"`{result['command']}`", "", tables.describe(result["machine"], result["versions"]), ""]
    return "\n".join([*head, tables.markdown(tables.cells(result["rows"], COLUMNS)), "", NOTES, ""])
