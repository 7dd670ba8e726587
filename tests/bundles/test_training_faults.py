"""What a night brings to a training, for every bundle: a kill, a loss that is no number, no images, a damaged one."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from bundle_tools import BUNDLES, dimensions, read_json, run_python, tiny, write_data

pytestmark = pytest.mark.nightly
SUBJECTS = 110  # of which 1 % may be damaged: one


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def faults(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened, see fault_runs.py, and the folder of it as "output"."""
    bundle, folder = request.param, tmp_path_factory.mktemp("faults")
    datalist = write_data(folder, dimensions(bundle))
    plan = {"output": str(folder), "datalist": str(datalist), "spoilt": str(many_and_one_damaged(datalist))}
    (folder / "plan.json").write_text(json.dumps(plan | {"options": tiny(bundle, "train") | {"device": "cpu"}}))
    done = run_python([Path(__file__).with_name("fault_runs.py"), bundle, folder / "plan.json"], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_json(folder / "FAULTS.json") | {"output": folder}


def many_and_one_damaged(datalist: Path) -> Path:
    """The images again and again under other names, and one that is cut short."""
    lists = read_json(datalist)
    folder = datalist.parent / "many"
    folder.mkdir()
    items = []
    for number in range(SUBJECTS):
        known = lists["training"][number % len(lists["training"])]
        items.append({key: str(folder / f"{number}_{Path(path).name}") for key, path in known.items()})
        for key, path in known.items():
            shutil.copy(path, items[-1][key])
    damaged = Path(items[SUBJECTS // 2]["image"])
    damaged.write_bytes(damaged.read_bytes()[:500])
    target = datalist.with_name("spoilt.json")
    target.write_text(json.dumps(lists | {"training": items}))
    return target


def load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_kill_while_the_checkpoint_is_written_costs_an_epoch_and_no_bit(faults: dict[str, Any]) -> None:
    assert faults["signal"] == signal.SIGKILL
    half = [name for name in faults["left"] if name.startswith(".checkpoint.pt.")]
    assert len(half) == 1 and {"checkpoint.pt", "model.pt"} <= set(faults["left"]), "it was killed in the midst"
    whole, resumed = (faults["output"] / name for name in ("whole", "killed"))
    assert load(whole / "checkpoint.pt")["trainer"]["iteration"] == 4
    assert equal(load(whole / "checkpoint.pt"), load(resumed / "checkpoint.pt"))
    assert equal(load(whole / "model.pt"), load(resumed / "model.pt"))
    assert not list(resumed.glob(".*.tmp")), "what the killed one left is cleared away"


def test_a_loss_that_is_no_number_stops_and_names_and_keeps_the_batch(faults: dict[str, Any]) -> None:
    told = faults["nan"][-1]
    assert told.startswith("FloatingPointError: training stopped in epoch 1, iteration 2, before the optimizer step")
    assert "the loss is nan" in told and "pairs: " in told and "unknown" not in told
    kept = load(faults["output"] / "nan" / "stopped_batch.pt")
    assert f"pairs: {kept['pairs']} " in told and kept["iteration"] == 2
    assert kept["batch"]["image"].shape[:2] == (1, 2) and bool(kept["batch"]["image"].isfinite().all())
    assert not (faults["output"] / "nan" / "checkpoint.pt").exists()


def test_no_images_are_told_in_a_sentence(faults: dict[str, Any]) -> None:
    assert faults["empty"][-1].startswith("InputError: there is nothing to train on: no training images were found")


def test_one_damaged_image_among_many_is_left_out_and_told_once(faults: dict[str, Any]) -> None:
    spoilt = faults["spoilt"]
    assert spoilt["told"] == [] and (faults["output"] / "spoilt" / "model.pt").is_file()
    (heard,) = spoilt["heard"]
    assert heard.startswith("left out of the training: ") and f"{SUBJECTS // 2}_" in heard and "damaged" in heard
