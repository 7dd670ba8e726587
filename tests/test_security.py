"""What docs/security.md says: hostile weights are refused everywhere, configurations are programs, data are not."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from script_tools import ROOT, load_script
from sharing_case import copy_bundle
from test_checkpoints import Payload

BUNDLES = sorted(path.parent.parent for path in (ROOT / "bundles").glob("*/configs/inference.json"))
SOURCES = [path for name in ("bundles", "scripts", "shared_components") for path in sorted((ROOT / name).rglob("*.py"))]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("register")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Weights that would make a file called "executed" if they were unpickled."""
    torch.save({"weight": Payload(tmp_path / "executed")}, tmp_path / "hostile.pt")
    return tmp_path / "hostile.pt"


@pytest.mark.usefixtures("undo_config")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_every_bundle_refuses_weights_with_code(script: ModuleType, hostile: Path, bundle: Path, capsys) -> None:
    """Weights come before images, so that none are needed."""
    options = [f"--fixed={hostile}", f"--moving={ROOT / 'LICENSE'}", f"--output_dir={hostile.parent / 'out'}"]
    assert script.main([str(bundle), *options, f"--weights={hostile}", "--device=cpu"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"error: weights {hostile} cannot be read as a plain state dict")
    assert not (hostile.parent / "executed").exists() and not (hostile.parent / "out").exists()


@pytest.mark.usefixtures("undo_config")
@pytest.mark.filterwarnings("ignore")
def test_a_cohort_refuses_weights_with_code(hostile: Path, capsys) -> None:
    import cohort

    (hostile.parent / "pairs.csv").write_text("fixed,moving\na.nii,b.nii\n")
    options = ["--bundle=r2n2", f"--output_dir={hostile.parent / 'out'}", f"--weights={hostile}", "--workers=0"]
    assert cohort.main([str(hostile.parent / "pairs.csv"), *options]) == 2
    assert "cannot be read as a plain state dict" in capsys.readouterr().err
    assert not (hostile.parent / "executed").exists()


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a module by their full names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("folder", ["bundles", "scripts", "shared_components"])
def test_nothing_is_unpickled_and_no_text_is_executed(folder: str) -> None:
    """Every torch.load says weights_only=True; np.load keeps its default, which reads no objects."""
    forbidden = {"pickle.load", "pickle.loads", "yaml.load", "marshal.load", "joblib.load", "eval", "exec", "os.system"}
    loads, found = 0, []
    for path in SOURCES:
        if folder not in path.relative_to(ROOT).parts[:1]:
            continue
        for name, call in calls(ast.parse(path.read_text())):
            options = {option.arg: ast.unparse(option.value) for option in call.keywords}
            if name == "torch.load":
                loads += 1
                found += [] if options.get("weights_only") == "True" else [f"{path}:{call.lineno}"]
            elif name in forbidden or options.get("allow_pickle") == "True" or options.get("shell") == "True":
                found.append(f"{path}:{call.lineno} {name}")
    assert found == [] and (loads > 0 or folder == "bundles")


def test_configurations_load_weights_by_our_function_alone() -> None:
    for path in (ROOT / "bundles").glob("*/configs/*.json"):
        text = path.read_text()
        assert "torch.load" not in text and "CheckpointLoader" not in text and "pickle" not in text, path


def planted(folder: Path, target: Path) -> Path:
    """A bundle of a stranger: an expression of its configuration makes a file."""
    bundle = copy_bundle(folder)
    file = bundle / "configs" / "inference.json"
    config = json.loads(file.read_text())
    config["initialize"].insert(1, f"$__import__('pathlib').Path('{target}').touch()")
    file.write_text(json.dumps(config, indent=4))
    return bundle


@pytest.mark.usefixtures("undo_config")
@pytest.mark.filterwarnings("ignore")
def test_a_configuration_is_a_program(script: ModuleType, tmp_path: Path) -> None:
    """What the page warns of is true: MONAI runs what a stranger's configuration says."""
    bundle = planted(tmp_path, tmp_path / "executed")
    options = [f"--fixed={tmp_path / 'a.nii'}", f"--moving={tmp_path / 'b.nii'}", f"--output_dir={tmp_path / 'out'}"]
    assert script.main([str(bundle), *options, "--device=cpu"]) == 2
    assert (tmp_path / "executed").exists()


def looking() -> str:
    """The command that the page gives to see what a configuration would execute."""
    blocks = (ROOT / "docs" / "security.md").read_text().split("```")
    (command,) = [block.removeprefix("bash") for block in blocks if "json.tool --no-ensure-ascii" in block]
    return command.replace("python -m", f"{sys.executable} -m")


@pytest.mark.parametrize("dollar", ["$", "\\u0024"])
def test_looking_first_shows_it_and_runs_nothing(tmp_path: Path, dollar: str) -> None:
    bundle = planted(tmp_path, tmp_path / "executed")
    file = bundle / "configs" / "inference.json"
    file.write_text(file.read_text().replace("$__import__", f"{dollar}__import__"))
    shown = subprocess.run(
        ["bash", "-c", looking().replace("BUNDLE", str(bundle))], capture_output=True, text=True, check=True
    ).stdout
    assert "$__import__('pathlib').Path(" in shown and '"_target_": "scripts.network.VTN"' in shown
    verify = load_script("verify_bundles")
    verify.main([str(bundle), "--files_only"])
    assert not (tmp_path / "executed").exists()


@pytest.mark.usefixtures("undo_config")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["$__import__('os').mkdir('executed')", "@output_dir", "%network"])
def test_names_in_lists_are_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Texts of a datalist never become part of a configuration."""
    import register

    monkeypatch.chdir(tmp_path)
    pair = {"fixed": name, "moving": name + "x", "name": "one"}
    (tmp_path / "pairs.json").write_text(json.dumps([pair]))
    options = [f"--datalist={tmp_path / 'pairs.json'}", f"--output_dir={tmp_path / 'out'}", "--device=cpu"]
    assert register.main(["r2n2", *options]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.slow
def test_verifying_a_bundle_does_not_run_its_weights(tmp_path: Path) -> None:
    """All of MONAI's own tools included."""
    from sharing.verdict import ask_monai, judge

    bundle = copy_bundle(tmp_path)
    torch.save({"weight": Payload(tmp_path / "executed")}, bundle / "models" / "model.pt")
    found = judge(bundle, ask_monai(bundle))
    assert found["weights"] and not (tmp_path / "executed").exists()
