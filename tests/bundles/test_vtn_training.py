"""Training VTN: repeatable, resumable to the bit, the same on two processes, safe against a kill, watched."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_tools import ROOT, bundle_arguments, read_json, run_python, tiny, write_data
from ignite.engine import Engine

from shared_components.checkpoints import TrainingCheckpoint, save_atomically
from shared_components.errors import InputError

BUNDLE = ROOT / "bundles" / "vtn_registration"
DRIVER = Path(__file__).with_name("train_runs.py")
PAIRS, EPOCHS = 4, 3  # pairs an epoch
CRASH = 2 * PAIRS + 2  # an iteration in the third epoch


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny images and knobs; two validation pairs, so that each of two processes has one."""
    datalist = write_data(tmp_path_factory.mktemp("data"), 3)
    lists = read_json(datalist)
    (pair,) = lists["validation"]
    swapped = {"fixed": pair["moving"], "moving": pair["fixed"], "name": "swapped"}
    swapped |= {"fixed_label": pair["moving_label"], "moving_label": pair["fixed_label"]}
    datalist.write_text(json.dumps(lists | {"validation": [pair, swapped]}))
    known = tiny(BUNDLE, "train") | {"pairs_per_epoch": PAIRS, "max_epochs": EPOCHS, "cascade": "ADDD"}
    return known | {"datalist": str(datalist), "device": "cpu"}


@pytest.fixture(scope="module")
def runs(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one output folder a run, all made in one process."""
    folder = tmp_path_factory.mktemp("runs")

    def entry(name: str, *mixins: str, crash_at: int | None = None, inspect: bool = False, **more: Any) -> dict:
        chosen = {} if inspect else options
        return {
            "configs": ["train", *mixins],
            "options": {**chosen, **more, "output_dir": str(folder / name)},
            "crash_at": crash_at,
            "inspect": inspect,
        }

    plan = [
        entry("whole"),
        entry("again"),
        entry("crashed", crash_at=CRASH),
        entry("crashed", resume=True),
        entry("pairs_of_two", batch_size=2),
        entry("paper", "train_paper", invertibility_weight=0.001, max_epochs=1),
        entry("paper_size", "train_paper", inspect=True),
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    done = run_python([DRIVER, BUNDLE, folder / "plan.json"], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def distributed(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training by two processes with one pair each."""
    folder = tmp_path_factory.mktemp("distributed")
    more = {"backend": "gloo", "output_dir": str(folder)}
    (folder / "plan.json").write_text(
        json.dumps([{"configs": ["train", "multi_gpu_train"], "options": {**options, **more}}])
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = run_python([*torchrun, DRIVER, BUNDLE, folder / "plan.json"], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested states differ in any bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{where}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    return [] if a == b else [where]


def test_two_runs_give_the_same_weights(runs):
    assert differences(load(runs / "whole" / "rank0.pt"), load(runs / "again" / "rank0.pt")) == []
    assert read_json(runs / "whole" / "rank0.json") == read_json(runs / "again" / "rank0.json")


def test_training_moves_the_weights(runs):
    one_pair, two_pairs = load(runs / "whole" / "rank0.pt"), load(runs / "pairs_of_two" / "rank0.pt")
    assert len(differences(one_pair, two_pairs)) == len(one_pair)


def test_a_crashed_run_resumes_to_the_same_state_bit_for_bit(runs):
    whole, resumed = load(runs / "whole" / "checkpoint.pt"), load(runs / "crashed" / "checkpoint.pt")
    assert {"model", "optimizer", "lr_scheduler", "trainer", "best_metric"} <= whole.keys()
    assert whole["trainer"]["iteration"] == PAIRS * EPOCHS and whole["optimizer"]["state"]
    assert differences(whole, resumed) == []
    assert differences(load(runs / "whole" / "model.pt"), load(runs / "crashed" / "model.pt")) == []


def test_two_processes_keep_equal_weights(distributed):
    first, second = load(distributed / "rank0.pt"), load(distributed / "rank1.pt")
    assert first.keys() == second.keys() and differences(first, second) == []


def test_two_processes_have_the_loss_of_one_with_the_same_batch(runs, distributed):
    both = [read_json(distributed / f"rank{rank}.json") for rank in (0, 1)]
    one = read_json(runs / "pairs_of_two" / "rank0.json")
    assert both[0] == both[1], "the means are over both processes"
    assert both[0] == pytest.approx(one, abs=1e-4)
    other = read_json(runs / "whole" / "rank0.json")
    assert abs(one["loss"] - other["loss"]) > 1e-3, "the comparison must be able to fail"


def test_only_the_first_process_writes(distributed):
    names = sorted(path.name for path in distributed.iterdir() if not path.name.startswith(("rank", "events")))
    assert names == ["checkpoint.pt", "model.pt", "plan.json"]
    alone = len(list(distributed.glob("events.*")))
    assert alone == len({path.name.split(".")[-2] for path in distributed.glob("events.*")}) * 2  # one process, 2 files


def test_events_have_losses_by_stage_and_metrics_by_epoch(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = EventAccumulator(str(runs / "whole"))
    log.Reload()
    tags = set(log.Tags()["scalars"])
    stages = {f"train_loss/similarity_{name}" for name in ("A1", "D2", "D3")}
    assert {"train_loss/loss", "train_loss/tv", "train_loss/ortho", "dice", "folds_percent"} | stages <= tags
    losses = [event.value for event in log.Scalars("train_loss/loss")]
    assert len(losses) == EPOCHS and len(set(losses)) == EPOCHS
    assert losses[-1] == pytest.approx(read_json(runs / "whole" / "rank0.json")["loss"], rel=1e-5)
    assert [event.step for event in log.Scalars("dice")] == [1, 2, 3]


def test_paper_setting_trains_with_the_invertibility_loss(runs):
    terms = read_json(runs / "paper" / "rank0.json")
    assert {"inverse", "similarity_A1", "similarity_D3", "tv", "ortho", "det"} <= terms.keys()
    assert "folds" not in terms
    assert "similarity_D1" not in terms


def test_paper_setting_is_the_paper(runs):
    found = read_json(runs / "paper_size" / "inspected.json")
    assert found["parameters"] == 88_452_497
    assert found["weights"] == [1.0, 0.0, 0.05, 1.0]
    off = {"inverse": 0.0, "folds": 0.0, "endpoint": 0.0, "foreground": False}
    assert found["loss"] == {"tv": 1.0, "ortho": 0.1, "det": 0.1} | off
    assert found["similarity"] == "GlobalNCC"
    assert found["rates"] == pytest.approx([1e-4, 1e-4, 1e-4, 1e-4, 5e-5])
    assert found["batches"] == 20_000


def _checkpoint(folder: Path, value: float, resume: bool = False) -> tuple[TrainingCheckpoint, torch.nn.Module]:
    network = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(network.weight, value)
    return TrainingCheckpoint(str(folder), {"model": network}, resume=resume), network


def _run(checkpoint: TrainingCheckpoint, epochs: int) -> Engine:
    engine = Engine(lambda _, batch: None)
    checkpoint.attach(engine)
    engine.run([0, 1], max_epochs=epochs)
    return engine


def _half_a_file(then: Callable[[], None]) -> Callable[..., None]:
    def save(content: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        file.flush()
        then()

    return save


def _fail() -> None:
    raise OSError(28, "No space left on device")


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_an_empty_dataset_is_told(tmp_path):
    options = tiny(BUNDLE, "train") | {"dataset_dir": tmp_path / "none", "output_dir": tmp_path / "out"}
    done = run_python(["-m", "monai.bundle", *bundle_arguments(BUNDLE, ["train"], tmp_path, **options)], cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: there is nothing to train on: no training images")


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    _run(_checkpoint(tmp_path, 1.0)[0], 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(torch, "save", _half_a_file(_fail))
    with pytest.raises(OSError, match="No space left"):
        _run(_checkpoint(tmp_path, 2.0)[0], 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_kill_while_saving_leaves_a_checkpoint_to_resume_from(tmp_path, monkeypatch):
    _run(_checkpoint(tmp_path, 1.0)[0], 1)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(torch, "save", _half_a_file(_kill))
    child = multiprocessing.get_context("fork").Process(target=_run, args=(_checkpoint(tmp_path, 2.0)[0], 1))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    checkpoint, network = _checkpoint(tmp_path, 3.0, resume=True)
    engine = _run(checkpoint, 2)
    assert engine.state.epoch == 2 and engine.state.iteration == 4
    assert torch.equal(network.weight, torch.ones(2, 2))


def test_the_folder_is_flushed_before_the_rename(tmp_path, monkeypatch):
    """Without it a power cut can leave the new name with no content."""
    order = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append("fsync"))
    rename = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), rename(*paths)))
    save_atomically({"a": 1}, tmp_path / "x.pt")
    assert order == ["fsync", "replace"]
    assert load(tmp_path / "x.pt") == {"a": 1}


def test_resume_without_checkpoint_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="no checkpoint .* start without --resume"):
        _run(_checkpoint(tmp_path, 1.0, resume=True)[0], 1)


def test_resume_of_a_finished_run_says_what_to_do(tmp_path):
    _run(_checkpoint(tmp_path, 1.0)[0], 2)
    with pytest.raises(InputError, match="raise --max_epochs"):
        _run(_checkpoint(tmp_path, 1.0, resume=True)[0], 2)
