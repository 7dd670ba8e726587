"""Slices over time as they lie in space: read in the coordinates of their plane, written as they came."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from shared_components.errors import InputError
from shared_components.images.slices import SlicePlane, read_slice_series, write_slice_series
from shared_components.pairs import read_series

SIZE, FRAMES = (7, 5), 4
CORONAL = np.array([[-2.0, 0, 0, 50], [0, 0, 6, -35], [0, -1.5, 0, 80], [0, 0, 0, 1]])
SAGITTAL = np.array([[0, 0, 5.0, 12], [-2, 0, 0, 90], [0, -1.5, 0, 80], [0, 0, 0, 1]])
AXIAL = np.array([[-2.0, 0, 0, 50], [0, -1.5, 0, 70], [0, 0, 4, 120], [0, 0, 0, 1]])
FLAT = np.diag([-2.0, -1.5, 1, 1])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_rotvec([0.3, 0.9, -0.4]).as_matrix() * (2.0, 1.5, 6.0)
OBLIQUE[:3, 3] = (10.0, -20.0, 30.0)


def values(shape: tuple[int, ...] = (*SIZE, 1, FRAMES)) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray, seconds: float = 0.3) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    if array.ndim > 3:
        image.header.set_zooms((*image.header.get_zooms()[:3], 1000 * seconds))
        image.header.set_xyzt_units("mm", "msec")
    nib.save(image, path)
    return path


@pytest.mark.parametrize(
    ("affine", "letters", "flat"),
    [
        (CORONAL, ("LR", "IS"), False),
        (SAGITTAL, ("PA", "IS"), False),
        (AXIAL, ("LR", "PA"), False),
        (FLAT, ("LR", "PA"), True),
        (OBLIQUE, None, False),
    ],
    ids=["coronal", "sagittal", "axial", "flat", "oblique"],
)
def test_plane_coordinates_lead_back_into_space(tmp_path: Path, affine, letters, flat) -> None:
    found = read_slice_series(save(tmp_path / "a.nii.gz", values(), affine))
    plane, frame = found.plane, found.frame
    assert found.array.shape == (FRAMES, *SIZE) and found.seconds == pytest.approx(0.3)
    np.testing.assert_allclose(plane.basis.T @ plane.basis, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(frame.spacing, [2.0, 1.5], rtol=1e-6)
    index = np.array([[0, 0], [6, 4], [2.5, 1]])
    wanted = np.c_[index, np.zeros(3), np.ones(3)] @ affine.T
    np.testing.assert_allclose(plane.to_ras(frame.to_mm(index)), wanted[:, :3], atol=1e-4)
    assert plane.flat is flat and (letters is None or plane.letters == letters)
    assert all(np.abs(direction).max() == direction[np.abs(direction).argmax()] for direction in plane.basis.T[:1])


def test_a_flat_image_has_the_coordinates_of_the_world(tmp_path: Path) -> None:
    turned = FLAT.copy()
    turned[:2, :2] = [[-1.6, 1.2], [1.2, 1.6]]  # turned in its plane, and mirrored
    turned[:2, 3] = (3.0, -4.0)
    found = read_slice_series(save(tmp_path / "a.nii.gz", values(), turned))
    np.testing.assert_allclose(found.frame.affine, turned[np.ix_([0, 1, 3], [0, 1, 3])], atol=1e-6)


def test_the_axis_of_one_slice_may_stand_anywhere(tmp_path: Path) -> None:
    plain = read_slice_series(save(tmp_path / "a.nii.gz", values(), CORONAL))
    scanner = CORONAL[:, [0, 2, 1, 3]]
    other = read_slice_series(save(tmp_path / "b.nii.gz", values((7, 1, 5, FRAMES)), scanner))
    np.testing.assert_allclose(other.frame.affine, plain.frame.affine)
    np.testing.assert_allclose(other.plane.basis, plain.plane.basis)
    assert torch.equal(other.array, plain.array)
    write_slice_series(tmp_path / "c.nii.gz", other.array, other)
    assert nib.load(tmp_path / "c.nii.gz").shape == (7, 1, 5, FRAMES)


def test_what_is_written_looks_like_what_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    image = nib.Nifti1Image((1000 * values()).astype(np.int16), OBLIQUE)
    image.header.set_zooms((*image.header.get_zooms()[:3], 0.25))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(0.5, 3)
    image.header["descrip"] = b"cine"
    nib.save(image, path)
    found = read_slice_series(path)
    write_slice_series(tmp_path / "b.nii.gz", found.array + 0.25, found)
    old, new = nib.load(path), nib.load(tmp_path / "b.nii.gz")
    np.testing.assert_allclose(new.get_fdata(), old.get_fdata() + 0.25, atol=1e-4)
    assert new.header.get_zooms() == old.header.get_zooms() and new.header.get_xyzt_units() == ("mm", "sec")
    assert new.header["descrip"] == b"cine" and new.get_data_dtype() == np.float32
    np.testing.assert_array_equal(new.affine, old.affine)


def test_frames_without_a_header_get_the_geometry_of_their_plane(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / f"frame{k}.nii.gz", values((*SIZE, 1)) + k, CORONAL)
    found = read_series(tmp_path)
    write_slice_series(tmp_path / "out.nii.gz", found.array, found)
    written = nib.load(tmp_path / "out.nii.gz")
    assert written.shape == (*SIZE, 1, 3)
    np.testing.assert_allclose(written.affine, CORONAL, atol=1e-5)
    save(tmp_path / "frame1.nii.gz", values((*SIZE, 1)), CORONAL + np.eye(4)[1][:, None] * [0, 0, 0, 2.0])
    (tmp_path / "out.nii.gz").unlink()
    with pytest.raises(InputError, match="frame1.nii.gz lies on another grid"):
        read_series(tmp_path)


@pytest.mark.parametrize(
    ("shape", "affine", "words"),
    [
        ((7, 5, 3, 4), CORONAL, "has 3 slices"),
        ((7, 1, 1, 4), CORONAL, "frames of a single line"),
        ((7, 5, 1, 4), CORONAL @ np.diag([1, 0, 1, 1.0]), "pixel size of"),
        ((7, 5, 1, 4), CORONAL[:, [0, 0, 2, 3]], "singular affine"),
    ],
)
def test_what_is_no_slice_over_time_is_refused(tmp_path: Path, shape, affine, words) -> None:
    image = nib.Nifti1Image(values(shape), None)
    image.set_sform(affine, 1)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=words):
        read_slice_series(tmp_path / "a.nii.gz")


def test_a_plane_within_rounding_of_axial_keeps_its_numbers() -> None:
    tilted = AXIAL.copy()
    tilted[2, 0] = 1e-6
    assert SlicePlane.of(tilted).basis.tolist() == [[1, 0], [0, 1], [0, 0]]
