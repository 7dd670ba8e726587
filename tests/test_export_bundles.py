"""Exports of the networks: what is found is told, and held against what the bundles say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_tools import ROOT, load_script
from sharing.checks import EXPORTS
from sharing.contents import metadata_of

BUNDLES = sorted(path for path in (ROOT / "bundles").iterdir() if (path / "configs").is_dir())
GOOD = {"answer": {"difference": 2e-6, "motion": 12.3, "seconds": 1.0, "mb": 4.56}}
FAR = {"answer": {"difference": 2e-3, "motion": 12.3, "seconds": 1.0, "mb": 4.56}}
STILL = {"answer": {"difference": 0.0, "motion": 0.0, "seconds": 1.0, "mb": 4.56}}
BROKEN = {"fault": "RuntimeError: no such operator\nin line 3"}
ABSENT = {"fault": "ModuleNotFoundError: No module named 'onnxruntime'"}


@pytest.fixture(scope="module")
def script():
    return load_script("export_bundles")


def test_the_table_has_a_cell_for_each_form(script):
    found = {"some": {"torchscript": GOOD, "torch_export": BROKEN, "onnx": ABSENT}}
    assert EXPORTS == (*script.HEADINGS, "tensorrt"), "what the metadata are asked for is what is measured"
    heading, line, row = script.table(found).splitlines()
    assert heading.count("|") == line.count("|") == row.count("|") == 5
    assert row.startswith(
        "| some | 2.0e-06 of 12.3 voxels, 4.6 MB | fails (RuntimeError: no such operator in line 3) |"
    )
    assert row.endswith("| not tried |")


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
    assert script.main(["vtn", "--fixed", "a.nii.gz"]) == 2


@pytest.mark.nightly
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_exports_are_what_the_bundle_says(script, bundle: Path):
    """The shipped network at its own size; ONNX only where its packages are installed."""
    assert script.disagreements(metadata_of(bundle)["exports"], script.export(bundle)) == []
