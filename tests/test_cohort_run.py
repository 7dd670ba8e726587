"""scripts/cohort.py with a tiny network: the bytes of register.py, resuming, shards, what goes wrong in the night."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cohort
import pytest
import register
from cohort_case import command, contents, markers, pairs_of, run, table
from script_tools import DONE

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undo_config")]
Run = Callable[..., int]


def test_a_folder_a_pair_and_a_summary(finished: Path) -> None:
    out = finished / "out"
    assert pairs_of(out) == ["p0", "p1", "p2"] == list(markers(out))
    rows = table(out)
    assert [(row["name"], row["status"]) for row in rows] == [("p0", "ok"), ("p1", "ok"), ("p2", "ok")]
    assert all(0 < float(row["dice_before"]) <= 1 and row["dice_after"] and row["device"] == "cpu" for row in rows)
    assert all(0 < float(row["seconds"]) < 60 and int(row["peak_memory_mb"]) > 50 for row in rows)
    assert all(set(record["thumbnails"]) == {"fixed", "moved"} for record in markers(out).values())
    page = (out / "index.html").read_text()
    assert page.count("data:image/png") == 6 and 'href="p1/"' in page
    assert not list((out / ".cohort" / "work").iterdir())


def test_the_files_are_those_of_register(finished: Path, tmp_path: Path) -> None:
    options = [f"--output_dir={tmp_path / 'one'}", "--device=cpu", "--threads=1"]
    for name, role in (("fixed", "fixed"), ("m1", "moving")):
        options += [
            f"--{role}={finished / f'{name}.nii.gz'}",
            f"--{role}_label={finished / f'{name}_seg.nii.gz'}",
        ]
    assert register.main([str(finished / "tiny_registration"), *options]) in DONE
    argv = [option for option in command(finished / "pairs.csv", finished / "tiny_registration", tmp_path / "many")
            if option != "--no_report"]  # fmt: skip
    assert cohort.main([*argv, "--shard=2/3"]) == 0
    one, many = contents(tmp_path / "one"), contents(tmp_path / "many" / "p1")
    assert one == many and {"report.html", "moved_label.nii.gz", "affine.tfm", "transform.json"} <= set(one)
    first = contents(finished / "out" / "p1")
    assert first == {name: content for name, content in many.items() if name != "report.html"}


def test_a_second_call_does_nothing(mine: Path, capsys: pytest.CaptureFixture) -> None:
    before = {path: path.stat().st_mtime_ns for path in (mine / "out").glob("p*/*")}
    assert run(mine) == 0
    assert "3 finished before, 0 to do" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (mine / "out").glob("p*/*")} == before


@pytest.mark.parametrize("spoil", ["folder", "file", "bytes", "marker", "both", "leftovers"])
def test_what_is_missing_is_done_again(finished: Path, mine: Path, spoil: str, capsys: pytest.CaptureFixture) -> None:
    out, marker = mine / "out", mine / "out" / ".cohort" / "pairs" / "p1.json"
    if spoil in ("folder", "both"):
        shutil.rmtree(out / "p1")
    if spoil in ("marker", "both", "leftovers"):
        marker.unlink()
    if spoil == "file":
        (out / "p1" / "moved.nii.gz").unlink()
    if spoil == "bytes":
        text = (out / "p1" / "metrics.json").read_text()
        (out / "p1" / "metrics.json").write_text(text.replace("1", "2", 1))
    if spoil == "leftovers":
        (out / ".cohort" / "work" / "dead").mkdir()
        (out / ".cohort" / "work" / "dead.lock").touch()
        (out / "p1" / ".partial-x").mkdir()
    assert run(mine) == 0
    assert "2 finished before, 1 to do" in capsys.readouterr().err
    assert contents(out) == contents(finished / "out") and list(markers(out)) == ["p0", "p1", "p2"]
    assert not list((out / ".cohort" / "work").iterdir())


def test_other_options_and_changed_inputs_run_again(mine: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(mine, "out", "--initial_transform=header") == 0
    err = capsys.readouterr().err
    assert "3 finished before are registered again: other options (initial_transform)" in err
    assert contents(mine / "out")["p1/ddf.nii.gz"]
    shutil.copy(mine / "m0.nii.gz", mine / "m1.nii.gz")
    assert run(mine, "out", "--initial_transform=header") == 0
    err = capsys.readouterr().err
    assert "2 finished before, 1 to do" in err and "1 finished before is registered again: moving changed" in err
    one, two = (json.loads((mine / "out" / name / "transform.json").read_text()) for name in ("p0", "p1"))
    assert one["moving"]["sha256"] == two["moving"]["sha256"]


def test_files_of_other_options_do_not_stay(mine: Path) -> None:
    argv = [option for option in command(mine / "pairs.csv", mine / "tiny_registration", mine / "out")
            if option != "--no_report"]  # fmt: skip
    assert cohort.main([*argv, "--shard=1/3"]) == 0
    assert (mine / "out" / "p0" / "report.html").exists()
    assert table(mine / "out")[1]["status"] == "waiting"  # done, but not with these options
    assert run(mine) == 0
    assert not (mine / "out" / "p0" / "report.html").exists()
    assert [row["status"] for row in table(mine / "out")] == ["ok"] * 3


def test_shards_share_a_folder_and_the_last_one_merges(finished: Path, mine: Path) -> None:
    for shard, done in (("2/2", [0, 1, 0]), ("1/2", [1, 1, 1])):
        assert run(mine, "shards", f"--shard={shard}") == 0
        assert [row["status"] == "ok" for row in table(mine / "shards")] == [bool(flag) for flag in done]
    assert contents(mine / "shards") == contents(finished / "out")
    (mine / "shards" / "summary.csv").unlink()
    assert run(mine, "shards") == 0
    assert [row["status"] for row in table(mine / "shards")] == ["ok"] * 3
    assert run(mine, "shards", "--shard=4/4") == 0  # which has no pair


def test_one_corrupt_file_in_twenty_costs_one_row(mine: Path, capsys: pytest.CaptureFixture) -> None:
    lines = ["name,fixed,moving"] + [f"q{number},fixed.nii.gz,m{number % 3}.nii.gz" for number in range(20)]
    (mine / "broken.nii.gz").write_bytes((mine / "m0.nii.gz").read_bytes()[:-40])
    lines[8] = "q7,fixed.nii.gz,broken.nii.gz"
    (mine / "pairs.csv").write_text("\n".join(lines))
    assert run(mine, "twenty") == 3
    rows = table(mine / "twenty")
    assert [row["name"] for row in rows] == [f"q{number}" for number in range(20)]
    assert [row["name"] for row in rows if row["status"] != "ok"] == ["q7"]
    assert rows[7]["fault"].startswith(f"moving image {mine / 'broken.nii.gz'} is damaged or cut short")
    assert "q7" not in pairs_of(mine / "twenty") and len(pairs_of(mine / "twenty")) == 19
    out, err = capsys.readouterr()
    assert "19 ok, 1 failed of 20" in out and f"failed: q7: {rows[7]['fault']}" in err and "Traceback" not in err
    shutil.copy(mine / "m1.nii.gz", mine / "broken.nii.gz")
    assert run(mine, "twenty") == 0
    assert "19 finished before, 1 to do" in capsys.readouterr().err
    assert [row["status"] for row in table(mine / "twenty")] == ["ok"] * 20


def test_nothing_done_is_code_2_and_old_results_do_not_stay(mine: Path) -> None:
    for number in range(3):
        (mine / f"m{number}.nii.gz").write_bytes(b"nothing")
    assert run(mine) == 2
    assert [row["status"] for row in table(mine / "out")] == ["failed"] * 3 and not pairs_of(mine / "out")
