"""Labels and points: definitions against SimpleITK, brute force and hand-made cases."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.distance import cdist

from shared_components import metrics
from shared_components.errors import InputError


def blobs(shape, classes=3, seed=0, shift=0.0):
    """Smooth random label map with values 0 .. classes; a second call with a shift overlaps the first in part."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    noise = ndimage.shift(noise, shift, mode="nearest")
    return np.digitize(noise, np.quantile(noise, np.linspace(0.4, 0.95, classes))).astype(np.int16)


@pytest.fixture(params=[(18, 21, 15), (33, 26)], ids=["3d", "2d"])
def pair(request):
    return blobs(request.param), blobs(request.param, shift=1.7)


def test_overlap_equals_simpleitk(pair):
    fixed, moved = pair
    measure = sitk.LabelOverlapMeasuresImageFilter()
    measure.Execute(sitk.GetImageFromArray(fixed), sitk.GetImageFromArray(moved))
    dice, iou = metrics.dice(fixed, moved), metrics.iou(fixed, moved)
    assert set(dice) == set(iou) == {1, 2, 3}
    for label in dice:
        assert dice[label] == pytest.approx(measure.GetDiceCoefficient(label), abs=1e-12)
        assert iou[label] == pytest.approx(measure.GetJaccardCoefficient(label), abs=1e-12)
    assert 0.2 < metrics.mean_over_labels(dice) < 0.98


def test_dice_takes_tensors_floats_and_huge_or_negative_labels(pair):
    fixed, moved = pair
    expected = metrics.dice(fixed, moved)
    tensors = torch.from_numpy(fixed)[None].float(), torch.from_numpy(moved)[None].double()
    assert metrics.dice(*tensors) == expected
    assert metrics.dice(fixed == 1, moved == 1)[1] == expected[1]
    assert metrics.dice(fixed.astype(np.uint64), moved.astype(np.uint8)) == expected
    huge = np.array([0, 3_000_000_000, -7, 14175])
    assert metrics.dice(huge[fixed], huge[moved]) == {int(huge[k]): v for k, v in expected.items()}


def test_dice_conventions_for_absent_labels():
    fixed, moved = np.array([[0, 1, 1, 2]]), np.array([[0, 1, 3, 3]])
    assert metrics.dice(fixed, moved) == {1: pytest.approx(2 / 3)}
    assert metrics.dice(fixed, moved, absent="zero") == {1: pytest.approx(2 / 3), 2: 0.0, 3: 0.0}
    assert metrics.dice(fixed, moved, labels=[2, 9], absent="zero") == {2: 0.0}
    moving = np.array([2, 1, 3])  # on its own grid: 2 was there, and the warp pushed it out
    learn2reg = metrics.dice(fixed, moved, metrics.common_labels(fixed, moving), absent="zero")
    assert learn2reg == {1: pytest.approx(2 / 3), 2: 0.0}
    with pytest.raises(ValueError, match="absent"):
        metrics.dice(fixed, moved, absent="nan")


def test_labels_that_cannot_be_compared_are_refused():
    with pytest.raises(InputError, match="whole numbers"):
        metrics.dice(np.array([0.0, 1.0]), np.array([0.0, 0.5]))
    with pytest.raises(InputError, match="whole numbers"):
        metrics.dice(np.array([0.0, 1.0]), np.array([0.0, np.nan]))
    with pytest.raises(InputError, match="shape"):
        metrics.dice(np.zeros((3, 4), int), np.zeros((4, 3), int))


def test_mean_over_no_labels_is_nan():
    assert np.isnan(metrics.mean_over_labels(metrics.dice(np.zeros((3, 3), int), np.ones((3, 3), int))))


def brute_surface(mask, spacing):
    """Positions in mm of object voxels with a neighbour along an axis that is background or beyond the edge."""
    padded = np.pad(mask, 1)
    inside = np.ones_like(mask)
    for axis in range(mask.ndim):
        for step in (-1, 1):
            inside &= np.roll(padded, step, axis)[(slice(1, -1),) * mask.ndim]
    return np.argwhere(mask & ~inside) * np.asarray(spacing)


def test_hd95_mm_equals_brute_force_with_anisotropic_spacing(pair):
    fixed, moved = pair
    spacing = (0.7, 1.1, 3.0)[: fixed.ndim]
    found = metrics.hd95_mm(fixed, moved, spacing)
    for label in (1, 2, 3):
        distances = cdist(brute_surface(fixed == label, spacing), brute_surface(moved == label, spacing))
        expected = max(np.percentile(distances.min(0), 95), np.percentile(distances.min(1), 95))
        assert found[label] == pytest.approx(expected, abs=1e-9)
    assert found != metrics.hd95_mm(fixed, moved, np.ones(fixed.ndim))


def test_hd95_of_a_shifted_cube_is_the_shift():
    fixed, moved = np.zeros((20, 20, 20), int), np.zeros((20, 20, 20), int)
    fixed[4:12, 4:12, 4:12] = moved[7:15, 4:12, 4:12] = 5
    assert metrics.hd95_mm(fixed, moved, (2.0, 1.0, 1.0)) == {5: 6.0}
    assert metrics.hd95_l2r(fixed, moved) == {5: 3.0}
    assert metrics.hd95_mm(fixed[None], moved[None], (1.0, 1.0, 1.0)) == {5: 3.0}
    assert metrics.hd95_mm(fixed, fixed, (1.0, 1.0, 1.0)) == {5: 0.0}


def test_hd95_leaves_out_what_one_image_lacks_and_what_is_not_asked_for():
    fixed, moved = np.zeros((9, 9), int), np.zeros((9, 9), int)
    fixed[1:3, 1:3], fixed[5:8, 5:8], moved[5:8, 4:7] = 1, 2, 2
    assert metrics.hd95_mm(fixed, moved, (1, 1)) == {2: 1.0}
    assert metrics.hd95_mm(fixed, moved, (1, 1), labels=[1]) == {}
    assert set(metrics.hd95_l2r(fixed, moved)) == {2}
    with pytest.raises(ValueError, match="3-D"):
        metrics.hd95_mm(fixed, moved, (1, 1, 1))


def contour(mask):
    """Centres of the 2 x 2 neighbourhoods that are neither empty nor full, and the length of contour in each."""
    padded = np.pad(mask, 1).astype(int)
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    total, diagonal = a + b + c + d, (a == d) & (b == c) & (a != b)
    length = np.where(total == 2, np.where(diagonal, 2**0.5, 1.0), 2**0.5 / 2)
    edge = (total > 0) & (total < 4)
    return np.argwhere(edge), length[edge]


def weighted_percentile(distances, weights):
    order = np.argsort(distances)
    share = np.cumsum(weights[order]) / weights.sum()
    return distances[order][np.argmax(share >= 0.95)]


def test_hd95_l2r_weighs_contours_by_length():
    unequal = 0
    for seed in range(6):
        fixed, moved = blobs((40, 36), seed=seed), blobs((40, 36), seed=seed, shift=1.7)
        found = metrics.hd95_l2r(fixed, moved)
        for label in (1, 2, 3):
            (at_fixed, long_fixed), (at_moved, long_moved) = contour(fixed == label), contour(moved == label)
            distances = cdist(at_fixed, at_moved)
            expected = [
                max(weighted_percentile(distances.min(1), x), weighted_percentile(distances.min(0), y))
                for x, y in ((long_fixed, long_moved), (np.ones(len(at_fixed)), np.ones(len(at_moved))))
            ]
            assert found[label] == pytest.approx(expected[0])
            unequal += expected[0] != expected[1]
    assert unequal, "the weights decide nothing in these cases"


def test_tre_is_zero_for_the_exact_map_and_scales_in_mm():
    fixed = np.random.default_rng(0).normal(size=(21, 3)) * 30
    matrix, shift = np.array([[0.9, 0.1, 0], [-0.1, 1.1, 0], [0, 0.2, 1.0]]), np.array([3.0, -4.0, 12.0])
    moving = fixed @ matrix.T + shift
    exact = metrics.tre_mm(fixed, moving, lambda p: p @ matrix.T + shift)
    assert exact == pytest.approx({"mean": 0, "p95": 0, "max": 0}, abs=1e-12)
    off = metrics.tre_mm(fixed, moving, moving + np.linspace(0, 2, 21)[:, None] * np.array([0.6, 0, 0.8]))
    assert off == pytest.approx({"mean": 1.0, "p95": 1.9, "max": 2.0})
    assert metrics.tre_mm(fixed, fixed + shift, fixed)["mean"] == pytest.approx(13.0)


def test_landmarks_must_come_in_pairs():
    with pytest.raises(InputError, match="pairs"):
        metrics.tre_mm(np.zeros((3, 3)), np.zeros((4, 3)), np.zeros((3, 3)))
    assert np.isnan(metrics.tre_mm(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros((0, 3)))["mean"])


def test_label_summary_is_json_and_names_what_it_leaves_out():
    fixed, moved = np.zeros((9, 9), int), np.zeros((9, 9), int)
    fixed[1:3, 1:3], fixed[5:8, 5:8], moved[5:8, 4:7], moved[0, 8] = 1, 2, 2, 4
    summary = json.loads(json.dumps(metrics.label_summary(fixed, moved, (2.0, 2.0)), allow_nan=False))
    assert summary["only_in_fixed"] == [1] and summary["only_in_moved"] == [4]
    assert set(summary["labels"]) == {"2"}
    assert summary["mean"] == summary["labels"]["2"] == {"dice": 0.666667, "iou": 0.5, "hd95_mm": 2.0, "hd95_l2r": 1.0}
    nothing = metrics.label_summary(fixed, moved, (2.0, 2.0), labels=[1], surfaces=False)
    assert nothing["mean"] == {"dice": None, "iou": None} and nothing["only_in_fixed"] == [1]
