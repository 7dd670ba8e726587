import hashlib
import importlib.util
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from image_case import (
    AFFINE,
    OBLIQUE,
    PIXDIM,
    QUATERNION,
    patch,
    refused,
    save,
    sitk_affine,
    values_of,
)

from shared_components.geometry import Frame
from shared_components.images import atomic_path, read_image, read_labels, sha256_of, write_image

# ---- good input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_values_frame_and_type_survive(tmp_path, suffix, dtype):
    values = values_of((17, 23, 9)).astype(dtype)
    path = tmp_path / f"a.b{suffix}"
    klass = nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image
    nib.save(klass(values, OBLIQUE), path)
    image = read_image(path)
    assert image.array.dtype == torch.float32 and image.array.shape == (1, 17, 23, 9)
    assert image.dtype == dtype and image.path == path
    np.testing.assert_array_equal(image.array[0].numpy(), values.astype(np.float32))
    np.testing.assert_allclose(image.frame.affine, OBLIQUE, atol=1e-5)
    assert image.array.is_contiguous()


@pytest.mark.parametrize("scale", [1e-20, 1e6, 1e30])
def test_float64_and_huge_intensities(tmp_path, scale):
    values = values_of().astype(np.float64) * scale
    image = read_image(save(tmp_path / "a.nii.gz", values))
    np.testing.assert_allclose(image.array[0].numpy(), values, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 6, 7, 1), (5, 6, 7, 1, 1)])
def test_a_single_volume_is_a_volume(tmp_path, shape):
    values = values_of(shape)
    image = read_image(save(tmp_path / "a.nii", values))
    np.testing.assert_array_equal(image.array[0].numpy(), values.reshape(5, 6, 7))


def test_slope_and_intercept_are_applied(tmp_path):
    stored = np.arange(210, dtype=np.int16).reshape(5, 6, 7)
    source = nib.Nifti1Image(stored, OBLIQUE)
    source.header.set_slope_inter(0.5, -10)
    path = tmp_path / "a.nii"
    nib.save(source, path)
    patch(path, 112, "ff", 0.5, -10)
    assert torch.equal(read_image(path).array[0], torch.from_numpy(stored * np.float32(0.5) - 10))


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
@pytest.mark.parametrize("reader", ["SimpleITK", "itk"])
def test_itk_formats_come_in_ras(tmp_path, suffix, reader, monkeypatch):
    if reader == "itk":
        if importlib.util.find_spec("itk") is None:
            pytest.skip("itk is not installed")
        monkeypatch.setitem(sys.modules, "SimpleITK", None)
    values = values_of((4, 5, 6))
    twin = sitk.ReadImage(str(save(tmp_path / "twin.nii", values)))
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(twin, str(path))
    image = read_image(path)
    np.testing.assert_array_equal(image.array[0].numpy(), values)
    np.testing.assert_allclose(image.frame.affine, OBLIQUE, atol=1e-5)


def test_without_itk_the_package_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(values_of()), str(path))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    monkeypatch.setitem(sys.modules, "itk", None)
    refused(lambda: read_image(path), path, "pip install SimpleITK")


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_two_dimensions(tmp_path, suffix):
    values = values_of((8, 9))
    source = sitk.GetImageFromArray(values.T.copy())
    source.SetSpacing((0.5, 2.0))
    source.SetOrigin((3.0, -4.0))
    source.SetDirection((0.8, -0.6, 0.6, 0.8))
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(source, str(path))
    image = read_image(path, ndim=2)
    np.testing.assert_array_equal(image.array[0].numpy(), values)
    np.testing.assert_allclose(image.frame.affine, sitk_affine(source), atol=1e-6)
    write_image(tmp_path / "b.nii.gz", image.array, image.frame)
    back = sitk.ReadImage(str(tmp_path / "b.nii.gz"))
    assert back.GetDimension() == 2
    np.testing.assert_allclose(sitk_affine(back), image.frame.affine, atol=1e-6)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), values.T)


def test_labels_keep_their_numbers(tmp_path):
    values = np.random.default_rng(1).integers(-3, 2_000_000, (5, 6, 7)).astype(np.int32)
    labels = read_labels(save(tmp_path / "a.nii.gz", values))
    assert labels.array.dtype == torch.int32 and np.array_equal(labels.array[0].numpy(), values)
    as_float = read_labels(save(tmp_path / "f.nii.gz", (values % 1000).astype(np.float32)))
    assert as_float.array.dtype == torch.int32 and np.array_equal(as_float.array[0].numpy(), values % 1000)
    large = values.astype(np.int64) + 2**40
    kept = read_labels(save(tmp_path / "l.nii.gz", large))
    assert kept.array.dtype == torch.int64 and np.array_equal(kept.array[0].numpy(), large)


def test_a_mask_of_ones_is_a_good_label_map(tmp_path):
    assert read_labels(save(tmp_path / "a.nii.gz", np.ones((5, 6, 7), np.uint8)), "fixed mask").array.sum() == 210


# ---- the geometry is the one that ITK sees -------------------------------------------------------------------------


def test_singular_qform_with_good_sform(tmp_path):
    source = nib.Nifti1Image(values_of(), OBLIQUE)
    for code in (1, 2, 4):
        source.set_sform(OBLIQUE, code)
        source.set_qform(OBLIQUE, code)
        path = tmp_path / f"{code}.nii"
        nib.save(source, path)
        patch(path, QUATERNION, "fff", 5.0, 5.0, 5.0)
        patch(path, PIXDIM, "ffff", 1.0, 0.0, 0.0, 0.0)
        np.testing.assert_allclose(read_image(path).frame.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize("sform_code", range(5))
@pytest.mark.parametrize("qform_code", range(5))
def test_sform_and_qform_as_in_itk(tmp_path, sform_code, qform_code):
    source = nib.Nifti1Image(values_of(), OBLIQUE)
    other = np.diag([*np.linalg.norm(OBLIQUE[:3, :3], axis=0), 1.0])  # of one spacing, which ITK takes from pixdim
    other[:3, 3] = -5, -6, -7
    source.set_sform(OBLIQUE, sform_code)
    source.set_qform(other, qform_code)
    path = tmp_path / "a.nii"
    nib.save(source, path)
    expected = sitk_affine(sitk.ReadImage(str(path)))
    np.testing.assert_allclose(read_image(path).frame.affine, expected, atol=1e-5)


def test_the_sform_wins_where_both_agree(tmp_path):
    """A quaternion near half a turn is off by 1e-3; reading it would move points by as much as its rounding."""
    turn = np.deg2rad(179.98)
    near_half_turn = np.eye(4)
    near_half_turn[1:3, 1:3] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    source = nib.Nifti1Image(values_of(), near_half_turn)
    source.set_sform(near_half_turn, 2)
    source.set_qform(near_half_turn, 2)
    nib.save(source, tmp_path / "a.nii")
    assert np.abs(source.get_qform() - near_half_turn).max() > 1e-4  # or this test shows nothing
    np.testing.assert_allclose(read_image(tmp_path / "a.nii").frame.affine, near_half_turn, atol=1e-6)


# ---- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int16", "int64", "bool", "float16"])
def test_what_is_written_is_read_back(tmp_path, suffix, dtype):
    values = (values_of() > 100) if dtype == "bool" else values_of().astype(dtype)
    frame = Frame(values.shape, OBLIQUE)
    path = tmp_path / f"a{suffix}"
    write_image(path, values[None], frame)
    again = read_image(path)
    np.testing.assert_array_equal(again.array[0].numpy(), values.astype(np.float32))
    np.testing.assert_allclose(again.frame.affine, OBLIQUE, atol=1e-5)
    twin = sitk.ReadImage(str(path))
    np.testing.assert_allclose(sitk_affine(twin), OBLIQUE, atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(twin).T, values.astype(again.dtype))


def test_tensors_and_number_types(tmp_path):
    values = torch.tensor([[-3.0, 0.4], [254.6, 300.0]])
    frame = Frame((2, 2), np.eye(3))
    write_image(tmp_path / "a.nii.gz", values[None, None], frame, dtype=np.uint8)
    stored = nib.load(tmp_path / "a.nii.gz")
    assert stored.get_data_dtype() == np.uint8
    assert np.asarray(stored.dataobj).tolist() == [[0, 0], [255, 255]]
    write_image(tmp_path / "b.nii.gz", values * 1e30, frame, dtype=np.int32)
    assert np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj).max() == 2**31 - 1
    write_image(tmp_path / "c.nii", values.bfloat16(), frame)
    assert nib.load(tmp_path / "c.nii").get_data_dtype() == np.float32


def test_a_sheared_frame_survives(tmp_path):
    write_image(tmp_path / "a.nii", values_of(), Frame((5, 6, 7), AFFINE))
    np.testing.assert_allclose(read_image(tmp_path / "a.nii").frame.affine, AFFINE, atol=1e-5)


def test_same_input_same_bytes(tmp_path):
    frame = Frame((5, 6, 7), OBLIQUE)
    digests = set()
    for name in ("a.nii.gz", "other.nii.gz"):
        write_image(tmp_path / name, values_of(), frame)
        digests.add(sha256_of(tmp_path / name))
    data = (tmp_path / "a.nii.gz").read_bytes()
    assert len(digests) == 1 and digests == {hashlib.sha256(data).hexdigest()}
    assert data[4:8] == b"\0\0\0\0"  # the time in the gzip header


def test_nothing_is_left_half_written(tmp_path):
    target = tmp_path / "deep" / "er" / "a.txt"
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as temporary:
        temporary.write_text("one")
    with pytest.raises(KeyError), atomic_path(target) as temporary:
        temporary.write_text("two, half")
        raise KeyError
    assert target.read_text() == "one" and list(target.parent.iterdir()) == [target]


def test_places_that_cannot_be_written(tmp_path):
    frame = Frame((5, 6, 7), OBLIQUE)
    (tmp_path / "file").write_text("x")
    refused(lambda: write_image(tmp_path / "file" / "a.nii", values_of(), frame), "a.nii", "writable")
    refused(lambda: write_image(tmp_path / "a.mha", values_of(), frame), "a.mha", ".nii.gz")
    with pytest.raises(ValueError, match="does not fit"):
        write_image(tmp_path / "a.nii", values_of((5, 6, 8)), frame)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
