"""register.py --replay: a run again from its record, with the same bytes, or a sentence on what is not the same."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from script_tools import DONE, blob, files_in, load_script, make_weights, save, tiny_options

from shared_components.itk_io import write_affine

OPTIONS = ["--device=cpu", "--refine_steps=2", "--diffeomorphic", "--threads=1", *tiny_options()]

VOLATILE = ("run.json", "report.html")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("register")


@pytest.fixture(autouse=True)
def _undo(undo_config: None) -> None:
    """Undo what a configuration sets."""


@pytest.fixture(scope="module")
def first(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a pair and all that may come with it, and ``out``, its registration."""
    place = tmp_path_factory.mktemp("replay")
    for name, shift in (("a", 0.0), ("b", 1.0)):
        image = blob((17, 16, 15), shift).astype(np.float32)
        save(place / f"{name}.nii.gz", image)
        save(place / f"{name}_seg.nii.gz", (image > 60).astype(np.uint8))
    save(place / "mask.nii.gz", np.ones((17, 16, 15), np.uint8))
    middle = nib.load(place / "a.nii.gz").affine[:3] @ [8, 8, 7, 1]
    (place / "points.csv").write_text("x,y,z\n" + ",".join(map(str, middle)) + "\n")
    write_affine(place / "start.tfm", np.eye(4))
    make_weights(place / "model.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.excepthook", None)
        assert script.main(["vtn", *inputs(place), *OPTIONS, f"--output_dir={place / 'out'}", "--no_report"]) in DONE
    yield place


def inputs(place: Path) -> list[str]:
    named = {"fixed": "a.nii.gz", "moving": "b.nii.gz", "fixed_label": "a_seg.nii.gz", "moving_label": "b_seg.nii.gz"}
    named |= {"fixed_points": "points.csv", "fixed_mask": "mask.nii.gz"}
    named |= {"initial_transform": "start.tfm", "weights": "model.pt"}
    return [f"--{role}={place / name}" for role, name in named.items()]


@pytest.fixture
def mine(first: Path, tmp_path: Path) -> Path:
    """A copy of all that, to be spoilt."""
    return Path(shutil.copytree(first, tmp_path / "mine"))


def change(place: Path, **entries: object) -> None:
    path = place / "out" / "transform.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder) if name not in VOLATILE}


def test_the_record_tells_all_that_was_asked_and_no_place(first: Path) -> None:
    text = (first / "out" / "transform.json").read_text()
    record = json.loads(text)
    assert str(first) not in text
    options = record["options"]
    assert options["refine_steps"] == 2 and options["diffeomorphic"] is True
    assert options["set"] == [text.removeprefix("--set=") for text in tiny_options()]
    assert options["initial_transform"]["file"] == "start.tfm"
    assert not {"device", "threads", "weights", "output_dir", "fixed", "verbose", "no_report"} & set(options)
    assert set(record["inputs"]) == {"fixed_label", "moving_label", "fixed_points", "fixed_mask"}
    assert set(record["results"]) == set(files_in(first / "out")) - {"run.json", "transform.json"}


def test_a_run_is_repeated_byte_by_byte(script: ModuleType, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All files are found beside the record's folder; nothing else is told."""
    assert script.main([f"--replay={mine / 'out' / 'transform.json'}", f"--output_dir={mine / 'again'}"]) in DONE
    assert bytes_of(mine / "again") == bytes_of(mine / "out")
    out, err = capsys.readouterr()
    assert "the same bytes as" in out and "other versions" not in err
    before = set(files_in(mine))
    assert script.main(["--replay", str(mine / "again"), "--device=cpu"]) in DONE
    assert set(files_in(mine)) == before, "without an output folder nothing is kept"


def test_files_that_lie_elsewhere_are_given_again(
    script: ModuleType, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lonely = Path(shutil.copytree(mine / "out", tmp_path / "far" / "from" / "all" / "out"))
    assert script.main([f"--replay={lonely}", "--device=cpu"]) == 2
    err = capsys.readouterr().err
    assert "fixed a.nii.gz of" in err and "give its path with --fixed" in err and len(err.splitlines()) == 1
    assert script.main(["vtn", f"--replay={lonely}", *inputs(mine), f"--output_dir={tmp_path / 'again'}"]) in DONE
    assert bytes_of(tmp_path / "again") == bytes_of(lonely)


@pytest.mark.parametrize(("name", "role"), [
    ("b.nii.gz", "moving"), ("a_seg.nii.gz", "fixed label"), ("points.csv", "fixed points"),
    ("start.tfm", "initial transform"), ("model.pt", "weights"),
])  # fmt: skip
def test_a_file_that_changed_is_named(
    script: ModuleType, mine: Path, name: str, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with (mine / name).open("ab") as stream:
        stream.write(b"\n")
    assert script.main([f"--replay={mine / 'out'}", f"--output_dir={mine / 'again'}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {role} {mine / name} is not the file that") and len(err.splitlines()) == 1
    assert not (mine / "again").exists()


@pytest.mark.parametrize(("more", "sentence"), [
    (["--refine_steps=0"], "leave --refine_steps out"),
    (["--diffeomorphic"], "leave --diffeomorphic out"),
    (["--set=precision=bfloat16"], "leave --set precision=bfloat16 out"),
    (["--moving_points=points.csv"], "took no file as --moving_points"),
    (["--series=cine.nii.gz"], "took no file as --series"),
    (["--fixed=no.nii.gz"], "fixed .*no.nii.gz does not exist"),
    (["--output_dir={mine}/out"], "holds the run to be repeated"),
])  # fmt: skip
def test_options_beside_it_that_cannot_be_meant(
    script: ModuleType, mine: Path, more: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [f"--replay={mine / 'out'}", f"--output_dir={mine / 'again'}", *more]
    before = bytes_of(mine / "out")
    assert script.main([text.format(mine=mine) for text in arguments]) == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert bytes_of(mine / "out") == before


@pytest.mark.parametrize(("entries", "sentence"), [
    ({"options": None}, "does not tell its options"),
    ({"series": {}}, "does not tell its fixed_frame"),
    ({"series": {}, "fixed_frame": 0}, "is damaged"),
    ({"series": {"file": "a", "sha256": "b"}, "fixed_frame": "$print(1)"}, "is damaged"),
    ({"bundle": "vtn_registration 0.0.1"}, "was made by vtn_registration 0.0.1 and"),
    ({"bundle": "tvn 0.0.1"}, "there is no bundle 'tvn'"),
    ({"options": {"refine_steps": "$print(1)"}}, "is damaged"),
    ({"options": {"config": "../../evil"}}, "is damaged"),
    ({"options": {"unheard_of": 1}}, "is damaged"),
    ({"inputs": {"weights": {"file": "x", "sha256": ""}}}, "is damaged"),
    ({"inputs": [1]}, "is damaged"),
    ({"options": {"set": ['size="\\u0024print(1)"']}}, "may execute code"),
    ({"options": {"set": ["network_def#_target_=os.system"]}}, "may execute code"),
])  # fmt: skip
def test_records_that_cannot_be_repeated(
    script: ModuleType, mine: Path, entries: dict[str, object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(mine, **entries)
    assert script.main([f"--replay={mine / 'out'}", f"--output_dir={mine / 'again'}"]) == 2
    err = capsys.readouterr().err
    assert sentence in err and len(err.splitlines()) == 1 and not (mine / "again").exists()


@pytest.mark.parametrize(("text", "sentence"), [
    (None, "does not exist"), ("{", "not readable JSON"), ("[]", "no record of a registration"),
    ("\0\0", "not readable JSON"), ('{"a": 1}', "no record of a registration"),
])  # fmt: skip
def test_files_that_are_no_record(
    script: ModuleType, tmp_path: Path, text: str | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "transform.json"
    if text is not None:
        path.write_text(text)
    assert script.main([f"--replay={path}"]) == 2
    assert sentence in capsys.readouterr().err


def test_another_result_is_told_with_exit_code_1(
    script: ModuleType, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Versions that changed are told before; a result that differs is named."""
    record = json.loads((mine / "out" / "transform.json").read_text())
    results = record["results"] | {"moved.nii.gz": "0" * 64}
    change(mine, results=results, versions=record["versions"] | {"torch": "0.4.1"})
    assert script.main([f"--replay={mine / 'out'}", f"--output_dir={mine / 'again'}"]) == 1
    err = capsys.readouterr().err
    assert "torch 0.4.1 is now" in err and "moved.nii.gz differ from the run of" in err.splitlines()[-1]
    assert "ddf.nii.gz" not in err.splitlines()[-1] and (mine / "again" / "moved.nii.gz").is_file()


def test_a_pair_of_a_list_is_repeated_alone(script: ModuleType, mine: Path) -> None:
    """With labels that only the list names; results lie a folder deeper."""
    pair = {"fixed": "a.nii.gz", "moving": "b.nii.gz", "moving_label": "b_seg.nii.gz", "name": "one"}
    (mine / "pairs.json").write_text(json.dumps([pair]))
    options = ["--device=cpu", "--threads=1", *tiny_options(), f"--weights={mine / 'model.pt'}", "--no_report"]
    assert script.main(["vtn", f"--datalist={mine / 'pairs.json'}", f"--output_dir={mine / 'many'}", *options]) in DONE
    assert script.main([f"--replay={mine / 'many' / 'one'}", f"--output_dir={mine / 'again'}"]) in DONE
    assert bytes_of(mine / "again") == bytes_of(mine / "many" / "one")


def test_what_is_needed_without_a_record(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        script.main([])
    assert stop.value.code == 2 and "required: BUNDLE, --output_dir" in capsys.readouterr().err
