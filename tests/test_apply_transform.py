"""scripts/apply_transform.py: images, labels and points through saved transforms, one or many, both ways."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from script_tools import (
    FIXED,
    MOVING,
    POINTS_MM,
    blob,
    files_in,
    load_script,
    result_folder,
    save,
    shift,
    values,
)

from shared_components.geometry import Frame
from shared_components.itk_io import write_affine, write_field
from shared_components.points import read_points, write_points
from shared_components.transform import PhysicalField, affine_field


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("apply_transform")


@pytest.fixture
def field(smooth_ddf) -> PhysicalField:
    """On the fixed grid, up to 5 mm, zero at the border."""
    ddf_mm = smooth_ddf(FIXED.shape, 5.0, seed=1, vanish=True, dtype=torch.float32)[0].numpy()
    return PhysicalField(FIXED, ddf_mm)


def test_image_is_pulled_onto_the_fixed_grid(script, field, tmp_path):
    write_field(tmp_path / "ddf.nii.gz", field)
    image = torch.from_numpy(blob(MOVING.shape)).float()[None]
    path = save(tmp_path / "t2.nii.gz", image[0].numpy(), MOVING.affine)
    assert script.main([f"--transform={tmp_path}", f"--image={path}", f"--output_dir={tmp_path / 'out'}"]) == 0
    assert files_in(tmp_path / "out") == ["t2_moved.nii.gz"]
    moved = nib.load(tmp_path / "out" / "t2_moved.nii.gz")
    np.testing.assert_allclose(moved.affine, FIXED.affine, atol=1e-5)
    expected = field.resample(image, MOVING)[0].numpy()
    assert expected.std() > 10
    np.testing.assert_allclose(values(tmp_path / "out" / "t2_moved.nii.gz"), expected, atol=1e-3)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_labels_keep_their_type_and_set(script, field, tmp_path, dtype):
    write_field(tmp_path / "ddf.nii.gz", field)
    names = np.array([0, 3, 7, 200 if dtype == "uint8" else 30001])
    label = names[np.digitize(blob(MOVING.shape), [10, 40, 60])].astype(dtype)
    path = save(tmp_path / "seg.nii.gz", label, MOVING.affine)
    assert script.main([f"--transform={tmp_path}", f"--label={path}", f"--output_dir={tmp_path / 'out'}"]) == 0
    moved = values(tmp_path / "out" / "seg_moved.nii.gz")
    assert moved.dtype == dtype
    np.testing.assert_array_equal(np.unique(moved), names)


def test_outside_the_moving_image_there_is_background(script, tmp_path):
    folder = result_folder(tmp_path / "far", shift(1000, 0, 0))
    label = save(tmp_path / "seg.nii.gz", np.full(MOVING.shape, 5, np.uint8), MOVING.affine)
    image = save(tmp_path / "ct.nii.gz", (blob(MOVING.shape) - 1000).astype(np.int16), MOVING.affine)
    out = tmp_path / "out"
    assert script.main([f"--transform={folder}", f"--label={label}", f"--image={image}", f"--output_dir={out}"]) == 0
    assert (values(out / "seg_moved.nii.gz") == 0).all() and (values(out / "ct_moved.nii.gz") == -1000).all()


def test_points_travel_from_fixed_to_moving_and_back(script, tmp_path):
    """A point of the fixed image lies 3, -2, 1 mm further in the moving one; --inverse takes it back."""
    folder = result_folder(tmp_path / "result", shift(3, -2, 1))
    write_points(tmp_path / "fixed.csv", POINTS_MM, ["a", "b", "c"])
    assert script.main([f"--transform={folder}", f"--points={tmp_path / 'fixed.csv'}", f"--output_dir={tmp_path}"]) == 0
    moving = read_points(tmp_path / "fixed_moved.csv")
    np.testing.assert_allclose(moving.points_mm, POINTS_MM + (3, -2, 1), atol=1e-4)
    assert moving.names == ["a", "b", "c"]
    back = [f"--points={tmp_path / 'fixed_moved.csv'}", "--inverse"]
    assert script.main([f"--transform={folder}", *back, f"--output_dir={tmp_path}"]) == 0
    np.testing.assert_allclose(read_points(tmp_path / "fixed_moved_moved.csv").points_mm, POINTS_MM, atol=1e-4)


def test_image_and_points_of_one_call_agree(script, tmp_path):
    """A bright voxel of the moving image appears where the fixed point lies that is mapped onto it."""
    world = shift(4, -4, 8)  # whole voxels of the fixed grid
    folder = result_folder(tmp_path / "result", world, moving=FIXED)
    image = np.zeros(FIXED.shape, np.float32)
    image[6, 9, 7] = 1
    path = save(tmp_path / "spot.nii.gz", image)
    arguments = [f"--transform={folder}", f"--image={path}", f"--output_dir={tmp_path}"]
    assert script.main(arguments) == 0
    found = np.argwhere(values(tmp_path / "spot_moved.nii.gz") > 0.99)
    assert len(found) == 1
    write_points(tmp_path / "found.csv", FIXED.to_mm(found))
    assert script.main([f"--transform={folder}", f"--points={tmp_path / 'found.csv'}", f"--output_dir={tmp_path}"]) == 0
    mapped = FIXED.to_vox(read_points(tmp_path / "found_moved.csv").points_mm)
    np.testing.assert_allclose(mapped, [[6, 9, 7]], atol=1e-3)


def test_slicer_points_stay_slicer_points(script, tmp_path):
    folder = result_folder(tmp_path / "result", shift(3, -2, 1))
    write_points(tmp_path / "marks.fcsv", POINTS_MM, ["L1", "L2", "L3"])
    write_points(tmp_path / "more.mrk.json", POINTS_MM)
    given = ["--points", str(tmp_path / "marks.fcsv"), str(tmp_path / "more.mrk.json")]
    assert script.main([f"--transform={folder}", *given, f"--output_dir={tmp_path / 'out'}"]) == 0
    assert files_in(tmp_path / "out") == ["marks_moved.fcsv", "more_moved.mrk.json"]
    for name in files_in(tmp_path / "out"):
        points = read_points(tmp_path / "out" / name)
        np.testing.assert_allclose(points.points_mm, POINTS_MM + (3, -2, 1), atol=1e-4)
    assert read_points(tmp_path / "out" / "marks_moved.fcsv").names == ["L1", "L2", "L3"]


def test_inverse_brings_the_fixed_image_onto_the_moving_grid(script, tmp_path):
    folder = result_folder(tmp_path / "result", shift(5, 0, -3))
    path = save(tmp_path / "fixed.nii.gz", blob(FIXED.shape).astype(np.float32))
    arguments = [f"--transform={folder}", "--inverse", f"--image={path}", f"--output_dir={tmp_path}"]
    assert script.main(arguments) == 0
    moved = nib.load(tmp_path / "fixed_moved.nii.gz")
    assert moved.shape == MOVING.shape
    image = torch.from_numpy(blob(FIXED.shape)).float()[None]
    expected = affine_field(shift(-5, 0, 3), MOVING).resample(image, FIXED)[0].numpy()
    np.testing.assert_allclose(moved.get_fdata(), expected, atol=1e-3)


def test_reference_defines_the_grid(script, field, tmp_path):
    write_field(tmp_path / "ddf.nii.gz", field)
    image = save(tmp_path / "m.nii.gz", blob(MOVING.shape).astype(np.float32), MOVING.affine)
    fine = Frame((20, 30, 24), FIXED.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    reference = save(tmp_path / "grid.nii.gz", np.zeros(fine.shape, np.uint8), fine.affine)
    out = tmp_path / "out"
    asked = [f"--image={image}", f"--reference={reference}", f"--output_dir={out}"]
    assert script.main([f"--transform={tmp_path}", *asked]) == 0
    moved = nib.load(out / "m_moved.nii.gz")
    np.testing.assert_allclose(moved.affine, fine.affine, atol=1e-5)
    index = np.array([[5, 8, 11], [13, 21, 6]])
    there = MOVING.to_vox(field.map_points(fine.to_mm(index)))
    expected = map_coordinates(blob(MOVING.shape), there.T, order=1)
    np.testing.assert_allclose(moved.get_fdata()[tuple(index.T)], expected, atol=1e-2)


@pytest.mark.parametrize("labels", [False, True])
def test_every_volume_of_a_series_is_moved(script, field, tmp_path, labels):
    write_field(tmp_path / "ddf.nii.gz", field)
    kind = "label" if labels else "image"
    series = np.stack([blob(MOVING.shape, offset) for offset in (0.0, 1.0, 2.0)], -1).astype(np.int16)
    header = nib.Nifti1Image(series, MOVING.affine)
    header.header.set_zooms((*header.header.get_zooms()[:3], 2.5))
    nib.save(header, tmp_path / "bold.nii.gz")
    single = save(tmp_path / "second.nii.gz", series[..., 1], MOVING.affine)
    asked = [f"--{kind}", str(tmp_path / "bold.nii.gz"), single, "--output_dir", str(tmp_path / "out")]
    assert script.main(["--transform", str(tmp_path), *asked]) == 0
    moved = nib.load(tmp_path / "out" / "bold_moved.nii.gz")
    assert moved.shape == (*FIXED.shape, 3)
    assert moved.header.get_zooms()[3] == 2.5
    np.testing.assert_array_equal(moved.get_fdata()[..., 1], values(tmp_path / "out" / "second_moved.nii.gz"))
    assert not np.array_equal(moved.get_fdata()[..., 0], moved.get_fdata()[..., 1])


def test_a_constant_image_may_be_moved(script, field, tmp_path):
    """register.py refuses images without contrast; a mask of ones or an empty channel has every right to be moved."""
    write_field(tmp_path / "ddf.nii.gz", field)
    path = save(tmp_path / "ones.nii.gz", np.ones(MOVING.shape, np.float32), MOVING.affine)
    assert script.main([f"--transform={tmp_path}", f"--image={path}", f"--output_dir={tmp_path}"]) == 0
    assert (values(tmp_path / "ones_moved.nii.gz") == 1).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image=nan.nii.gz"], "image .*nan.nii.gz has NaN"),
        (["--image=nowhere.nii.gz"], "nowhere.nii.gz does not exist"),
        (["--image", "good.nii.gz", "cut.nii.gz"], "cut.nii.gz is damaged"),
        (["--image=flat.nii.gz"], "flat.nii.gz is 2-D .*; give a 3-D image"),
        (["--image=result/ddf.nii.gz"], "is a displacement field; hand it over with --transform"),
        (["--label=good.nii.gz"], "not whole numbers"),
        (["--points=far.csv"], "far.csv: 1 of 1 lie outside"),
        (["--image=good.nii.gz", "--transform=good.nii.gz"], "transform good.nii.gz is no displacement field"),
        (["--image=good.nii.gz", "--transform=empty"], "transform empty has no ddf.nii.gz; give a folder"),
        (["--image=good.nii.gz", "--reference=nowhere.nii.gz"], "reference nowhere.nii.gz does not exist"),
        (["--image=good.nii.gz", "--inverse", "--transform=result/ddf.nii.gz"], "one field without its inverse"),
        (["--image=good.nii.gz", "--transform=flat.tfm"], "partly 2-D and partly 3-D"),
        (["--image", "good.nii.gz", "other/good.nii.gz"], "two inputs would be written to"),
        (["--image=good.nii.gz", "--output_dir=good.nii.gz"], "cannot be written to"),
        (["--image=good.nii.gz", "--threads=0"], "--threads 0 is not possible"),
        ([], "there is nothing to move; give --image"),
    ],
)
def test_faults_are_sentences_and_leave_nothing(script, tmp_path, monkeypatch, capfd, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    result_folder(tmp_path / "result", shift(1, 0, 0))
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    array = (blob(MOVING.shape) / 7).astype(np.float32)
    for name in ("good.nii.gz", "other/good.nii.gz"):
        save(tmp_path / name, array, MOVING.affine)
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:700])
    save(tmp_path / "flat.nii.gz", array[..., 3], MOVING.affine)
    array[2, 2, 2] = np.nan
    save(tmp_path / "nan.nii.gz", array, MOVING.affine)
    write_points(tmp_path / "far.csv", np.array([[500.0, 0, 0]]))
    write_affine(tmp_path / "flat.tfm", np.eye(3))
    before = files_in(tmp_path)
    assert script.main(["--output_dir=out", "--transform=result", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and re.fullmatch(f"error: .*{sentence}.*\n", err), err
    assert files_in(tmp_path) == before


def test_an_input_is_never_replaced(script, field, tmp_path, capsys):
    """``a.nii.gz`` would become ``a_moved.nii.gz``, which is itself an input."""
    write_field(tmp_path / "ddf.nii.gz", field)
    paths = [save(tmp_path / name, blob(MOVING.shape), MOVING.affine) for name in ("a.nii.gz", "a_moved.nii.gz")]
    before = [Path(path).read_bytes() for path in paths]
    assert script.main(["--transform", str(tmp_path), "--image", *paths, "--output_dir", str(tmp_path)]) == 2
    assert "is an input and would be replaced; choose another --output_dir" in capsys.readouterr().err
    assert [Path(path).read_bytes() for path in paths] == before
    assert script.main(["--transform", str(tmp_path), "--image", *paths, "--output_dir", str(tmp_path / "out")]) == 0


def test_help_tells_the_direction_of_points(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "points of the FIXED image -> moving points of the MOVING image -> fixed" in text
    assert "first A, then B" in text
