"""Transforms that cannot be read are refused with a sentence."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.io import savemat
from scipy.spatial.transform import Rotation

from shared_components.errors import InputError
from shared_components.itk_io import read_affine, read_transform, write_affine

WORLD = np.eye(4)
WORLD[:3, :3] = Rotation.from_euler("xyz", [7, -5, 9], degrees=True).as_matrix() * [1.05, 0.93, 1.1]
WORLD[:3, 3] = 3.0, -2.0, 5.0


def refused(path, *parts):
    with pytest.raises(InputError) as info:
        read_transform(path, "initial transform")
    sentence = str(info.value)
    for part in ("initial transform", path, ";", *parts):
        assert str(part) in sentence, sentence
    assert "\n" not in sentence


def field_file(path, shape, intent, values=1.0):
    image = nib.Nifti1Image(np.full(shape, values, np.float32), np.eye(4))
    image.header.set_intent(intent, (), "")
    nib.save(image, path)
    return path


def test_bad_fields(tmp_path):
    refused(tmp_path / "none.nii.gz", "does not exist")
    refused(field_file(tmp_path / "a.nii", (4, 5, 6), 1007), "4x5x6")
    refused(field_file(tmp_path / "b.nii", (4, 5, 6, 3), 1007), "4x5x6x3")
    refused(field_file(tmp_path / "c.nii", (4, 5, 6, 1, 2), 1007), "2 components")
    refused(field_file(tmp_path / "d.nii", (4, 5, 6, 1, 3), 0), "intent code 0")
    refused(field_file(tmp_path / "e.nii", (4, 5, 6, 1, 3), 1007, np.nan), "NaN")
    refused(field_file(tmp_path / "f.nii", (4, 5, 6, 1, 4), 1007), "4x5x6x1x4")
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 6), np.float32)), str(tmp_path / "g.mha"))
    refused(tmp_path / "g.mha", "no displacement field")
    whole = field_file(tmp_path / "h.nii.gz", (4, 5, 6, 1, 3), 1007).read_bytes()
    (tmp_path / "h.nii.gz").write_bytes(whole[:-20])
    refused(tmp_path / "h.nii.gz", "damaged")


GOOD = """#Insight Transform File V1.0
#Transform 0
Transform: AffineTransform_double_3_3
Parameters: 1 0 0 0 1 0 0 0 1 2 3 4
FixedParameters: 0 0 0
"""


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("#Insight", "Insight", "not an ITK text transform"),
        (" 3 4\n", " 3\n", "11 parameters"),
        (" 3 4\n", " 3 x\n", "not an ITK text transform"),
        ("AffineTransform", "BSplineTransform", "BSplineTransform_double_3_3"),
        ("Parameters: 1 0 0", "Parameters: 0 0 0", "singular"),
        ("Parameters: 1 0 0", "Parameters: nan 0 0", "singular"),
        ("FixedParameters: 0 0 0\n", "", "whole"),
        ("FixedParameters: 0 0 0\n", "FixedParameters: 0 0\n", "AffineTransform_double_3_3"),
        ("Parameters", "Pärameters", "not an ITK text transform"),
        (GOOD, "\n", "not an ITK text transform"),
    ],
)
def test_bad_affines(tmp_path, old, new, fault):
    path = tmp_path / "a.tfm"
    path.write_text(GOOD)
    assert read_affine(path)[0, 3] == -2.0  # it is good before it is spoilt
    path.write_text(GOOD.replace(old, new, 1), encoding="utf-8")
    refused(path, fault)


def test_other_bad_files(tmp_path):
    (tmp_path / "fsl.mat").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    refused(tmp_path / "fsl.mat", "ANTs")
    savemat(tmp_path / "other.mat", {"x": np.eye(4)}, format="4")
    refused(tmp_path / "other.mat", "no ITK transform")
    (tmp_path / "a.h5").write_bytes(b"abc")
    refused(tmp_path / "a.h5", "CompositeTransformUtil")
    (tmp_path / "a.lta").write_text("abc")
    refused(tmp_path / "a.lta", ".tfm")
    with pytest.raises(InputError, match=r"\.tfm"):
        write_affine(tmp_path / "a.mat", WORLD)
    with pytest.raises(ValueError, match="last row"):
        write_affine(tmp_path / "a.tfm", WORLD.T)
