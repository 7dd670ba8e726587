"""Training by two processes with multi_gpu_train.json, started by torchrun: on CPUs with gloo, as on GPUs with nccl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_tools import BUNDLES, dimensions, run_python, tiny, write_data

pytestmark = pytest.mark.slow
DRIVER = Path(__file__).with_name("train_runs.py")
STEPS, EPOCHS = 3, 2  # of each process, an epoch


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def options(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    datalist = write_data(tmp_path_factory.mktemp("data"), dimensions(bundle))
    lists = json.loads(datalist.read_text())
    (pair,) = lists["validation"]  # each process needs one to validate on: MONAI's sampler deals none out to nobody
    swap = {"fixed": "moving", "moving": "fixed", "fixed_label": "moving_label", "moving_label": "fixed_label"}
    swapped = {swap.get(key, key): value for key, value in pair.items()} | {"name": "swapped"}
    datalist.write_text(json.dumps(lists | {"validation": [pair, swapped]}))
    knobs = tiny(bundle, "train") | {"pairs_per_epoch": 2 * STEPS, "max_epochs": EPOCHS, "batch_size": 1}
    return knobs | {"datalist": str(datalist), "backend": "gloo"}


def torchrun(bundle: Path, folder: Path, options: dict[str, Any], **entry: Any) -> str:
    """Train in ``folder`` with two processes; batch_size and steps are those of one of them. Return stderr."""
    plan = folder.with_name(f"{folder.name}.json")
    configs = ["train", "multi_gpu_train"]
    plan.write_text(json.dumps([{"configs": configs, "options": {**options, "output_dir": str(folder)}, **entry}]))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", DRIVER, bundle, plan]
    done = run_python(command, cwd=folder.parent)
    assert (done.returncode == 0) == (not entry.get("fails")), done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def trained(bundle: Path, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder; beside it "half", with the checkpoint of the first epoch."""
    folder = tmp_path_factory.mktemp("processes")
    torchrun(bundle, folder / "whole", options, keep=str(folder / "half"))
    return folder / "whole"


def load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def test_both_processes_have_the_same_weights_and_they_learned(trained):
    first, second = load(trained / "rank0.pt"), load(trained / "rank1.pt")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    checkpoint, half = load(trained / "checkpoint.pt"), load(trained.with_name("half") / "checkpoint.pt")
    assert (half["trainer"]["iteration"], checkpoint["trainer"]["iteration"]) == (STEPS, STEPS * EPOCHS)
    assert any(not torch.equal(half["model"][key], checkpoint["model"][key]) for key in half["model"])
    assert json.loads((trained / "rank0.json").read_text()) == json.loads((trained / "rank1.json").read_text())


def test_only_the_first_process_writes(trained):
    names = [path.name for path in trained.iterdir() if not path.name.startswith("rank")]
    writers = {name.split(".")[-2] for name in names if name.startswith("events")}
    assert len(writers) == 1, "events are named after the process"
    assert {"checkpoint.pt", "model.pt"} <= set(names)
    assert [name for name in names if name.endswith(".tmp") or name.startswith(".")] == []
    shipped = load(trained / "model.pt")
    assert shipped.keys() == load(trained / "rank0.pt").keys(), "no 'module.' in front of the names"


@pytest.mark.nightly
def test_both_go_on_where_they_stopped(bundle, options, trained):
    half = trained.with_name("half")
    torchrun(bundle, half, {**options, "resume": True})
    whole, resumed = load(trained / "checkpoint.pt"), load(half / "checkpoint.pt")
    assert resumed["trainer"]["iteration"] == STEPS * EPOCHS
    for key, value in whole["model"].items():
        torch.testing.assert_close(resumed["model"][key], value, atol=1e-6, rtol=0, msg=key)


@pytest.mark.nightly
def test_too_few_pairs_to_validate_on_are_told_before_training(bundle, options, tmp_path):
    told = torchrun(bundle, tmp_path / "few", {**options, "validate#dataset#length": 1}, fails=True)
    assert "error: the number of pairs to validate on, 1, is too small for 2 processes" in told
    assert not (tmp_path / "few" / "checkpoint.pt").exists()
