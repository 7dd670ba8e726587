"""scripts/cohort.py killed again and again: no pair is lost, doubled or half written, and the bytes stay the same."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cohort
import pytest
import torch
from cohort_case import KILLED, begin, command, contents, forkserver, markers, tiny_bundle, write_pairs
from cohorts import crew
from script_tools import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PAIRS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, four pairs, and ``whole``, an undisturbed run."""
    folder = tmp_path_factory.mktemp("kill")
    tiny_bundle(folder)
    write_pairs(folder, PAIRS)
    process = begin(argv(folder, "whole"))
    process.join()
    assert process.exitcode == 0
    return folder


@pytest.fixture(autouse=True)
def _undo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a configuration sets."""
    monkeypatch.setattr("sys.excepthook", None)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def argv(folder: Path, output: str, *more: str) -> list[str]:
    return command(folder / "pairs.csv", folder / "tiny_registration", folder / output, *more)


def by_pair(found: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    pairs: dict[str, dict[str, bytes]] = {}
    for name, content in found.items():
        if "/" in name:
            pairs.setdefault(name.split("/")[0], {})[name] = content
    return pairs


def check_whole_pairs(place: Path, output: str) -> int:
    """Every folder that is there holds all files of its pair, with the right bytes; return how many there are."""
    found, whole = by_pair(contents(place / output)), by_pair(contents(place / "whole"))
    folders = {path.name for path in (place / output).glob("*") if path.is_dir() and not path.name.startswith(".")}
    assert folders == set(found)
    assert all(files == whole[name] for name, files in found.items())
    return len(found)


def check_finished(place: Path, output: str) -> None:
    """The same as the undisturbed run, each pair once, and nothing else."""
    out = place / output
    assert contents(out) == contents(place / "whole")
    assert list(markers(out)) == [f"p{number}" for number in range(PAIRS)]
    with (out / "summary.csv").open(newline="") as stream:
        assert [(row["name"], row["status"]) for row in csv.DictReader(stream)] == [
            (f"p{number}", "ok") for number in range(PAIRS)
        ]
    visible = {"summary.csv", "index.html", *(f"p{number}" for number in range(PAIRS)), ".cohort"}
    assert {path.name for path in out.iterdir()} == visible
    assert {path.name for path in (out / ".cohort").iterdir()} == {"pairs", "work"}
    assert not list((out / ".cohort" / "work").iterdir())


def finish(place: Path, output: str) -> None:
    process = begin(argv(place, output))
    process.join()
    assert process.exitcode == 0
    check_finished(place, output)


def kill_at_random(place: Path, kills: int, seed: int, prefix: str) -> list[int]:
    """Kill at random moments; return the pairs that were there each time. A cohort that gets done makes room."""
    draw, seen, round_ = random.Random(seed), [], 0
    begun = time.monotonic()
    finish(place, f"{prefix}-timed")
    lasts = time.monotonic() - begun
    while len(seen) < kills:
        output = f"{prefix}-{round_}"
        process = begin(argv(place, output))
        process.join(draw.uniform(0, lasts))
        process.kill()  # nothing happens to one that is done
        process.join()
        if process.exitcode == -signal.SIGKILL:
            seen.append(check_whole_pairs(place, output))
        else:
            assert process.exitcode == 0
            check_finished(place, output)
            round_ += 1
    finish(place, f"{prefix}-{round_}")
    return seen


def test_killed_at_a_few_moments(place: Path) -> None:
    kill_at_random(place, 3, 1, "few")


@pytest.mark.slow
def test_killed_at_twenty_moments(place: Path) -> None:
    seen = kill_at_random(place, 20, 2, "many")
    assert len(seen) == 20 and len(set(seen)) > 1  # not all before the first pair or after the last


def kill_at_changes(place: Path, output: str, stops: range | list[int]) -> None:
    for stop_at in stops:
        process = begin(argv(place, output), stop_at)
        process.join()
        check_whole_pairs(place, output)
        if process.exitcode == 0:
            return
        assert process.exitcode == KILLED
    finish(place, output)


def test_killed_between_changes_of_names(place: Path) -> None:
    """Around the first pair's moves into its place and the writing of its marker."""
    kill_at_changes(place, "changes", [21, 22])


@pytest.mark.slow
def test_killed_before_every_change_of_a_name(place: Path) -> None:
    """Each resumed run is killed one change later, so that all steps of a pair, cleaning included, are cut through."""
    kill_at_changes(place, "every", range(0, 60))


@pytest.mark.slow
def test_killed_while_results_of_other_options_are_replaced(place: Path) -> None:
    """Old and new results never mix: each folder is of the one or of the other."""
    done = [begin(argv(place, "replaced", "--initial_transform=header"))]
    done[0].join()
    old, new = by_pair(contents(place / "replaced")), by_pair(contents(place / "whole"))
    assert done[0].exitcode == 0 and old["p1"] != new["p1"]
    for stop_at in range(12, 36, 2):
        process = begin(argv(place, "replaced"), stop_at)
        process.join()
        found = by_pair(contents(place / "replaced"))
        assert all(files in (old[name], new[name]) for name, files in found.items())
        if process.exitcode == 0:
            break
    finish(place, "replaced")


@pytest.fixture
def fast_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that need not import everything anew."""
    monkeypatch.setattr(crew, "START", "forkserver")
    forkserver()


def test_two_workers_give_the_same_bytes(place: Path, fast_workers: None) -> None:
    assert cohort.main(argv(place, "two", "--workers=2")) == 0
    check_finished(place, "two")


def deadly_bundle(place: Path, name: str) -> Path:
    """The bundle, whose preprocessing kills its process when it meets pair p1."""
    root = place / name
    (root / "configs").mkdir(parents=True)
    for shared in ("scripts", "models"):
        (root / shared).symlink_to(place / "tiny_registration" / shared)
    config = json.loads((place / "tiny_registration" / "configs" / "inference.json").read_text())
    kill = "$lambda item: os.kill(os.getpid(), 9) if item['name'] == 'p1' else item"
    config["preprocessing"] = {"_target_": "Compose", "transforms": [config["preprocessing"], kill]}
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pair_that_kills_its_worker_costs_itself_only(
    place: Path, fast_workers: None, workers: int, capsys: pytest.CaptureFixture
) -> None:
    root, output = deadly_bundle(place, f"deadly{workers}"), place / f"death{workers}"
    arguments = command(place / "pairs.csv", root, output, f"--workers={workers}")
    assert cohort.main(arguments) == 3
    with (output / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == ["ok", "failed", "ok", "ok"]
    assert rows[1]["fault"].startswith("the process that registered it was killed by signal 9 (SIGKILL)")
    assert capsys.readouterr().err.count("p1: the process") == 2  # in its turn and at the end


def test_a_fault_of_the_bundle_comes_through_from_the_workers(place: Path, fast_workers: None, capsys) -> None:
    assert cohort.main(argv(place, "weightless", "--workers=2", "--weights=none.pt")) == 2
    assert "none.pt are missing" in capsys.readouterr().err.splitlines()[-1]
    assert not (place / "weightless").exists()
    assert cohort.main(argv(place, "broken", "--workers=1", "--set=cascade=DA")) == 1
    assert "error: ValueError: cascade must be" in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_itself_with_workers_killed_and_started_again(place: Path) -> None:
    """Only the master is killed; its workers end by themselves, and what they still do does no harm."""
    options = [sys.executable, str(ROOT / "scripts" / "cohort.py"), *argv(place, "program", "--workers=2")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(options, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    lines = [process.stderr.readline(), process.stderr.readline()]
    process.kill()
    process.wait()
    assert lines[0] == f"tiny_registration: {PAIRS} pairs; 0 finished before, {PAIRS} to do\n", lines
    assert lines[1].startswith("[1/4] ok p")
    assert check_whole_pairs(place, "program") >= 1
    done = subprocess.run(options, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    left = list((place / "program" / ".cohort" / "work").iterdir())
    finish(place, "program") if left else check_finished(place, "program")
