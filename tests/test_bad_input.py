"""What is handed in may be at fault: one sentence with file, fault and remedy, exit code 2, and nothing written.

Most cases run register.py in this process on a tiny VTN with random weights. Awkward but good: test_awkward_input.py.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch
from script_tools import (
    AFFINE,
    BUNDLE,
    DONE,
    SHAPE,
    Options,
    blob,
    files_in,
    good_options,
    load_script,
    make_weights,
    run_python,
    run_register,
    save,
    tiny_options,
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("register")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options of a run that succeeds."""
    return good_options(tmp_path_factory.mktemp("good"))


@pytest.fixture(autouse=True)
def _hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the excepthook that a configuration sets."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


Fault = Callable[[Path, Options], Options]


def image(name: str, make: Callable[[], np.ndarray], affine: np.ndarray = AFFINE) -> Fault:
    """A fault in the moving image."""
    return lambda folder, good: {"moving": save(folder / name, make(), affine)}


def raw_bytes(name: str, content: bytes) -> Fault:
    def build(folder: Path, good: Options) -> Options:
        (folder / name).write_bytes(content)
        return {"moving": str(folder / name)}

    return build


def with_value(value: float) -> np.ndarray:
    array = blob(SHAPE).astype(np.float32)
    array[3, 4, 5] = value
    return array


def rgb(folder: Path, good: Options) -> Options:
    array = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    array["R"] = blob(SHAPE)
    return {"moving": save(folder / "colour.nii.gz", array)}


def truncated(folder: Path, good: Options) -> Options:
    (folder / "cut.nii.gz").write_bytes(Path(good["moving"]).read_bytes()[:900])
    return {"moving": str(folder / "cut.nii.gz")}


def zero_spacing(folder: Path, good: Options) -> Options:
    """nibabel repairs a voxel size of 0 when it writes, so patch the bytes of pixdim[1] and set no sform."""
    picture = nib.Nifti1Image(blob(SHAPE).astype(np.float32), None)
    picture.header.set_sform(None, code=0)
    picture.header.set_qform(None, code=0)
    nib.save(picture, folder / "flat.nii")
    content = bytearray((folder / "flat.nii").read_bytes())
    content[80:84] = np.float32(0).tobytes()
    (folder / "flat.nii").write_bytes(content)
    return {"moving": str(folder / "flat.nii")}


def singular_affine(folder: Path, good: Options) -> Options:
    """The third axis of the sform (srow_x, srow_y, srow_z at byte 280) points along the second."""
    save(folder / "flat.nii", blob(SHAPE).astype(np.float32))
    content = bytearray((folder / "flat.nii").read_bytes())
    content[280:328] = np.array([[4, 0, 0, 0], [0, 4, 4, 0], [0, 0, 0, 0]], np.float32).tobytes()
    (folder / "flat.nii").write_bytes(content)
    return {"moving": str(folder / "flat.nii")}


def far_away(folder: Path, good: Options) -> Options:
    affine = AFFINE.copy()
    affine[:3, 3] += 1000
    return {
        "moving": save(folder / "far.nii.gz", blob(SHAPE).astype(np.float32), affine),
        "initial_transform": "header",
    }


def label_elsewhere(folder: Path, good: Options) -> Options:
    label = (blob(SHAPE) > 50).astype(np.uint8)
    affine = AFFINE.copy()
    affine[0, 3] += 8
    return {
        "fixed_label": save(folder / "seg.nii.gz", label),
        "moving_label": save(folder / "off.nii.gz", label, affine),
    }


def mask_of_other_shape(folder: Path, good: Options) -> Options:
    return {"fixed_mask": save(folder / "mask.nii.gz", np.ones((12, 13, 15), np.uint8))}


def empty_label(folder: Path, good: Options) -> Options:
    return {"fixed_label": save(folder / "blank.nii.gz", np.zeros(SHAPE, np.uint8))}


def fractional_label(folder: Path, good: Options) -> Options:
    return {"moving_label": save(folder / "soft.nii.gz", (blob(SHAPE) / 100).astype(np.float32))}


def points(name: str, content: str, more: str | None = None) -> Fault:
    def build(folder: Path, good: Options) -> Options:
        (folder / name).write_text(content)
        found = {"fixed_points": str(folder / name)}
        if more is not None:
            (folder / "more.csv").write_text(more)
            found["moving_points"] = str(folder / "more.csv")
        return found

    return build


def blocked_folder(folder: Path, good: Options) -> Options:
    """Permissions do not stop root, a file in the way stops everybody."""
    (folder / "occupied").write_text("a file")
    return {"output_dir": str(folder / "occupied")}


def blocked_parent(folder: Path, good: Options) -> Options:
    (folder / "occupied").write_text("a file")
    return {"output_dir": str(folder / "occupied" / "deeper")}


def other_weights(**changes: object) -> Fault:
    return lambda folder, good: {"weights": str(make_weights(folder / "other.pt", **changes))}


class Payload:
    """What a hostile file of weights looks like: reading it as a pickle would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def hostile_weights(folder: Path, good: Options) -> Options:
    torch.save({"weight": Payload(folder / "executed")}, folder / "hostile.pt")
    return {"weights": str(folder / "hostile.pt")}


def hostile_pickle(folder: Path, good: Options) -> Options:
    (folder / "hostile.pkl").write_bytes(pickle.dumps(Payload(folder / "executed")))
    return {"weights": str(folder / "hostile.pkl")}


def datalist(content: str) -> Fault:
    def build(folder: Path, good: Options) -> Options:
        (folder / "pairs.json").write_text(content)
        return {"datalist": str(folder / "pairs.json")}

    return build


HEADER = "x_mm,y_mm,z_mm\n"
FAULTS: dict[str, tuple[Fault, str]] = {  # what to hand in, and the sentence: file, fault, remedy
    "missing": (lambda folder, good: {"moving": str(folder / "no.nii.gz")}, "no.nii.gz does not exist; check"),
    "folder": (lambda folder, good: {"moving": str(folder)}, "is a folder; give one file"),
    "other format": (raw_bytes("a.gif", b"GIF89a"), "a.gif has a format that is not read here; convert"),
    "unreadable": (raw_bytes("noise.nii.gz", b"no image at all" * 40), "noise.nii.gz is damaged .*; copy or export"),
    "cut short": (truncated, "cut.nii.gz is damaged or cut short .*; copy or export"),
    "empty file": (raw_bytes("empty.nii", b""), "empty.nii is an empty file; copy or export"),
    "no voxels": (image("none.nii", lambda: np.zeros((0, 5, 5), np.float32)), "none.nii .*; "),
    "2-D": (image("slice.nii.gz", lambda: blob((12, 13)).astype(np.float32)), "slice.nii.gz is 2-D .*; give a 3-D"),
    "one slice": (
        image("sagittal.nii.gz", lambda: blob((12, 13)).astype(np.float32)[None]),
        r"sagittal.nii.gz is 2-D \(shape 1x12x13\) .*; give a 3-D",
    ),
    "4-D": (
        image("series.nii.gz", lambda: np.stack([blob(SHAPE)] * 3, -1).astype(np.float32)),
        "series.nii.gz is 4-D .*; save the one volume",
    ),
    "RGB": (rgb, "colour.nii.gz has 3 components .*; convert it to grey"),
    "complex": (image("k.nii.gz", lambda: blob(SHAPE).astype(np.complex64)), "k.nii.gz has values of type complex.*; "),
    "constant": (image("same.nii.gz", lambda: np.full(SHAPE, 7, np.int16)), "same.nii.gz is constant .*; check"),
    "all zero": (image("zero.nii.gz", lambda: np.zeros(SHAPE, np.uint8)), "zero.nii.gz is constant .*; check"),
    "NaN": (image("nan.nii.gz", lambda: with_value(np.nan)), "nan.nii.gz has NaN or infinite .* 1 voxel.*; replace"),
    "infinite": (image("inf.nii.gz", lambda: with_value(np.inf)), "inf.nii.gz has NaN or infinite .*; replace"),
    "zero spacing": (zero_spacing, r"flat.nii has a voxel size of 0 x 1 x 1 mm; write the true"),
    "singular affine": (singular_affine, "flat.nii has a singular affine .*; repair"),
    "no overlap": (far_away, "far.nii.gz do not overlap in space .*; use --initial_transform"),
    "fixed given twice": (
        lambda folder, good: {"moving": good["fixed"]},
        "the same file, .*fixed.nii.gz; give two different",
    ),
    "label on another grid": (label_elsewhere, "off.nii.gz .* is not on the grid of its image .*; resample"),
    "mask of another shape": (mask_of_other_shape, "mask.nii.gz .* is not on the grid of its image .*; resample"),
    "empty label": (empty_label, "blank.nii.gz holds no label .*; check"),
    "label that is an image": (fractional_label, "soft.nii.gz has values that are not whole numbers .*; give"),
    "points outside": (points("off.csv", HEADER + "0,0,0\n0,900,0\n"), "off.csv: 1 of 2 lie outside .*; check"),
    "points that are no numbers": (points("text.csv", HEADER + "0,0,left\n"), "text.csv cannot be understood .*; give"),
    "no points": (points("none.csv", HEADER), "none.csv holds no points; check"),
    "unequal points": (
        points("two.csv", HEADER + "0,0,0\n1,1,1\n", HEADER + "0,0,0\n"),
        "two.csv has 2 points and .*more.csv has 1; landmarks must come in pairs",
    ),
    "output folder is a file": (blocked_folder, "occupied cannot be written to .*; choose another"),
    "output folder in a file": (blocked_parent, "deeper cannot be written to .*; choose another"),
    "weights missing": (lambda folder, good: {"weights": str(folder / "no.pt")}, "no.pt are missing; download"),
    "weights of another size": (other_weights(channels=3), "other.pt belong to another network .*; use"),
    "weights of another cascade": (other_weights(cascade="ADD"), "other.pt belong to another network .*; use"),
    "weights with code": (hostile_weights, "hostile.pt cannot be read as a plain state dict .*; get"),
    "weights that are a pickle": (hostile_pickle, "hostile.pkl cannot be read as a plain state dict .*; get"),
    "weights that are an image": (
        lambda folder, good: {"weights": good["fixed"]},
        "fixed.nii.gz cannot be read as .*; ",
    ),
    "datalist missing": (lambda folder, good: {"datalist": str(folder / "no.json")}, "no.json does not exist; give"),
    "datalist that is no JSON": (datalist("[{"), "pairs.json is not readable JSON .*; correct"),
    "datalist without pairs": (datalist('{"test": []}'), "pairs.json has no pairs under 'test'; add"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_told_in_one_sentence(script, good, name, tmp_path, capfd):
    build, sentence = FAULTS[name]
    change = build(tmp_path, good)
    options = good | change
    if "datalist" in change:
        options = {key: value for key, value in options.items() if key not in ("fixed", "moving")}
    before = files_in(tmp_path)
    assert run_register(script, options, tmp_path / "out") == 2
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert re.fullmatch(f"error: .*{sentence}.*", lines[-1]), lines[-1]
    assert len(lines) == 2 and lines[0].endswith("..."), err
    assert out == "" and "Traceback" not in err
    assert files_in(tmp_path) == before


def test_a_bad_pair_does_not_spoil_the_pairs_before_it(script, good, tmp_path, capfd):
    fine = {"fixed": good["fixed"], "moving": good["moving"], "name": "fine"}
    (tmp_path / "pairs.json").write_text(json.dumps({"test": [fine, {"fixed": good["fixed"]}]}))
    options = {"weights": good["weights"], "datalist": str(tmp_path / "pairs.json")}
    assert run_register(script, options, tmp_path / "out") == 2
    assert "the moving image is missing" in capfd.readouterr().err.splitlines()[-1]
    assert "moved.nii.gz" in files_in(tmp_path / "out" / "fine")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fine"]


def test_a_failed_run_leaves_earlier_results_as_they_were(script, good, tmp_path):
    assert run_register(script, good, tmp_path / "out") in DONE
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files_in(tmp_path / "out")}
    broken = save(tmp_path / "nan.nii.gz", with_value(np.nan))
    assert run_register(script, good | {"moving": broken}, tmp_path / "out") == 2
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files_in(tmp_path / "out")} == before


def test_monai_bundle_run_ends_with_the_same_sentence(good, tmp_path):
    """The front is not needed for it: the last line of ``python -m monai.bundle run`` is the sentence."""
    arguments = ["-m", "monai.bundle", "run", f"--config_file={BUNDLE}/configs/inference.json"]
    arguments += [f"--bundle_root={BUNDLE}", f"--output_dir={tmp_path / 'out'}", f"--fixed={good['fixed']}"]
    arguments += [f"--moving={tmp_path / 'no.nii.gz'}", f"--weights={good['weights']}", "--device#name=cpu"]
    done = run_python([*arguments, *(option.replace("--set=", "--") for option in tiny_options())], tmp_path)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"error: moving image {tmp_path}/no.nii.gz does not exist; check the path"
    assert not (tmp_path / "out").exists()
