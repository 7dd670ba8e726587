"""Verdicts of scripts/reproduce.py on made-up numbers: what shows, what shows in part, what does not."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from script_tools import ROOT

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import vtn, vtn_tables  # noqa: E402
from reproducing.tables import Relation, check, findings, relations_table, spread, table, verdict_sentence  # noqa: E402

CLAIM = Relation("B above A", "B", "A", "iou", paper=(0.8, 0.7), factor=100.0)


def values(**means: Sequence[Sequence[float]]) -> dict[str, dict[int, dict[str, list[float]]]]:
    """{network: {seed: {"iou": values of the pairs}}}."""
    return {name: {s: {"iou": list(row)} for s, row in enumerate(rows)} for name, rows in means.items()}


PAIRS = np.linspace(0.4, 0.6, 20)


def test_a_relation_that_shows():
    found = check(CLAIM, values(A=[PAIRS, PAIRS + 0.01], B=[PAIRS + 0.05, PAIRS + 0.03 + 0.01 * np.sin(range(20))]))
    assert found.shows and found.shows_in_mean and found.verdict == "shows" and found.p < 1e-4
    assert found.differences[0] == pytest.approx(0.05) and found.mean == pytest.approx(0.035, abs=2e-3)


def test_a_relation_that_shows_in_the_mean_only():
    found = check(CLAIM, values(A=[PAIRS, PAIRS], B=[PAIRS + 0.05, PAIRS - 0.01]))
    assert not found.shows and found.shows_in_mean
    assert found.verdict == "shows in the mean, not in seed 1"


@pytest.mark.parametrize("gain", [-0.02, 0.0])
def test_a_relation_that_does_not_show(gain):
    found = check(CLAIM, values(A=[PAIRS], B=[PAIRS + gain]))
    assert not found.shows and not found.shows_in_mean and found.verdict == "does not show"
    assert math.isnan(found.p) if gain == 0 else found.p < 1e-4


def test_lower_may_be_better():
    lower = Relation("B below A", "B", "A", "iou", higher=False)
    made = values(A=[PAIRS], B=[PAIRS - 0.02])
    assert check(lower, made).shows and not check(CLAIM, made).shows


def test_chance_gives_no_small_p():
    noise = np.random.default_rng(0).normal(0, 0.05, 20)
    assert check(CLAIM, values(A=[PAIRS], B=[PAIRS + noise - noise.mean() + 1e-4])).p > 0.2


def test_relations_without_both_networks_are_left_out():
    assert check(CLAIM, values(A=[PAIRS])) is None
    assert findings([CLAIM], values(B=[PAIRS])) == []
    apart = {"A": {0: {"iou": list(PAIRS)}}, "B": {1: {"iou": list(PAIRS)}}}
    assert check(CLAIM, apart) is None


def test_the_sentence_names_what_does_not_show():
    made = values(A=[PAIRS, PAIRS], B=[PAIRS + 0.1, PAIRS - 0.01], C=[PAIRS + 1, PAIRS + 1])
    also = Relation("C above A", "C", "A", "iou")
    told = findings([CLAIM, also, Relation("A above C", "A", "C", "iou", required=False)], made)
    assert verdict_sentence(told) == (
        "1 of 2 relations show in every seed. Not so: B above A – shows in the mean, not in seed 1."
    )
    lines = relations_table(told).splitlines()
    assert "+4.50" in lines[2] and "+10.00, -1.00" in lines[2] and lines[2].split("|")[6].strip() == "+10.00"
    assert lines[4].startswith("| (A above C)") and "does not show" in lines[4]


def test_spread_is_over_seeds_and_over_pairs():
    found = spread({0: {"iou": [0.2, 0.4]}, 1: {"iou": [0.6, 0.8, float("nan")]}}, "iou")
    assert found.mean == pytest.approx(0.5) and found.std == pytest.approx(0.4 / math.sqrt(2))
    assert found.std_pairs == pytest.approx(0.1) and found.seeds == 2


def test_tables_are_markdown_with_equal_columns():
    lines = table(["name", "x"], [["a", "1.5"], ["long name", "2"]]).splitlines()
    assert lines == ["| name      |   x |", "|-----------|----:|", "| a         | 1.5 |", "| long name |   2 |"]


def test_the_relations_are_those_of_the_paper():
    for relation in vtn_tables.RELATIONS:
        better, than = relation.paper
        assert (better > than) == relation.higher, relation.claim
        assert {relation.better, relation.than} <= set(vtn.NETWORKS) and relation.metric in vtn_tables.METRICS
    assert sum(relation.required for relation in vtn_tables.RELATIONS) == 8
