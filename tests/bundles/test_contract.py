"""What every folder of bundles/ must keep, whichever method it holds. A new folder is tested without a change here.

Each bundle runs in processes of its own: one that MONAI's tools are asked in (probe.py), and one each for training,
evaluation and inference on tiny images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import BUNDLES, ROOT, config_of, dimensions, read_json, run_bundle, run_python, tiny, write_data
from sharing.checks import CHECKS, strings
from sharing.packages import imports, pins, pins_of
from sharing.verdict import RULES, ask_monai, judge

MAX_LINES = {"inference": 120, "train": 180}
EXIT = """
    moved.nii.gz moved_label.nii.gz ddf.nii.gz inverse_ddf.nii.gz transform.json metrics.json report.html
""".split()


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def datalist(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), dimensions(bundle))


@pytest.fixture(scope="module")
def verdicts(bundle: Path) -> dict[str, list[str] | None]:
    """What MONAI's own tools say, check by check."""
    return judge(bundle, ask_monai(bundle))


@pytest.fixture(scope="module")
def trained(bundle: Path, datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of one epoch of training, started from a folder that has nothing to do with the bundle."""
    output = tmp_path_factory.mktemp("trained")
    options = tiny(bundle, "train") | {"datalist": datalist, "output_dir": output}
    run_bundle(bundle, ["train"], cwd=output, **options)
    return output


@pytest.fixture(scope="module")
def evaluated(bundle: Path, datalist: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of the evaluation of those weights, started in the bundle's folder."""
    output = tmp_path_factory.mktemp("evaluated")
    options = tiny(bundle, "train") | {"datalist": datalist, "output_dir": output, "weights": trained / "model.pt"}
    run_bundle(bundle, ["train", "evaluate"], cwd=bundle, **options)
    return output


@pytest.fixture(scope="module")
def registered(bundle: Path, datalist: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of one registration with those weights."""
    output = tmp_path_factory.mktemp("registered")
    (pair,) = read_json(datalist)["test"]
    pair |= {key: str(datalist.parent / pair[key]) for key in ("fixed_points", "moving_points")}
    pair.pop("name")
    options = tiny(bundle, "inference") | pair | {"output_dir": output, "weights": trained / "model.pt"}
    run_bundle(bundle, ["inference"], cwd=output, **options, uncertainty=True)
    return output


def configs(bundle: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted((bundle / "configs").glob("*.json")):
        yield path.name, read_json(path)


def test_there_are_bundles():
    assert BUNDLES


@pytest.mark.parametrize("name", CHECKS)
def test_files_keep_the_rules(bundle, name):
    """Schema of the metadata, licences, sections of the README, ids of the configs ...: sharing/checks.py."""
    assert CHECKS[name](bundle) == []


def test_metadata_pin_what_is_tested_and_what_is_imported(bundle):
    """The zoo's CI installs these pins; they must be those of requirements.txt."""
    assert pins(bundle) == [] and imports(bundle) == []
    assert {"pytorch-ignite", "nibabel"} <= pins_of(config_of(bundle, "metadata")).keys()


@pytest.mark.parametrize("name", [name for name, _ in RULES.values() if name != "verify_metadata"])
def test_monai_agrees(bundle, verdicts, name):
    """verify_net_in_out, properties, exports, load, a run of each workflow ...: sharing/probe.py and verdict.py."""
    assert verdicts[name] == []


def test_readme_tells_the_grid_of_the_shipped_network(bundle):
    text = (bundle / "docs" / "README.md").read_text()
    assert " × ".join(map(str, config_of(bundle, "inference")["size"])) in text


@pytest.mark.parametrize("name", sorted(MAX_LINES))
def test_configs_are_short(bundle, name):
    lines = (bundle / "configs" / f"{name}.json").read_text().splitlines()
    assert len(lines) <= MAX_LINES[name]
    assert max(map(len, lines)) <= 120


def test_expressions_are_short(bundle):
    found = [text for _, config in configs(bundle) for text in strings(config) if text.startswith("$")]
    assert found and [text for text in found if len(text) > 80] == []


def test_training_and_inference_agree(bundle):
    """The network, and every knob that it is built from, are the same; so is the grid that it sees."""
    train, inference = config_of(bundle, "train"), config_of(bundle, "inference")
    knobs = {text[1:] for text in strings(train["network_def"]) if text.startswith("@")} | {"network_def"}
    knobs |= {"size", "spacing_mm"} & train.keys()
    assert len(knobs) > 1
    assert {key: train.get(key) for key in knobs} == {key: inference.get(key) for key in knobs}


def test_training_refuses_an_empty_dataset(bundle):
    """MONAI's own ``trainer.run()`` would leave with a warning, nothing trained and exit code 0."""
    assert config_of(bundle, "train")["run"] == [
        {"_target_": "shared_components.engines.train", "trainer": "@train#trainer"}
    ]


def test_code_of_bundles_is_a_package_and_the_root_has_none(bundle):
    assert (bundle / "scripts" / "__init__.py").is_file()
    assert not (ROOT / "scripts" / "__init__.py").exists()


def test_training_writes_weights_checkpoint_and_events(trained):
    state = torch.load(trained / "model.pt", weights_only=True)
    assert state and all(isinstance(value, torch.Tensor) for value in state.values())
    assert (trained / "checkpoint.pt").is_file()
    assert list(trained.glob("events.out.tfevents.*"))
    assert not list(trained.rglob("*.tmp"))


def test_evaluation_writes_a_row_for_each_pair_and_a_summary(evaluated):
    overall = dict(line.split(",") for line in (evaluated / "metrics.csv").read_text().split())
    for name in ("dice", "dice_before", "hd95_mm", "folds_percent", "sdlogj", "tre_mm"):
        assert np.isfinite(float(overall[name])), name
        rows = (evaluated / f"{name}_raw.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["filename", "pair"]
        assert (evaluated / f"{name}_summary.csv").read_text().startswith("class,mean,")
    assert 0 < float(overall["dice"]) <= 1 and float(overall["tre_mm"]) > 0


def test_inference_writes_all_files(registered):
    written = {path.name for path in registered.iterdir()}
    assert set(EXIT) <= written
    transform = read_json(registered / "transform.json")
    assert ("affine.tfm" in written) == (transform["affine_world_ras_mm"] is not None)
    assert not [name for name in written if name.startswith(".") or name.endswith(".tmp")]


def test_inference_stays_on_the_fixed_grid(registered, datalist):
    (pair,) = read_json(datalist)["test"]
    fixed, moving = nib.load(pair["fixed"]), nib.load(pair["moving"])
    for name in ("moved.nii.gz", "moved_label.nii.gz"):
        image = nib.load(registered / name)
        assert image.shape == fixed.shape
        plane = [*range(fixed.ndim), 3]  # a 2-D image has no place along the third axis
        np.testing.assert_allclose(image.affine[:, plane][plane], fixed.affine[:, plane][plane], atol=1e-5)
    for name, grid in (("ddf.nii.gz", fixed), ("inverse_ddf.nii.gz", moving)):
        field = nib.load(registered / name)
        ndim = fixed.ndim
        assert int(field.header["intent_code"]) == 1007
        assert field.shape == (*grid.shape, *(1,) * (4 - ndim), ndim)
    assert np.isin(np.asarray(nib.load(registered / "moved_label.nii.gz").dataobj), [0, 1, 2]).all()


def test_inference_tells_the_error_to_expect(registered, datalist):
    """In mm, everywhere on the fixed grid; the numbers in metrics.json are those of the map."""
    (pair,) = read_json(datalist)["test"]
    fixed, errors = nib.load(pair["fixed"]), nib.load(registered / "uncertainty_mm.nii.gz")
    values, told = errors.get_fdata(), read_json(registered / "metrics.json")["expected_error_mm"]
    assert errors.shape == fixed.shape and np.isfinite(values).all() and values.min() >= 0
    inside = values[fixed.get_fdata() > fixed.get_fdata().min()]
    assert told["mean"] == pytest.approx(inside.mean(), rel=1e-3) and told["mean"] > 0


def test_a_server_gets_the_same_from_the_pieces(bundle, registered, trained, datalist, tmp_path):
    """MONAI Label runs the blocks of inference.json by itself, with a network of its own: label_steps.py."""
    (pair,) = read_json(datalist)["test"]
    request = {"image": pair["fixed"], "moving": Path(pair["moving"]).name.removesuffix(".nii.gz")}
    request["moving_label"] = pair["moving_label"]
    options = tiny(bundle, "inference") | {"output_dir": str(tmp_path)}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"options": options, "weights": str(trained / "model.pt"), "request": request}))
    done = run_python([Path(__file__).with_name("label_steps.py"), bundle, plan], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    told, answer = read_json(tmp_path / "answer.json")["result"], np.load(tmp_path / "answer.npz")
    written = nib.load(registered / "moved_label.nii.gz")
    np.testing.assert_array_equal(answer["pred"].squeeze(), np.asarray(written.dataobj).squeeze())
    np.testing.assert_allclose(answer["affine"], written.affine, atol=1e-5)
    folder = Path(told["folder"])
    assert told["returned"] == "moved_label" and folder.parent == tmp_path
    for name in ("moved.nii.gz", "ddf.nii.gz", "inverse_ddf.nii.gz"):
        same = [np.asarray(nib.load(place / name).dataobj) for place in (folder, registered)]
        np.testing.assert_allclose(*same, atol=1e-5, err_msg=name)
    assert (folder / "affine.tfm").is_file() == (registered / "affine.tfm").is_file()


def test_inference_measures_labels_and_points(registered):
    metrics = read_json(registered / "metrics.json")
    assert set(metrics) >= {"similarity", "labels", "points", "field"}
    text = json.dumps(metrics)
    assert "NaN" not in text and "Infinity" not in text
