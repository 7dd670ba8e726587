"""Training the learned optimiser: one step after the other, resumable to the bit, the same on two processes."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from affine_search_case import phantom
from bundle_tools import ROOT, read_json, run_python, tiny, write_data
from ignite.engine import Engine

from shared_components.affine_search import AffineSSD, displacement_error, initial_guess, join

BUNDLE = ROOT / "bundles" / "meta_affine_registration"
HERE = Path(__file__).parent
PAIRS, EPOCHS = 4, 5  # two epochs for each of two steps, and one of both
CRASH = 3 * PAIRS + 2  # an iteration in the fourth epoch


@pytest.fixture(scope="module")
def scripts() -> ModuleType:
    """The bundle's package under another name, for its modules import each other."""
    name = "_meta_affine_scripts"
    if name not in sys.modules:
        folder = BUNDLE / "scripts"
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def module(scripts: ModuleType, name: str) -> ModuleType:
    return importlib.import_module(f"{scripts.__name__}.{name}")


# ---- the schedule ----------------------------------------------------------------------------------------------------


class Trial:
    """A training by hand, with what happened in each iteration."""

    def __init__(self, scripts: ModuleType, linear: str, per_epoch: int = 3, **knobs: Any) -> None:
        self.network = module(scripts, "network").MetaAffine((8, 8), (2, 1), linear)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1.0)
        self.schedule = module(scripts, "training").SuccessiveLayers(self.network, self.optimizer, **knobs)
        moving = phantom((8, 8)).float().repeat(2, 1, 1, 1)
        self.image, self.truth = torch.cat([moving.flip(2), moving], 1), initial_guess((8, 8), 2) + 0.3
        self.log: list[dict[str, Any]] = []
        self.engine = Engine(self._step)
        self.schedule.attach(self.engine)
        self.per_epoch = per_epoch

    def run(self, epochs: int) -> list[dict[str, Any]]:
        self.engine.run([0] * self.per_epoch, max_epochs=epochs)
        return self.log

    def _step(self, engine: Engine, _: int) -> None:
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.optimizer.zero_grad(set_to_none=False)  # as MONAI's trainer does
        stages = self.network(self.image, return_stages=True)
        ages = {int(state["step"]) for state in self.optimizer.state.values()}
        displacement_error(stages["x"][-1], self.truth).mean().backward()
        self.optimizer.step()
        after = self.network.state_dict()
        moved = {name.rsplit(".", 1)[0] for name in before if not torch.equal(before[name], after[name])}
        rate = self.optimizer.param_groups[0]["lr"]
        self.log.append({"moved": moved, "iterates": len(stages["x"]), "ages": ages, "rate": rate})


@pytest.mark.parametrize("linear", ["frozen", "trainable"])
def test_only_the_active_step_learns(scripts: ModuleType, linear: str) -> None:
    log = Trial(scripts, linear, epochs=2).run(5)
    shared = {"inward", "outward"} if linear == "trainable" else set()
    wanted = [{"steps.0"}] * 6 + [{"steps.1"}] * 6 + [{"steps.0", "steps.1"} | shared] * 3
    assert [entry["moved"] for entry in log] == wanted
    assert [entry["iterates"] for entry in log] == [2] * 6 + [3] * 9  # the network stops behind the active step


def test_each_phase_has_a_fresh_adam(scripts: ModuleType) -> None:
    log = Trial(scripts, "trainable", epochs=2).run(5)
    assert [entry["ages"] for entry in log] == [set(), *({k} for k in range(1, 6))] * 2 + [set(), {1}, {2}]


def test_rates_fall_by_half_a_cosine_in_each_phase(scripts: ModuleType) -> None:
    log = Trial(scripts, "frozen", epochs=2, learning_rate=0.01, joint_rate=0.002).run(6)
    half = [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    wanted = [0.01 * f for f in half] * 2 + [0.002 * f for f in half]
    assert [entry["rate"] for entry in log] == pytest.approx(wanted)


def test_rates_stay_if_asked_to(scripts: ModuleType) -> None:
    log = Trial(scripts, "frozen", epochs=1, learning_rate=0.01, joint_rate=0.002, constant=True).run(3)
    assert [entry["rate"] for entry in log] == [0.01] * 6 + [0.002] * 3


def test_without_epochs_of_their_own_all_steps_learn_from_the_beginning(scripts: ModuleType) -> None:
    log = Trial(scripts, "frozen", epochs=0).run(2)
    assert all(entry["moved"] == {"steps.0", "steps.1"} for entry in log)
    assert log[0]["rate"] == 0.001 and log[-1]["rate"] < 0.0001


# ---- does it learn? --------------------------------------------------------------------------------------------------


def test_it_learns_one_object_far_below_the_identity(scripts: ModuleType) -> None:
    """1.59 is what the identity leaves; one step after the other brings it down."""
    image = phantom((16, 16))[0].float()
    samples = module(scripts, "data").AffineSamples([{"image": image}], dict, noise=0.0, length=320, seed=3)
    network = module(scripts, "network").MetaAffine((16, 16), (2, 1, 1), "trainable", expansion=8)
    optimizer = torch.optim.Adam(network.parameters())
    loss = module(scripts, "losses").DisplacementLoss()

    def step(engine: Engine, first: int) -> None:
        made = samples.__getitems__(range(first, first + 32))
        optimizer.zero_grad(set_to_none=False)
        stages = network(torch.stack([item["image"] for item in made]), return_stages=True)
        loss(stages, torch.stack([item["truth"] for item in made])).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    schedule = module(scripts, "training").SuccessiveLayers(network, optimizer, epochs=10, learning_rate=0.01)
    engine = Engine(step)
    schedule.attach(engine)
    engine.run(range(0, 320, 32), max_epochs=30)
    held = module(scripts, "data").AffineSamples([{"image": image}], dict, noise=0.0, seed=4).__getitems__(range(100))
    image, truth = (torch.stack([item[key] for item in held]) for key in ("image", "truth"))
    with torch.no_grad():
        x = network(image, return_stages=True)["x"]
    errors = [float(4 * displacement_error(step, truth).mean()) for step in x]
    identity = join(torch.eye(2), torch.zeros(2)).expand(100, -1)
    assert float(4 * displacement_error(identity, truth).mean()) == pytest.approx(1.59, abs=0.3)
    assert errors[0] > errors[1] > errors[2] > errors[3], "each step goes on from the last"
    assert errors[-1] < 1.59 / 2, errors
    moved = AffineSSD(image[:, 1:], image[:, 1:]).moved(x[-1])
    assert float((moved - image[:, :1]).square().mean()) < 0.5 * float((image[:, 1:] - image[:, :1]).square().mean())


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny images and knobs."""
    datalist = write_data(tmp_path_factory.mktemp("data"), 2, 3)
    known = tiny(BUNDLE, "train") if (BUNDLE / "configs" / "metadata.json").exists() else {"size": [16, 16]}
    known |= {"strides": [2, 1], "expansion": 2, "epochs_per_step": 2, "max_epochs": EPOCHS, "batch_size": 1}
    known |= {"pairs_per_epoch": PAIRS, "val_interval": 1, "num_workers": 0, "validate#dataset#length": 4}
    return known | {"datalist": str(datalist), "device": "cpu"}


def entry(folder: Path, options: dict[str, Any], name: str, *mixins: str, crash_at: int | None = None, **more: Any):
    knobs = {**options, **more, "output_dir": str(folder / name)}
    return {"configs": ["train", *mixins], "options": knobs, "crash_at": crash_at}


@pytest.fixture(scope="module")
def runs(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one output folder a run, all made in one process."""
    folder = tmp_path_factory.mktemp("runs")
    together = {"epochs_per_step": 1, "max_epochs": 2, "batch_size": 2, "pairs_per_epoch": 6}
    plan = [
        entry(folder, options, "whole"),
        entry(folder, options, "again"),
        entry(folder, options, "crashed", crash_at=CRASH),
        entry(folder, options, "crashed", resume=True),
        entry(folder, options, "switch", crash_at=2 * PAIRS + 1),  # just behind a switch
        entry(folder, options, "switch", resume=True),
        entry(folder, options, "pairs_of_two", **together),
        entry(folder, options, "others", seed=1),
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    done = run_python([HERE / "train_runs.py", BUNDLE, folder / "plan.json"], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def distributed(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training by two processes, three iterations for each of two steps."""
    folder = tmp_path_factory.mktemp("distributed")
    more = {"backend": "gloo", "epochs_per_step": 1, "max_epochs": 2, "pairs_per_epoch": 6}
    plan = [entry(folder, options, "both", "multi_gpu_train", **more)]
    (folder / "plan.json").write_text(json.dumps(plan))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = run_python([*torchrun, HERE / "train_runs.py", BUNDLE, folder / "plan.json"], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "both"


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


def test_two_runs_give_the_same_weights_and_another_seed_others(runs: Path) -> None:
    whole, again, other = (load(runs / name / "rank0.pt") for name in ("whole", "again", "others"))
    assert differences(whole, again) == []
    assert {"/steps.0.weight_ih", "/steps.1.weight_hh", "/inward.weight"} <= set(differences(whole, other))


@pytest.mark.parametrize("name", ["crashed", "switch"])
def test_a_crashed_run_resumes_to_the_same_state_bit_for_bit(runs: Path, name: str) -> None:
    whole, resumed = load(runs / "whole" / "checkpoint.pt"), load(runs / name / "checkpoint.pt")
    assert {"model", "optimizer", "trainer", "best_metric"} <= whole.keys()
    assert whole["trainer"]["iteration"] == PAIRS * EPOCHS and whole["optimizer"]["state"]
    assert differences(whole, resumed) == []
    assert differences(load(runs / "whole" / "model.pt"), load(runs / name / "model.pt")) == []


def test_two_processes_keep_equal_weights_and_have_those_of_one(runs: Path, distributed: Path) -> None:
    first, second = load(distributed / "rank0.pt"), load(distributed / "rank1.pt")
    assert differences(first, second) == []
    one, other = load(runs / "pairs_of_two" / "rank0.pt"), load(runs / "whole" / "rank0.pt")
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, atol=1e-4, rtol=0, msg=name)
    moved = [name for name in one if float((one[name] - other[name]).abs().max()) > 1e-3]
    assert {"steps.0.weight_ih", "steps.1.weight_ih"} <= set(moved), "the comparison must be able to fail"


def test_paper_setting_is_the_paper(tmp_path: Path) -> None:
    target = tmp_path / "settings.json"
    done = run_python([HERE / "meta_affine_settings.py", BUNDLE, target, "train", "train_paper"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_json(target)
    assert found["trainable"] == 24_000 and found["size"] == [128, 128] and found["strides"] == [1] * 5
    assert found["network"] == {"linear": "frozen", "output": "cell", "detach_grad": False}
    assert found["rates"] == [0.005] * 150
    assert found["phases"] == [k for k in range(5) for _ in range(30)]
    assert (found["batch_size"], found["length"]) == (50, 2000)
    assert found["degrees"] == pytest.approx(60) and found["translation"] == 0.5  # a quarter of a side of 2
    assert found["noise"] == pytest.approx(1 / 3, abs=0.01) and found["others"] == [0.0, False, 0.0, 0.0]
    assert found["seeds"][0] != found["seeds"][1]
