"""Table 2 of Blendowski et al. (2020), the paper's numbers beside ours, as Markdown and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from . import suits_paper as paper
from .pair_statistics import signed_rank, worst
from .reports import environment, publish, rounded
from .suits_methods import METHODS, TIMED
from .suits_relations import LEVEL, judge
from .suits_runs import SETS
from .tables import claims_table, claims_verdict, number, p_value, real_table, table

Content = Mapping[str, Any]


def report(content: Content, options: argparse.Namespace) -> None:
    """Print tables and verdicts; write JSON and Markdown if asked for."""
    more = {"environment": environment(options), "relations": judge(content["results"]), "paper": paper_numbers()}
    content = rounded({**content, **more})
    publish(content, markdown(content), options)


def paper_numbers() -> dict[str, Any]:
    """Return the paper's table for the JSON."""
    tests = {"p_dice": paper.P_DICE, "p_hd95": paper.P_HD95}
    columns = {"columns": [*paper.ORGANS, "mean", "std"]}
    return {**columns, "dice": paper.DICE, "hd95_mm": paper.HD95_MM, **tests, "seconds": paper.SECONDS}


def markdown(content: Content) -> str:
    """Return the report."""
    results = content["results"]
    parts = ["# SUITS: the paper's Table 2", _introduction(content)]
    parts += ["## Relations", claims_verdict(content["relations"]), _relations(content["relations"])]
    for name, one in SETS.items():
        if name in results:
            parts += [f"## Table 2: {one.title}", "Dice", _organs(results[name], name, "dice")]
            parts += ["HD95 in mm", _organs(results[name], name, "hd95_mm")]
    parts += [_note(), "## Folds and time", *_times(results), _tools(results, content["environment"])]
    if real := content.get("real"):
        parts += ["## Real images, by the shipped weights", real_table(real)]
    return "\n\n".join([*parts, "## How", _how(content)]) + "\n"


def _introduction(content: Content) -> str:
    parts = []
    for name, one in content["sets"].items():
        images = ", ".join(f"{one['images'][section]} {section}" for section in one["images"])
        size = "×".join(map(str, one["size"]))
        parts.append(
            f"{SETS[name].title}: {one['pairs']} test pairs (images: {images}), {size} at {one['spacing_mm']:g} mm"
        )
    return (
        f"{'; '.join(parts)}. No patient is in two sections. Labels go through each field by nearest neighbour on that "
        "grid. *MIND-CNN*: the network after its first phase, which learns to give MIND-SSC; *SUITS*: after the "
        "second, through the descent; *k_back = 1*: the second phase trained at the first step of the descent alone; "
        "*hand-made MIND*: MIND-SSC itself in the same descent."
    )


def _relations(relations: Sequence[Mapping[str, Any]]) -> str:
    note = (
        f"In parentheses: not demanded, told all the same. p: Wilcoxon's signed-rank test, two-sided, on means over "
        f"organs of each pair; where it is demanded it must be below {LEVEL}. Pairs that both methods have registered."
    )
    return claims_table(relations, note)


def _organs(found: Content, name: str, metric: str) -> str:
    """One row a method and, where the paper has it, one below with its numbers."""
    digits, theirs = (3, paper.DICE) if metric == "dice" else (1, paper.HD95_MM)
    tests = paper.P_DICE if metric == "dice" else paper.P_HD95
    labels, rows = SETS[name].labels, []
    for method, title in METHODS.items():
        if method not in found:
            continue
        numbers = found[method]
        organs = {label: _known(numbers["organs"][metric].get(str(label), ())) for label in labels}
        pooled = [value for values in organs.values() for value in values]
        cells = [number(fmean(values) if values else None, digits) for values in organs.values()]
        means = _known(numbers[metric])
        cells += [number(fmean(means) if means else None, digits), number(_std(pooled), digits)]
        cells.append(number(worst(numbers[metric], metric == "dice"), digits))
        p = None
        if method != "suits" and "suits" in found:
            p = signed_rank(found["suits"], numbers, metric)
        rows.append([title, *cells, p_value(p), str(len(numbers[metric]))])
        if SETS[name].paper and method in theirs:
            quoted = [f"{value:g}" for value in theirs[method]]
            rows.append(["– paper", *quoted, "–", p_value(tests.get(method)), "25"])
    return table(["", *labels.values(), "mean", "std", "worst pair", "p, SUITS", "pairs"], rows)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _std(values: Sequence[float]) -> float | None:
    return float(np.std(values)) if values else None


def _note() -> str:
    return (
        "Mean of the pairs' means over organs; std: over organs and pairs; p: against SUITS. An organ that an image "
        "lacks is left out; one that was pushed out of the grid counts as Dice 0 and has no distance. The paper's "
        "images are other ones, of CT and MR too, at 2 mm."
    )


def _times(results: Content) -> list[str]:
    parts = []
    for name, one in SETS.items():
        rows = []
        for method, title in METHODS.items():
            numbers = results.get(name, {}).get(method)
            if numbers is None:
                continue
            folds = [number(which(numbers["folds_percent"]), 3) for which in (fmean, max)]
            times = ["–"] * 2
            if method != "initial":
                times = [
                    number(median(numbers[key]) if numbers[key] else None, 1) for key in ("cpu_seconds", "seconds")
                ]
            seconds = paper.SECONDS.get(method) if one.paper else None
            rows.append([title, *folds, *times, number(seconds, 0)])
        if rows:
            parts.append(table([one.title, "folds %", "worst pair", "CPU s a pair", "s a pair", "paper s"], rows))
    return parts


def _tools(results: Content, machine: Content) -> str:
    found = [numbers for methods in results.values() for numbers in methods.values()]
    tools = sorted({numbers["tool"] for numbers in found if "tool" in numbers})
    failed = sum(numbers.get("failed", 0) for numbers in found)
    text = (
        f"Medians: of the first {TIMED} pairs for networks, of all for other tools; from images in memory to the field "
        f"in memory, {machine['threads']} thread{'s' * (machine['threads'] != 1)}. The paper's SUITS ran on a GPU."
    )
    if tools:
        text += (
            f" Tools: {', '.join(tools)}: SimpleElastix' default map of B-splines (mutual information and bending "
            "energy, 10 mm, 4 resolutions, 256 iterations of 2048 samples), and the same with 30 mm, better on "
            "validation pairs of the abdomen; the images are aligned, so there is no affine part. "
            f"{failed or 'None'} of the registrations ended with an error"
            + (", counted as no registration." if failed else ".")
        )
    return text


def _how(content: Content) -> str:
    machine, rows = content["environment"], []
    for name, one in content["networks"].items():
        minutes = one.get("train_cpu_seconds")
        cells = [str(one.get("parameters", "–")), str(one.get("epochs", "–"))]
        cells += [number(None if minutes is None else minutes / 60, 1), number(one.get("validation_dice"), 4)]
        rows.append([name, *cells, str(one.get("best_epoch", "–"))])
    header = ["network", "weights", "epochs", "CPU minutes", "validation Dice", "best epoch"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "monai", "pytorch-ignite"))
    differences = (
        "The weights of SUITS, of k_back = 1 and of VoxelMorph are those that are best on validation pairs, except in "
        "the rows of the last epoch, which compare both ways of training after equally many steps, with nothing that "
        "stops them in time; those of MIND-CNN are the last of the first phase, from which both second phases start. "
        "VoxelMorph is one dense subnetwork of the VTN bundle with mean squares of MIND-SSC and the paper's weight of "
        "0.1 on VoxelMorph's diffusion; Adam with 4e-4 falling to 0 in far fewer steps "
        "than the paper's 15,000 epochs with 1e-4."
    )
    examples = "\n".join(content["plan"]["each_run"])
    cores = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} used"
    parts = [differences, f"```bash\n{content['plan']['command']}\n```"]
    parts += [f"Networks are trained as if by, in the folder of their bundle,\n\n```bash\n{examples}\n```"]
    parts += [table(header, rows) if rows else "", f"Machine: {cores}. Versions: {versions}."]
    return "\n\n".join(part for part in parts if part)
