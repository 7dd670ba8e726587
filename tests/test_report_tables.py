"""Nested dictionaries as tables."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from shared_components.report.tables import facts_table, metrics_table, number


def cells(table: str) -> list[list[str]]:
    """Rows of a table as text."""
    rows = re.findall(r"<tr.*?</tr>", table)
    return [[re.sub(r"<.*?>", "", entry) for entry in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_metrics_in_every_shape_become_rows() -> None:
    head = ["Metric", "Before", "After", "Unit"]
    nested = {
        "tre": {"unit": "mm", "mean": {"before": 2.0, "after": 1.0}, "n": 5},
        "folds": {"value": 0.25, "unit": "%"},
    }
    expected = [["tre"], ["mean", "2", "1", "mm"], ["n", "–", "5", "mm"], ["folds", "–", "0.25", "%"]]
    assert cells(metrics_table(nested)) == [head, *expected]
    sides = {"before": {"dice": 0.5, "tre": {"mean": 3}}, "after": {"dice": None, "tre": {"mean": float("nan")}}}
    assert cells(metrics_table(sides)) == [head, ["dice", "0.5", "–", ""], ["tre"], ["mean", "3", "not defined", ""]]
    many = {"dice": {"mean": 0.5, "labels": {str(i): {"before": 0, "after": i} for i in range(30)}}}
    table = metrics_table(many)
    assert table.count("<details>") == 1
    assert cells(table.split("<details>")[0]) == [head, ["dice"], ["mean", "–", "0.5", ""]]
    assert len(cells(table.split("<details>")[1])) == 31


def test_facts_of_every_kind_are_written() -> None:
    facts = {
        "peak_memory_mb": np.float32(2.5),
        "affine": np.eye(2),
        "ok": True,
        "g": {"path": Path("a<b"), "none": None},
    }
    table = facts_table(facts | {"shape": (1, 2), "empty": []})
    assert "peak memory mb" in table and "<td>2.5</td>" in table and "<td>yes</td>" in table
    assert "<code>a&lt;b</code>" in table and "<td>1, 2</td>" in table
    assert table.count("<td>1</td>") == 2 and table.count("<td>–</td>") == 2


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0, "0"), (-0.0, "0"), (1.0, "1"), (12.3456, "12.35"), (-0.5, "−0.5"), (1e-9, "1e-09"), (123456.7, "123457")],
)
def test_numbers_are_short(value: float, written: str) -> None:
    assert number(value) == written
