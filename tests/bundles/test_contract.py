"""What every folder of bundles/ must keep, whichever method it holds. A new folder is tested without a change here.

Each bundle runs in processes of its own: one that MONAI's tools are asked in (probe.py), and one each for training,
evaluation and inference on tiny images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bundle_tools import BUNDLES, ROOT, config_of, dimensions, read_json, run_bundle, run_python, tiny, write_data
from schema import faults

FILES = """
    LICENSE configs/metadata.json configs/train.json configs/inference.json configs/evaluate.json
    configs/multi_gpu_train.json configs/logging.conf docs/README.md docs/data_license.txt scripts/__init__.py
    scripts/network.py
""".split()
SECTIONS = """
    Authors|Tags|Model Description|Data|Performance|System Configuration|Limitations|Intended Use|Citation|References
""".strip().split("|")
IDS = """
    bundle_root device dataset_dir output_dir network_def network inferer preprocessing postprocessing dataset
    dataloader handlers evaluator initialize run finalize
""".split()
MAX_LINES = {"inference": 120, "train": 180}
EXIT = """
    moved.nii.gz moved_label.nii.gz ddf.nii.gz inverse_ddf.nii.gz transform.json metrics.json report.html
""".split()
PERSONAL = re.compile(r"(?:^|[\s'\"=])(?:/(?:home|Users|root|work|tmp|mnt|media|scratch|workspace)/|~/|[A-Za-z]:\\)")


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def datalist(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), dimensions(bundle))


@pytest.fixture(scope="module")
def answer(bundle: Path, datalist: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """``answer(question)`` of probe.py, or a failure with its fault."""
    target = tmp_path_factory.mktemp("probe") / "answers.json"
    done = run_python([Path(__file__).with_name("probe.py"), bundle, datalist, target], cwd=bundle)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = read_json(target)

    def find(question: str) -> Any:
        assert "fault" not in answers[question], answers[question]["fault"]
        return answers[question]["answer"]

    return find


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
    run_bundle(bundle, ["inference"], cwd=output, **options)
    return output


def configs(bundle: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted((bundle / "configs").glob("*.json")):
        yield path.name, read_json(path)


def strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def test_there_are_bundles():
    assert BUNDLES


def test_has_all_files(bundle):
    assert [name for name in FILES if not (bundle / name).is_file()] == []


def test_metadata_keep_the_schema(bundle):
    assert faults(config_of(bundle, "metadata")) == []


def test_metadata_pin_what_is_tested(bundle):
    """The zoo's CI installs these pins; they must be those of requirements.txt."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    tested = dict(line.split("==") for line in lines if "==" in line)
    metadata = config_of(bundle, "metadata")
    pins = metadata["required_packages_version"] | {
        name: metadata[key]
        for name, key in (("monai", "monai_version"), ("torch", "pytorch_version"), ("numpy", "numpy_version"))
    }
    assert pins == {name: tested.get(name) for name in pins}
    assert "pytorch-ignite" in pins and "nibabel" in pins


def test_metadata_describe_one_image_of_two_channels(bundle):
    metadata = config_of(bundle, "metadata")
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert list(formats["inputs"]) == ["image"] and list(formats["outputs"]) == ["pred"]
    assert (image["num_channels"], image["channel_def"]) == (2, {"0": "fixed", "1": "moving"})
    assert pred["num_channels"] == len(image["spatial_shape"]) == len(pred["channel_def"])
    assert pred["spatial_shape"] == image["spatial_shape"] == config_of(bundle, "inference")["size"]


def test_license_is_apache(bundle):
    text = (bundle / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert "[yyyy]" not in text


def test_readme_has_the_sections_of_the_zoo(bundle):
    text = (bundle / "docs" / "README.md").read_text()
    headings = {line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("#")}
    assert [name for name in SECTIONS if name not in headings] == []
    assert "TorchScript" in text and "TensorRT" in text and "data_license.txt" in text


def test_readme_tells_the_size_of_the_shipped_network(bundle, answer):
    text = (bundle / "docs" / "README.md").read_text()
    assert f"{answer('parameters'):,}" in text
    assert " × ".join(map(str, config_of(bundle, "inference")["size"])) in text


def test_configs_have_the_ids_of_the_house(bundle):
    config = config_of(bundle, "inference")
    assert [name for name in IDS if name not in config] == []
    train = config_of(bundle, "train")
    wanted = "network output_dir ckpt_dir val_interval resume train validate initialize run finalize".split()
    assert [name for name in wanted if name not in train] == []


@pytest.mark.parametrize("name", sorted(MAX_LINES))
def test_configs_are_short(bundle, name):
    lines = (bundle / "configs" / f"{name}.json").read_text().splitlines()
    assert len(lines) <= MAX_LINES[name]
    assert max(map(len, lines)) <= 120


def test_expressions_are_short(bundle):
    found = [text for _, config in configs(bundle) for text in strings(config) if text.startswith("$")]
    assert found and [text for text in found if len(text) > 80] == []


def test_configs_have_no_personal_paths(bundle):
    assert [(name, text) for name, config in configs(bundle) for text in strings(config) if PERSONAL.search(text)] == []


def test_bundle_root_comes_first(bundle):
    """MONAI puts it on the path only after ``initialize``, too late for the bundle's own code."""
    for name, config in configs(bundle):
        if "initialize" in config:
            assert config["initialize"][0] == "$sys.path.insert(0, os.path.abspath(@bundle_root))", name


def test_training_and_inference_agree(bundle):
    """The network, and every knob that it is built from, are the same; so is the grid that it sees."""
    train, inference = config_of(bundle, "train"), config_of(bundle, "inference")
    knobs = {text[1:] for text in strings(train["network_def"]) if text.startswith("@")} | {"network_def"}
    knobs |= {"size", "spacing_mm"} & train.keys()
    assert len(knobs) > 1
    assert {key: train.get(key) for key in knobs} == {key: inference.get(key) for key in knobs}


def test_code_of_bundles_is_a_package_and_the_root_has_none(bundle):
    assert (bundle / "scripts" / "__init__.py").is_file()
    assert not (ROOT / "scripts" / "__init__.py").exists()


def test_network_takes_and_gives_what_the_metadata_say(answer):
    assert answer("net_in_out") is None


def test_monai_finds_all_properties(answer):
    found = answer("properties")
    assert {"train", "inference", "train+evaluate", "train+multi_gpu_train"} <= found.keys()
    assert {name: missing for name, missing in found.items() if missing} == {}


def test_export_by_tracing(answer):
    found = answer("trace")
    assert found["motion"] > 0.1, "the network hardly moves anything, so this proves little"
    assert found["difference"] <= 1e-4


def test_export_by_scripting_works_or_is_disclaimed(bundle, answer):
    assert answer("script") or "--use_trace" in (bundle / "docs" / "README.md").read_text()


def test_weights_are_a_plain_state_dict(answer):
    found = answer("weights")
    assert found["plain"] and found["finite"]
    assert found["mb"] <= 25


def test_monai_loads_the_network_with_its_weights(answer):
    assert answer("load") is True


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


def test_inference_measures_labels_and_points(registered):
    metrics = read_json(registered / "metrics.json")
    assert set(metrics) >= {"similarity", "labels", "points", "field"}
    text = json.dumps(metrics)
    assert "NaN" not in text and "Infinity" not in text
