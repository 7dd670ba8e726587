"""scripts/register.py: one code path with monai.bundle, any folder, quiet, honest exit codes."""

from __future__ import annotations

import importlib
import io
import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from register_case import command, moved, place, script, undo  # noqa: F401
from script_tools import (
    BUNDLE,
    DONE,
    ROOT,
    files_in,
    run_python,
    tiny_options,
)

RESULTS = ["affine.tfm", "ddf.nii.gz", "inverse_ddf.nii.gz", "metrics.json", "moved.nii.gz", "run.json"]

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")  # MONAI says so with --verbose


def test_writes_the_results_quietly_and_prints_the_table(script, place, capfd):
    labels = [f"--fixed_label={place / 'a_seg.nii.gz'}", f"--moving_label={place / 'b_seg.nii.gz'}"]
    assert script.main(command(place, "quiet", *labels)) in DONE
    written = [name for name in files_in(place / "quiet") if "fallback" not in name]  # see test_results_verdict.py
    assert written == sorted([*RESULTS, "moved_label.nii.gz", "transform.json"])
    out, err = capfd.readouterr()
    assert "label Dice, mean" in out and "before" in out and str(place / "quiet") in out
    assert err == "vtn_registration: registering b.nii.gz onto a.nii.gz ...\n"
    assert not any(noise in out.lower() for noise in ("warn", "monai", "ignite", "summary"))
    header = nib.load(place / "quiet" / "moved.nii.gz")
    np.testing.assert_allclose(header.affine, nib.load(place / "a.nii.gz").affine, atol=1e-5)


def test_equals_monai_bundle_run(script, place):
    """The same bytes from ``python -m monai.bundle run``, started where a folder named scripts is in the way."""
    assert script.main(command(place, "ours")) in DONE
    overrides = [option.removeprefix("--set=").split("=", 1) for option in tiny_options()]
    arguments = ["-m", "monai.bundle", "run", f"--config_file={BUNDLE}/configs/inference.json"]
    arguments += [f"--bundle_root={BUNDLE}", f"--fixed={place / 'a.nii.gz'}", f"--moving={place / 'b.nii.gz'}"]
    arguments += [f"--weights={place / 'model.pt'}", f"--output_dir={place / 'theirs'}", "--report=False"]
    done = run_python([*arguments, "--device#name=cpu", *(f"--{key}={value}" for key, value in overrides)], ROOT)
    assert done.returncode == 0, done.stderr
    for name in set(RESULTS) - {"run.json"}:
        assert (place / "ours" / name).read_bytes() == (place / "theirs" / name).read_bytes(), name
    ours, theirs = (json.loads((place / name / "transform.json").read_text()) for name in ("ours", "theirs"))
    assert ours.pop("options") == {"set": [text.removeprefix("--set=") for text in tiny_options()]}
    assert theirs.pop("options") is None and ours == theirs


def test_runs_as_a_program_from_another_folder_with_relative_paths(place):
    (place / "elsewhere").mkdir()
    arguments = ["vtn_registration", "--fixed=../a.nii.gz", "--moving=../b.nii.gz", "--weights=../model.pt"]
    arguments += ["--output_dir=out", "--device=cpu", "--no_report", *tiny_options()]
    done = run_python([ROOT / "scripts" / "register.py", *arguments], place / "elsewhere")
    assert done.returncode in DONE, done.stderr
    assert "moved.nii.gz" in files_in(place / "elsewhere" / "out")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["vtn", "vtn_registration", "bundles/vtn_registration", str(BUNDLE)])
def test_finds_the_bundle_by_any_of_its_names(script, name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert script.find_bundle(name) == BUNDLE


def test_unknown_bundle_lists_the_known_ones(script, place, capsys):
    assert script.main(["tvn", *command(place, "none")[1:]]) == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("error: there is no bundle 'tvn'") and "vtn_registration" in err and len(err.splitlines()) == 1
    )
    assert not (place / "none").exists()


def test_a_foreign_package_of_the_name_scripts_does_not_get_in_the_way(script, place, tmp_path, monkeypatch):
    """Neither one imported before nor one earlier on the path."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").write_text("stranger = True\n")
    (tmp_path / "scripts" / "network.py").write_text("raise RuntimeError('wrong package')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.import_module("scripts").stranger
    assert script.main(command(place, "stranger")) in DONE
    assert Path(sys.modules["scripts"].__file__).parent == BUNDLE / "scripts"
    assert str(BUNDLE) not in sys.path


@pytest.mark.parametrize("name", ["$sum.nii.gz", "@fixed.nii.gz", "%x.nii.gz", "with space.nii.gz", "a@b#c.nii.gz"])
def test_names_that_mean_something_to_a_configuration_are_just_names(script, place, name, monkeypatch):
    monkeypatch.chdir(place)
    (place / name).write_bytes((place / "b.nii.gz").read_bytes())
    assert script.main(command(place, f"out of {name}", f"--moving={name}")) in DONE
    assert json.loads((place / f"out of {name}" / "transform.json").read_text())["moving"]["file"] == name


def test_datalist_gives_a_folder_a_pair(script, place, capsys):
    pairs = [{"fixed": "a.nii.gz", "moving": "b.nii.gz"}, {"fixed": "b.nii.gz", "moving": "a.nii.gz", "name": "back"}]
    (place / "pairs.json").write_text(json.dumps({"test": pairs}))
    options = [option for option in command(place, "many") if not option.startswith(("--fixed", "--moving"))]
    assert script.main([*options, f"--datalist={place / 'pairs.json'}"]) in DONE
    folders = sorted(path.name for path in (place / "many").iterdir())
    assert folders == ["a_from_b", "back"]
    assert all("moved.nii.gz" in files_in(place / "many" / folder) for folder in folders)
    assert moved(place / "many" / "back").shape == (14, 18, 16)
    assert "[2/2] back" in capsys.readouterr().out


def test_a_list_whose_pairs_would_overwrite_one_another_is_refused(script, place, capsys):
    pairs = [{"fixed": "a.nii.gz", "moving": "b.nii.gz"}, {"fixed": "b.nii.gz", "moving": "a.nii.gz"}]
    for name, sentence in (("a_from_b", "'a_from_b' as"), ("../a", "has the name '../a'")):
        (place / "twice.json").write_text(json.dumps([pairs[0], pairs[1] | {"name": name}]))
        options = [option for option in command(place, "twice") if not option.startswith(("--fixed", "--moving"))]
        assert script.main([*options, f"--datalist={place / 'twice.json'}"]) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert sentence in err and f"{place / 'twice.json'}, pair 2 of 'test'" in err
        assert not (place / "twice").exists()


def test_options_reach_the_configuration(script, place):
    """``header`` instead of centre of mass changes the result; the report is written unless it is refused."""
    assert script.main(command(place, "mass")) in DONE
    options = [option for option in command(place, "header", "--initial_transform=header") if option != "--no_report"]
    assert script.main(options) in DONE
    world = json.loads((place / "header" / "transform.json").read_text())["initial_world_ras_mm"]
    np.testing.assert_array_equal(world, np.eye(4))
    assert not np.array_equal(moved(place / "mass"), moved(place / "header"))
    assert "report.html" in files_in(place / "header") and "report.html" not in files_in(place / "mass")


def test_affine_of_one_run_starts_another(script, place):
    assert script.main(command(place, "first")) in DONE
    assert script.main(command(place, "second", f"--initial_transform={place / 'first' / 'affine.tfm'}")) in DONE
    first, second = (json.loads((place / name / "transform.json").read_text()) for name in ("first", "second"))
    np.testing.assert_allclose(second["initial_world_ras_mm"], first["affine_world_ras_mm"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--datalist=pairs.json"], "--datalist and --fixed exclude each other"),
        (["--set=chanels=3"], "has no 'chanels' to set; it has .*channels"),
        (["--set=channels"], "not of the form KEY=VALUE"),
        (["--threads=0"], "--threads 0 is not possible"),
        (["--refine_steps=-1"], "--refine_steps -1 is not possible"),
        (["--device=gpu"], "device 'gpu' is not known"),
        (["--device=cuda:99"], "device 'cuda:99' is not present"),
        (["--initial_transform=nowhere.tfm"], "initial transform .*nowhere.tfm is neither a file nor"),
    ],
)
def test_options_that_cannot_be_meant(script, place, change, sentence, capsys):
    assert script.main(command(place, "refused", *change)) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ")
    assert re.search(sentence, err), err
    assert not (place / "refused").exists()


def test_missing_moving_image_is_named(script, place, capsys):
    options = [option for option in command(place, "refused") if not option.startswith("--moving")]
    assert script.main(options) == 2
    assert capsys.readouterr().err == (
        "error: the moving image is missing; give its path with --moving, or many with --datalist\n"
    )


def test_other_failures_are_one_sentence_and_exit_code_1(script, place, capsys):
    """A cascade that does not exist is a ValueError deep inside the configuration."""
    broken = command(place, "failed", "--set=cascade=DA")
    assert script.main(broken) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("error: ValueError: cascade must be") and "--verbose" in err
    assert "Traceback" not in err and not (place / "failed").exists()
    assert script.main([*broken, "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_verbose_lets_monai_speak(script, place, capfd):
    assert script.main(command(place, "loud", "--verbose")) in DONE
    assert "SupervisedEvaluator - INFO" in capfd.readouterr().out  # the format of the bundle's logging.conf


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_the_stages_and_no_rest_of_them(script, place, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert script.main(command(place, "stages")) in DONE
    shown = terminal.getvalue()
    places = [shown.index(f"[1/1] {stage}") for stage in ("reading", "predicting", "refining")]
    assert places == sorted(places) and shown.endswith("\r\x1b[K")
    assert script.main(command(place, "stages", f"--moving={place / 'no.nii.gz'}")) == 2
    assert "\r\x1b[Kerror: moving image" in terminal.getvalue()


def test_interrupted(script, place, monkeypatch, capsys):
    import monai.bundle

    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(monai.bundle, "run", interrupt)
    assert script.main(command(place, "interrupted")) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_help_shows_examples(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "register.py vtn --fixed a.nii.gz --moving b.nii.gz" in text and "vtn_registration" in text
