"""Numbers over seeds and pairs, relations between them with a verdict, and tables that read well as text and Markdown.

Values come as ``{network: {seed: {metric: [one number a pair]}}}``, the pairs the same and in one order throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

Values = Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]


@dataclass(frozen=True)
class Spread:
    """Mean over seeds of the mean over pairs, and how far that varies.

    Attributes:
        mean: over seeds.
        std: sample standard deviation over seeds; NaN for one seed.
        std_pairs: standard deviation over pairs, mean over seeds (what the paper has in parentheses).
        seeds: how many.
    """

    mean: float
    std: float
    std_pairs: float
    seeds: int


def spread(by_seed: Mapping[int, Mapping[str, Sequence[float]]], metric: str) -> Spread:
    """Summarise one metric of one network; NaN pairs are left out."""
    rows = [np.asarray(values[metric], dtype=float) for values in by_seed.values()]
    means = [float(np.nanmean(row)) for row in rows]
    std = float(np.std(means, ddof=1)) if len(means) > 1 else math.nan
    return Spread(float(np.mean(means)), std, float(np.mean([np.nanstd(row) for row in rows])), len(means))


@dataclass(frozen=True)
class Relation:
    """A claim: ``metric`` of ``better`` is higher (or lower) than that of ``than``.

    Attributes:
        claim: in words.
        better, than: names of networks.
        metric: key of the values.
        higher: better means a higher number.
        required: one of the relations that must show; the others are told as well.
        paper: the paper's two numbers, in the same order.
        factor: numbers are multiplied by it when they are shown, 100 for points of a fraction.
    """

    claim: str
    better: str
    than: str
    metric: str
    higher: bool = True
    required: bool = True
    paper: tuple[float, float] | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Finding:
    """What the numbers say of a relation.

    Attributes:
        differences: {seed: mean over pairs of better - than}.
        mean: of these over seeds.
        p: two-sided Wilcoxon signed-rank test over pairs, each pair's difference averaged over seeds; NaN if all are 0.
        verdict: in words, see ``check``.
        shows: in every seed.
        shows_in_mean: in the mean over seeds.
    """

    differences: dict[int, float]
    mean: float
    p: float
    verdict: str
    shows: bool
    shows_in_mean: bool


def check(relation: Relation, values: Values) -> Finding | None:
    """Judge a relation on the seeds that both networks have; None if they have none in common.

    Verdicts: "shows" (in every seed), "shows in the mean, not in seed 1" and "does not show". No difference at all
    does not show.
    """
    better, than = values.get(relation.better, {}), values.get(relation.than, {})
    seeds = [seed for seed in better if seed in than]
    if not seeds:
        return None
    pairs = {s: np.subtract(better[s][relation.metric], than[s][relation.metric]).astype(float) for s in seeds}
    sign = 1 if relation.higher else -1
    differences = {seed: float(np.nanmean(row)) for seed, row in pairs.items()}
    mean = float(np.mean(list(differences.values())))
    against = [str(seed) for seed, value in differences.items() if not sign * value > 0]
    in_mean = sign * mean > 0
    verdict = "shows"
    if against:
        verdict = f"shows in the mean, not in seed {', '.join(against)}" if in_mean else "does not show"
    return Finding(differences, mean, _wilcoxon(np.mean(list(pairs.values()), axis=0)), verdict, not against, in_mean)


def _wilcoxon(differences: np.ndarray) -> float:
    differences = differences[np.isfinite(differences)]
    return float(wilcoxon(differences).pvalue) if np.any(differences) else math.nan


def findings(relations: Sequence[Relation], values: Values) -> list[dict[str, Any]]:
    """Return relation and finding of all that can be judged, as plain dictionaries."""
    judged = [(relation, check(relation, values)) for relation in relations]
    return [asdict(relation) | asdict(finding) for relation, finding in judged if finding is not None]


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with fixed digits, or a dash where there is none.

    Example:
        >>> number(0.12345), number(None), number(float("nan"))
        ('0.123', '–', '–')
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def plus_minus(found: Spread | None, digits: int = 3, pairs: bool = False) -> str:
    """Write "mean ± std over seeds", with the standard deviation over pairs in parentheses if asked for."""
    if found is None:
        return "–"
    text = number(found.mean, digits)
    text += f" ± {number(found.std, digits)}" if found.seeds > 1 else ""
    return f"{text} ({number(found.std_pairs, digits)})" if pairs else text


def p_value(p: float | None) -> str:
    """Write a p value.

    Example:
        >>> p_value(0.0321), p_value(1e-9), p_value(None)
        ('0.032', '< 0.001', '–')
    """
    return "< 0.001" if p is not None and p < 0.001 else number(p)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, padded so that it also reads well in a terminal; the first column is left-aligned."""
    lines = [list(map(str, line)) for line in (header, *rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]
    adjust: list[Callable[[str, int], str]] = [str.ljust] + [str.rjust] * (len(header) - 1)

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(put(cell, n) for put, cell, n in zip(adjust, cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (n + 1) + ("-" if i == 0 else ":") for i, n in enumerate(widths)) + "|"
    return "\n".join([row(lines[0]), rule, *map(row, lines[1:])])


def relations_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of findings: claim, verdict, difference in the mean and per seed, p, the paper's difference."""
    rows = []
    for one in found:
        factor, digits = one["factor"], 3 if one["factor"] == 1 else 2
        paper = None if one["paper"] is None else factor * (one["paper"][0] - one["paper"][1])
        signed = [f"{factor * value:+.{digits}f}" for value in (one["mean"], *one["differences"].values())]
        rows.append(
            [
                one["claim"] if one["required"] else f"({one['claim']})",
                one["verdict"],
                signed[0],
                ", ".join(signed[1:]),
                p_value(one["p"]),
                "–" if paper is None else f"{paper:+.{digits}f}",
            ]
        )
    return table(["relation", "verdict", "difference", "per seed", "p", "paper"], rows)


def verdict_sentence(found: Sequence[Mapping[str, Any]]) -> str:
    """Count in one or two sentences which of the required relations show."""
    required = [one for one in found if one["required"]]
    failed = [one for one in required if not one["shows"]]
    text = f"{len(required) - len(failed)} of {len(required)} relations show in every seed."
    if failed:
        text += " Not so: " + "; ".join(f"{one['claim']} – {one['verdict']}" for one in failed) + "."
    return text


def claims_verdict(relations: Sequence[Mapping[str, Any]]) -> str:
    """Return how many of the demanded relations show, and which do not."""
    required = [one for one in relations if one["required"]]
    failed = [f"{one['claim']} ({one['found']})" for one in required if not one["shows"]]
    text = f"{len(required) - len(failed)} of {len(required)} relations show."
    return text + (f" Not so: {'; '.join(failed)}." if failed else "")


def claims_table(relations: Sequence[Mapping[str, Any]], note: str) -> str:
    """Return a row a relation, those that need not show in parentheses, and a note."""
    rows = []
    for one in relations:
        claim = one["claim"] if one["required"] else f"({one['claim']})"
        rows.append([claim, one["wanted"], one["found"], "yes" if one["shows"] else "no", one["paper"]])
    return table(["relation", "wanted", "measured", "shows", "paper"], rows) + "\n\n" + note


def real_table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what was measured on real pairs: {case: {state: metrics.json}} -> a row a state."""
    rows = []
    for name, numbers in found.items():
        for state, one in numbers.items():
            overlap = one.get("labels", {}).get("after", {}).get("mean", {})
            error = one.get("points", {}).get("after", {})
            like = one.get("similarity", {}).get("correlation", {})
            cells = [number(like.get("after"), 3)]
            cells += [number(overlap.get("dice"), 3), number(overlap.get("hd95_mm"), 1)]
            cells += [number(error.get(key), 2) for key in ("mean", "max")]
            rows.append([f"{name}, {state}", *cells, number(one["field"]["folds_percent"], 3)])
    return table(["", "correlation", "Dice", "HD95 mm", "landmarks mm", "farthest", "folds %"], rows)
