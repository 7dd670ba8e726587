"""Verdicts, tables and figures of ``reproduce.py avsm`` on made-up numbers."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from script_tools import ROOT

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import avsm_figures, avsm_paper, avsm_tables  # noqa: E402
from reproducing.avsm_ablation import ROWS  # noqa: E402
from reproducing.avsm_methods import AFFINE_STEPS, METHODS, STEPS  # noqa: E402
from reproducing.avsm_relations import TITLES, judge, of_pairs  # noqa: E402

PAIRS = 20
AFFINE = {n: 0.45 - 0.1 / n for n in range(1, AFFINE_STEPS + 1)}
DICE = {
    "identity": 0.30,
    "affine_opt": 0.40,
    **{f"affine_net_{n}": value for n, value in AFFINE.items()},
    **{f"avsm_{n}": 0.5 + 0.01 * n for n in range(1, STEPS + 1)},
    "syn": 0.51,
    "vsvf_opt": 0.51,
    "free": 0.53,
    "vtn": 0.49,
}
TABLE_2 = dict(zip(ROWS, (0.1, 0.30, 0.35, 0.37, 0.42, 0.45, 0.48, 0.50, 0.498), strict=True))
Changes = Mapping[str, Mapping[str, float]]


def numbers(seed: int, dice: float, folds: float = 0.0, symmetry: float = -3.0, spread: float = 0.02) -> dict[str, Any]:
    """A method whose registrations differ by a level that all have in common, and a little noise."""
    level = np.random.default_rng(0).normal(0, 1, PAIRS)
    noise = np.random.default_rng(seed).normal(0, 0.002, (3, PAIRS))
    found = {"pairs": [f"{k}<-{k + 1}" for k in range(PAIRS)], "seconds": [2.0] * 5, "cpu_seconds": [2.0] * 5}
    found["dice"] = (dice + spread * level + noise[0]).tolist()
    found["hd95_mm"] = (5 * (1 - dice + noise[1])).tolist()
    found["folds"] = [int(folds * (1 + k % 3)) for k in range(PAIRS)]
    found["symmetry"] = (symmetry + 10 * noise[2]).tolist()
    return found | {name: [0.1 * folds] * PAIRS for name in ("fold_size", "folds_percent", "diagonal_folds")}


def made_up(dice: Mapping[str, float] | None = None, rows: Mapping[str, float] | None = None, **more: Any) -> Any:
    """Results in which all relations hold, but for the changes; ``more``: arguments of ``numbers`` for methods."""
    folds = {"free": 500.0, **{f"avsm_{n}": 5.0 * (n - 2) for n in range(3, STEPS + 1)}}
    results: dict[str, Any] = {"table1": {}, "table2": {}}
    for name in TITLES:
        found = {}
        for index, (method, mean) in enumerate((DICE | dict(dice or {})).items(), 1):
            options = {"folds": folds.get(method, 0.0), "spread": 0.06 if method == "affine_opt" else 0.02}
            found[method] = numbers(index, mean, **{**options, **more.get(method, {})})
            if name == "longitudinal":
                found[method]["error_mm"] = [1.0] * PAIRS
        found["vsvf_opt"]["cpu_seconds"] = [300.0] * PAIRS
        found["syn"] |= {"tool": "antspyx 1.0", "failed": 1}
        results["table1"][name] = found
        results["table2"][name] = {
            row: {
                seed: numbers(100 * k + int(seed), mean, symmetry=-4.0 if row == "IX" else -3.0, **more.get(row, {}))
                for seed in ("0", "1")
            }
            for k, (row, mean) in enumerate((TABLE_2 | dict(rows or {})).items(), 1)
        }
    return results


def verdicts(results: Any, required: bool = True) -> dict[str, bool]:
    return {one["claim"]: one["shows"] for one in judge(results) if one["required"] == required}


def test_what_must_show_shows_where_it_is_so() -> None:
    found = verdicts(made_up())
    assert len(found) == 21 and all(found.values()), [claim for claim, shows in found.items() if not shows]
    told = verdicts(made_up(), required=False)
    assert told["across subjects: AVSM > SyN, correlation"] and "across subjects: AVSM > Demons" not in told


@pytest.mark.parametrize(
    "changes, claim",
    [
        ({"dice": {"affine_net_1": 0.46}}, "more affine steps"),
        ({"dice": {"affine_net_7": 0.60}}, "more affine steps saturate"),
        ({"dice": {"affine_opt": 0.44}}, "across subjects: affine-net > affine-opt"),
        ({"affine_opt": {"spread": 0.01}}, "affine-net has the smaller spread"),
        ({"dice": {"avsm_3": 0.515}}, "test-time steps raise Dice"),
        ({"dice": {"avsm_1": 0.53}}, "vSVF steps at test time, 2 > 1"),
        ({f"avsm_{STEPS}": {"folds": 0.0}}, "test-time steps raise folds"),
        ({"avsm_2": {"folds": 1.0}}, "AVSM (2-step) does not fold"),
        ({"free": {"folds": 0.0}}, "AVSM (2-step) does not fold"),
        ({"rows": {"V": 0.36}}, "mk-LNCC > NCC, affine part"),
        ({"rows": {"VI": 0.4801}}, "mk-LNCC > NCC, with vSVF"),
        ({"rows": {"VIII": 0.47}}, "two vSVF steps > one"),
        ({"IX": {"symmetry": -2.0}}, "makes maps more symmetric"),
        ({"rows": {"IX": 0.48}}, "the symmetry loss costs little Dice"),
    ],
)
def test_what_is_not_so_does_not_show(changes: dict[str, Any], claim: str) -> None:
    made = made_up(**{key: value for key, value in changes.items() if key != "IX"})
    for name in TITLES if "IX" in changes else ():
        made["table2"][name]["IX"] = {seed: numbers(int(seed), 0.498, **changes["IX"]) for seed in ("0", "1")}
    failed = {text for text, shows in verdicts(made).items() if not shows}
    assert failed and any(claim in text for text in failed)
    allowed = {
        "test-time steps raise Dice",
        "the symmetry loss costs little Dice",
        "across subjects: affine-net",
        claim,
    }
    assert all(any(part in text for part in allowed) for text in failed), failed


def test_an_order_of_rows_must_show_in_each_seed() -> None:
    made = made_up()
    row = made["table2"]["cross"]["V"]
    row["0"] = numbers(7, 0.365)  # below IV, while the mean over both seeds is above
    row["1"] = numbers(8, 0.50)
    one = next(one for one in judge(made) if one["claim"] == "across subjects: mk-LNCC > NCC, affine part")
    assert not one["shows"] and "seeds -0.0" in one["found"] and ", +0.1" in one["found"]
    assert one["paper"] == "0.446, 0.375"


def test_orders_of_a_pair_are_one_sample() -> None:
    both = {"pairs": ["a<-b", "b<-a", "a<-c", "c<-a"], "dice": [0.2, 0.4, 0.5, None]}
    assert of_pairs(both, "dice") == {"pairs": ["a b", "a c"], "dice": [pytest.approx(0.3), None]}
    made = made_up()
    names = [f"{k // 2}<-x" if k % 2 else f"x<-{k // 2}" for k in range(PAIRS)]
    for method in ("affine_net_7", "affine_opt"):
        made["table1"]["cross"][method]["pairs"] = names
    one = next(one for one in judge(made) if one["claim"] == "across subjects: affine-net > affine-opt")
    assert one["found"].endswith("p 0.006")  # ten samples


def test_what_was_not_measured_does_not_show() -> None:
    found = judge({"table1": {}, "table2": {}})
    assert len(found) == 21 and all(one["required"] and not one["shows"] for one in found)
    assert {one["found"] for one in found} == {"not measured"}
    only = made_up()
    only["table2"] = {}
    assert [one["claim"] for one in judge(only) if one["found"] == "not measured"] == [
        one["claim"] for one in judge({"table1": {}, "table2": {}})[-10:]
    ]


def test_the_paper_has_its_numbers() -> None:
    assert avsm_paper.table_1("avsm_2", "cross") == (67.59, 4.47, 5.5, 0.39)
    assert avsm_paper.table_1("vtn", "cross") is None and avsm_paper.dice_2("IX", "longitudinal") == 82.67
    found = {one["claim"]: one["paper"] for one in judge(made_up())}
    assert found["across subjects: test-time steps raise Dice, 3 > 2"] == "0.684, 0.676"
    assert found["across subjects: affine-net has the smaller spread than affine-opt"] == "0.077, 0.181"
    assert found["across subjects: AVSM > VTN"] == "0.676, 0.661"
    assert found["longitudinal: the symmetry loss costs little Dice"] == "0.001"


def test_tables_say_it_beside_the_paper() -> None:
    made = made_up(rows={"VII": 0.4})
    machine = {"threads": 1, "processor": "P", "cores": 2, "python": "3", "torch": "2", "monai": "1"}
    machine["pytorch-ignite"] = "0"
    described = {
        "pairs": dict.fromkeys(TITLES, 10),
        "images": {"training": 20, "validation": 5},
        "size": [80, 112, 88],
        "spacing_mm": 2.0,
    }
    network = {"parameters": 1524651, "epochs": 50, "train_cpu_seconds": 600.0, "validation_dice": 0.5}
    plan = {"command": "reproduce", "each_run": ["train"], "ablation_epochs": [8, 6, 5, 10], "seeds": [0, 1]}
    text = avsm_tables.markdown(
        {
            **made,
            "relations": judge(made),
            "environment": machine,
            "sets": {"table1": described, "table2": described | {"spacing_mm": 4.0}},
            "networks": {"AVSM": network, "I, seed 1": {"failed": "the loss is nan"}},
            "plan": plan,
        }
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    at = [index for index, row in enumerate(rows) if row[0] == METHODS["avsm_2"]][-1]
    mine, theirs = rows[at : at + 2]
    dice = made["table1"]["cross"]["avsm_2"]["dice"]
    assert mine[1] == f"{np.mean(dice):.3f} ({np.std(dice):.3f})" and mine[2] == f"{min(dice):.3f}"
    assert theirs[0] == "– paper" and theirs[1] == "0.676 (0.045)" and theirs[5] == "5.5 [0.39]" == rows[at + 1][5]
    assert len(mine) == len(theirs) == len(rows[at - 1]) and theirs[-2] == "0.62"
    nine = next(row for row in rows if row[0] == "IX" and len(row) > 9)
    assert nine[1:9] == ["✓"] * 8 and nine[9].startswith("0.49") and nine[12] == "0.827" and nine[16] == "0.684"
    assert ["I, seed 1", "–", "–", "–", "–"] in rows and "No longer finite in training: I, seed 1." in text
    assert "19 of 21 relations show. Not so: longitudinal: mk-LNCC > NCC, with vSVF" in text
    assert "(across subjects: AVSM > SyN, correlation)" in text and "antspyx 1.0; 2 of their registrations" in text
    assert not re.search(r"\bnan\b|None", text)


def test_figures_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    results = made_up()["table1"]
    results["cross"]["identity"]["symmetry"] = [None] * PAIRS
    drawn = avsm_figures.draw(results, tmp_path)
    assert [path.name for path in drawn] == ["symmetry.png", "velocity_steps.png", "affine_steps.png"]
    assert all(path.stat().st_size > 5000 for path in drawn)
    few = {"cross": {"identity": results["cross"]["identity"], "vtn": results["cross"]["vtn"]}}
    assert [path.name for path in avsm_figures.draw(few, tmp_path)] == ["symmetry.png"]
    assert avsm_figures.draw({}, tmp_path) == []
