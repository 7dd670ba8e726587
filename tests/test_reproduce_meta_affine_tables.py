"""Verdicts, tables and figures of ``reproduce.py meta_affine`` on made-up numbers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from script_tools import ROOT

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import meta_affine_paper, meta_affine_tables  # noqa: E402
from reproducing.meta_affine_figures import draw  # noqa: E402
from reproducing.meta_affine_relations import judge, outliers  # noqa: E402
from reproducing.meta_affine_sets import SETS  # noqa: E402

IDENTITY = {"mean": 1.585, "median": 1.45, "max": 4.6, "draws": 10_000}
PAPERS = ("hands", "brain", "oasis")
Results = dict[str, dict[str, dict[str, Any]]]


def numbers(good: float, bad: int = 0, cases: int = 20, seconds: float = 0.01, worst: float = 4.0) -> dict[str, Any]:
    """So many cases at ``good``, of which ``bad`` are wrong."""
    mse = [worst] * bad + [good] * (cases - bad)
    return {
        "mse": mse,
        "epsilon_a": [math.sqrt(value) for value in mse],
        "epsilon_b": [0.1 * value for value in mse],
        "cpu_seconds": seconds,
        "seconds": seconds,
        "alone_cpu_seconds": 2 * seconds,
    }


def made() -> Results:
    """Numbers of which every relation shows."""
    results: Results = {}
    for name in SETS:
        results[name] = {
            "identity": numbers(1.6),
            "plain": numbers(0.3, 6),
            "multistart": numbers(0.0005, seconds=0.2),
            "ours": numbers(0.0001),
            "elastix": {**numbers(0.0002, 2, cases=10, seconds=0.3), "failed": 1, "tool": "itk-elastix 1.2.3"},
            "ants_initialiser": {**numbers(0.02, cases=10, seconds=0.5), "failed": 0, "tool": "antspyx 4.5"},
        }
        results[f"{name}_full"] = {"plain": numbers(0.3, 6)}
    for name in PAPERS:
        for other in PAPERS:
            good = numbers(0.002) if name == other else numbers(0.03, 3)
            results[name] |= {f"comb@{other}/single": good, f"learn@{other}/single": numbers(0.04)}
        results[name] |= {f"comb@{name}/levels": numbers(0.001), f"learn@{name}/levels": numbers(0.02)}
        results[f"{name}_full"] |= {f"comb@{name}/affine": numbers(0.001, 1), f"learn@{name}/affine": numbers(0.1)}
    return results


def verdicts(results: Mapping, identity: Mapping = IDENTITY) -> dict[str, bool]:
    return {one["claim"]: one["shows"] for one in judge(results, identity)}


def test_all_relations_show_where_they_should():
    found = judge(made(), IDENTITY)
    assert all(one["shows"] for one in found)
    required = [one["claim"] for one in found if one["required"]]
    assert len(set(required)) == len(required) == 21


def spoil(name: str, method: str, new: dict[str, Any]) -> Callable[[Results], None]:
    def change(results: Results) -> None:
        results[name][method] = new

    return change


@pytest.mark.parametrize(
    ("change", "claims"),
    [
        (spoil("hands", "comb@hands/single", numbers(0.002, 1)), ["Hands: comb << plain, mean", ", max"]),
        (spoil("brain", "comb@brain/single", numbers(0.0049, 4)), ["Brain: comb << plain, mean"]),
        (spoil("brain", "comb@brain/single", numbers(0.0051)), ["Brain: median of comb"]),
        (spoil("oasis", "comb@oasis/levels", numbers(0.002)), ["Oasis: levels better than single"]),
        (spoil("hands", "elastix", numbers(0.0, 0, 10)), ["Hands: comb has fewer outliers than elastix"]),
        (spoil("brain_full", "comb@brain/affine", numbers(0.0, 20)), ["Brain, full affine: comb has fewer outliers"]),
        (spoil("unseen", "ours", numbers(0.0, 1, worst=0.051)), ["Hands, unseen: ours leaves no outlier"]),
    ],
)
def test_a_relation_that_does_not_hold_does_not_show(change, claims):
    results = made()
    change(results)
    broken = [claim for claim, shows in verdicts(results).items() if not shows]
    for claim in claims:
        assert any(claim in one for one in broken), broken


def test_transfer_and_speed_are_means_over_the_sets():
    results = made()
    for name in PAPERS:
        for other in PAPERS:
            results[name][f"comb@{other}/single"] = numbers(0.002 if name == other else 0.001)
    assert not verdicts(results)["training on the same set better than transfer, mean of the means of comb"]
    for name in SETS:
        results[name]["ours"] = numbers(0.0, seconds=0.03)
    told = {one["claim"]: one for one in judge(results, IDENTITY)}
    slow, fast = (told[f"ours faster than {than}, CPU time a case"] for than in ("multistart", "ANTs' initialiser"))
    assert (slow["shows"], fast["shows"]) == (False, True)
    assert slow["found"] == "6.7× (200.0, 30.0 ms)" and fast["found"] == "17× (500.0, 30.0 ms)"


def test_the_identity_must_be_where_the_paper_draws():
    claim = "identity: mean MSE of as many maps as Table 1 draws from"
    for mean, shows in ((1.571, True), (1.56, False), (1.62, False)):
        assert verdicts({}, {"mean": mean}) == {claim: shows}


def test_fewer_outliers_are_counted_on_the_same_cases():
    results = made()
    late = numbers(0.001, 3)
    late["mse"].reverse()  # the first ten, which elastix has seen, are right
    results["hands"]["comb@hands/single"] = late
    found = {one["claim"]: one for one in judge(results, IDENTITY)}["Hands: comb has fewer outliers than elastix"]
    assert found["shows"] and found["found"] == "0, 2 of 10"


def test_what_is_missing_is_not_judged():
    assert [one["claim"][:8] for one in judge({}, IDENTITY)] == ["identity"]
    results = {"hands": {"plain": numbers(0.3), "ours": numbers(0.0)}}
    assert [one["claim"] for one in judge(results, IDENTITY)][1:] == ["Hands: ours leaves no outlier"]


def test_a_number_that_is_none_is_an_outlier():
    assert outliers([0.05, 0.0500001, math.nan, math.inf, 0.0]) == 3


def content(results: Results) -> dict[str, Any]:
    plan = {
        "cases": 20,
        "epochs_per_step": 30,
        "pairs_per_epoch": 2000,
        "command": "python scripts/reproduce.py meta_affine",
        "each_run": "python -m monai.bundle run",
        "images": {name: {"training": 12, "validation": 3} for name in SETS},
    }
    machine = dict.fromkeys(("processor", "python", "torch", "monai", "pytorch-ignite"), "x")
    network = {"parameters": 24_000, "epochs": 150, "train_cpu_seconds": 90.0, "validation_mse": 0.02}
    return {
        "plan": plan,
        "identity": IDENTITY,
        "networks": {"hands/single": network},
        "environment": {**machine, "cores": 2, "threads": 1},
        "results": results,
        "relations": judge(results, IDENTITY),
    }


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_report_has_all_tables_with_ours_and_theirs():
    text = meta_affine_tables.markdown(content(made()))
    assert "21 of 21 relations show." in text and "itk-elastix 1.2.3" in text and "4 of them ended" in text
    found = rows(text)
    assert ["plain", "1.4100", "0.3000", "4.0000", "20 of 20", "10.0", "20.0", "1.17", "0.30", "8.28"] in found
    assert ["Brain → Hands", "0.6255", "0.0300", "4.0000", "3 of 20", "0.83", "0.11", "4.77"] in found
    assert ["FAIR (the paper's)", *["–"] * 6, "0.12", "0.01", "6.60"] in found
    fair = next(row for row in found if row[0].startswith("FAIR") and "0.08 / – / 1.38" in row)
    assert fair == ["FAIR (the paper's)", "–", "0.08 / – / 1.38", "–", "0.15 / – / 2.38", "–", "0.04 / – / 2.21", "–"]
    three = [row for row in found if len(row) == 9 and row[1] == "comb"]
    assert [row[6:] for row in three] == [
        *(["0.01", "0.00", "0.23"], ["0.04", "0.00", "0.56"], ["1.19", "0.02", "94.30"]),
        *(["0.00", "0.00", "0.00"], ["0.21", "0.00", "6.43"], ["0.44", "0.00", "8.97"]),
    ]
    widths = {len(line) for line in text.split("## Table 5")[1].split("## Table 6")[0].splitlines() if line[:1] == "|"}
    assert len(widths) == 1


def test_tables_of_what_has_not_been_trained_are_left_out():
    results = {"unseen": {"identity": numbers(1.6), "plain": numbers(0.3, 6)}}
    text = meta_affine_tables.markdown(content(results))
    assert "Table 1" in text and not any(f"Table {number}" in text for number in (2, 5, 6))
    assert ["plain", "1.410 / 0.300 / 4.000"] not in rows(text.split("## Table 4")[0].split("## Table 3")[0])
    assert ["plain", f"{np.mean([2] * 6 + [0.3**0.5] * 14):.3f} / {0.3**0.5:.3f} / 2.000"] in rows(text)


def test_the_sentence_names_what_does_not_show():
    results = made()
    results["unseen"]["ours"] = numbers(0.0, 2)
    text = meta_affine_tables.markdown(content(results))
    assert "20 of 21 relations show. Not so: Hands, unseen: ours leaves no outlier (2 of 20, worst 4.0000)." in text


def test_figures_have_a_panel_a_set_and_cope_with_little(tmp_path: Path):
    assert [path.name for path in draw(made(), tmp_path / "all")] == ["figure_3.png", "figure_4.png", "figure_6.png"]
    draw({"hands": {"plain": numbers(0.3, 6)}}, tmp_path / "one")
    with Image.open(tmp_path / "all/figure_3.png") as wide, Image.open(tmp_path / "one/figure_3.png") as narrow:
        assert wide.width > 3 * narrow.width and wide.height == narrow.height
        assert np.asarray(wide.convert("L")).std() > 5  # something is drawn


def test_the_papers_numbers_are_in_order():
    tables = (meta_affine_paper.MSE, meta_affine_paper.EPSILON_A, meta_affine_paper.EPSILON_B)
    for table in (*tables, meta_affine_paper.FULL_AFFINE, meta_affine_paper.LEVELS):
        assert set(table) == {"Hands", "Brain", "fastMRI"} == {one.paper for one in SETS.values() if one.paper}
        for row in table.values():
            for mean, median, largest in row.values():
                assert max(mean, median or 0) <= largest
    for name, row in meta_affine_paper.MSE.items():  # at the maxima the tables agree with eq. 8's integral
        largest = row["plain"][2], 4 * meta_affine_paper.EPSILON_A[name]["plain"][2] ** 2 / 3
        assert largest[0] > 0.6 * largest[1]


def test_numbers_are_rounded_for_the_json():
    assert meta_affine_tables.rounded({1: (0.12345678, 3), "a": None}) == {"1": [0.123457, 3], "a": None}
