"""What --batch of cohort.py gains and changes: several pairs in one pass of the network, and one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import create_workflow
from register import CONFIG, bundle_code, find_bundle, found_bundles
from torch import Tensor

from shared_components.cli import quiet
from shared_components.engines import load_weights, resolve_device

from . import machine, tables
from .networks import grid_of
from .timing import interleave, ratio

COLUMNS = {
    "name": ("", ""),
    "one_by_one": ("one by one, s", ".2f"),
    "together": ("in one batch, s", ".2f"),
    "ratio": ("ratio", ".2f"),
    "difference_vox": ("largest difference, voxels", ".1g"),
}
NOTES = """\
Networks alone, as `inference.json` calls them, on textures of blurred random numbers: the fields of four pairs
(`--batch`) in one pass and one after the other."""
Row = dict[str, Any]


def batches(
    bundle: str | Sequence[str] | None = None,
    json: str | None = None,
    batch: int = 4,
    device: str = "cpu",
    threads: int = 2,
    repeats: int = 3,
) -> dict[str, Any]:
    """Time the networks of bundles, as inference.json calls them, on pairs one by one and in one batch.

    Args:
        bundle: short name, several with commas between, or None for all.
        json: write the result here as well.
        batch: pairs: textures of random numbers, blurred.
        device: auto, cpu or cuda:0.
        threads: CPU threads.
        repeats: timed rounds.

    Returns:
        {"command", "versions", "machine", "rows"}.
    """
    names = found_bundles() if bundle is None else bundle.split(",") if isinstance(bundle, str) else list(bundle)
    given = {"bundle": ",".join(names), "batch": batch, "device": device}
    given |= {"threads": threads, "repeats": repeats}
    torch.set_num_threads(threads)
    result: dict[str, Any] = {
        "command": tables.command_line(batches, given),
        "versions": machine.versions(),
        "machine": machine.facts(resolve_device(device)),
        "rows": [row_of(find_bundle(name), batch, device, repeats) for name in names],
    }
    print(tables.aligned(tables.cells(result["rows"], COLUMNS)))
    tables.write_json(json, result)
    return result


def to_markdown(result: dict[str, Any]) -> str:
    """Return the result as markdown: the command, the machine, the table, what it means."""
    head = [f"`{result['command']}`", "", tables.describe(result["machine"], result["versions"]), ""]
    return "\n".join([*head, tables.markdown(tables.cells(result["rows"], COLUMNS)), "", NOTES, ""])


def row_of(root: Path, batch: int, device: str, repeats: int) -> Row:
    """Return seconds of both ways, their ratio, and how far the fields differ."""
    options = {"device#name": device, "fixed": "a", "moving": "b", "bundle_root": str(root)}
    with bundle_code(root), quiet():
        parser = create_workflow(config_file=str(root / CONFIG), logging_file=False, **options).parser
        evaluator = parser.get_parsed_content("evaluator")
        load_weights(parser.get_parsed_content("network_def"), parser.get_parsed_content("weights"))
        place = torch.device(evaluator.state.device)
        images = [image.to(place) for image in textures(batch, grid_of(root, parser))]
        ways = {"one_by_one": lambda: [run(evaluator, image) for image in images]}
        ways["together"] = lambda: run(evaluator, torch.cat(images))
        timed = interleave(ways, repeats, 1, place)
        difference = float((torch.cat(ways["one_by_one"]()) - ways["together"]()).abs().max())
    row = {name: round(timing.seconds, 4) for name, timing in timed.items()}
    gain = ratio(timed["one_by_one"], timed["together"])["ratio"]
    return {"name": root.name, "batch": batch, **row, "ratio": gain, "difference_vox": difference}


def textures(count: int, size: Sequence[int]) -> list[Tensor]:
    """Return ``count`` images (1, 2, *size) in [0, 1], blurred random numbers."""
    generator, mode = torch.Generator().manual_seed(0), {2: "bilinear", 3: "trilinear"}[len(size)]
    coarse = torch.rand(count, 2, *(max(2, n // 8) for n in size), generator=generator)
    return list(torch.nn.functional.interpolate(coarse, tuple(size), mode=mode).split(1))


def run(evaluator: Any, images: Tensor) -> Tensor:
    """Return the fields (B, D, *size) that the network makes, as the evaluator calls it."""
    with torch.no_grad(), evaluator.mode(evaluator.network):
        found = evaluator.inferer(images, evaluator.network)
    return found["ddf"] if isinstance(found, dict) else found
