"""Tables of the benchmark as text."""

from __future__ import annotations

from benchmarking import tables

COLUMNS = {"name": ("", ""), "seconds": ("s", ".2f"), "missing": ("m", ".1f")}


def test_columns_that_nothing_fills_are_left_out() -> None:
    table = tables.cells([{"name": "warp", "seconds": 0.5}, {"name": "loss"}], COLUMNS)
    assert table == [["", "s"], ["warp", "0.50"], ["loss", ""]]
    assert tables.aligned(table).splitlines() == ["         s", "warp  0.50", "loss"]
    assert tables.markdown(table).splitlines()[2] == "| warp | 0.50 |"


def test_nothing_measured_is_no_table() -> None:
    empty = tables.cells([], COLUMNS)
    assert tables.aligned(empty) == "" and tables.markdown(empty) == ""
