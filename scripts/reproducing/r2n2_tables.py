"""Table 1 of Sandkuehler et al. (2019), the paper's numbers beside ours, as Markdown and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from . import r2n2_paper as paper
from .pair_statistics import signed_rank
from .r2n2_methods import METHODS, PEERS
from .r2n2_relations import LEVEL, judge
from .r2n2_runs import ABLATION
from .reports import environment, publish, rounded
from .tables import claims_table, claims_verdict, number, p_value, real_table, table

Content = Mapping[str, Any]


def report(content: Content, options: argparse.Namespace) -> None:
    """Judge the relations, and publish tables and verdicts."""
    theirs = {"slices": paper.SLICES, "means": paper.MEANS, "seconds": paper.SECONDS, "parameters": paper.PARAMETERS}
    more = {"environment": environment(options), "relations": judge(content["table1"], content["ablation"])}
    content = rounded({**content, **more, "paper": theirs})
    publish(content, markdown(content), options)


def markdown(content: Content) -> str:
    """Return the report."""
    results, relations = content["table1"], content["relations"]
    parts = ["# R2N2: the paper's Table 1", _introduction(content)]
    parts += ["## Relations", claims_verdict(relations), claims_table(relations, _note())]
    if results:
        parts += ["## Table 1: landmarks in mm", _patients(results), _slices_note()]
        parts += [
            "## All pairs: accuracy, folds, time, size",
            _methods(results, content["environment"]),
            _tools(results),
        ]
    if "steps_mm" in results.get("r2n2", {}):
        parts += ["## Step by step", _course(results["r2n2"])]
    if content["ablation"]:
        parts += ["## Without state, without certainty", _ablation(content)]
    if content.get("real"):
        parts += ["## Real images, by the shipped weights", real_table(content["real"]), _real_note()]
    return "\n\n".join([*parts, "## How", _how(content)]) + "\n"


def _introduction(content: Content) -> str:
    test, size, shrink = (content["set"][key] for key in ("test", "size", "shrink"))
    seen, given = (f"{size['r2n2'][0] // k} × {size['r2n2'][1] // k}" for k in (shrink, 1))
    return (
        f"{test['subjects']} synthetic patients that no training has seen, {test['slices']} slices, one breathing "
        f"cycle of 21 frames each: {test['pairs']} pairs of {test['rows']} × {test['rows']} at "
        f"{test['spacing_mm']:g} mm. Every frame is registered to that whose mean intensity is nearest the mean of its "
        "slice. Landmarks are branchings of vessels and corners in the abdomen, their places known exactly; the "
        f"paper's were marked by hand in real images. R2N2 proposes bumps from {seen} pixels in "
        f"{content['set']['steps']['r2n2']} steps, with {content['set']['channels']} channels at its first level "
        f"(paper: 256 × 256, 25, 32), and polishes them on {given} by {content['set']['polish']} steps of "
        "Levenberg-Marquardt, which the paper does not; the others see all pixels."
    )


def _note() -> str:
    return (
        f"In parentheses: not demanded, told all the same. p: Wilcoxon's signed-rank test over pairs, two-sided; where "
        f"it is demanded it must be below {LEVEL}. Pairs that both have registered."
    )


def _patients(results: Content) -> str:
    """A row a patient and method, mean and in parentheses largest error over the images of each slice."""
    names = sorted({one.rsplit("_", 1)[0] for numbers in results.values() for one in numbers["slices"]})
    most = max(len({s for s in results["identity"]["slices"] if s.rsplit("_", 1)[0] == name}) for name in names)
    most = max(most, max(map(len, paper.SLICES["r2n2"])))
    rows = []
    for name in names:
        for method, title in METHODS.items():
            if method in results:
                rows.append([f"{name}, {title}", *_line(_by_slice(results[method], name), most)])
    for patient in range(len(paper.MEANS["r2n2"])):
        for method in ("bspline", "r2n2"):
            cells = [f"{mean:.2f} ({worst:.2f})" for mean, worst in paper.SLICES[method][patient]]
            cells += ["–"] * (most - len(cells))
            rows.append([f"paper {patient + 1}, {METHODS[method]}", *cells, f"{paper.MEANS[method][patient]:.2f}"])
    return table(["", *(f"slice {k + 1}" for k in range(most)), "mean"], rows)


def _by_slice(numbers: Content, name: str) -> list[list[float]]:
    found: dict[str, list[float]] = {}
    for one, error in zip(numbers["slices"], numbers["tre_mm"], strict=True):
        if one.rsplit("_", 1)[0] == name:
            found.setdefault(one, []).append(error)
    return [found[key] for key in sorted(found)]


def _line(slices: Sequence[Sequence[float]], most: int) -> list[str]:
    cells = [f"{fmean(errors):.2f} ({max(errors):.2f})" for errors in slices]
    mean = number(fmean(map(fmean, slices)) if slices else None, 2)
    return [*cells, *["–"] * (most - len(cells)), mean]


def _slices_note() -> str:
    return (
        "Mean over the images of a slice of the mean distance of landmarks, in parentheses the worst image; last "
        "column: mean of the slices. B-spline and tools registered fewer images of each slice, spread over the cycle: "
        "see below."
    )


def _methods(results: Content, machine: Content) -> str:
    rows = []
    for method, title in METHODS.items():
        if method not in results:
            continue
        numbers = results[method]
        cells = [number(fmean(numbers["tre_mm"]), 2), number(max(numbers["tre_mm"]), 2)]
        cells += [number(max(numbers["worst_mm"]), 1)]
        rival = "r2n2" in results and method != "r2n2"
        cells.append(p_value(signed_rank(results["r2n2"], numbers, "tre_mm") if rival else None))
        folds = [number(which(numbers["folds_percent"]), 3) for which in (fmean, max)]
        times = [number(median(numbers[key]) if numbers.get(key) else None, 3) for key in ("seconds", "cpu_seconds")]
        size = str(numbers.get("parameters", "–"))
        rows.append([title, *cells, *folds, *times, size, str(len(numbers["pairs"]))])
    header = [
        "",
        "mean mm",
        "worst image",
        "worst landmark",
        "p, R2N2",
        "folds %",
        "worst pair",
        "s",
        "CPU s",
        "numbers",
    ]
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
    note = (
        f"Seconds: medians over pairs, from images in memory to the field in memory, {threads}; R2N2's hold the way to "
        "the network's grid and back. The paper: 0.3 s and 4.5 s on a GeForce GTX 1080. Numbers: of the transform."
    )
    return table([*header, "pairs"], rows) + "\n\n" + note


def _tools(results: Content) -> str:
    found = [results[tool] for tool in PEERS if tool in results]
    if not found:
        return "No other tool was asked."
    failed = sum(numbers["failed"] for numbers in found)
    return (
        f"Tools: {', '.join(numbers['tool'] for numbers in found)}: SimpleElastix' default map of B-splines (mutual "
        "information, 10 mm, 4 resolutions of 256 iterations); greedy by local correlation of radius 2, 100/50/10 "
        f"iterations, no affine part. {failed or 'None'} of the registrations ended with an error"
        + (", counted as no registration." if failed else ".")
    )


def _course(numbers: Content) -> str:
    steps = len(numbers["widths_mm"][0])
    rows = []
    for t in range(steps + 1):
        cells = [number(fmean(row[t] for row in numbers["steps_mm"]), 2)]
        for key, digits in (("widths_mm", 1), ("lengths_mm", 2), ("motions", 2)):
            cells.append(number(fmean(row[t - 1] for row in numbers[key]), digits) if t else "–")
        rows.append([str(t), *cells])
    note = (
        "Means over pairs. Width: geometric mean of both axes; length: of the displacement at the centre; motion: how "
        "far tissue at the centre moves between the frames, in shares of the largest motion in the image, which is at "
        f"the diaphragm. Training ended at step {steps // 2}. All before the polish."
    )
    return table(["step", "landmarks mm", "width mm", "length mm", "motion there"], rows) + "\n\n" + note


def _ablation(content: Content) -> str:
    found, rows = content["ablation"], []
    for name, title in ABLATION.items():
        if name in found:
            numbers, facts = found[name], content["networks"].get(name, {})
            rival = "whole" in found and name != "whole"
            p = signed_rank(found["whole"], numbers, "tre_mm") if rival else None
            cells = [number(fmean(numbers["tre_mm"]), 3), number(max(numbers["tre_mm"]), 2), p_value(p)]
            cells += [number(facts.get("validation_mse"), 4), str(facts.get("epochs", "–"))]
            rows.append([title, *cells, str(facts.get("parameters", "–"))])
    size, steps = content["set"]["size"]["pretrain"], content["set"]["steps"]["pretrain"]
    note = f"{size[0]} × {size[1]}, {steps} steps, one seed, each trained on the same pairs in the same order."
    header = ["", "mean mm", "worst image", "p", "validation MSE", "epochs", "weights"]
    return table(header, rows) + "\n\n" + note


def _real_note() -> str:
    return (
        "Out of domain but for the cine frames, which are of the modality but from another scanner: nothing but the "
        "thorax was learned. Reported as they are."
    )


def _how(content: Content) -> str:
    machine, rows = content["environment"], []
    for name, one in content["networks"].items():
        seconds = one.get("train_cpu_seconds")
        cells = [str(one.get("parameters", "–")), str(one.get("epochs", "–"))]
        cells += [number(None if seconds is None else seconds / 60, 1), number(one.get("validation_mse"), 4)]
        rows.append([name, *cells, str(one.get("best_epoch", "–"))])
    header = ["network", "weights", "epochs", "CPU minutes", "validation MSE", "best epoch"]
    text = (
        "The weights are those with the least mean squared difference on validation patients. The B-spline has the "
        "paper's settings: 250 steps of Adam-AMSGrad at 0.001 at each of three resolutions, λ 0.01, control points "
        "every 8 pixels, in place of AirLab's kernels of (7, 21, 57) pixels, which do not give 2,312 numbers."
    )
    if content["plan"]["shipped"]:
        text += " R2N2's weights are those that the bundle ships (--shipped)."
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "monai", "pytorch-ignite"))
    examples = "\n".join(content["plan"]["each_run"])
    parts = [text, f"```bash\n{content['plan']['command']}\n```"]
    parts += [f"Networks are trained as if by, in the folder of their bundle,\n\n```bash\n{examples}\n```"]
    parts += [table(header, rows) if rows else ""]
    parts += [
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} used. Versions: {versions}."
    ]
    return "\n\n".join(part for part in parts if part)
