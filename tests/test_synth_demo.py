"""The pair of the quickstart: is its truth the truth, and is it the pair that the documentation tells of?"""

import csv
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion, maximum_filter, minimum_filter, uniform_filter

from shared_components.errors import InputError
from shared_components.geometry import Frame, orientation_codes
from shared_components.synth import DemoPair, bspline_field, build_demo_pair, diffeomorphism, make_demo_pair
from shared_components.synth.anatomy import LABELS, divide_tissue, load_anatomy
from shared_components.synth.demo import find_landmarks, moving_frame, true_origins, truth_lands_inside
from shared_components.transform import PhysicalField


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    pytest.importorskip("nilearn")
    return make_demo_pair(tmp_path_factory.mktemp("demo") / "new" / "folder", seed=0)


@pytest.fixture(scope="module")
def pair(files) -> DemoPair:
    """Read back from the files, as a user would."""
    images = {name: nib.load(files[name]) for name in ("fixed", "moving", "fixed_label", "moving_label")}
    frames = {name: Frame(image.shape, image.affine) for name, image in images.items()}
    points = {name: _points(files[name]) for name in ("fixed_points", "moving_points")}
    assert frames["fixed"].same_grid(frames["fixed_label"]) and frames["moving"].same_grid(frames["moving_label"])
    return DemoPair(
        **{name: np.asarray(image.dataobj) for name, image in images.items()},
        fixed_frame=frames["fixed"],
        moving_frame=frames["moving"],
        truth=PhysicalField(frames["fixed"], np.load(files["true_ddf"])),
        fixed_points_mm=points["fixed_points"],
        moving_points_mm=points["moving_points"],
        facts=json.loads(Path(files["facts"]).read_text()),
    )


def _points(path: str) -> np.ndarray:
    with open(path, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["x_mm", "y_mm", "z_mm", "name"]
    assert len({row["name"] for row in rows}) == len(rows)
    return np.array([[float(row[f"{axis}_mm"]) for axis in "xyz"] for row in rows])


def at(array: np.ndarray, frame: Frame, points_mm: np.ndarray) -> np.ndarray:
    """Values of the voxels nearest to points."""
    return array[tuple(np.round(frame.to_vox(points_mm)).astype(int).T)]


# ------------------------------------------------------------------------------------------------ parts, small sizes


def test_true_origins_solve_for_the_source_of_each_voxel():
    fixed = Frame((24, 26, 22), np.diag([2.0, 2, 2, 1]))
    ddf, inverse = diffeomorphism(fixed.shape, torch.Generator().manual_seed(1), 1.5, smoothness=10.0)
    affine = np.diag([-1.7, 1.6, 2.2, 1.0])
    affine[:3, 3] = (40, 3, 2)
    affine[0, 1] = 0.2
    moving = Frame((20, 24, 15), affine)
    origin, residual = true_origins(ddf, inverse, fixed, moving)
    assert residual < 2e-4
    points_vox = origin[0].flatten(1).T.numpy().astype(np.float64)
    truth = PhysicalField(fixed, (ddf[0] * 2).numpy())
    target = moving.to_mm(np.stack(np.meshgrid(*[np.arange(n) for n in moving.shape], indexing="ij"), -1)).reshape(
        -1, 3
    )
    inside = ((points_vox > 0) & (points_vox < np.array(fixed.shape) - 1)).all(1)
    assert inside.mean() > 0.8
    error = truth.map_points(fixed.to_mm(points_vox)) - target
    assert np.abs(error[inside]).max() < 1e-3


def test_truth_lands_inside_counts_the_margin():
    frame = Frame((6, 7, 8), np.eye(4))
    shift = np.zeros((3, 6, 7, 8), np.float32)
    shift[0] = 1.0
    inside = truth_lands_inside(PhysicalField(frame, shift), frame)
    assert inside[:5].all() and not inside[5].any()
    assert truth_lands_inside(PhysicalField(frame, 0 * shift), frame, margin=2).sum() == 2 * 3 * 4


def test_landmarks_are_the_corners_and_keep_apart():
    image = np.zeros((30, 30, 30))
    image[10:20, 10:20, 10:20] = 100  # eight corners
    everywhere = np.ones(image.shape, dtype=bool)
    points = find_landmarks(image, everywhere, everywhere, distance=5.0, count=8)
    corners = np.stack(np.meshgrid(*[(9.5, 19.5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    distance = np.linalg.norm(points[:, None] - corners[None], axis=-1)
    assert sorted(distance.argmin(1)) == list(range(8)) and distance.min(1).max() < 5.0  # a corner is felt inside
    left = everywhere.copy()
    left[15:] = False
    assert find_landmarks(image, everywhere, left, 5.0, 100)[:, 0].max() < 15
    gap = np.linalg.norm(points[:, None] - points[None], axis=-1) + 100 * np.eye(8)
    assert gap.min() >= 5.0


def test_divided_tissue_is_symmetric_and_follows_the_maps():
    shape = (42, 51, 41)
    affine = np.diag([4.0, 4, 4, 1])
    affine[:3, 3] = (-82.0, -104, -70)  # no voxel centre in the plane x = 0: left and right mirror each other
    wave = bspline_field(shape, torch.Generator().manual_seed(0), control_points=9)[0, 0].numpy()
    grey = np.clip(0.5 + wave + wave[::-1], 0, 1)
    white = np.clip(1 - grey - 0.1, 0, 1)
    mask = np.ones(shape, dtype=bool)
    mask[:3] = False
    mask[-3:] = False
    labels = divide_tissue(grey, white, mask, Frame(shape, affine))
    assert (labels[~mask] == 0).all() and set(np.unique(labels)) <= {0, *LABELS}
    mirrored = labels[::-1]
    swap = np.array([0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 11])
    np.testing.assert_array_equal(labels, swap[mirrored])
    assert (grey[(labels == 1) | (labels == 2)] >= white[(labels == 1) | (labels == 2)]).all()
    assert (white[(labels == 3) | (labels == 4)] > grey[(labels == 3) | (labels == 4)]).all()


def test_moving_grid_is_the_awkward_one_it_should_be():
    frame = moving_frame()
    assert orientation_codes(frame.affine) == "LAS"
    np.testing.assert_allclose(frame.spacing, (1.7, 1.7, 2.1))
    turn = frame.matrix / frame.spacing @ np.diag([-1, 1, 1])
    assert np.rad2deg(np.arccos((np.trace(turn) - 1) / 2)) == pytest.approx(10)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_without_nilearn_a_sentence_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(InputError, match="pip install nilearn"):
        make_demo_pair(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- the pair itself


@pytest.mark.slow
def test_deformation_is_as_announced(pair):
    mask = load_anatomy().mask[::2, ::2, ::2]
    length = np.linalg.norm(pair.truth.ddf_mm, axis=0)[mask]
    assert length.mean() == pytest.approx(6.0, rel=0.005) and 10 < length.max() <= 15.0
    assert pair.facts["displacement_max_mm"] == pytest.approx(length.max(), abs=1e-3)
    assert pair.facts["folds"] == 0 and pair.facts["jacobian_min"] > 0.2
    assert pair.facts["inverse_residual_max_mm"] < 1e-3
    assert 0 <= pair.facts["brain_outside_moving_percent"] < 3


@pytest.mark.slow
def test_images_are_on_the_grids_and_of_the_types_announced(pair):
    assert pair.fixed.shape == (99, 117, 95) and pair.fixed.dtype == np.uint8
    assert pair.fixed_frame.spacing.tolist() == [2, 2, 2] and orientation_codes(pair.fixed_frame.affine) == "RAS"
    assert pair.moving.dtype == np.int16 and pair.moving.min() == 0 and pair.moving.max() > 500
    assert pair.moving_frame.same_grid(moving_frame())
    assert set(np.unique(pair.fixed_label)) == set(np.unique(pair.moving_label)) == {0, *LABELS}
    template = np.asarray(nib.load(template_path()).dataobj)[::2, ::2, ::2]
    inside = pair.fixed > 0
    np.testing.assert_array_equal(pair.fixed[inside], template[inside])  # the file's voxels, not interpolated ones


def template_path() -> str:
    from nilearn.datasets import struct

    return struct.MNI152_FILE_PATH


@pytest.mark.slow
def test_moving_pulled_back_by_the_truth_is_the_fixed_brain(pair):
    moving = torch.from_numpy(pair.moving.astype(np.float32))[None]
    inner = binary_erosion((pair.fixed > 0) & truth_lands_inside(pair.truth, pair.moving_frame), iterations=2)

    def pulled(ddf_mm: np.ndarray) -> np.ndarray:
        return PhysicalField(pair.fixed_frame, ddf_mm).resample(moving, pair.moving_frame)[0].numpy()

    def ncc(values: np.ndarray) -> float:
        return float(np.corrcoef(pair.fixed[inner], values[inner])[0, 1])

    back = pulled(pair.truth.ddf_mm)
    assert ncc(back) > 0.9 > 0.6 > ncc(pulled(0 * pair.truth.ddf_mm))
    # the smooth bias field is most of what is left: divide it out, and a truth 1 mm beside this one is clearly worse
    ratio = np.where(inner, back / np.maximum(pair.fixed, 1), 0)
    bias = uniform_filter(ratio, 9) / np.maximum(uniform_filter(inner.astype(float), 9), 1e-3)
    bias = np.maximum(bias, 1e-3)
    best = ncc(back / bias)
    assert best > 0.97
    for shift in np.concatenate([np.eye(3), -np.eye(3)]).astype(np.float32):
        assert ncc(pulled(pair.truth.ddf_mm + shift.reshape(3, 1, 1, 1)) / bias) < best - 0.02


@pytest.mark.slow
def test_labels_agree_under_the_truth(pair):
    labels = torch.from_numpy(pair.moving_label)[None]
    back = pair.truth.resample(labels, pair.moving_frame, "nearest")[0].numpy()
    seen = truth_lands_inside(pair.truth, pair.moving_frame, margin=1)
    constant = (maximum_filter(pair.fixed_label, 5) == minimum_filter(pair.fixed_label, 5)) & seen
    assert (constant & (pair.fixed_label > 0)).sum() > 10_000
    assert (back[constant] == pair.fixed_label[constant]).all()
    for label in LABELS:
        a, b = pair.fixed_label == label, back == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8, LABELS[label]


@pytest.mark.slow
def test_landmarks_are_exact_apart_and_in_both_brains(pair):
    fixed, moving = pair.fixed_points_mm, pair.moving_points_mm
    assert len(fixed) == len(moving) >= 30
    np.testing.assert_allclose(pair.truth.map_points(fixed), moving, atol=2e-4)  # the file has four decimals
    assert np.linalg.norm(fixed[:, None] - fixed[None], axis=-1)[~np.eye(len(fixed), dtype=bool)].min() >= 22
    assert (np.ptp(fixed, axis=0) > (80, 100, 80)).all()
    assert (at(pair.fixed, pair.fixed_frame, fixed) > 0).all()
    assert (at(pair.moving, pair.moving_frame, moving) > 0).all()


@pytest.mark.slow
def test_points_deep_inside_a_label_keep_it(pair):
    deep = maximum_filter(pair.fixed_label, 5) == minimum_filter(pair.fixed_label, 5)
    deep &= (pair.fixed_label > 0) & truth_lands_inside(pair.truth, pair.moving_frame, margin=1)
    points = pair.fixed_frame.to_mm(np.argwhere(deep)[::50])
    mapped = pair.truth.map_points(points)
    np.testing.assert_array_equal(
        at(pair.fixed_label, pair.fixed_frame, points), at(pair.moving_label, pair.moving_frame, mapped)
    )


@pytest.mark.slow
def test_pair_is_the_same_each_time_and_another_with_another_seed(pair):
    again, other = build_demo_pair(0), build_demo_pair(1)
    for name in ("fixed", "moving", "fixed_label", "moving_label"):
        np.testing.assert_array_equal(getattr(again, name), getattr(pair, name))
    np.testing.assert_array_equal(again.truth.ddf_mm, pair.truth.ddf_mm)
    np.testing.assert_array_equal(again.fixed, other.fixed)
    assert (again.moving != other.moving).any() and np.abs(again.truth.ddf_mm - other.truth.ddf_mm).max() > 1


@pytest.mark.slow
def test_nothing_half_written_stays(files):
    folder = Path(files["fixed"]).parent
    assert sorted(map(str, folder.iterdir())) == sorted(files.values())
