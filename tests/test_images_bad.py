"""Images that cannot be registered are refused with a sentence."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from image_case import DIM, OBLIQUE, PIXDIM, SROW, patch, refused, save, values_of

from shared_components.images import read_image, read_labels, sha256_of


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
