"""Training of R2N2: resuming, several processes, phases, the paper's setting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import ROOT, config_of, read_json, run_bundle, run_python, tiny
from monai.bundle import ConfigParser
from torch import Tensor

from shared_components.synth.thorax import make_breathing_set

BUNDLE = ROOT / "bundles" / "r2n2_registration"
HERE = Path(__file__).parent
PAIRS, EPOCHS, KNOWN = 3, 4, 8
KNOWN_FIELDS = {
    **{"steps": 2, "pairs_per_epoch": 4 * KNOWN, "batch_size": 4, "max_epochs": 3, "precision": "float32"},
    **{"phase_epochs": [3], "phase_steps": [1], "val_interval": 3},
}
# Adam blows up what rounding does to very small gradients; where two ways to the same sum are compared it is this:
DESCENT = {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.5}
SUM = {"noise": 0.0, "pairs_per_epoch": 6, "max_epochs": 2, "optimizer": DESCENT}


@pytest.fixture(scope="module")
def load(bundle_module: Callable[[str, str], ModuleType]) -> Callable[[str], ModuleType]:
    return lambda name: bundle_module("r2n2_registration", name)


# ---- whole runs ------------------------------------------------------------------------------------------------------


def write_series(path: Path, seed: int, frames: int = 4) -> None:
    """A bright ellipse that goes up and down."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[-1:1:20j, -1:1:24j]
    middles = 0.3 * np.sin(np.arange(frames) * 1.5 + seed)
    stack = [((y - m) ** 2 / 0.3 + x**2 / 0.5 < 1) * 100.0 + generator.normal(0, 2, y.shape) for m in middles]
    nib.save(nib.Nifti1Image(np.stack(stack, -1).astype(np.float32), np.diag([2.0, 2.0, 1, 1])), path)


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series of six subjects; the fifth is validation."""
    folder = tmp_path_factory.mktemp("series")
    for subject in range(6):
        write_series(folder / f"p{subject}_a.nii.gz", subject)
    return folder


@pytest.fixture(scope="module")
def options(dataset_dir: Path) -> dict[str, Any]:
    known = tiny(BUNDLE, "train") | {"steps": 3, "pairs_per_epoch": PAIRS, "max_epochs": EPOCHS, "learning_rate": 0.003}
    return known | {"dataset_dir": str(dataset_dir), "device": "cpu", "validation_pairs": 2, "recompute": True}


def entry(folder: Path, options: dict[str, Any], name: str, *mixins: str, crash_at: int | None = None, **more: Any):
    return {
        "configs": ["train", *mixins],
        "options": {**options, **more, "output_dir": str(folder / name)},
        "crash_at": crash_at,
    }


@pytest.fixture(scope="module")
def runs(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one output folder a run, all made in one process."""
    folder = tmp_path_factory.mktemp("runs")
    breathing = make_breathing_set(folder / "breathing", subjects=3, slices=1, frames=4, size=(48, 48))
    known = KNOWN_FIELDS | {"datalist": breathing}
    plan = [
        entry(folder, options, "whole"),
        entry(folder, options, "known", "pretrain", **known),
        entry(folder, options, "known_first", "pretrain", **known | {"max_epochs": 1}),
        entry(folder, options, "known_crashed", "pretrain", crash_at=2 * KNOWN + 1, **known),
        entry(folder, options, "known_crashed", "pretrain", resume=True, **known),
        entry(folder, options, "stored", recompute=False),
        entry(folder, options, "crashed", crash_at=2 * PAIRS + 1),
        entry(folder, options, "crashed", resume=True),
        entry(folder, options, "others", seed=1),
        entry(folder, options, "went_on", start_weights=str(folder / "whole" / "model.pt"), max_epochs=1),
        entry(folder, options, "pairs_of_two", batch_size=2, **SUM),
        entry(folder, options, "one_by_one", batch_size=1, **SUM),
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    done = run_python([HERE / "train_runs.py", BUNDLE, folder / "plan.json"], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def distributed(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a training by two processes, of one pair each."""
    folder = tmp_path_factory.mktemp("distributed")
    plan = [entry(folder, options, "both", "multi_gpu_train", backend="gloo", batch_size=1, **SUM)]
    (folder / "plan.json").write_text(json.dumps(plan))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = run_python([*torchrun, HERE / "train_runs.py", BUNDLE, folder / "plan.json"], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "both"


def state(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights_bit_for_bit(runs: Path) -> None:
    whole, resumed, other = (state(runs / name / "checkpoint.pt") for name in ("whole", "crashed", "others"))
    assert differing(whole["model"], resumed["model"]) == [] and whole["best_metric"] == resumed["best_metric"] > 0
    assert whole["trainer"]["iteration"] == PAIRS * EPOCHS
    assert differing(state(runs / "whole" / "model.pt"), state(runs / "crashed" / "model.pt")) == []
    assert len(differing(whole["model"], other["model"])) > 0.9 * len(whole["model"]), "the comparison can fail"


@pytest.mark.slow
def test_recomputing_and_storing_train_alike(runs: Path) -> None:
    one, other = (state(runs / name / "rank0.pt") for name in ("whole", "stored"))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.slow
def test_terms_of_the_loss_are_logged(runs: Path) -> None:
    terms = read_json(runs / "whole" / "rank0.json")
    assert {"loss", "mse", "mse_last", "tv"} <= set(terms)
    assert terms["loss"] == pytest.approx(terms["mse"] + 0.05 * terms["tv"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_keep_equal_weights_and_have_those_of_one(runs: Path, distributed: Path) -> None:
    first, second = state(distributed / "rank0.pt"), state(distributed / "rank1.pt")
    assert differing(first, second) == []
    one, other = (state(runs / name / "rank0.pt") for name in ("pairs_of_two", "one_by_one"))
    for name, value in one.items():
        torch.testing.assert_close(first[name], value, atol=3e-4, rtol=0, msg=name)
    apart = [name for name in one if float((one[name] - other[name]).abs().max()) > 3e-3]
    assert "shape_net.last.weight" in apart and any(name.startswith("units") for name in apart), "it can fail"


@pytest.mark.slow
def test_series_without_labels_are_evaluated_frame_by_frame(
    runs: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    knobs = {key: value for key, value in options.items() if key != "recompute"}
    run_bundle(
        BUNDLE,
        ["train", "evaluate"],
        cwd=tmp_path,
        **knobs | {"output_dir": tmp_path, "weights": runs / "whole" / "model.pt"},
    )
    rows = [line.split(",") for line in (tmp_path / "mse_raw.csv").read_text().splitlines()]
    assert len(rows) == 1 + 3 and all(row[0].startswith("p4_a#") for row in rows[1:])
    overall = dict(line.split(",") for line in (tmp_path / "metrics.csv").read_text().split())
    assert {"mse", "mse_before", "sdlogj", "folds_percent"} <= set(overall) and "dice" not in overall


@pytest.mark.slow
def test_a_training_begins_with_given_weights(runs: Path) -> None:
    begun, went_on = (state(runs / name / "model.pt") for name in ("whole", "went_on"))
    far = max(float((begun[name] - value).abs().max()) for name, value in went_on.items())
    assert 0 < far < 0.1 * float(begun["stem.weight"].abs().max()), "one epoch later, not anew"


def test_positions_and_bumps_have_rates_of_their_own() -> None:
    """The 1024 weights that make one number of a bump step together: at the rate of others it would jump."""
    parser = ConfigParser(config_of(BUNDLE, "train"))
    parser["device"] = torch.device("cpu")
    parser["network_def"] = {"_target_": "torch.nn.ModuleDict"}
    parser["network"] = torch.nn.ModuleDict(
        {name: torch.nn.Linear(2, 2, bias=False) for name in ("positions", "shape_net", "units")}
    )
    parser["network"]["shape_net"] = torch.nn.ModuleDict(
        {"first": torch.nn.Linear(2, 3), "last": torch.nn.Linear(3, 2)}
    )
    groups = parser.get_parsed_content("optimizer").param_groups
    rates = [(group["lr"], sorted(value.numel() for value in group["params"])) for group in groups]
    knobs = config_of(BUNDLE, "train")
    assert knobs["bump_rate"] < knobs["learning_rate"] < knobs["position_rate"]
    assert rates == [
        (knobs["position_rate"], [4]),
        (knobs["bump_rate"], [2, 6]),
        (knobs["learning_rate"], [3, 4, 6]),
    ]


def test_phases_lead_from_one_bump_on_half_the_grid_to_all() -> None:
    last, first, fine = (config_of(BUNDLE, name) for name in ("train", "pretrain", "pretrain_fine"))
    assert [2 * n for n in first["size"]] == fine["size"] == last["size"]
    assert "steps" not in {*first, *fine} and first["shrink"] == 1 and fine["shrink"] == last["shrink"] == 2
    assert first["tv_weight"] == pytest.approx(fine["tv_weight"] / 2), "a pixel is twice as long"
    parsers = [ConfigParser(last | more) for more in (first, first | fine, {})]
    phases = [parser.get_parsed_content("phase_steps") for parser in parsers]
    assert phases == [[1, 3, 6], [6], [6]], "one bump first; each goes on where the last one ended"
    assert all(sum(parser["phase_epochs"]) == parser["max_epochs"] for parser in parsers)
    for rate in ("learning_rate", "bump_rate"):
        rates = [parser[rate] for parser in parsers]
        assert rates == sorted(rates, reverse=True) and len(set(rates)) == 3
    network = {"channels", "norm", "recurrent", "certainty", "max_width", "variance", "composition", "polish"}
    assert not network & {*first, *fine} and last["truth"] is None


def test_pretraining_lowers_the_error_of_the_field_and_can_be_resumed(runs: Path) -> None:
    """Heads are kept with the rest."""
    whole, resumed = (state(runs / name / "checkpoint.pt") for name in ("known", "known_crashed"))
    for part in ("model", "heads"):
        assert differing(whole[part], resumed[part]) == []
    assert {"heads.0.weight", "heads.3.bias"} <= set(whole["heads"])
    assert "heads" not in state(runs / "whole" / "checkpoint.pt")
    first, last = (read_json(runs / name / "rank0.json") for name in ("known_first", "known"))
    assert last["field"] < first["field"] < 1.5 and last["heads"] < first["heads"] and "mse_last" in last


def test_paper_setting_is_the_paper(load: Callable[[str], ModuleType]) -> None:
    knobs = config_of(BUNDLE, "train") | config_of(BUNDLE, "train_paper")
    assert knobs["size"] == [256, 256] and knobs["fixed_frame"] == "mean" and knobs["flip"] == 0
    assert knobs["max_epochs"] * knobs["pairs_per_epoch"] / knobs["batch_size"] == 180_000
    rates = {knobs[name] for name in ("learning_rate", "position_rate", "bump_rate")}
    assert (rates, knobs["final_rate"], knobs["tv_weight"]) == ({0.0001}, 1.0, 0.1)
    assert knobs["optimizer"]["amsgrad"] is True and knobs["optimizer"]["_target_"] == "torch.optim.Adam"
    wired = {key: knobs[value[1:]] for key, value in knobs["network_def"].items() if value.startswith("@")}
    network = load("network").R2N2(**wired)
    assert sum(value.numel() for value in network.parameters()) == 3_593_611
    assert network.steps == 25 and not network.tolerance and network.composition == "add" and not network.variance
    assert network.units[0].gru.noise == pytest.approx(2**0.5, abs=1e-3) and network.shape_net.max_width == 0.3
