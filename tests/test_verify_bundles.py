"""Verifying notices what is wrong: a bundle that keeps all rules is broken on purpose, one way at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_tools import load_script
from sharing.checks import CHECKS, broken_rules
from sharing.packages import imports, pins
from sharing_case import ROOT, Change, configure, copy_bundle, remove, replace, write


@pytest.fixture(scope="module")
def script():
    return load_script("verify_bundles")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path)


def faults(bundle: Path) -> dict[str, list[str]]:
    """All checks that can be made without running anything; only those that fail."""
    found = broken_rules(bundle) | {"pins": pins(bundle), "imports": imports(bundle)}
    return {name: sentences for name, sentences in found.items() if sentences}


SHAPE = "network_data_format/inputs/image/spatial_shape"
BREAKS: dict[str, tuple[Change, str, str]] = {
    "no multi-GPU config": (remove("configs/multi_gpu_train.json"), "files", "configs/multi_gpu_train.json is missing"),
    "a note": (write("notes.txt", "x"), "files", "notes.txt belongs to no release"),
    "a checkpoint": (write("models/last.ckpt", "x"), "files", "models/last.ckpt belongs to no release"),
    "a notebook": (write("scripts/try.ipynb", "x"), "files", "scripts/try.ipynb belongs to no release"),
    "large file": (lambda bundle: (bundle / "docs" / "x.png").write_bytes(bytes(25_000_001)), "sizes", "25.0 MB"),
    "no task": (configure("metadata", "task", None), "metadata", "'task' is missing"),
    "no name": (configure("metadata", "name", None), "metadata", "'name' is missing"),
    "old schema": (configure("metadata", "schema", "https://x.org/20220324.json"), "metadata", "'schema' is not"),
    "version not in changelog": (configure("metadata", "version", "9.9.9"), "metadata", "does not mention version"),
    "no changelog": (configure("metadata", "changelog", None), "metadata", "does not mention version"),
    "authors in a list": (configure("metadata", "authors", ["a"]), "metadata", "'authors' is not a string"),
    "no word on ONNX": (configure("metadata", "exports/onnx", None), "exports", "whether onnx is supported"),
    "other grid": (configure("metadata", SHAPE, [80, 80, 80]), "one image", "'size' of inference.json differ"),
    "second output": (
        configure("metadata", "network_data_format/outputs/second", 1),
        "one image",
        "not from one 'image' to one 'pred'",
    ),
    "undescribed channel": (
        configure("metadata", "network_data_format/outputs/pred/channel_def/2", None),
        "one image",
        "one described channel a dimension",
    ),
    "channels swapped": (
        configure("metadata", "network_data_format/inputs/image/channel_def", {"0": "moving", "1": "fixed"}),
        "one image",
        "channels 0 fixed and 1 moving",
    ),
    "licence cut": (replace("LICENSE", "END OF TERMS AND CONDITIONS", ""), "licences", "not the whole Apache"),
    "owner not filled in": (write("LICENSE", (ROOT / "LICENSE").read_text() + "[yyyy]"), "licences", "owner"),
    "weights without licence": (write("models/brain.pt", "x"), "licences", "does not mention brain.pt"),
    "no data licence": (write("docs/data_license.txt", ""), "licences", "does not mention model.pt"),
    "no section": (replace("docs/README.md", "## Limitations", "## Other"), "readme", "no section 'Limitations'"),
    "empty section": (
        replace("docs/README.md", "## Tags\n", "## Tags\n\n## More\n"),
        "readme",
        "section 'Tags' is empty",
    ),
    **{
        f"nothing on {word}": (replace("docs/README.md", word, "it"), "readme", f"says nothing of {word}")
        for word in ("TorchScript", "ONNX", "TensorRT", "GPU memory", "data_license.txt")
    },
    "place on a machine": (configure("train", "dataset_dir", "/home/me/data"), "paths", "train.json names a place"),
    "place in an expression": (configure("inference", "output_dir", "$'/work/x'"), "paths", "'/work/x'"),
    "place at home": (configure("train", "output_dir", "~/runs"), "paths", "train.json names a place"),
    "place on Windows": (configure("inference", "weights", "C:\\model.pt"), "paths", "inference.json names a place"),
    "no inferer": (configure("inference", "inferer", None), "ids", "inference.json has no 'inferer'"),
    "no moving image in MONAI Label": (
        configure("inference", "displayable_configs", None),
        "ids",
        "inference.json has no 'displayable_configs'",
    ),
    "no val_interval": (configure("train", "val_interval", None), "ids", "train.json has no 'val_interval'"),
    "root not first": (configure("evaluate", "initialize", ["$1"]), "ids", "'initialize' of evaluate.json"),
    "untested pin": (
        configure("metadata", "required_packages_version/scipy", "1.16.0"),
        "pins",
        "scipy is pinned to 1.16.0, requirements.txt has 1.17.1",
    ),
    "import without pin": (
        lambda bundle: (bundle / "scripts" / "losses.py").write_text(
            "import json\nfrom pyamg.gallery import poisson\n"
        ),
        "imports",
        "losses.py imports pyamg, which no pinned package brings",
    ),
}


def test_whole_bundle_keeps_all_rules(bundle):
    assert faults(bundle) == {}


@pytest.mark.parametrize("name", BREAKS)
def test_break_is_noticed_by_its_check_alone(bundle, name):
    change, check, sentence = BREAKS[name]
    change(bundle)
    found = faults(bundle)
    assert list(found) == [check]
    assert len(found[check]) == 1 and sentence in found[check][0]


def test_broken_json_fails_the_checks_that_read_it(bundle):
    (bundle / "configs" / "train.json").write_text("{")
    found = faults(bundle)
    assert {"paths", "ids"} == found.keys()
    assert all("cannot be checked (JSONDecodeError" in sentence for (sentence,) in found.values())


def test_empty_folder_fails_without_a_traceback(tmp_path):
    found = broken_rules(tmp_path)
    assert [name for name, sentences in found.items() if not sentences] == ["sizes", "paths", "release"]


def test_every_check_of_files_has_a_break():
    assert {check for _, check, _ in BREAKS.values()} | {"release"} == {*CHECKS, "pins", "imports"}


def test_changed_library_of_a_release_is_noticed(bundle):
    library = bundle / "shared_components"
    library.mkdir()
    assert CHECKS["release"](bundle) == ["shared_components has no release.json; package the bundle again"]
    (library / "release.json").write_text('{"version": "1", "sha256": "0"}')
    assert CHECKS["release"](bundle) == [
        "shared_components was changed after the bundle was packaged; package it again"
    ]


def test_command_prints_a_line_a_check_and_its_exit_code(script, bundle, capsys):
    assert script.main([str(bundle), "--files_only"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{bundle.name}: files: ok" in lines and f"{bundle.name}: load: skipped" in lines
    assert lines[-1] == f"1 bundle, {len(CHECKS) + 2} checks, 0 failed"
    remove("LICENSE")(bundle)
    assert script.main([str(bundle), "--files_only"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{bundle.name}: files: FAILED: LICENSE is missing" in lines
    assert lines[-1].endswith(" 2 failed")  # files and licences


def test_released_version_is_refused(script, bundle, tmp_path, capsys):
    version = json.loads((bundle / "configs" / "metadata.json").read_text())["version"]
    index = tmp_path / "model_info.json"
    options = [str(bundle), "--files_only", "--released", str(index)]
    index.write_text(json.dumps({f"{bundle.name}_v0.0.1": {}}))
    assert script.main(options) == 0
    index.write_text(json.dumps({f"{bundle.name}_v{version}": {}}))
    assert script.main(options) == 1
    assert f"new version: FAILED: {bundle.name}_v{version} is released already" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["nonesuch"], ["--released", "nonesuch.json"], ["--schema", "nonesuch.json"]])
def test_fault_of_the_command_line(script, options, capsys):
    assert script.main([*options, "--files_only"]) == 2
    assert "nonesuch" in capsys.readouterr().err


def test_pip_is_asked_for_the_pins(script, bundle, monkeypatch):
    """A stand-in for pip, which needs the network."""
    configure("metadata", "required_packages_version/scipy", "0.0.1")(bundle)
    seen: list[list[str]] = []

    class Done:
        returncode, stderr = 1, "ERROR: No matching distribution found for scipy==0.0.1\n"

    monkeypatch.setattr(script.subprocess, "run", lambda command, **options: seen.append(command) or Done)
    assert script.resolve(bundle) == [Done.stderr.strip()]
    assert {"--dry-run", "scipy==0.0.1", "torch==2.13.0", "monai==1.6.1"} <= set(seen[0])
    Done.returncode = 0
    assert script.resolve(bundle) == []
