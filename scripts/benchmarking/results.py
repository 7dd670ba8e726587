"""Tables for people: markdown from the JSON of the benchmarks, and docs/results.md from several of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared_components.errors import InputError

from . import batches, budget, memory, robustness_tables, solver, speed, tables, throughput

_HEADS = {
    "dice": ("Dice, all", 3),
    "dice_large": ("Dice, ≥ 1 cm³", 3),
    "hd95_mm": ("HD95 [mm]", 2),
    "tre_mm": ("TRE [mm]", 2),
    "folds_percent": ("folds [%]", 3),
    "ndv_percent": ("NDV [%]", 3),
    "sdlogj": ("SD log J", 3),
    "seconds": ("registration [s]", 1),
    "command_seconds": ("command [s]", 1),
    "cpu_seconds": ("CPU [s]", 1),
    "peak_gb": ("peak [GB]", 2),
}
_WITH_SPREAD = ("dice", "dice_large", "hd95_mm", "tre_mm")
NOTES = """\
Mean ± standard deviation over pairs, the worst pair in brackets. Dice and HD95: mean over all structures that both
images have (a structure that a warp lost counts as Dice 0), and over those of 1 cm³ or more. Folds: voxels with
det J ≤ 0, central differences; NDV: non-diffeomorphic volume of the digital criterion; both over the whole fixed grid.
SD log J: within the fixed image's foreground. *Registration* is what a tool itself takes with its modules loaded: for
bundles reading, network, refinement, inverse and writing; for other tools from images in memory to the transform.
*Command* is the whole process from start to files, *CPU* its CPU seconds over all threads, *peak* its resident
memory."""


def accuracy_table(result: dict[str, Any]) -> list[list[str]]:
    """Return the table as text, heads first; columns that nobody measured are left out."""
    summary = {name: found for name, found in result["summary"].items() if found["pairs"] > found["failed"]}
    keys = [key for key in _HEADS if any(key in found for found in summary.values())]
    rows = [[name, *(_cell(found.get(key), key) for key in keys)] for name, found in summary.items()]
    return [["", *(_HEADS[key][0] for key in keys)], *rows]


def _cell(numbers: dict[str, float] | None, key: str) -> str:
    if numbers is None:
        return ""
    digits = _HEADS[key][1]
    mean, sd, worst = (f"{numbers[name]:.{digits}f}" for name in ("mean", "sd", "worst"))
    if key in _WITH_SPREAD:
        return f"{mean} ± {sd} ({worst})"
    return f"{mean} ({worst})" if key in ("folds_percent", "ndv_percent") else mean


def accuracy_markdown(result: dict[str, Any]) -> str:
    """Return the accuracy table, the machine, and what the columns mean."""
    return "\n\n".join([tables.markdown(accuracy_table(result)), _remarks(result), NOTES]) + "\n"


def accuracy_text(result: dict[str, Any]) -> str:
    """Return the accuracy table in aligned columns for a terminal."""
    return f"{tables.aligned(accuracy_table(result))}\n{_remarks(result)}"


def _remarks(result: dict[str, Any]) -> str:
    summary = result["summary"]
    facts = [f"{max(found['pairs'] for found in summary.values())} pairs."]
    used = [version for found in summary.values() for version in found["versions"]]
    facts += [f"Peers: {', '.join(dict.fromkeys(used))}."] if used else []
    facts += [f"{name}: {found['failed']} pairs failed." for name, found in summary.items() if found["failed"]]
    facts += [f"{reason}." for reason in result["skipped"].values()]
    return " ".join(facts)


def page(files: Sequence[Path]) -> str:
    """Return one markdown page with the results of several JSON files; the first line of each tells its command.

    Raises:
        InputError: no files, or one that no benchmark wrote.
    """
    if not files:
        raise InputError("there are no *.json of the benchmarks in that folder; run accuracy, speed or memory first")
    parts = [INTRODUCTION]
    for path in files:
        result = json.loads(path.read_text())
        words = str(result.get("command", "")).split() if isinstance(result, dict) else []
        kind = words[2] if len(words) > 2 else None
        if kind not in RENDERERS:
            raise InputError(f"{path} was not written by benchmark.py; move it out of the folder")
        parts += [f"## {TITLES[kind]} ({path.stem})", RENDERERS[kind](result).strip()]
    return "\n\n".join(parts) + "\n"


INTRODUCTION = """\
# Results

Made by `python scripts/benchmark.py results docs/results --output docs/results.md` from the JSON files in
[results](results); each section names the command that measured it."""
TITLES = {
    "accuracy": "Accuracy",
    "speed": "Speed",
    "memory": "Memory",
    "batches": "Several pairs in one batch",
    "budget": "Seconds and memory by size",
    "solver": "Solvers",
    "robustness": "Robustness",
    "throughput": "Throughput",
}
RENDERERS = {
    "accuracy": lambda result: "\n\n".join(
        [f"`{result['command']}`", tables.describe(result["machine"], result["versions"]), accuracy_markdown(result)]
    ),
    "speed": speed.to_markdown,
    "memory": memory.to_markdown,
    "batches": batches.to_markdown,
    "budget": budget.to_markdown,
    "solver": solver.to_markdown,
    "robustness": robustness_tables.to_markdown,
    "throughput": throughput.to_markdown,
}
