"""Tables 1 to 6 of Kanter & Lellmann (2022), the paper's numbers beside ours, as Markdown and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

from . import meta_affine_paper as paper
from .meta_affine_relations import OUTLIER, judge, outliers
from .meta_affine_sets import SETS
from .reports import environment, publish, rounded
from .tables import claims_table, claims_verdict, number, table

Content = Mapping[str, Any]
NUMBERS = ("mean", "median", "max")
ROWS = {  # of Table 1: the method's name in the results -> in the table and in the paper
    "identity": "identity",
    "plain": "plain",
    "learn@{}/single": "learn",
    "comb@{}/single": "comb",
    "elastix": "elastix",
    "simpleitk": "SimpleITK",
    "ants_initialiser": "ANTs initialiser",
    "multistart": "multistart",
    "ours": "ours",
}


def report(content: Content, options: argparse.Namespace) -> None:
    """Print tables and verdicts; write JSON, Markdown and figures if asked for."""
    relations = judge(content["results"], content["identity"])
    more = {"environment": environment(options), "relations": relations, "paper": paper_numbers()}
    content = rounded({**content, **more})
    publish(content, markdown(content), options)
    if options.figures:
        from .meta_affine_figures import draw  # matplotlib takes a while

        draw(content["results"], Path(options.figures))


def paper_numbers() -> dict[str, Any]:
    """Return the paper's tables for the JSON."""
    transfer = {f"{train} -> {test}": numbers for (train, test), numbers in paper.TRANSFER.items()}
    tables = {"table_1": paper.MSE, "table_2": transfer, "table_3": paper.EPSILON_A, "table_4": paper.EPSILON_B}
    return tables | {"table_5": paper.FULL_AFFINE, "table_6": paper.LEVELS}


def markdown(content: Content) -> str:
    """Return the report."""
    results = content["results"]
    parts = ["# The learned affine optimiser: the paper's tables", _introduction(content)]
    parts += ["## Relations", claims_verdict(content["relations"]), _relations(content["relations"])]
    parts += ["## Table 1: MSE", *_table_1(results), _note_1(content)]
    transfer = list(_transfer_rows(results))
    if transfer:
        header = ["trained on → tested on", *NUMBERS, "outliers", *(f"paper {word}" for word in NUMBERS)]
        parts += ["## Table 2: MSE of comb on other sets than trained on", table(header, transfer)]
    parts += ["## Table 3: ε_A", _parameters(results, "epsilon_a", paper.EPSILON_A)]
    parts += ["## Table 4: ε_b", _parameters(results, "epsilon_b", paper.EPSILON_B)]
    for title, full, kind, theirs in (
        ("## Table 5: MSE, full affine maps", "_full", "affine", paper.FULL_AFFINE),
        ("## Table 6: MSE, network of four levels", "", "levels", paper.LEVELS),
    ):
        if rows := list(_method_rows(results, full, kind, theirs)):
            header = ["set", "method", *NUMBERS, "outliers", *(f"paper {word}" for word in NUMBERS)]
            parts += [title, table(header, rows)]
    if hands := content.get("hands_pair"):
        parts += ["## The pair of hands, end to end", _hands(hands)]
    return "\n\n".join([*parts, "## How", _how(content)]) + "\n"


def _hands(hands: Mapping[str, Any]) -> str:
    before, after = hands["before"], hands["after"]
    return (
        "The paper's two X-rays as they are, of different hands, one registered onto the other from file to file by "
        f"`register.py meta_affine`: the seven landmarks are {number(before['mean'], 1)} pixels apart in the mean "
        f"(largest {number(before['max'], 1)}) before, {number(after['mean'], 1)} ({number(after['max'], 1)}) after; "
        f"the affine map fitted to the landmarks themselves leaves {number(hands['best_affine'], 1)}."
    )


def _title(name: str) -> str:
    one = SETS[name]
    return one.title if one.paper in (one.title, None) else f"{one.title} (paper: {one.paper})"


def summary(values: Sequence[float]) -> tuple[float, float, float]:
    """Return mean, median and max."""
    return fmean(values), median(values), max(values)


def _cells(mse: Sequence[float]) -> list[str]:
    return [*(number(value, 4) for value in summary(mse)), f"{outliers(mse)} of {len(mse)}"]


def _theirs(numbers: Sequence[float | None] | None) -> list[str]:
    return [number(value, 2) for value in numbers or (None, None, None)]


def _table_1(results: Content) -> Iterator[str]:
    for name in SETS:
        if name not in results:
            continue
        theirs, rows = paper.MSE.get(SETS[name].paper, {}), []
        for key, title in ROWS.items():
            found = results[name].get(key.format(name))
            if found is not None:
                alone = found.get("alone_cpu_seconds", found["cpu_seconds"])
                times = ["–"] * 2 if key == "identity" else [number(1000 * t, 1) for t in (found["cpu_seconds"], alone)]
                rows.append([title, *_cells(found["mse"]), *times, *_theirs(theirs.get(title))])
        if "FAIR" in theirs:
            rows.append(["FAIR (the paper's)", *["–"] * 6, *_theirs(theirs["FAIR"])])
        header = [_title(name), *NUMBERS, "outliers", "ms a case", "ms alone", *(f"paper {word}" for word in NUMBERS)]
        yield table(header, rows)


def _note_1(content: Content) -> str:
    found = [(key, numbers) for methods in content["results"].values() for key, numbers in methods.items()]
    tools = sorted({numbers["tool"] for _, numbers in found if "tool" in numbers})
    failed = sum(numbers.get("failed", 0) for _, numbers in found)
    parts = [
        "MSE: the integral of |φ_x − φ_truth|² over Ω = [−1, 1]², as in the paper's tables (4 times eq. 8). Outliers: "
        f"MSE above {OUTLIER}. Time: CPU time, {content['environment']['threads']} thread; ours in one call over all "
        "cases (*alone*: one case a call, median of the first), the other tools one case after the other, from "
        "images in memory to the map in memory. *multistart*: *plain* from 7 rotations, the best goes on after the "
        "coarsest level. *ours*: the bundle as it is shipped."
    ]
    if tools:
        parts.append(
            f"Tools: {', '.join(tools)}; elastix as in the paper, L-BFGS on mean squares, SimpleITK on mean squares, "
            "both with 4 levels from the images' centres; ANTs' initialiser over ±63°. They ran on the first cases; "
            f"{failed or 'none'} of them ended with an error" + (", counted as identity." if failed else ".")
        )
    return " ".join(parts)


def _transfer_rows(results: Content) -> Iterator[list[str]]:
    for train, test in product(SETS, SETS):
        found = results.get(test, {}).get(f"comb@{train}/single")
        if train != test and found is not None:
            numbers = paper.TRANSFER.get((SETS[train].paper, SETS[test].paper))
            yield [f"{SETS[train].title} → {SETS[test].title}", *_cells(found["mse"]), *_theirs(numbers)]


def _parameters(results: Content, metric: str, theirs: Mapping[str, Mapping[str, Sequence]]) -> str:
    names = [name for name in SETS if name in results]
    rows = []
    for key, title in ROWS.items():
        row = [title]
        for name in names:
            found = results[name].get(key.format(name))
            row.append("–" if found is None else " / ".join(number(value) for value in summary(found[metric])))
            if SETS[name].paper:
                quoted = theirs[SETS[name].paper].get(title)
                row.append(" / ".join(_theirs(quoted)) if quoted else "–")
        rows.append(row)
    row = ["FAIR (the paper's)"]
    for name in names:
        row += ["–", " / ".join(_theirs(theirs[SETS[name].paper]["FAIR"]))] if SETS[name].paper else ["–"]
    header = [""]
    for name in names:
        header += [_title(name), "paper"] if SETS[name].paper else [_title(name)]
    note = "Mean / median / max; a dash among the paper's numbers is not legible in the text at hand."
    return table(header, [*rows, row]) + "\n\n" + note


def _method_rows(results: Content, full: str, kind: str, theirs: Mapping) -> Iterator[list[str]]:
    for name in SETS:
        found = results.get(name + full, {})
        if f"comb@{name}/{kind}" not in found:
            continue
        for method in ("plain", "learn", "comb", "multistart", "ours"):
            numbers = found.get(f"{method}@{name}/{kind}" if method in ("learn", "comb") else method)
            if numbers is None:
                continue
            quoted = theirs.get(SETS[name].paper, {}).get(method)
            yield [_title(name) if method == "plain" else "", method, *_cells(numbers["mse"]), *_theirs(quoted)]


def _relations(relations: Sequence[Mapping[str, Any]]) -> str:
    note = "In parentheses: not demanded, told all the same."
    return claims_table(relations, note)


def _introduction(content: Content) -> str:
    plan, parts = content["plan"], []
    for name, images in plan["images"].items():
        kept = "the same for training, validation and tests, as in the paper"
        if SETS[name].split:
            kept = f"{images['training']} for training, {images['validation']} others for validation and tests"
        parts.append(f"{_title(name)}: {SETS[name].folder}, {kept}")
    return (
        f"{plan['cases']} fixed test cases a set, 128×128: an image under a random rotation of up to 60° and shift of "
        "up to a quarter of the image, and the image with noise; the maps are others than in training and "
        "validation, and the same for all sets. "
        f"Images: {'; '.join(parts)}. The paper's network (24,000 weights) with {plan['epochs_per_step']} epochs of "
        f"{plan['pairs_per_epoch']} pairs for each of its steps (paper: 30 of 2000), and of these the weights that are "
        "best on validation cases."
    )


def _how(content: Content) -> str:
    plan, machine = content["plan"], content["environment"]
    rows = []
    for name, one in content["networks"].items():
        minutes = number(one["train_cpu_seconds"] / 60, 1)
        rows.append([name, str(one["parameters"]), str(one["epochs"]), minutes, number(one["validation_mse"], 4)])
    trained = table(["network", "weights", "epochs", "CPU minutes", "validation MSE"], rows) if rows else ""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "monai", "pytorch-ignite"))
    differences = (
        "As in the paper and its authors' code: gradients of unit length, an LSTM cell a step, steps trained one after "
        "the other by the distance of the last iterate to the truth, Adam with 0.005, batches of 50, L-BFGS with "
        "memory 5 and Armijo's rule, 30 iterations a level (15 after the network). Otherwise: levels are block means "
        "instead of cubic samples; float32; gradients are clipped at norm 1; full affine maps add uniform numbers of "
        "up to 0.15 to each entry of A, as in the code, instead of the text's normal ones."
    )
    example = "Each network is trained as if by, in the bundle's folder (here the one of four levels),"
    cores = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} used"
    return "\n\n".join(
        part
        for part in (
            differences,
            f"```bash\n{plan['command']}\n```",
            f"{example}\n\n```bash\n{plan['each_run']}\n```",
            trained,
            f"Machine: {cores}. Versions: {versions}.",
        )
        if part
    )
