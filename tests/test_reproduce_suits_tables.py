"""Verdicts and tables of ``reproduce.py suits`` on made-up numbers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from script_tools import ROOT

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import suits_runs, suits_tables  # noqa: E402
from reproducing.suits_relations import judge, signed_rank  # noqa: E402

DICE = {
    "initial": 0.40,
    "elastix": 0.45,
    "voxelmorph": 0.46,
    "mind": 0.47,
    "mind_cnn": 0.48,
    "suits_first": 0.49,
    "suits": 0.52,
    "suits_first_last": 0.48,
    "suits_last": 0.515,
}


def made_up(name: str, changes: Mapping[str, float] | None = None, pairs: int = 25) -> dict[str, Any]:
    """Results of a set in which methods differ by constants and a little noise."""
    results = {}
    level = np.random.default_rng(0).normal(0, 0.05, pairs)
    for index, (method, mean) in enumerate((DICE | dict(changes or {})).items()):
        noise = np.random.default_rng(index + 1).normal(0, 0.005, pairs)
        dice = mean + level + noise
        numbers = {"dice": dice.tolist(), "hd95_mm": (50 * (1 - dice)).tolist()}
        organ = {str(label): None for label in suits_runs.SETS[name].labels}
        numbers["organs"] = {metric: {label: numbers[metric] for label in organ} for metric in ("dice", "hd95_mm")}
        seconds = [60.0 if method == "elastix" else 6.0] * 5
        numbers |= {"pairs": [f"p{k}" for k in range(pairs)], "seconds": seconds, "cpu_seconds": seconds}
        results[method] = numbers | {"folds_percent": [0.1 * index] * pairs}
    results["elastix"] |= {"tool": "itk-elastix 1.0", "failed": 0}
    return results


def verdicts(results: Mapping[str, Any]) -> dict[str, bool]:
    return {one["claim"]: one["shows"] for one in judge(results) if one["required"]}


def test_what_must_show_shows_where_it_is_so():
    found = verdicts({name: made_up(name) for name in suits_runs.SETS})
    assert len(found) == 8 and all(found.values())


@pytest.mark.parametrize(
    "changes, claim",
    [
        ({"mind_cnn": 0.53}, "SUITS > MIND-CNN"),
        ({"mind_cnn": 0.5199}, "SUITS > MIND-CNN"),  # higher, but by chance
        ({"mind_cnn": 0.39, "suits": 0.4}, "MIND-CNN > initial"),
        ({"suits_first_last": 0.53}, "SUITS of the last epoch > training at k_back = 1 as long"),
    ],
)
def test_what_is_not_so_does_not_show(changes, claim):
    found = verdicts({"abdomen": made_up("abdomen", changes), "brains": made_up("brains")})
    title = suits_runs.SETS["abdomen"].title
    assert not next(shows for text, shows in found.items() if text.startswith(f"{title}: {claim}"))
    assert all(shows for text, shows in found.items() if not text.startswith(title))


def test_a_slow_descent_does_not_show_as_fast():
    results = {"abdomen": made_up("abdomen")}
    results["abdomen"]["suits"]["cpu_seconds"] = [70.0] * 5
    found = next(one for one in judge(results) if "faster" in one["claim"])
    assert not found["shows"] and found["paper"] == "15 s (GPU), 120 s" and "70.0, 60.0 s" in found["found"]


def test_what_was_not_measured_does_not_show():
    results = {"abdomen": {name: made_up("abdomen")[name] for name in ("initial", "mind_cnn")}}
    found = verdicts(results)
    assert [claim for claim, shows in found.items() if shows] == ["Abdomen, CT → MR: MIND-CNN > initial, Dice"]
    assert sum(one["found"] == "not measured" for one in judge(results)) == 7


def test_only_common_pairs_are_compared():
    a, b = made_up("abdomen")["suits"], made_up("abdomen")["elastix"]
    few = {**b, "pairs": b["pairs"][:6], "dice": [None, *b["dice"][1:6]]}
    assert signed_rank(a, few, "dice") == pytest.approx(2 / 2**5)  # five pairs, all of one sign


def test_tables_say_it_beside_the_paper(tmp_path):
    results = {"abdomen": made_up("abdomen")}
    machine = {"threads": 1, "processor": "P", "cores": 2, "python": "3", "torch": "2", "monai": "1"}
    machine["pytorch-ignite"] = "0"
    described = {"pairs": 25, "images": {"training": 30}, "size": [128, 96, 96], "spacing_mm": 3.0}
    network = {"parameters": 97484, "epochs": 25, "train_cpu_seconds": 600.0, "validation_dice": 0.5, "best_epoch": 25}
    text = suits_tables.markdown(
        {
            "results": results,
            "relations": judge(results),
            "environment": machine,
            "sets": {"abdomen": described},
            "networks": {"abdomen/suits": network, "abdomen/suits_first": {}},
            "plan": {"command": "reproduce", "each_run": ["train"]},
        }
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    at = next(index for index, row in enumerate(rows) if row[0].startswith("MIND-CNN"))
    mine, theirs = rows[at : at + 2]
    assert theirs[0] == "– paper" and theirs[7:9] == ["0.484", "0.22"] and theirs[10] == "< 0.001"
    assert mine[7] == f"{np.mean(results['abdomen']['mind_cnn']['dice']):.3f}"
    assert mine[9] == f"{min(results['abdomen']['mind_cnn']['dice']):.3f}"
    assert "4 of 8 relations show. Not so: Brain, T2 → T1: SUITS > MIND-CNN, Dice (not measured)" in text
    assert "(Abdomen, CT → MR: SUITS > elastix, Dice)" in text and "itk-elastix 1.0" in text
    assert ["abdomen/suits_first", "–", "–", "–", "–", "–"] in rows
