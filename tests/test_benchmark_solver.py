"""The solver benchmark on tiny grids: rows, ratios, and that all methods found the same solution."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarking.solver import OURS, PEERS, headline, random_case, solver, to_markdown

from shared_components.errors import InputError


def test_table_ratio_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    path = tmp_path / "solver.json"
    found = solver(str(path), shape=(6, 7, 8), channels=4, repeats=1, batch=2, batch_repeats=1)
    assert torch.get_num_threads() == before
    assert found == json.loads(path.read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [*PEERS, *OURS]
    for row in rows.values():
        assert row["error"] < 1e-3 and row["iterations"] > 0 and row["seconds"] > 0
        assert row["name"] in OURS[:3] or row["residual"] < 2e-5  # float64; rounding to float32 leaves more
    better = min(rows[name]["seconds"] for name in PEERS[:2])
    best = found["ratio"]["name"]
    assert found["ratio"]["name"] == best
    assert found["ratio"]["ratio"] == pytest.approx(better / rows[best]["seconds"], rel=0.05)
    assert [row["name"] for row in found["batch"]] == ["spectral", "multigrid"]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"{best}: ") and "times as fast as the better pyamg (target 40)" in last
    assert found["command"].startswith("python scripts/benchmark.py solver --shape 6,7,8 --channels 4")
    assert "| spectral |" in to_markdown(found)


def test_only_solutions_that_count_make_the_headline() -> None:
    keys = ("name", "seconds", "speed_up", "residual", "error")
    rows = [
        (PEERS[0], 8.0, 0.5, 1e-6, 1e-6),
        (PEERS[1], 4.0, 1.0, 9e-6, 2e-6),
        ("pcg", 0.01, 400.0, 5e-5, 3e-6),  # fast, but neither residual nor error
        ("spectral", 0.04, 100.0, 5e-5, 1e-6),  # as exact as the better pyamg
        ("multigrid", 0.1, 40.0, 9e-6, 1e-5),  # within the tolerance
        ("spectral, float64", 0.08, 50.0, 1e-6, 1e-7),
    ]
    table = [dict(zip(keys, row, strict=True)) for row in rows]
    assert headline(table, 1e-5) == {"name": "spectral", "ratio": 100.0, "float64_ratio": 50.0}
    table[3]["error"] = 1e-4
    assert headline(table, 1e-5)["name"] == "spectral, float64"


def test_cases_are_reproducible_and_like_descriptors() -> None:
    (system, b), (more, c) = (random_case((16, 17, 18), 12, 10.0, batch, seed=3) for batch in (1, 2))
    assert torch.equal(b[0], c[0]) and torch.equal(system.blocks[0], more.blocks[0]) and not torch.equal(c[0], c[1])
    data = float(system.blocks[:, [0, 3, 5]].sum(1).mean())  # the trace: sum_c |J_c|^2
    assert 0.05 < data < 0.2


def test_a_grid_that_is_none() -> None:
    with pytest.raises(InputError, match="is no grid"):
        solver(shape=(6,))
