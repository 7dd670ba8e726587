"""Fields: Jacobian statistics against SimpleITK, numpy and analytic deformations; folds that differences hide."""

import itertools
import json
import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from shared_components import metrics
from shared_components.warp import invert, jacobian_determinant

FOLD = 1.7  # displacement of every other voxel: more than the distance of two voxels


def grid(shape):
    return np.stack(np.meshgrid(*[np.arange(float(n)) for n in shape], indexing="ij"))


def affine(shape, matrix):
    return np.einsum("ij,j...->i...", np.asarray(matrix) - np.eye(len(shape)), grid(shape))


def smooth(shape, size, seed=0):
    """Random sum of plane waves, (D, *shape) in voxels."""
    rng, where = np.random.default_rng(seed), grid(shape)
    field = np.zeros((len(shape), *shape))
    for _ in range(6):
        wave = np.einsum("i,i...->...", rng.normal(size=len(shape)) * 0.35, where)
        field += np.einsum("i,...->i...", rng.normal(size=len(shape)) * size, np.sin(wave + rng.uniform(0, 6)))
    return field


def checkerboard(shape, size=FOLD):
    field = np.zeros((len(shape), *shape))
    field[0] = size * (-1.0) ** grid(shape).sum(0)
    return field


SHAPES = pytest.mark.parametrize("shape", [(11, 9, 10), (14, 12)], ids=["3d", "2d"])


def numpy_jacobian(ddf):
    """det(I + grad u) by np.gradient, an implementation of its own."""
    ndim = ddf.shape[0]
    rows = np.stack([np.stack(np.gradient(ddf[i])) for i in range(ndim)])
    return np.linalg.det(np.moveaxis(rows, (0, 1), (-2, -1)) + np.eye(ndim))


@SHAPES
def test_determinant_equals_simpleitk_in_the_interior(shape):
    ddf = smooth(shape, 2.0)
    # ITK has x first and works in mm: reverse the components, leave the voxels at 1 mm
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(ddf[::-1], 0, -1)), isVector=True)
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(image, True))
    inner = (slice(1, -1),) * len(shape)
    ours = jacobian_determinant(torch.from_numpy(ddf)[None])[0].numpy()
    np.testing.assert_allclose(ours[inner], theirs[inner], rtol=1e-5, atol=1e-5)
    assert (theirs[inner] <= 0).any() and (theirs[inner] > 0).any()
    inside = np.zeros(shape)
    inside[inner] = 1
    assert metrics.folds_percent(ddf, inside) == pytest.approx(100 * (theirs[inner] <= 0).mean())


@SHAPES
def test_statistics_equal_numpy(shape):
    ddf = smooth(shape, 2.0, seed=3)
    det = numpy_jacobian(ddf)
    assert metrics.folds_percent(ddf) == pytest.approx(100 * (det <= 0).mean()) and (det <= 0).any()
    deviation, folded = metrics.sdlogj(ddf)
    assert deviation == pytest.approx(np.std(np.log(det[det > 0]))) and folded == (det <= 0).sum()
    inner = det[(slice(2, -2),) * len(shape)]
    assert metrics.sdlogj_l2r(ddf) == pytest.approx(np.std(np.log(np.clip(inner + 3, 1e-9, 1e9))))
    mask = np.random.default_rng(1).random(shape) > 0.5
    at_once = metrics.jacobian_statistics(torch.from_numpy(ddf)[None], mask)
    assert at_once["folds_percent"] == pytest.approx(100 * (det[mask] <= 0).mean())
    assert at_once["sdlogj"] == pytest.approx(np.std(np.log(det[mask & (det > 0)])))
    assert at_once["det_min"] == pytest.approx(det[mask].min())
    assert at_once["ndv_percent"] == metrics.ndv_percent(ddf, mask)


def test_sdlogj_l2r_is_a_quarter_and_blind_to_folds():
    calm = smooth((16, 16, 16), 0.02)
    assert metrics.sdlogj_l2r(calm) == pytest.approx(metrics.sdlogj(calm)[0] / 4, rel=0.1)
    # x -> -1.5 x in all axes of 2-D is a rotation; in one axis only it turns everything over: det = -1.5
    turned = affine((9, 9, 9), np.diag([-1.5, 1, 1]))
    assert metrics.folds_percent(turned) == 100.0
    assert metrics.sdlogj_l2r(turned) == pytest.approx(0.0, abs=1e-9)
    deviation, folded = metrics.sdlogj(turned)
    assert math.isnan(deviation) and folded == 9**3


def test_std_jacobian_takes_forward_differences():
    field = np.zeros((2, 6, 5))
    field[0] = (grid((6, 5))[0] ** 2) / 10  # forward: 1 + (2 i + 1) / 10 for i = 0 .. 4
    expected = np.std([1.1, 1.3, 1.5, 1.7, 1.9])
    assert metrics.std_jacobian(field) == pytest.approx(expected)
    assert metrics.std_jacobian(field) != pytest.approx(np.std(numpy_jacobian(field)))


@pytest.mark.parametrize(
    "matrix", [[[1.2, 0.3, 0], [-0.1, 0.8, 0.2], [0, 0.1, 1.1]], [[0.9, 0.4], [-0.2, 1.3]]], ids=["3d", "2d"]
)
def test_affine_field_has_its_determinant_and_no_folds(matrix):
    ddf = affine((7, 8, 9)[: len(matrix)], matrix)
    found = metrics.field_summary(ddf, np.ones(len(matrix)))
    det = pytest.approx(np.linalg.det(matrix), rel=1e-5)
    assert found["det_min"] == found["det_median"] == found["det_max"] == det
    assert found["folds_percent"] == found["folded_voxels"] == found["ndv_percent"] == 0.0
    assert max(found["sdlogj"], found["std_jacobian"]) < 1e-9


@pytest.mark.parametrize("ndim", [2, 3])
def test_turned_over_grid_is_all_non_diffeomorphic(ndim):
    """Mirroring one axis with a stretch of s turns every cell over: volume s of every unit cell."""
    ddf = affine((6, 7, 8)[:ndim], np.diag([-2.0, 1, 1][:ndim]))
    cells = math.prod(n - 1 for n in ddf.shape[1:])
    assert metrics.non_diffeomorphic_volume(ddf) == pytest.approx(2.0 * cells)
    assert metrics.ndv_percent(ddf) == pytest.approx(200.0 * cells / ddf[0].size)


@SHAPES
def test_checkerboard_fold_is_invisible_to_central_differences(shape):
    ddf = checkerboard(shape)
    inner = np.zeros(shape)
    inner[(slice(1, -1),) * len(shape)] = 1
    assert metrics.folds_percent(ddf, inner) == 0.0
    assert metrics.sdlogj(ddf, inner)[0] == pytest.approx(0.0, abs=1e-9)
    assert metrics.ndv_percent(ddf, inner) > 30.0
    assert metrics.ndv_percent(checkerboard(shape, 0.2)) == 0.0  # too small to fold


def test_single_voxel_fold_has_its_exact_area():
    """A voxel pushed by 1 + t along x turns its two right triangles over, each t / 2 large, seen from three corners."""
    t = 0.5
    ddf = np.zeros((2, 7, 7))
    ddf[0, 3, 3] = 1 + t
    # right-angled corners at the voxel itself (two triangles), at its x-neighbour (two): each of area t / 2.
    # The corners at y-neighbours keep their area: the moved edge slides along them.
    assert metrics.non_diffeomorphic_volume(ddf) == pytest.approx(0.5 * 4 * t / 2)


def brute_volume(ddf):
    """Sum over all cells, tetrahedron by tetrahedron, of 0.5 x the volumes with a sign unlike the undeformed one's."""
    rest = grid(ddf.shape[1:])
    moved = rest + ddf
    corners = list(itertools.product((0, 1), repeat=3))
    simplices = [[c, *[tuple(v ^ (a == axis) for a, v in enumerate(c)) for axis in range(3)]] for c in corners]
    simplices += [[c for c in corners if sum(c) % 2 == parity] for parity in (0, 1)]
    total = 0.0
    for cell in itertools.product(*(range(n - 1) for n in ddf.shape[1:])):
        for simplex in simplices:
            at = [tuple(np.add(cell, corner)) for corner in simplex]
            before, after = (np.array([x[(slice(None), *p)] for p in at]) for x in (rest, moved))
            volume = [np.linalg.det(x[1:] - x[0]) / 6 for x in (before, after)]
            total += max(0.0, -volume[1] * np.sign(volume[0])) / 2
    return total


@pytest.mark.parametrize("size", [0.4, 1.5])
def test_non_diffeomorphic_volume_equals_brute_force(size):
    ddf = np.random.default_rng(5).normal(size=(3, 5, 4, 6)) * size
    expected = brute_volume(ddf)
    assert expected > 0.5
    assert metrics.non_diffeomorphic_volume(ddf) == pytest.approx(expected)


def test_volume_does_not_depend_on_the_slabs(monkeypatch):
    ddf = smooth((13, 6, 7), 2.0)
    mask = np.random.default_rng(0).random((13, 6, 7)) > 0.3
    whole, cells = metrics.non_diffeomorphic_volume(ddf, mask), metrics.folded_cells(ddf)
    monkeypatch.setattr(metrics.jacobian, "_SLAB", 5)
    monkeypatch.setattr(metrics.jacobian, "_CELLS", 1)
    assert metrics.non_diffeomorphic_volume(ddf, mask) == pytest.approx(whole) and whole > 1
    assert torch.equal(metrics.folded_cells(ddf), cells) and cells.any()


def test_mask_books_every_simplex_once():
    ddf = smooth((8, 9, 7), 3.0)
    mask = np.random.default_rng(0).random(ddf.shape[1:]) > 0.4
    parts = [metrics.non_diffeomorphic_volume(ddf, part) for part in (mask, ~mask)]
    assert sum(parts) == pytest.approx(metrics.non_diffeomorphic_volume(ddf)) and min(parts) > 1


def test_inverse_consistency_of_exact_inverse_pair_and_of_a_known_miss():
    shape, spacing = (12, 10, 11), (2.0, 1.0, 3.0)
    shift = np.broadcast_to(np.array([1.0, -2.0, 0.5]).reshape(3, 1, 1, 1), (3, *shape))
    assert metrics.inverse_consistency_error(shift, -shift, spacing)["max"] == pytest.approx(0.0, abs=1e-12)
    miss = metrics.inverse_consistency_error(shift, -shift + np.array([0.5, 0, 0]).reshape(3, 1, 1, 1), spacing)
    assert miss == pytest.approx({"mean": 1.0, "p95": 1.0, "max": 1.0})


def test_inverse_is_read_where_the_field_arrives():
    field, inverse = np.zeros((2, 6, 4)), np.zeros((2, 6, 4))
    field[0], inverse[0] = 1.0, -1.0 - 0.1 * grid((6, 4))[0]
    # x = 0 .. 4 arrive inside, at x + 1, where the inverse is off by 0.1 (x + 1) voxels of 2 mm
    error = metrics.inverse_consistency_error(field, inverse, (2.0, 1.0))
    assert error["mean"] == pytest.approx(0.2 * 3) and error["max"] == pytest.approx(0.2 * 5)


def test_inverse_consistency_looks_only_where_the_field_stays_inside():
    ddf = torch.from_numpy(smooth((24, 24), 0.25))[None]
    inverse, _ = invert(ddf, iterations=200, tolerance=1e-9)
    error = metrics.inverse_consistency_error(ddf, inverse, (1.0, 1.0))
    assert error["mean"] < 0.05 < metrics.inverse_consistency_error(ddf, torch.zeros_like(ddf), (1.0, 1.0))["mean"]
    outside = torch.full((1, 2, 5, 5), 9.0)
    assert math.isnan(metrics.inverse_consistency_error(outside, -outside, (1.0, 1.0))["mean"])


def test_field_summary_is_json_and_in_mm():
    field = np.zeros((3, 6, 6, 6))
    field[1] = 2.0
    summary = json.loads(json.dumps(metrics.field_summary(field, (1.0, 1.5, 1.0)), allow_nan=False))
    assert summary["displacement_mm"] == {"mean": 3.0, "p95": 3.0, "max": 3.0}
    assert summary["folds_percent"] == summary["ndv_percent"] == 0.0 and summary["det_median"] == 1.0
    tiny = metrics.field_summary(np.zeros((2, 3, 4)), (1.0, 1.0), np.zeros((3, 4)))
    assert tiny["sdlogj_l2r"] is None and tiny["folds_percent"] is None and tiny["displacement_mm"]["max"] is None


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 4, 4, 4), (3, 4, 4, 1), (4, 3, 3, 3, 3)])
def test_what_is_not_a_field_is_refused(shape):
    with pytest.raises(ValueError, match="field must be"):
        metrics.folds_percent(np.zeros(shape))


def test_half_precision_fields_are_computed_in_float32():
    ddf = torch.from_numpy(smooth((10, 10, 10), 0.1))
    assert metrics.sdlogj(ddf.half())[0] == pytest.approx(metrics.sdlogj(ddf)[0], rel=1e-2)


def test_asymmetry_is_that_of_the_interior():
    forth, back = torch.zeros(3, 40, 40, 40), torch.zeros(3, 40, 40, 40)
    forth[0], back[1] = 2.0, 1.0
    assert metrics.log_asymmetry(forth, back) == pytest.approx(math.log(5.0))
    assert math.isnan(metrics.log_asymmetry(forth, -forth))
    edge, still = torch.zeros(3, 40, 40, 40), torch.zeros(3, 40, 40, 40)
    edge[:, :9] = 3.0
    assert math.isnan(metrics.log_asymmetry(edge, still))
    edge[:, 10] = 3.0
    assert metrics.log_asymmetry(edge, still) == pytest.approx(math.log(27 / 20), rel=1e-4)


def test_diagonal_folds_are_no_folds():
    """A matrix of determinant 1 with a diagonal of negative product, and the other way round."""
    for block, (diagonal, folds) in ((((-1.0, 1.0), (-2.0, 1.0)), (100, 0)), (((1.0, 2.0), (1.0, 1.0)), (0, 100))):
        matrix = torch.eye(3)
        matrix[:2, :2] = torch.tensor(block)
        grid = torch.stack(torch.meshgrid(*[torch.arange(6.0)] * 3, indexing="ij"))
        field = torch.einsum("ij,jxyz->ixyz", matrix - torch.eye(3), grid)
        assert metrics.diagonal_folds_percent(field) == pytest.approx(diagonal)
        assert metrics.folds_percent(field) == pytest.approx(folds)
