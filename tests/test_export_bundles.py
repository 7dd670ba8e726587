"""Exports of the networks: what is found is told, and held against what the bundles say of themselves."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from script_tools import ROOT, load_script
from sharing.checks import EXPORTS
from sharing.contents import metadata_of
from sharing.tiny import dimensions

BUNDLES = sorted(path for path in (ROOT / "bundles").iterdir() if (path / "configs").is_dir())
GOOD = {"answer": {"difference": 2e-6, "motion": 12.3, "rounding": 3e-5, "seconds": 1.0, "mb": 4.56}}
FAR = {"answer": {"difference": 2e-3, "motion": 12.3, "rounding": 3e-5, "seconds": 1.0, "mb": 4.56}}
STILL = {"answer": {"difference": 0.0, "motion": 0.0, "rounding": 0.0, "seconds": 1.0, "mb": 4.56}}
BROKEN = {"fault": "RuntimeError: no such operator\nin line 3"}
ABSENT = {"fault": "ModuleNotFoundError: No module named 'onnxruntime'"}


@pytest.fixture(scope="module")
def script():
    return load_script("export_bundles")


def test_the_table_has_a_cell_for_each_form(script):
    found = {"some": {"torchscript": GOOD, "torch_export": BROKEN, "onnx": ABSENT}}
    assert EXPORTS == (*script.HEADINGS, "tensorrt"), "what the metadata are asked for is what is measured"
    heading, line, row = script.table(found).splitlines()
    assert heading.count("|") == line.count("|") == row.count("|") == 6
    assert row.startswith(
        "| some | 2.0e-06 of 12.3 voxels, 4.6 MB | fails (RuntimeError: no such operator in line 3) |"
    )
    assert row.endswith("| not tried | 3.0e-05 |")


@pytest.fixture
def exports(monkeypatch):
    """scripts/sharing/exports.py, which is run as a script and finds its neighbours by their bare names."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "sharing")
    yield importlib.import_module("exports")
    for name in ("exports", "probe", "tiny"):
        sys.modules.pop(name)


class Sign(torch.nn.Module):
    """Jumps where two images are equal."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.sign(image[:, :1] - image[:, 1:])


def test_a_network_that_rounding_decides_on_is_told_from_a_steady_one(exports):
    image = torch.rand(1, 1, 8, 8).repeat(1, 2, 1, 1)
    assert exports.unsteadiness(Sign(), image) >= 1
    assert exports.unsteadiness(Sign(), image + torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)) == 0
    found = exports.compare(Sign(), exports.torchscript, (image, image))
    assert found["difference"] == 0 and found["rounding"] >= 1


@pytest.mark.parametrize(
    ("claim", "entry", "sentence"),
    [
        ("supported", GOOD, None),
        ("supported: whole", FAR, "but it 2.0e-03 of 12.3 voxels"),
        ("supported", STILL, "but it 0.0e+00 of 0.0 voxels"),
        ("supported", BROKEN, "but it fails (RuntimeError: no such operator in line 3)"),
        ("supported", ABSENT, None),
        ("not supported: an operator is missing", BROKEN, None),
        ("not supported: an operator is missing", GOOD, "but it works"),
        ("maybe", GOOD, "does not say under 'exports' whether 'onnx' is supported"),
    ],
)
def test_claims_are_held_against_what_is_found(script, claim, entry, sentence):
    wrong = script.disagreements({"onnx": claim}, {"onnx": entry})
    assert (wrong == []) if sentence is None else (len(wrong) == 1 and sentence in wrong[0])


def test_a_broken_claim_gives_exit_code_1(script, monkeypatch, tmp_path, capsys):
    forms = {"torchscript": FAR, "torch_export": GOOD, "onnx": ABSENT}
    monkeypatch.setattr(script, "export", lambda bundle, files: forms)
    assert script.main(["vtn", "--json", str(tmp_path / "found.json")]) == 1
    assert "vtn_registration: metadata.json says of torchscript" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text()) == {"vtn_registration": forms}


@pytest.mark.parametrize("options", [["--fixed", "a.nii.gz"], ["--brain", "--fixed", "a.nii", "--moving", "b.nii"]])
def test_options_that_do_not_fit_are_told(script, options, capsys):
    assert script.main(["vtn", *options]) == 2
    assert "--fixed and --moving" in capsys.readouterr().err


@pytest.mark.slow
def test_brains_are_real_and_differ(script, tmp_path):
    volumes, slices = (script.brains(tmp_path, ndim) for ndim in (3, 2))
    assert [nib.load(path).ndim for path in volumes + slices] == [3, 3, 2, 2]
    assert all(np.asarray(nib.load(path).dataobj).std() > 10 for path in slices)
    np.testing.assert_allclose(nib.load(slices[1]).header.get_zooms(), 1.7, atol=1e-6)


@pytest.mark.nightly
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_exports_are_what_the_bundle_says(script, bundle: Path, tmp_path):
    """The shipped network at its own size, on real brains; ONNX only where its packages are installed."""
    found = script.export(bundle, script.brains(tmp_path, dimensions(bundle)))
    print(script.table({bundle.name: found}))
    assert script.disagreements(metadata_of(bundle)["exports"], found) == []
