"""scripts/cohort.py when things go wrong: full disks, read-only folders, GPUs without memory, failing networks."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import cohort
import numpy as np
import pytest
import torch
from cohort_case import VOLATILE, begin, command, contents, pairs_of, run, table
from cohorts.worker import Worker

from shared_components import itk_io
from shared_components.results import save

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undo_config")]
Run = Callable[..., int]


@pytest.mark.parametrize(("change", "code", "sentence"), [
    (["--device=cuda:9"], 2, "device 'cuda:9' is not present on this machine; use --device auto or cpu"),
    (["--weights=none.pt"], 2, "none.pt are missing"),
    (["--set=cascade=DA"], 1, "ValueError: cascade must be"),
])  # fmt: skip
def test_what_no_pair_can_do_without(mine: Path, change: list[str], code: int, sentence: str, capsys) -> None:
    assert run(mine, "new", *change) == code
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: ") and sentence in err and "Traceback" not in err
    assert not (mine / "new").exists()


def test_an_output_folder_that_cannot_be_made_is_a_sentence(mine: Path, capsys: pytest.CaptureFixture) -> None:
    (mine / "file").write_text("")
    assert run(mine, "file/out") == 2
    assert "file/out cannot be written to (Not a directory); choose another" in capsys.readouterr().err


def test_a_read_only_folder_is_a_sentence(mine: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Rights do not stop root, so the system call refuses by itself."""
    if os.geteuid() == 0:
        real = Path.mkdir

        def refuse(self: Path, *args: object, **options: object) -> None:
            if "locked" in self.parts:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            real(self, *args, **options)

        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        (mine / "locked").mkdir(mode=0o500)
    assert run(mine, "locked") == 2
    err = capsys.readouterr().err
    assert "locked cannot be written to (Permission denied); choose another" in err and "Traceback" not in err


def full_from(monkeypatch: pytest.MonkeyPatch, pair: int) -> None:
    """Let the disk be full when the results of the so-manieth pair are written."""
    real, left = save.write_field, [2 * pair]

    def write_field(path: Path, field: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, field)

    assert save.write_field is itk_io.write_field
    monkeypatch.setattr(save, "write_field", write_field)


@pytest.mark.parametrize(("pair", "code"), [(0, 2), (1, 3)])
def test_a_full_disk_stops_the_run_and_keeps_what_is_done(
    finished: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, pair: int, code: int, capsys
) -> None:
    with monkeypatch.context() as patch:
        full_from(patch, pair)
        assert run(mine, "full") == code
    err = capsys.readouterr().err
    assert "(No space left on device)" in err and f"{pair} of 3 pairs are finished and kept" in err
    assert "Traceback" not in err and pairs_of(mine / "full") == [f"p{number}" for number in range(pair)]
    assert [row["status"] for row in table(mine / "full")] == ["ok"] * pair + ["waiting"] * (3 - pair)
    assert run(mine, "full") == 0
    assert contents(mine / "full") == contents(finished / "out")


@pytest.mark.slow
def test_a_disk_that_is_really_full(finished: Path, tmp_path: Path) -> None:
    """A tmpfs too small for three pairs, in a mount namespace of a process of its own."""
    log = tmp_path / "log.json"
    argv = command(finished / "pairs.csv", finished / "tiny_registration", tmp_path / "small")
    process = begin(argv, small=(str(tmp_path / "small"), str(log)))
    process.join(300)
    if process.exitcode == 77:
        pytest.skip("this user may not mount a file system")
    told = json.loads(log.read_text())
    assert told["code"] == 3 and "(No space left on device)" in told["err"] and "Traceback" not in told["err"]
    assert 0 < len(told["pairs"]) < 3 and "of 3 pairs are finished and kept" in told["err"]
    assert all(names == told["expected"] for names in told["pairs"].values())


@pytest.mark.parametrize(("failures", "used", "words"), [
    (1, "cuda:0", "features in half precision"),
    (2, "cpu", "registered on the CPU"),
])  # fmt: skip
def test_cuda_out_of_memory_falls_back_and_says_so(
    finished: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys, failures: int, used: str, words: str
) -> None:
    """There is no GPU here: the worker is told that its first device was one. Half precision first, then the CPU."""
    made, real = [], Worker._build

    def build(self: Worker, device: str) -> None:
        real(self, "cpu")
        self.device = "cpu" if device == "cpu" else "cuda:0"
        made.append((self.device, self._parser.get("precision")))

    failing, evaluate = [False, *[True] * failures, False, False], Worker._evaluate

    def fail(self: Worker, loaded: object) -> dict:
        if failing.pop(0):
            assert self.device == "cuda:0"
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return evaluate(self, loaded)

    monkeypatch.setattr(Worker, "_build", build)
    monkeypatch.setattr(Worker, "_evaluate", fail)
    argv = [option for option in command(mine / "pairs.csv", mine / "tiny_registration", mine / "gpu")
            if option != "--device=cpu"]  # fmt: skip
    assert cohort.main(argv) == 0
    plain = ("cuda:0", "float32")
    assert made == [plain, ("cuda:0", "bfloat16"), ("cpu", "float32"), plain][: failures + 1] + [plain]
    rows = table(mine / "gpu")
    assert [row["device"] for row in rows] == ["cuda:0", used, "cuda:0"]
    assert [row["note"] for row in rows] == ["", f"CUDA out of memory: {words}", ""]
    assert f"p1 (CUDA out of memory: {words})" in capsys.readouterr().err
    assert json.loads((mine / "gpu" / "p1" / "run.json").read_text())["fallback"] == f"CUDA out of memory: {words}"
    same = [name for name in contents(finished / "out") if used == "cpu" or not name.startswith("p1/")]
    assert {name: contents(mine / "gpu")[name] for name in same} == {
        name: contents(finished / "out")[name] for name in same
    }


def test_within_a_budget_of_memory_the_next_pair_waits(
    finished: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pair is read while another one is registered, and the results are the same."""
    order, load, evaluate = [], Worker._load, Worker._evaluate
    monkeypatch.setattr(Worker, "_load", lambda self, task: (order.append(f"read {task.name}"), load(self, task))[1])
    monkeypatch.setattr(Worker, "_evaluate", lambda self, loaded: (order.append("register"), evaluate(self, loaded))[1])
    assert run(mine, "kept", "--max_memory_gb=100") == 0
    assert order == ["read p0", "register", "read p1", "register", "read p2", "register"]
    assert contents(mine / "kept") == contents(finished / "out")


def test_a_gpu_without_room_for_the_network(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Worker._build

    def build(self: Worker, device: str) -> None:
        if device != "cpu":
            raise RuntimeError("CUDA error: out of memory")
        real(self, device)

    monkeypatch.setattr(Worker, "_build", build)
    argv = [option for option in command(mine / "pairs.csv", mine / "tiny_registration", mine / "gpu")
            if option != "--device=cpu"]  # fmt: skip
    assert cohort.main([*argv, "--shard=1/3"]) == 0
    (first, *_) = table(mine / "gpu")
    assert first["device"] == "cpu" and "the GPU has no memory left for the network" in first["note"]


def test_a_failure_of_the_network_costs_its_pair(finished: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluator that stopped halfway is not used again."""
    real, left = save.SaveRegistration.__call__, [1]

    def call(self: save.SaveRegistration, data: dict) -> dict:
        left[0] -= 1
        if left[0] == -1:
            raise MemoryError("no more")
        return real(self, data)

    monkeypatch.setattr(save.SaveRegistration, "__call__", call)
    assert run(mine, "half") == 3
    rows = table(mine / "half")
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert rows[1]["fault"] == "there is not enough memory (MemoryError: no more); use fewer workers or smaller images"
    kept = {name: data for name, data in contents(finished / "out").items() if not name.startswith("p1/")}
    assert contents(mine / "half") == kept


def test_warnings_of_the_library_become_notes(mine: Path, capfd: pytest.CaptureFixture) -> None:
    """A file that says nothing of its orientation."""
    import nibabel as nib

    bare = nib.Nifti1Image(np.asarray(nib.load(mine / "m1.nii.gz").dataobj), None)
    bare.header.set_zooms((4, 4, 4))
    nib.save(bare, mine / "bare.nii")
    (mine / "pairs.csv").write_text("fixed,moving\nfixed.nii.gz,bare.nii\nfixed.nii.gz,m0.nii.gz\n")
    assert run(mine, "notes") == 0
    first, second = table(mine / "notes")
    assert "says nothing of its orientation" in first["note"] and second["note"] == ""
    assert len(capfd.readouterr().err.splitlines()) == 3  # the plan, and a line a pair


def test_seconds_do_not_count_the_wait_for_the_turn(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    real = Worker._evaluate

    def slow(self: Worker, loaded: object) -> dict:
        time.sleep(4)  # the next pair is read meanwhile
        return real(self, loaded)

    monkeypatch.setattr(Worker, "_evaluate", slow)
    assert run(mine, "slow") == 0
    told = [json.loads((mine / "slow" / f"p{n}" / VOLATILE[0]).read_text())["seconds"] for n in range(3)]
    assert max(told) < 4
