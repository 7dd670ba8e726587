"""The throughput benchmark: its pairs are what they say, its rows add up, peers that fail are left out."""

from __future__ import annotations

import json
import sys
import time

import pytest
import torch
from benchmarking import results, throughput
from script_tools import ROOT

from shared_components.affine_search import AffineSearch


def test_pairs_are_turned_and_shifted_textures():
    images = throughput.random_pairs(4, (32, 32), seed=3)
    assert images.shape == (4, 2, 32, 32)
    assert torch.equal(images, throughput.random_pairs(4, (32, 32), seed=3))
    before = (images[:, 0] - images[:, 1]).square().mean()
    x = AffineSearch((4, 2, 1), scaled=True)(images[:1, :1], images[:1, 1:]).x
    assert before > 0.5 and torch.isfinite(x).all()


def test_rows_tell_pairs_and_rates():
    images = torch.rand(6, 2, 8, 8)
    rows = throughput.own_rows(lambda image: time.sleep(0.01), lambda image: time.sleep(0.01), images, repeats=2)
    assert [row["pairs"] for row in rows] == [6, 6, 1, 1]
    for row in rows:
        assert row["ms_per_pair"] * row["pairs_per_second"] == pytest.approx(1000, rel=0.05)
        assert row["low"] <= row["pairs_per_second"] * 1.001
    assert rows[1]["target"] == ">= 100 pairs/s" and rows[3]["target"] == "<= 60 ms"
    assert "target" not in rows[0] and "target" not in rows[2]


def test_a_missing_tool_is_left_out(capsys):
    assert throughput.peer_rows(torch.rand(1, 2, 8, 8), sys.executable + "-which-is-not-there") == []
    assert capsys.readouterr().err.strip()


def test_whole_benchmark_on_a_few_pairs(tmp_path, capsys):
    target = tmp_path / "throughput_meta_affine.json"
    result = throughput.throughput(pairs=3, threads=1, repeats=1, json=str(target))
    assert json.loads(target.read_text()) == result
    assert "network + solver, one call" in capsys.readouterr().out
    assert result["command"].startswith("python scripts/benchmark.py throughput --bundle meta_affine --pairs 3")
    page = results.page([target])
    assert "## Throughput (throughput_meta_affine)" in page and "| network, one pair |" in page
    assert (ROOT / "bundles" / "meta_affine_registration").is_dir()
