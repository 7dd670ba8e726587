"""SimpleITK and ANTs apply the files we write, and the result is ours."""

import importlib.util
import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.io import savemat
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from shared_components.geometry import Frame
from shared_components.images import sha256_of, write_image
from shared_components.itk_io import read_affine, read_field, read_transform, write_affine, write_field
from shared_components.transform import PhysicalField, affine_field

ORIENTATIONS = {
    "RAS": np.eye(3),
    "LAS": np.diag([-1.0, 1.0, 1.0]),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "oblique": Rotation.from_euler("xyz", [23, -14, 131], degrees=True).as_matrix(),
}
SPACINGS = {"isotropic": (1.5, 1.5, 1.5), "anisotropic": (0.9, 1.4, 2.6)}
SHAPE = (28, 24, 20)
CENTER = np.array([11.0, -23.0, 35.0])
WORLD = np.eye(4)
WORLD[:3, :3] = Rotation.from_euler("xyz", [7, -5, 9], degrees=True).as_matrix() * [1.05, 0.93, 1.1]
WORLD[:3, 3] = 3.0, -2.0, 5.0
MARGIN = 4


def frame_of(orientation, spacing, shape=SHAPE, center=CENTER):
    affine = np.eye(len(shape) + 1)
    affine[:-1, :-1] = orientation * spacing
    affine[:-1, -1] = center - affine[:-1, :-1] @ ((np.array(shape) - 1) / 2)
    return Frame(shape, affine)


def smooth_field(frame, seed=3, amplitude_mm=4.0):
    """Different on every axis and without symmetry, so that a wrong sign or order cannot hide."""
    noise = np.random.default_rng(seed).normal(size=(frame.ndim, *frame.shape))
    smooth = np.stack([gaussian_filter(part, 4.0, mode="nearest") for part in noise])
    smooth *= amplitude_mm / np.abs(smooth).max()
    for part, shift_mm in zip(smooth, (1.5, -0.8, 0.5), strict=False):
        part += shift_mm
    return PhysicalField(frame, smooth.astype(np.float32))


def smooth_image(frame, seed=5):
    noise = np.random.default_rng(seed).normal(size=frame.shape)
    return torch.from_numpy(gaussian_filter(noise, 2.0).astype(np.float32))[None]


def moving_frame(fixed, grids):
    if grids == "equal":
        return fixed
    tilt = Rotation.from_euler("xyz", [-11, 6, 17], degrees=True).as_matrix()
    return frame_of(tilt @ np.diag([-1.0, 1.0, 1.0]), (1.9, 1.2, 1.6), (27, 31, 25), CENTER + [2.0, -1.0, 3.0])


def on_disk(folder, name, image, frame):
    write_image(folder / name, image, frame)
    return sitk.ReadImage(str(folder / name), sitk.sitkFloat64)


def displacement_transform(path):
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def interior(field, moving):
    """Where the fixed grid is not at its border and the sample lies well inside the moving grid."""
    ndim = field.frame.ndim
    coords = field.coords_in(moving)[0].reshape(ndim, -1).T.numpy()
    inside = ((coords > 1) & (coords < np.array(moving.shape) - 2)).all(-1).reshape(field.frame.shape)
    mask = np.zeros(field.frame.shape, bool)
    mask[(slice(MARGIN, -MARGIN),) * ndim] = True
    return mask & inside


def points_inside(frame, count=20, seed=9):
    size = np.array(frame.shape)
    return frame.to_mm(np.random.default_rng(seed).uniform(1, size - 2, (count, frame.ndim)))


def through_itk(transform, points_mm):
    flip = np.array([-1.0, -1.0, 1.0])[: points_mm.shape[1]]
    return np.array([transform.TransformPoint((point * flip).tolist()) for point in points_mm]) * flip


def assert_same_image(ours, theirs, mask, image):
    value_range = float(image.max() - image.min())
    assert mask.sum() > 0.15 * mask.size, "too little left to compare"
    assert np.abs(ours[mask] - theirs[mask]).max() <= 1e-3 * value_range


CASES = list(itertools.product(ORIENTATIONS, SPACINGS, ["equal", "different"]))


@pytest.mark.parametrize(("orientation", "spacing", "grids"), CASES)
def test_itk_applies_our_field(tmp_path, orientation, spacing, grids):
    fixed = frame_of(ORIENTATIONS[orientation], SPACINGS[spacing])
    moving = moving_frame(fixed, grids)
    image, field = smooth_image(moving), smooth_field(fixed)
    write_field(tmp_path / "ddf.nii.gz", field)
    transform = displacement_transform(tmp_path / "ddf.nii.gz")
    points = points_inside(fixed)
    ours = field.map_points(points)
    assert np.linalg.norm(ours - points, axis=1).max() > 2  # or the comparison is empty
    assert np.abs(through_itk(transform, points) - ours).max() <= 0.01

    fixed_itk = on_disk(tmp_path, "fixed.nii.gz", smooth_image(fixed, 6), fixed)
    moving_itk = on_disk(tmp_path, "moving.nii.gz", image, moving)
    resampled = sitk.Resample(moving_itk, fixed_itk, transform, sitk.sitkLinear, 0.0)
    theirs = sitk.GetArrayFromImage(resampled).T
    moved = field.resample(image, moving)[0].numpy()
    assert_same_image(moved, theirs, interior(field, moving), image)


@pytest.mark.parametrize(("orientation", "spacing", "grids"), CASES)
def test_itk_applies_our_affine(tmp_path, orientation, spacing, grids):
    fixed = frame_of(ORIENTATIONS[orientation], SPACINGS[spacing])
    moving = moving_frame(fixed, grids)
    about_center = np.eye(4)
    about_center[:3, 3] = CENTER
    world = about_center @ WORLD @ np.linalg.inv(about_center)
    image, field = smooth_image(moving), affine_field(world, fixed)
    write_affine(tmp_path / "affine.tfm", world)
    transform = sitk.ReadTransform(str(tmp_path / "affine.tfm"))
    points = points_inside(fixed)
    ours = points @ world[:3, :3].T + world[:3, 3]
    assert np.abs(through_itk(transform, points) - ours).max() <= 1e-9
    assert np.abs(field.map_points(points) - ours).max() <= 1e-4

    fixed_itk = on_disk(tmp_path, "fixed.nii.gz", smooth_image(fixed, 6), fixed)
    moving_itk = on_disk(tmp_path, "moving.nii.gz", image, moving)
    resampled = sitk.Resample(moving_itk, fixed_itk, transform, sitk.sitkLinear, 0.0)
    moved = field.resample(image, moving)[0].numpy()
    assert_same_image(moved, sitk.GetArrayFromImage(resampled).T, interior(field, moving), image)


def test_near_half_a_turn_itk_keeps_our_grid(tmp_path):
    """A qform is off by 1e-3 of a radian there; the file must make ITK take the sform."""
    turn = Rotation.from_euler("x", 179.98, degrees=True).as_matrix()
    frame = frame_of(turn, (1.0, 1.5, 2.0), center=np.array([100.0, 150.0, -200.0]))
    field = smooth_field(frame)
    write_field(tmp_path / "ddf.nii.gz", field)
    points = points_inside(frame)
    transform = displacement_transform(tmp_path / "ddf.nii.gz")
    assert np.abs(through_itk(transform, points) - field.map_points(points)).max() <= 1e-3


@pytest.mark.parametrize("spacing", [(1.2, 1.2), (0.8, 1.7)])
@pytest.mark.parametrize("degrees", [0, 37, 180])
def test_two_dimensions(tmp_path, spacing, degrees):
    turn = np.deg2rad(degrees)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    fixed = frame_of(rotation, spacing, (40, 33), CENTER[:2])
    moving = frame_of(np.diag([-1.0, 1.0]), (1.1, 1.4), (44, 31), CENTER[:2] + [1.0, 2.0])
    image, field = smooth_image(moving), smooth_field(fixed)
    write_field(tmp_path / "ddf.nii.gz", field)
    assert nib.load(tmp_path / "ddf.nii.gz").shape == (40, 33, 1, 1, 2)
    transform = displacement_transform(tmp_path / "ddf.nii.gz")
    assert transform.GetDimension() == 2
    points = points_inside(fixed)
    assert np.abs(through_itk(transform, points) - field.map_points(points)).max() <= 0.01
    fixed_itk = on_disk(tmp_path, "fixed.nii.gz", smooth_image(fixed, 6), fixed)
    moving_itk = on_disk(tmp_path, "moving.nii.gz", image, moving)
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving_itk, fixed_itk, transform, sitk.sitkLinear, 0.0)).T
    assert_same_image(field.resample(image, moving)[0].numpy(), theirs, interior(field, moving), image)
    again = read_field(tmp_path / "ddf.nii.gz")
    assert again.frame.same_grid(fixed) and np.array_equal(again.ddf_mm, field.ddf_mm)

    world = np.array([[0.9, -0.2, 4.0], [0.3, 1.1, -6.0], [0, 0, 1]])
    write_affine(tmp_path / "a.tfm", world)
    ours = points @ world[:2, :2].T + world[:2, 2]
    assert np.abs(through_itk(sitk.ReadTransform(str(tmp_path / "a.tfm")), points) - ours).max() <= 1e-9
    assert np.array_equal(read_affine(tmp_path / "a.tfm"), world)


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_field_round_trip(tmp_path, suffix):
    field = smooth_field(frame_of(ORIENTATIONS["oblique"], SPACINGS["anisotropic"]))
    path = tmp_path / f"ddf{suffix}"
    write_field(path, field)
    stored = nib.load(path)
    assert stored.shape == (*SHAPE, 1, 3) and stored.header.get_intent()[0] == "vector"
    assert stored.header.get_xyzt_units()[0] == "mm" and stored.get_data_dtype() == np.float32
    again = read_transform(path)
    assert isinstance(again, PhysicalField) and again.ddf_mm.flags.c_contiguous
    assert np.array_equal(again.ddf_mm, field.ddf_mm)
    np.testing.assert_allclose(again.frame.affine, field.frame.affine, atol=1e-5)
    write_field(tmp_path / f"twin{suffix}", field)
    assert sha256_of(path) == sha256_of(tmp_path / f"twin{suffix}")


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_fields_that_itk_wrote(tmp_path, suffix):
    field = smooth_field(frame_of(ORIENTATIONS["oblique"], SPACINGS["anisotropic"]))
    write_field(tmp_path / "ours.nii.gz", field)
    image = sitk.ReadImage(str(tmp_path / "ours.nii.gz"), sitk.sitkVectorFloat64)
    sitk.WriteImage(image, str(tmp_path / f"theirs{suffix}"))
    again = read_transform(tmp_path / f"theirs{suffix}")
    assert again.frame.same_grid(field.frame)
    np.testing.assert_allclose(again.ddf_mm, field.ddf_mm, atol=1e-6)


def test_intent_1006_is_ras_as_in_itk(tmp_path):
    field = smooth_field(frame_of(ORIENTATIONS["oblique"], SPACINGS["anisotropic"]))
    write_field(tmp_path / "a.nii.gz", field)
    stored = nib.load(tmp_path / "a.nii.gz")
    stored.header.set_intent(1006, (), "")
    nib.save(stored, tmp_path / "b.nii.gz")
    points = points_inside(field.frame)
    theirs = through_itk(displacement_transform(tmp_path / "b.nii.gz"), points)
    assert np.abs(read_field(tmp_path / "b.nii.gz").map_points(points) - theirs).max() <= 0.01


def test_affine_round_trip_is_exact(tmp_path):
    for name in ("a.tfm", "a.txt"):
        write_affine(tmp_path / name, WORLD)
        assert np.array_equal(read_transform(tmp_path / name), WORLD)


def linear_transforms():
    center = (4.0, -5.0, 6.0)
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(WORLD[:3, :3].ravel())
    affine.SetTranslation((1.0, 2.0, -3.0))
    affine.SetCenter(center)
    euler = sitk.Euler3DTransform(center, 0.3, -0.2, 0.5, (1.0, 2.0, -3.0))
    zyx = sitk.Euler3DTransform(euler)
    zyx.SetComputeZYX(True)
    versor = sitk.VersorRigid3DTransform((0.6, -0.48, 0.64), -0.7, (1.0, 2.0, -3.0), center)
    shift = sitk.TranslationTransform(3, (1.0, 2.0, -3.0))
    composite = sitk.CompositeTransform([affine, euler, shift])
    flat = sitk.Euler2DTransform((4.0, -5.0), 0.4, (1.0, 2.0))
    flat_shift = sitk.TranslationTransform(2, (1.0, 2.0))
    return [affine, euler, zyx, versor, shift, composite, flat, flat_shift]


@pytest.mark.parametrize("index", range(len(linear_transforms())))
def test_linear_transforms_that_itk_wrote(tmp_path, index):
    transform = linear_transforms()[index]
    sitk.WriteTransform(transform, str(tmp_path / "a.tfm"))
    world = read_affine(tmp_path / "a.tfm")
    ndim = transform.GetDimension()
    points = np.random.default_rng(0).normal(0, 50, (20, ndim))
    ours = points @ world[:-1, :-1].T + world[:-1, -1]
    np.testing.assert_allclose(ours, through_itk(transform, points), atol=1e-9)


def test_ants_matrix_file(tmp_path):
    transform = linear_transforms()[0]
    content = {
        "AffineTransform_double_3_3": np.array(transform.GetParameters())[:, None],
        "fixed": np.array(transform.GetFixedParameters())[:, None],
    }
    savemat(tmp_path / "0GenericAffine.mat", content, format="4")
    world = read_transform(tmp_path / "0GenericAffine.mat")
    points = np.random.default_rng(0).normal(0, 50, (20, 3))
    np.testing.assert_allclose(points @ world[:3, :3].T + world[:3, 3], through_itk(transform, points), atol=1e-9)


# ---- ANTs ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("ants") is None, reason="antspyx is not installed")
@pytest.mark.parametrize(("orientation", "spacing", "grids"), CASES)
def test_ants_applies_our_files(tmp_path, orientation, spacing, grids):
    import ants
    import pandas

    fixed = frame_of(ORIENTATIONS[orientation], SPACINGS[spacing])
    moving = moving_frame(fixed, grids)
    image, field = smooth_image(moving), smooth_field(fixed)
    about_center = np.eye(4)
    about_center[:3, 3] = CENTER
    world = about_center @ WORLD @ np.linalg.inv(about_center)
    write_field(tmp_path / "ddf.nii.gz", field)
    write_affine(tmp_path / "affine.tfm", world)
    write_image(tmp_path / "fixed.nii.gz", smooth_image(fixed, 6), fixed)
    write_image(tmp_path / "moving.nii.gz", image, moving)
    images = [ants.image_read(str(tmp_path / f"{name}.nii.gz")) for name in ("fixed", "moving")]
    points = points_inside(fixed)
    table = pandas.DataFrame(points * [-1, -1, 1], columns=["x", "y", "z"])
    for name, ours in (("ddf.nii.gz", field), ("affine.tfm", affine_field(world, fixed))):
        files = [str(tmp_path / name)]
        moved = ants.apply_transforms(*images, transformlist=files, interpolator="linear").numpy()
        assert_same_image(ours.resample(image, moving)[0].numpy(), moved, interior(ours, moving), image)
        mapped = ants.apply_transforms_to_points(3, table, files)[["x", "y", "z"]].to_numpy() * [-1, -1, 1]
        assert np.abs(mapped - ours.map_points(points)).max() <= 0.01
