"""scripts/apply_transform.py: chains of transforms, and what register.py wrote applied once more."""

from __future__ import annotations

import hashlib
import json
from types import ModuleType

import numpy as np
import pytest
import torch
from script_tools import (
    DONE,
    FIXED,
    MOVING,
    OBLIQUE,
    POINTS_MM,
    blob,
    load_script,
    make_weights,
    result_folder,
    save,
    shift,
    tiny_options,
    values,
)

from shared_components.geometry import apply_affine
from shared_components.itk_io import read_transform, write_affine, write_field
from shared_components.points import read_points, write_points
from shared_components.transform import PhysicalField


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("apply_transform")


@pytest.fixture
def field(smooth_ddf) -> PhysicalField:
    """On the fixed grid, up to 5 mm, zero at the border."""
    ddf_mm = smooth_ddf(FIXED.shape, 5.0, seed=1, vanish=True, dtype=torch.float32)[0].numpy()
    return PhysicalField(FIXED, ddf_mm)


def test_chain_goes_from_the_final_grid_outwards(script, tmp_path):
    """First A then B, seen from the fixed image; with --inverse the whole is turned round. They do not commute."""
    a = np.array([[0.0, -1, 0, 3], [1, 0, 0, -2], [0, 0, 1, 1], [0, 0, 0, 1]])
    b = np.array([[1.1, 0, 0, -4], [0, 0.9, 0.1, 2], [0, 0, 1, 5], [0, 0, 0, 1]])
    for name, matrix in (("a", a), ("b", b)):
        write_affine(tmp_path / f"{name}.tfm", matrix)
    write_points(tmp_path / "p.csv", POINTS_MM)
    chain = [f"--transform={tmp_path / 'a.tfm'}", f"--transform={tmp_path / 'b.tfm'}"]
    asked = [f"--points={tmp_path / 'p.csv'}", f"--output_dir={tmp_path}"]
    assert script.main([*chain, *asked]) == 0
    np.testing.assert_allclose(read_points(tmp_path / "p_moved.csv").points_mm, apply_affine(b @ a, POINTS_MM))
    assert script.main([*chain, *asked, "--inverse"]) == 0
    expected = apply_affine(np.linalg.inv(b @ a), POINTS_MM)
    np.testing.assert_allclose(read_points(tmp_path / "p_moved.csv").points_mm, expected)
    assert np.abs(apply_affine(a @ b, POINTS_MM) - apply_affine(b @ a, POINTS_MM)).max() > 1


def test_chain_agrees_with_simpleitk(script, field, smooth_ddf, tmp_path):
    """ITK's composite applies the transform added last first, so our order A, B is its B, A."""
    sitk = pytest.importorskip("SimpleITK")
    write_field(tmp_path / "a.nii.gz", field)
    between = PhysicalField(MOVING, smooth_ddf(MOVING.shape, 4.0, seed=5, vanish=True, dtype=torch.float32)[0].numpy())
    write_field(tmp_path / "b.nii.gz", between)
    image = save(
        tmp_path / "m.nii.gz", blob((22,) * 3).astype(np.float32), shift(-33, -30, -31) @ np.diag([3, 3, 3, 1])
    )
    chain = [f"--transform={tmp_path / 'a.nii.gz'}", f"--transform={tmp_path / 'b.nii.gz'}"]
    assert script.main([*chain, f"--image={image}", f"--output_dir={tmp_path}"]) == 0
    fields = [
        sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / f"{name}.nii.gz"), sitk.sitkVectorFloat64))
        for name in "ba"
    ]
    reference = sitk.ReadImage(save(tmp_path / "grid.nii.gz", np.zeros(FIXED.shape, np.float32)))
    theirs = sitk.Resample(sitk.ReadImage(image), reference, sitk.CompositeTransform(fields), sitk.sitkLinear, 0.0)
    ours = values(tmp_path / "m_moved.nii.gz")
    inner = (slice(2, -2),) * 3
    np.testing.assert_allclose(ours[inner], sitk.GetArrayFromImage(theirs).T[inner], atol=0.1)  # 1e-3 of the range
    assert ours[inner].std() > 10


def test_chain_is_interpolated_once(script, tmp_path):
    """Half a voxel there and half a voxel back: the image comes out unblurred."""
    there, back = shift(2, 0, 0), shift(-2, 0, 0)
    folders = [result_folder(tmp_path / name, m, FIXED, FIXED) for name, m in (("there", there), ("back", back))]
    noise = np.random.default_rng(0).normal(size=FIXED.shape).astype(np.float32)
    path = save(tmp_path / "noise.nii.gz", noise)
    chain = [f"--transform={folder}" for folder in folders]
    assert script.main([*chain, f"--image={path}", f"--output_dir={tmp_path}"]) == 0
    moved = values(tmp_path / "noise_moved.nii.gz")
    np.testing.assert_allclose(moved[1:-1], noise[1:-1], atol=1e-4)


def test_wrong_order_of_results_is_noticed(script, tmp_path, capsys):
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("t1", "t2", "dwi")}
    for folder, fixed, moving in (("first", "t1", "t2"), ("second", "t2", "dwi")):
        place = result_folder(tmp_path / folder, np.eye(4))
        sides = {"fixed": fixed, "moving": moving}
        record = {side: {"file": f"{name}.nii.gz", "sha256": hashes[name]} for side, name in sides.items()}
        (place / "transform.json").write_text(json.dumps(record))
    write_points(tmp_path / "p.csv", POINTS_MM)
    asked = [f"--points={tmp_path / 'p.csv'}", f"--output_dir={tmp_path}"]
    right = [f"--transform={tmp_path / name}" for name in ("first", "second")]
    assert script.main([*right, *asked]) == 0
    assert capsys.readouterr().err == ""
    assert script.main([*right[::-1], *asked]) == 0
    assert "the moving image of" in (err := capsys.readouterr().err) and "(dwi.nii.gz) is not the fixed image" in err


def test_affine_needs_a_reference_for_images(script, tmp_path, capsys):
    write_affine(tmp_path / "affine.tfm", shift(0, 4, 0))
    path = save(tmp_path / "m.nii.gz", blob(FIXED.shape).astype(np.float32))
    asked = [f"--transform={tmp_path / 'affine.tfm'}", f"--image={path}", f"--output_dir={tmp_path / 'out'}"]
    assert script.main(asked) == 2
    assert "give an image that has it with --reference" in capsys.readouterr().err
    assert script.main([*asked, f"--reference={path}"]) == 0
    moved = values(tmp_path / "out" / "m_moved.nii.gz")
    np.testing.assert_allclose(moved[:, :-1], blob(FIXED.shape)[:, 1:], atol=1e-3)


def test_reproduces_what_register_wrote(script, tmp_path):
    """moved and moved_label once more from the saved fields, and back again."""
    register = load_script("register")
    image, label = blob((18, 16, 17), 1.0), (blob((18, 16, 17), 1.0) > 50).astype(np.uint8)
    files = {
        "fixed": save(tmp_path / "a.nii.gz", blob((16, 17, 15)).astype(np.float32)),
        "moving": save(tmp_path / "b.nii.gz", image.astype(np.float32), shift(3, 0, 2) @ OBLIQUE),
        "fixed_label": save(tmp_path / "a_seg.nii.gz", (blob((16, 17, 15)) > 50).astype(np.uint8)),
        "moving_label": save(tmp_path / "b_seg.nii.gz", label, shift(3, 0, 2) @ OBLIQUE),
        "weights": str(make_weights(tmp_path / "model.pt")),
        "output_dir": str(tmp_path / "result"),
    }
    named = [f"--{name}={text}" for name, text in files.items()]
    assert register.main(["vtn", "--device=cpu", "--no_report", *tiny_options(), *named]) in DONE
    asked = [f"--image={files['moving']}", f"--label={files['moving_label']}", f"--output_dir={tmp_path / 'again'}"]
    assert script.main([f"--transform={tmp_path / 'result'}", *asked]) == 0
    np.testing.assert_allclose(
        values(tmp_path / "again" / "b_moved.nii.gz"), values(tmp_path / "result" / "moved.nii.gz"), atol=1e-3
    )
    again, saved = values(tmp_path / "again" / "b_seg_moved.nii.gz"), values(tmp_path / "result" / "moved_label.nii.gz")
    assert saved.any() and (again != saved).mean() < 1e-3  # a tie between two voxels may fall either way
    ddf = read_transform(tmp_path / "result" / "ddf.nii.gz")
    write_points(tmp_path / "p.csv", POINTS_MM)
    there = [f"--points={tmp_path / 'p.csv'}", f"--output_dir={tmp_path}", f"--transform={tmp_path / 'result'}"]
    assert script.main(there) == 0
    np.testing.assert_allclose(read_points(tmp_path / "p_moved.csv").points_mm, ddf.map_points(POINTS_MM), atol=1e-6)
    back = [f"--points={tmp_path / 'p_moved.csv'}", f"--output_dir={tmp_path}", "--inverse"]
    assert script.main([*back, f"--transform={tmp_path / 'result'}"]) == 0
    assert np.abs(read_points(tmp_path / "p_moved_moved.csv").points_mm - POINTS_MM).max() < 1.0
