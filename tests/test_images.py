import hashlib
import importlib.util
import struct
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import atomic_path, read_image, read_labels, sha256_of, write_image

AFFINE = np.array([[-0.8, 0.5, 0.1, 12.0], [0.4, 0.9, -0.3, -7.0], [0.2, 0.1, 2.4, 30.0], [0, 0, 0, 1]])
Q, R = np.linalg.qr(AFFINE[:3, :3])
OBLIQUE = AFFINE.copy()
OBLIQUE[:3, :3] = Q * np.abs(np.diag(R))
SFORM_CODE, QFORM_CODE, QUATERNION, SROW, PIXDIM, DIM, DATATYPE = 254, 252, 256, 280, 76, 40, 70


def values_of(shape=(5, 6, 7), seed=0):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def save(path, values, affine=OBLIQUE):
    nib.save(nib.Nifti1Image(values, affine, dtype=values.dtype), path)
    return path


def patch(path, offset, code, *numbers):
    data = bytearray(path.read_bytes())
    struct.pack_into("<" + code, data, offset, *numbers)
    path.write_bytes(data)
    return path


def sitk_affine(image):
    ndim = image.GetDimension()
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] = np.array(image.GetDirection()).reshape(ndim, ndim) * image.GetSpacing()
    affine[:-1, -1] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0][:ndim] + [1.0]) @ affine


def refused(call, *parts):
    """The sentence names the file, the fault and a remedy, and is one line."""
    with pytest.raises(InputError) as info:
        call()
    sentence = str(info.value)
    assert "\n" not in sentence and ";" in sentence, sentence
    for part in parts:
        assert str(part) in sentence, sentence
    return sentence


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


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_missing_folder_empty_and_foreign_files(tmp_path):
    refused(lambda: read_image(tmp_path / "none.nii", "moving image"), "moving image", tmp_path / "none.nii")
    refused(lambda: read_image(tmp_path), tmp_path, "folder")
    (tmp_path / "e.nii.gz").touch()
    refused(lambda: read_image(tmp_path / "e.nii.gz"), "e.nii.gz", "empty")
    (tmp_path / "a.gif").write_bytes(b"abc")
    refused(lambda: read_image(tmp_path / "a.gif"), "a.gif", ".nii.gz")
    refused(lambda: sha256_of(tmp_path / "none.nii"), "none.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".mha", ".nrrd"])
@pytest.mark.parametrize("fault", ["cut", "header", "garbage"])
def test_damaged_files(tmp_path, suffix, fault):
    path = tmp_path / f"a{suffix}"
    if suffix in (".mha", ".nrrd"):
        sitk.WriteImage(sitk.GetImageFromArray(values_of((20, 20, 20))), str(path))
    else:
        nib.save((nib.MGHImage if suffix == ".mgz" else nib.Nifti1Image)(values_of((20, 20, 20)), OBLIQUE), path)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "header": whole[:60], "garbage": b"garbage " * 100}[fault])
    refused(lambda: read_image(path), path, "damaged")


def test_flipped_bits_in_a_compressed_file(tmp_path):
    path = save(tmp_path / "a.nii.gz", values_of((20, 20, 20)))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    refused(lambda: read_image(path), path, "damaged")


def test_wrong_dimensions(tmp_path):
    refused(lambda: read_image(save(tmp_path / "a.nii", values_of((5, 6)))), "a.nii", "2-D", "5x6")
    refused(lambda: read_image(save(tmp_path / "b.nii", values_of((5, 6, 1)))), "b.nii", "2-D", "5x6x1")
    refused(lambda: read_image(save(tmp_path / "c.nii", values_of((5, 6, 7, 2)))), "c.nii", "4-D", "5x6x7x2")
    refused(lambda: read_image(save(tmp_path / "d.nii", values_of()), ndim=2), "d.nii", "3-D")
    field = nib.Nifti1Image(values_of((5, 6, 7, 1, 3)), OBLIQUE)
    field.header.set_intent("vector")
    nib.save(field, tmp_path / "f.nii")
    refused(lambda: read_image(tmp_path / "f.nii"), "f.nii", "displacement field")
    sitk.WriteImage(sitk.GetImageFromArray(values_of((2, 4, 5, 6)), isVector=False), str(tmp_path / "g.mha"))
    refused(lambda: read_image(tmp_path / "g.mha"), "g.mha", "4-D")


def test_rgb_and_complex(tmp_path):
    colours = np.zeros((5, 6, 7), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, OBLIQUE), tmp_path / "a.nii.gz")
    refused(lambda: read_image(tmp_path / "a.nii.gz"), "a.nii.gz", "RGB")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6, 7, 3), np.uint8), isVector=True), str(tmp_path / "b.nrrd"))
    refused(lambda: read_image(tmp_path / "b.nrrd"), "b.nrrd", "RGB")
    refused(lambda: read_image(save(tmp_path / "c.nii", values_of().astype(np.complex64))), "c.nii", "complex")


def test_nothing_to_register(tmp_path):
    refused(lambda: read_image(save(tmp_path / "a.nii", np.full((5, 6, 7), 3, np.int16))), "a.nii", "constant", "3")
    path = patch(save(tmp_path / "b.nii", values_of()), DIM, "hhhh", 3, 5, 0, 7)
    refused(lambda: read_image(path), "b.nii")
    refused(lambda: read_labels(save(tmp_path / "c.nii", np.zeros((5, 6, 7), np.uint8))), "c.nii", "no label")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, bad):
    values = values_of()
    values[1, 2, 3] = values[0, 0, 0] = bad
    path = save(tmp_path / "a.nii.gz", values)
    refused(lambda: read_image(path, "moving image"), "moving image", path, "2 voxels")
    refused(lambda: read_labels(path, "moving label"), "moving label", path)


def test_values_beyond_float32(tmp_path):
    refused(lambda: read_image(save(tmp_path / "a.nii", values_of().astype(np.float64) * 1e300)), "a.nii", "3.4e38")


def test_fractional_labels(tmp_path):
    values = np.ones((5, 6, 7), np.float32)
    values[2, 2, 2] = 1.25
    refused(lambda: read_labels(save(tmp_path / "a.nii", values), "fixed label"), "a.nii", "1.25", "fixed label")


def test_zero_spacing_and_singular_affines(tmp_path):
    plain = nib.Nifti1Image(values_of(), None)
    nib.save(plain, tmp_path / "a.nii")
    patch(tmp_path / "a.nii", PIXDIM + 4, "f", 0.0)
    refused(lambda: read_image(tmp_path / "a.nii"), "a.nii", "voxel size")
    flat = OBLIQUE.copy()
    flat[:3, 0] = 0
    path = save(tmp_path / "b.nii", values_of())
    patch(path, SROW, "12f", *flat[:3].ravel())
    refused(lambda: read_image(path), "b.nii", "voxel size")
    singular = OBLIQUE.copy()
    singular[:3, 0] = 2 * singular[:3, 1]
    patch(path, SROW, "12f", *singular[:3].ravel())
    refused(lambda: read_image(path), "b.nii", "singular")
    patch(path, SROW, "12f", *np.full(12, np.nan))
    refused(lambda: read_image(path), "b.nii", "voxel size")
    sitk.WriteImage(sitk.GetImageFromArray(values_of()), str(tmp_path / "c.mha"))
    whole = (tmp_path / "c.mha").read_bytes()
    (tmp_path / "c.mha").write_bytes(whole.replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1"))
    refused(lambda: read_image(tmp_path / "c.mha"), "c.mha", "voxel size")


def test_a_slice_out_of_the_axial_plane(tmp_path):
    coronal = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    refused(lambda: read_image(save(tmp_path / "a.nii", values_of((5, 6, 1)), coronal), ndim=2), "a.nii", "axial")


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
