"""The benchmark of --batch: the same fields within a tolerance, and rows that add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarking import batches, results


def test_rows_tell_both_ways_and_how_far_they_differ(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "batches.json"
    result = batches.batches("r2n2", batch=2, threads=1, repeats=1, json=str(target))
    assert json.loads(target.read_text()) == result
    (row,) = result["rows"]
    assert row["name"] == "r2n2_registration" and row["batch"] == 2 and 0 <= row["difference_vox"] < 1e-3
    assert row["ratio"] == pytest.approx(row["one_by_one"] / row["together"], rel=0.01)
    assert "in one batch, s" in capsys.readouterr().out
    text = results.page([target])
    assert "## Several pairs in one batch (batches)" in text and "| r2n2_registration |" in text


def test_textures_differ_from_each_other() -> None:
    one, two = batches.textures(2, (16, 24))
    assert one.shape == (1, 2, 16, 24) and not torch.equal(one, two)
    assert 0 <= float(one.min()) and float(one.max()) <= 1
