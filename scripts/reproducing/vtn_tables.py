"""The paper's numbers for VTN (liver), ours beside them, and the relations that must show."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from .reports import environment, publish
from .tables import Relation, Spread, findings, number, plus_minus, relations_table, spread, table, verdict_sentence

IDENTITY = "identity"
# Table V, and Table II for ADDD + inv: segmentation IoU, seconds with a GPU, seconds without
PAPER = {
    "D": (0.8119, 0.08, 10.0),
    "DD": (0.8556, 0.10, 20.0),
    "DDD": (0.8709, 0.12, 28.0),
    "AD": (0.8323, 0.09, 9.0),
    "ADD": (0.8703, 0.11, 19.0),
    "ADDD": (0.8868, 0.13, 26.0),
    "ADDD+inv": (0.8882, 0.13, 26.0),
}
# Table III: standard deviation of the Jacobian determinant and folding in percent, in parentheses over pairs
PAPER_SMOOTHNESS = {"ADDD": ("0.787 (0.171)", "0.365 (0.268)"), "ADDD+inv": ("0.770 (0.169)", "0.288 (0.240)")}
METRICS = ("iou", "label_iou", "dice", "folds_percent", "std_jacobian")
KEPT_BY_PAIR = ("iou", "folds_percent")  # what the tests over pairs need; the other metrics keep their means


def _overlap(claim: str, better: str, than: str, required: bool = True) -> Relation:
    paper = (PAPER[better][0], PAPER[than][0])
    return Relation(claim, better, than, "iou", required=required, paper=paper, factor=100.0)


RELATIONS = (
    _overlap("a second D helps: IoU of DD > D", "DD", "D"),
    _overlap("a third D helps: DDD > DD", "DDD", "DD"),
    _overlap("a second D helps: ADD > AD", "ADD", "AD"),
    _overlap("a third D helps: ADDD > ADD", "ADDD", "ADD"),
    _overlap("A helps: AD > D", "AD", "D"),
    _overlap("A helps: ADD > DD", "ADD", "DD"),
    _overlap("A helps: ADDD > DDD", "ADDD", "DDD"),
    Relation("inv lowers folds", "ADDD+inv", "ADDD", "folds_percent", higher=False, paper=(0.288, 0.365)),
    Relation("inv lowers std Jacobian", "ADDD+inv", "ADDD", "std_jacobian", False, False, (0.770, 0.787)),
    _overlap("inv does not cost IoU", "ADDD+inv", "ADDD", required=False),
)

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]


def report(
    plan: Mapping[str, Any], results: Results, seconds: Mapping[str, float], options: argparse.Namespace
) -> None:
    """Print tables and verdicts; write JSON and Markdown if asked for."""
    content = summarise(plan, results, seconds, options)
    publish(content, markdown(content), options)


def summarise(
    plan: Mapping[str, Any], results: Results, seconds: Mapping[str, float], options: argparse.Namespace
) -> dict[str, Any]:
    """Return everything the report says, ready for JSON."""
    values = {name: {seed: run["pairs"] for seed, run in runs.items()} for name, runs in results.items()}
    networks = {
        name: {
            "parameters": next(iter(runs.values())).get("parameters"),
            "seconds_a_pair": seconds.get(name),
            "metrics": {metric: vars(spread(values[name], metric)) for metric in METRICS},
            "seeds": {str(seed): _run_summary(run) for seed, run in runs.items()},
        }
        for name, runs in results.items()
    }
    return _plain(
        {
            "plan": dict(plan),
            "environment": environment(options),
            "networks": networks,
            "relations": findings(RELATIONS, {name: runs for name, runs in values.items() if name != IDENTITY}),
            "paper": {"table_v": PAPER, "table_iii": PAPER_SMOOTHNESS},
        }
    )


def _run_summary(run: Mapping[str, Any]) -> dict[str, Any]:
    pairs = run["pairs"]
    means = {metric: spread({0: pairs}, metric).mean for metric in METRICS}
    rest = {key: value for key, value in run.items() if key not in ("pairs", "parameters")}
    return {"mean": means, **rest, "by_pair": {metric: pairs[metric] for metric in KEPT_BY_PAIR}}


def _plain(value: Any) -> Any:
    """Round floats to six significant digits; NaN becomes None, keys become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if value == value else None
    return value


def _spread(content: Mapping[str, Any], name: str, metric: str) -> Spread:
    found = content["networks"][name]["metrics"][metric]
    return Spread(**{key: float("nan") if value is None else value for key, value in found.items()})


def markdown(content: Mapping[str, Any]) -> str:
    """Return the report."""
    found = [dict(one) for one in content["relations"]]
    parts = ["# VTN: the paper's tables on hippocampi", _introduction(content)]
    parts += ["## Network cascading (Table V; Table II for + inv)", _cascading(content)]
    if any(name in content["networks"] for name in PAPER_SMOOTHNESS):
        parts += ["## Smoothness (Table III)", _smoothness(content)]
    if found:
        note = (
            "Differences are percentage points of IoU, percentage points of voxels for folds. p: two-sided Wilcoxon "
            "signed-rank test over the pairs, averaged over seeds; pairs share subjects, so it flatters. In "
            "parentheses: not demanded, told all the same. Paper: the same difference there."
        )
        parts += ["## Relations", verdict_sentence(found), relations_table(found), note]
    return "\n\n".join([*parts, "## How", _how(content)]) + "\n"


def _introduction(content: Mapping[str, Any]) -> str:
    plan, config = content["plan"], content["plan"]["configs"]["reproduce.json"]
    settings = {**config, **plan["settings"]}
    size = "×".join(map(str, settings["size"]))
    seeds = len(plan["seeds"])
    return (
        f"Each network was trained for {plan['steps']} steps on the same pairs in the same order (one pair in both "
        f"orders a step), {seeds} seed{'s' if seeds > 1 else ''} ({', '.join(map(str, plan['seeds']))}); grid {size} "
        f"at {settings['spacing_mm']:g} mm, {settings['channels']} channels in the first layer (paper: 128³ liver CT, "
        f"16 channels, 100 000 steps of 8 pairs). {len(plan['subjects']['training'])} subjects for training; "
        f"{len(plan['pairs'])} ordered pairs of the {len(plan['subjects']['validation'])} validation subjects are "
        "measured, with the last weights. Numbers are means over seeds ± standard deviation over seeds."
    )


def _cascading(content: Mapping[str, Any]) -> str:
    rows = []
    for name, network in content["networks"].items():
        paper = PAPER.get(name, (None, None, None))
        seconds = network["seconds_a_pair"]
        rows.append(
            [
                name,
                *(plus_minus(_spread(content, name, metric)) for metric in ("iou", "label_iou", "dice")),
                number(None if seconds is None else 1000 * seconds, 1),
                number(paper[0], 4),
                number(paper[1], 2),
                number(paper[2], 0),
            ]
        )
    note = (
        "IoU: the paper's, of the whole organ (moved mask interpolated linearly, cut at one half). Label IoU and Dice: "
        "mean of the anterior and posterior part. Time a pair: network alone, median, networks in turn (on one CPU "
        "thread its CPU time). Absolute numbers of ours and the paper's are of different organs and sizes; the order "
        "is what can be compared."
    )
    header = ["network", "IoU", "label IoU", "Dice", "ms a pair", "paper IoU", "paper s GPU", "paper s CPU"]
    return table(header, rows) + "\n\n" + note


def _smoothness(content: Mapping[str, Any]) -> str:
    rows = []
    for name in content["networks"]:
        if name == IDENTITY:
            continue
        ours = [
            plus_minus(_spread(content, name, metric), 3, pairs=True) for metric in ("std_jacobian", "folds_percent")
        ]
        rows.append([name, *ours, *PAPER_SMOOTHNESS.get(name, ("–", "–"))])
    return table(["network", "std Jacobian", "folding (%)", "paper std Jacobian", "paper folding (%)"], rows) + (
        "\n\nIn parentheses the standard deviation over pairs, as in the paper."
    )


def _differences(config: Mapping[str, Any]) -> str:
    return (
        "As in the paper: global correlation, the similarity weights of Table I (1 on A and the last D, 0.05 on the D "
        "before it), orthogonality and determinant losses 0.1, the invertibility loss in the central half, random "
        "B-spline fields on the moving image, Adam. Otherwise: images are scaled to [0, 1] and cut around their centre "
        f"of mass; {config['levels']} halvings in each subnetwork; smoothness weight {config['tv_weight']:g} (paper: "
        f"1); learning rate {config['learning_rate']:g} falling along a half cosine (paper: 1e-4); the invertibility "
        "weight is the paper's 1e-3 times (128 / mean side of the grid)², because the loss is a squared length in "
        "voxels. Of these the smoothness weight was chosen, on training subjects among 1, 0.5 and 0.25; no other."
    )


def _how(content: Mapping[str, Any]) -> str:
    plan, machine = content["plan"], content["environment"]
    trained = [n for name, n in content["networks"].items() if name != IDENTITY]
    by_seed: dict[str, float] = {}
    for network in trained:
        for seed, run in network["seeds"].items():
            by_seed[seed] = by_seed.get(seed, 0.0) + run["train_cpu_seconds"] / 60
    minutes = ", ".join(f"{value:.0f}" for value in by_seed.values())
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "monai", "pytorch-ignite", "scipy"))
    parts: Sequence[str] = (
        _differences({**plan["configs"]["reproduce.json"], **plan["settings"]}),
        f"```bash\n{plan['command']}\n```",
        f"which trains each network as if by, in the bundle's folder,\n\n```bash\n{plan['each_run']}\n```",
        f"CPU minutes of training, all networks of a seed: {minutes}. Machine: {machine['processor']}, "
        f"{machine['cores']} cores, {machine['threads']} used{', ' + machine['gpu'] if machine['gpu'] else ''}. "
        f"Versions: {versions}.",
    )
    return "\n\n".join(parts)
