"""Tables 1 and 2 of Shen et al. (2019), the paper's numbers beside ours, as Markdown and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev
from typing import Any

import numpy as np

from . import avsm_paper as paper
from .avsm_ablation import COLUMNS, ROWS
from .avsm_methods import AFFINE_STEPS, METHODS, STEPS, TIMED
from .avsm_relations import LEVEL, TITLES, judge, of_pairs, of_seeds
from .avsm_sets import MEAN_MM, POSE
from .pair_statistics import signed_rank, worst
from .reports import environment, publish, rounded
from .tables import claims_table, claims_verdict, number, p_value, real_table, table

Content = Mapping[str, Any]
AGAINST = "avsm_2"  # what p compares with


def report(content: Content, options: argparse.Namespace) -> None:
    """Print tables and verdicts; write JSON and Markdown if asked for."""
    theirs = {"table1": paper.TABLE_1, "others": paper.OTHERS, "table2": paper.TABLE_2}
    more = {"environment": environment(options), "relations": judge(content), "paper": theirs}
    content = rounded({**content, **more})
    publish(content, markdown(content), options)


def markdown(content: Content) -> str:
    """Return the report."""
    parts = ["# AVSM: the paper's Tables 1 and 2", _introduction(content)]
    parts += ["## Relations", claims_verdict(content["relations"]), _relations(content["relations"])]
    for name, title in TITLES.items():
        if found := content["table1"].get(name):
            parts += [f"## Table 1: {title}", _table_1(found, name)]
    if content["table1"]:
        parts += [_note(content), "## Over test-time steps (Figures 8 and 10)", _steps(content["table1"])]
    if any(content["table2"].values()):
        parts += ["## Table 2: what each part adds", _table_2(content["table2"]), _note_2(content)]
    if real := content.get("real"):
        parts += ["## Knees, by weights that know brains", real_table(real)]
    return "\n\n".join([*parts, "## How", _how(content)]) + "\n"


def _introduction(content: Content) -> str:
    parts = []
    for name, one in content["sets"].items():
        size = "×".join(map(str, one["size"]))
        images = ", ".join(f"{count} {section}" for section, count in one["images"].items())
        pairs = " and ".join(f"{count} {TITLES[key]}" for key, count in one["pairs"].items())
        parts.append(f"Table {name[-1]}: {pairs} pairs (brains: {images}), {size} at {one['spacing_mm']:g} mm.")
    return (
        f"{' '.join(parts)} Every pair is registered in both orders. *Longitudinal*: a held-out brain and itself after "
        f"a known deformation (mean {MEAN_MM:g} mm, besides turns up to {POSE['rotation_deg']:g} degrees and shifts up "
        f"to {POSE['translation_mm']:g} mm) with another contrast, a bias field and noise; *across subjects*: two "
        "held-out brains. The paper's images are knees, OAI, and its labels cartilage; ours are structures of the "
        "brain, more than a hundred and most of them small, so that Dice is not to be compared across."
    )


def _relations(relations: Sequence[Mapping[str, Any]]) -> str:
    note = (
        "In parentheses: not demanded, told all the same. p: Wilcoxon's signed-rank test, two-sided, on the pairs "
        "that both have registered, means over the two orders (rows of Table 2: and over the seeds that both have; the "
        f"order must show in each seed); it must be below {LEVEL}. The pairs share a few brains: p is rather too "
        "small, for all alike."
    )
    return claims_table(relations, note)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float | None]) -> float | None:
    return fmean(_known(values)) if _known(values) else None


def _spread(values: Sequence[float | None], digits: int = 3) -> str:
    """Write mean and, in parentheses, standard deviation."""
    known = _known(values)
    return f"{number(fmean(known), digits)} ({number(float(np.std(known)), digits)})" if known else "–"


def _folds(folds: Sequence[float], size: Sequence[float]) -> str:
    return f"{number(fmean(folds), 1)} [{number(fmean(size), 2)}]"


def _table_1(found: Content, name: str) -> str:
    """One row a method and, where the paper has it, one below with its numbers."""
    exact = name == "longitudinal"
    rows = []
    for method, title in METHODS.items():
        if method not in found:
            continue
        one = found[method]
        p = None
        if AGAINST in found and method != AGAINST:
            p = signed_rank(of_pairs(found[AGAINST], "dice"), of_pairs(one, "dice"), "dice")
        cells = [_spread(one["dice"]), number(worst(one["dice"], True), 3), p_value(p), _spread(one["hd95_mm"], 2)]
        cells += [number(_mean(one["error_mm"]), 2)] if exact else []
        free = 100 * fmean(folds == 0 for folds in one["folds"])
        cells += [_folds(one["folds"], one["fold_size"]), number(free, 0), number(_mean(one["diagonal_folds"]), 1)]
        cells += [number(_mean(one["symmetry"]), 2)]
        cells += [number(median(one[key]) if one[key] else None, 2) for key in ("cpu_seconds", "seconds")]
        rows.append([title, *cells, str(len(one["dice"]))])
        rows += _paper_row(method, name, exact)
    header = ["", "Dice", "worst", "p, AVSM (2-step)", "HD95 mm", *(["error mm"] if exact else []), "folds [size]"]
    header += ["without %", "diagonal", "symmetry", "CPU s", "s", "registrations"]
    return table(header, rows)


def _paper_row(method: str, name: str, exact: bool) -> list[list[str]]:
    theirs = paper.table_1(method, name)
    if theirs is None:
        return []
    dice, std, folds, size = theirs
    cells = [f"{dice / 100:.3f} ({std / 100:.3f})", *["–"] * (4 if exact else 3), f"{folds:g} [{size:g}]"]
    return [["– paper", *cells, *["–"] * 4, number(paper.TABLE_1[method][2], 2), "–"]]


def _note(content: Content) -> str:
    tools = sorted({one["tool"] for found in content["table1"].values() for one in found.values() if "tool" in one})
    failed = sum(one.get("failed", 0) for found in content["table1"].values() for one in found.values())
    threads = content["environment"]["threads"]
    text = (
        "Dice and HD95: means over labels, which go through each field by nearest neighbour (a label that was pushed "
        "out counts as Dice 0 and has no distance); in parentheses the standard deviation over registrations. "
        "*folds*: voxels with a determinant of the Jacobian below 0, of the whole grid, in brackets the sum of its "
        "magnitude there; *without*: registrations that have no such voxel; *diagonal*: voxels in which the product of "
        "the diagonal is below 0, which is what the authors' code counts. *symmetry*: ln of the mean of "
        "|Φ⁻¹ ∘ (Φᵗˢ)⁻¹ − id|² in voxels, ten voxels and more from the border; lower is better. *error*: mean "
        "distance to the known deformation within the brain. Seconds: medians, of one registration "
        f"(networks: of the first {TIMED} pairs), {threads} thread{'s' * (threads != 1)}; vSVF-opt holds its affine "
        "part, so do the tools. *free field*: the displacements themselves, from the affine network's map on, by the "
        "same similarity alone. *refinement*: register.py's `--refine vsvf`. VTN registers both orders and averages, "
        "as it is shipped. The weights of AVSM are of its best epoch on pairs of these same held-out brains."
    )
    if tools:
        text += f" Tools: {', '.join(tools)}; {failed or 'none'} of their registrations ended with an error"
        text += ", counted as no registration." if failed else "."
    return text


def _steps(found: Content) -> str:
    rows = []
    for part, key, count in (("affine", "affine_net", AFFINE_STEPS), ("vSVF", "avsm", STEPS)):
        for steps in range(1, count + 1):
            cells = []
            for name in TITLES:
                one = found.get(name, {}).get(f"{key}_{steps}")
                cells += ["–"] * 3 if one is None else [
                    number(_mean(one["dice"]), 4),
                    number(_mean(one["folds"]), 1),
                    number(_mean(one["symmetry"]), 2),
                ]  # fmt: skip
            rows.append([f"{part}, {steps}", *cells])
    header = [f"{word}, {title}" for title in TITLES.values() for word in ("Dice", "folds", "symmetry")]
    return table(["steps", *header], rows)


def _table_2(results: Content) -> str:
    rows = []
    for row, how in ROWS.items():
        cells = ["✓" if part in how.parts else "" for part in COLUMNS]
        for name in TITLES:
            by_seed = results.get(name, {}).get(row, {})
            cells += [*_row_cells(by_seed), number((paper.dice_2(row, name) or float("nan")) / 100, 3)]
        rows.append([row, *cells])
    words = ("Dice", "folds", "symmetry", "paper, Dice")
    header = [f"{word}, {title}" for title in TITLES.values() for word in words]
    return table(["", *COLUMNS, *header], rows)


def _row_cells(by_seed: Content) -> list[str]:
    """Dice with its standard deviation over seeds, folds, symmetry."""
    if not by_seed:
        return ["–"] * 3
    seeds = list(by_seed)
    means = [fmean(_known(by_seed[seed]["dice"])) for seed in seeds]
    text = number(fmean(means), 3) + (f" ± {number(stdev(means), 3)}" if len(means) > 1 else "")
    others = [_mean(of_seeds(by_seed, seeds, metric)[metric]) for metric in ("folds", "symmetry")]
    return [text, number(others[0], 1), number(others[1], 2)]


def _note_2(content: Content) -> str:
    a, b, c, d = content["plan"]["ablation_epochs"]
    failed = [name for name, one in content["networks"].items() if "failed" in one]
    text = (
        f"± standard deviation over seeds {', '.join(map(str, content['plan']['seeds']))}. Epochs: {a + b} of the "
        f"affine part (with *Multi* {a} of one step and {b} of several), {c + d} of the vSVF part (with *Multi* {c} of "
        f"one step and {d} of two), as many pairs for all rows; all register both orders of a pair, *Sym* is the loss "
        "on that alone. Without *MK* the similarity is 1 − NCC. Rows VI to IX go on from the affine part of IV and V. "
        "The weights are those of the last epoch. The last row, IX, is called IV in the paper."
    )
    return text + (f" No longer finite in training: {'; '.join(failed)}." if failed else "")


def _how(content: Content) -> str:
    machine, rows = content["environment"], []
    for name, one in content["networks"].items():
        seconds = one.get("train_cpu_seconds")
        cells = [str(one.get("parameters", "–")), str(one.get("epochs", "–"))]
        cells += [number(None if seconds is None else seconds / 60, 1), number(one.get("validation_dice"), 4)]
        rows.append([name, *cells])
    header = ["network", "weights", "epochs", "CPU minutes", "validation Dice"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "monai", "pytorch-ignite"))
    examples = "\n".join(content["plan"]["each_run"])
    cores = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} used"
    parts = [f"```bash\n{content['plan']['command']}\n```"]
    parts += [f"Networks are trained as if by, in the folder of the bundle,\n\n```bash\n{examples}\n```"]
    parts += [table(header, rows) if rows else "", "CPU minutes of rows VI to IX are those of the vSVF part alone."]
    return "\n\n".join(part for part in [*parts, f"Machine: {cores}. Versions: {versions}."] if part)
