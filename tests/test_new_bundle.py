"""A bundle as new_bundle.py makes it: it keeps all rules before anybody has touched it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from script_tools import ROOT, files_in, load_script
from sharing.archive import members
from sharing.checks import CHECKS
from sharing.contents import read_json
from sharing.packages import imports, pins

VTN = ROOT / "bundles" / "vtn_registration"
SIZES = {"3D": [16, 24, 16], "2D": [32, 16]}


@pytest.fixture(scope="module", params=SIZES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    size = list(map(str, SIZES[request.param]))
    code = load_script("new_bundle").main(["sixth", "--output_dir", str(folder), "--spacing_mm=1.5", "--size", *size])
    assert code == 0
    return folder / "sixth_registration"


@pytest.mark.parametrize("name", CHECKS)
def test_files_keep_the_rules(bundle, name):
    assert CHECKS[name](bundle) == []


def test_packages_are_the_tested_ones(bundle):
    assert pins(bundle) == [] and imports(bundle) == []


def test_nothing_is_left_to_fill_in(bundle):
    texts = [path for path in bundle.rglob("*") if path.suffix in (".json", ".md", ".py", ".txt")]
    assert len(texts) > 9 and [path.name for path in texts if "{{" in path.read_text()] == []
    metadata, config = (read_json(bundle / "configs" / f"{name}.json") for name in ("metadata", "inference"))
    assert metadata["name"] == "Sixth registration" and config["spacing_mm"] == 1.5
    shape = metadata["network_data_format"]["outputs"]["pred"]["spatial_shape"]
    assert shape == config["size"] and shape in SIZES.values()


def test_it_trains_as_the_others_do(bundle):
    """What all bundles have in common is in the skeleton too; the contract, which takes minutes, runs at night."""
    ours, theirs = (read_json(folder / "configs" / "train.json") for folder in (bundle, VTN))
    for section in ("imports", "initialize", "run", "finalize"):
        assert ours[section] == theirs[section], section
    assert ours["train"]["handlers"] == theirs["train"]["handlers"]


def test_it_can_be_packaged(bundle):
    assert "sixth_registration/shared_components/release.json" in members(bundle)


def test_the_same_weights_each_time(bundle, tmp_path):
    before = torch.random.get_rng_state()
    size = read_json(bundle / "configs" / "inference.json")["size"]
    again = load_script("new_bundle").make_bundle("sixth", size, 1.5, tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    first, second = (torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (bundle, again))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["Mine"], "'Mine' is no name for a bundle"),
        (["mine", "--size", "64"], "--size 64 is not possible"),
        (["mine", "--size", "64", "60"], "--size 64 60 is not possible"),
        (["mine", "--spacing_mm", "0"], "--spacing_mm 0.0 is not possible"),
        (["there"], "there_registration is there already"),
    ],
)
def test_wrong_options_are_told_and_leave_nothing(tmp_path, capsys, options, sentence):
    (tmp_path / "there_registration").mkdir()
    assert load_script("new_bundle").main([*options, "--output_dir", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err
    assert files_in(tmp_path) == ["there_registration"]


@pytest.mark.nightly
def test_the_contract_holds(bundle):
    """The tests that every folder of bundles/ must pass, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/bundles/test_contract.py"]
    environment = os.environ | {"REGISTRATION_BUNDLES": str(bundle.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stdout[-3000:]
