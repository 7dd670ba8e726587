"""The classical search: it finds known poses, never climbs, and keeps the best of many starts."""

from __future__ import annotations

import math

import pytest
import torch
from affine_search_case import phantom, poses, quarter_turn
from torch import Tensor

from shared_components.affine_search import (
    AffineSearch,
    AffineSSD,
    align_group,
    best_of,
    compose,
    displacement_error,
    halved,
    initial_guess,
    inverse,
    normalise,
    rotation_starts,
    split,
)
from shared_components.affine_search.search import best, usable_strides

DIMENSIONS = pytest.mark.parametrize("ndim", [2, 3])


def problem(ndim: int, batch: int, degrees: float, shift: float, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed and moving images and the exact maps between them."""
    moving, truth = phantom([size] * ndim).repeat(batch, *(1,) * (ndim + 1)), poses(ndim, batch, degrees, shift)
    return AffineSSD(moving, moving).moved(truth), moving, truth


@DIMENSIONS
def test_poses_nearby_are_found(ndim: int) -> None:
    fixed, moving, truth = problem(ndim, 8, 15, 0.1)
    found = AffineSearch((2, 1), scaled=True)(fixed, moving)
    before = displacement_error(initial_guess(fixed.shape[2:], 8, fixed), truth)
    after = displacement_error(found.x, truth)
    assert float(after.max()) < 3e-4 < 0.02 < float(before.max())
    assert found.x.shape == truth.shape and found.value.shape == (8,) and found.evaluations.shape == (8, 2)
    value, _ = AffineSSD(normalise(fixed), normalise(moving))(found.x)
    torch.testing.assert_close(found.value, value)


@DIMENSIONS
def test_the_value_never_rises(ndim: int) -> None:
    fixed, moving, _ = problem(ndim, 4, 60, 0.4)
    values = [AffineSearch((1,), iterations=k)(fixed, moving).value for k in range(0, 13, 2)]
    start, _ = AffineSSD(normalise(fixed), normalise(moving))(initial_guess(fixed.shape[2:], 4, fixed))
    torch.testing.assert_close(values[0], start)
    assert all(bool((after <= before).all()) for before, after in zip(values, values[1:], strict=False))
    assert bool((values[-1] < values[0]).all())


@DIMENSIONS
def test_the_truth_is_left_as_it_is(ndim: int) -> None:
    """Exactly on every level for a quarter turn; others blur, and what is normalised after that fits smaller."""
    moving, turn = phantom([16] * ndim), quarter_turn(ndim)
    found = AffineSearch((4, 2, 1))(AffineSSD(moving, moving).moved(turn), moving, turn)
    torch.testing.assert_close(found.x, turn, atol=1e-10, rtol=0)
    assert float(found.value) < 1e-20
    fixed, moving, truth = problem(ndim, 4, 30, 0.1)
    assert float(displacement_error(AffineSearch((1,))(fixed, moving, truth).x, truth).max()) < 4e-4


def test_levels_hand_the_map_on_unchanged() -> None:
    fixed, moving, truth = problem(2, 3, 60, 0.4)
    assert torch.equal(AffineSearch((4, 2, 1), iterations=0)(fixed, moving, truth).x, truth)
    coarse = AffineSearch((4,), iterations=5)(fixed, moving)
    fine = AffineSearch((1,), iterations=5)(fixed, moving, coarse.x)
    both = AffineSearch((4, 1), iterations=5)(fixed, moving)
    assert torch.equal(both.x, fine.x)
    assert torch.equal(both.evaluations, torch.cat([coarse.evaluations, fine.evaluations], 1))


@DIMENSIONS
def test_a_pair_is_the_same_alone_and_in_any_batch(ndim: int) -> None:
    fixed, moving, _ = problem(ndim, 4, 60, 0.3)
    search = AffineSearch((2, 1), iterations=8, scaled=True)
    together = search(fixed, moving)
    for k in range(4):
        alone = search(fixed[k : k + 1], moving[k : k + 1])
        torch.testing.assert_close(alone.x[0], together.x[k], atol=1e-6, rtol=0)
        assert torch.equal(alone.evaluations[0], together.evaluations[k])


def test_contrast_does_not_matter() -> None:
    fixed, moving, _ = problem(2, 3, 30, 0.2)
    search = AffineSearch((2, 1), iterations=5)
    again = search(3 + 50 * fixed, 7 * moving - 1)
    torch.testing.assert_close(again.x, search(fixed, moving).x, atol=1e-6, rtol=0)


def single(search: AffineSearch, fixed: Tensor, moving: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The points and values of every start by itself, (S, B, n) and (S, B)."""
    runs = [search(fixed, moving, start.expand(len(fixed), -1)) for start in starts]
    return torch.stack([run.x for run in runs]), torch.stack([run.value for run in runs])


def test_the_best_of_all_starts_is_kept_to_the_end() -> None:
    fixed, moving, _ = problem(2, 5, 60, 0.2)
    starts = rotation_starts(2, 3).double()
    search = AffineSearch((2, 1), iterations=8, kept=3)
    x, value = single(search, fixed, moving, starts)
    found = search(fixed, moving, starts.repeat(5, 1))
    torch.testing.assert_close(found.value, value.amin(0))
    torch.testing.assert_close(found.x, x[value.argmin(0), torch.arange(5)], atol=1e-6, rtol=0)
    assert len(value.argmin(0).unique()) > 1


def test_only_so_many_starts_go_on_after_the_first_level() -> None:
    fixed, moving, _ = problem(2, 5, 60, 0.2)
    starts = rotation_starts(2, 3).double()
    x, value = single(AffineSearch((2,), iterations=8), fixed, moving, starts)
    chosen = x[value.argmin(0), torch.arange(5)]
    wanted = AffineSearch((1,), iterations=8)(fixed, moving, chosen)
    found = AffineSearch((2, 1), iterations=8)(fixed, moving, starts.repeat(5, 1))
    torch.testing.assert_close(found.x, wanted.x, atol=1e-6, rtol=0)
    assert torch.equal(found.evaluations[:, 1:], wanted.evaluations)
    two = AffineSearch((2, 1), iterations=8, kept=2)(fixed, moving, starts.repeat(5, 1))
    assert bool((two.value <= found.value + 1e-12).all())
    assert bool((two.evaluations[:, 1] > found.evaluations[:, 1]).all())


def test_many_starts_find_what_one_does_not() -> None:
    fixed, moving, truth = problem(2, 12, 60, 0.1, size=32)
    search = AffineSearch((4, 2, 1), scaled=True)
    one = displacement_error(search(fixed, moving).x, truth)
    many = displacement_error(search(fixed, moving, rotation_starts(2, 5).repeat(12, 1)).x, truth)
    assert float(many.max()) < 1e-3 < 0.1 < float(one.max())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_start_that_is_no_map_loses(bad: float) -> None:
    fixed, moving, truth = problem(2, 2, 15, 0.1)
    starts = initial_guess((16, 16), 2, fixed)
    starts[0, 3] = bad
    found = AffineSearch((2, 1), scaled=True)(fixed, moving, starts.repeat(2, 1))
    assert float(displacement_error(found.x, truth).max()) < 1e-4
    assert bool(best_of(fixed, moving, starts.repeat(2, 1)).isfinite().all())


def test_best_takes_the_lowest_and_never_what_is_no_number() -> None:
    x = torch.arange(12.0).view(6, 2)
    value = torch.tensor([3.0, 1.0, 2.0, torch.nan, 5.0, -torch.inf])
    points, values = best(x, value, 2, 1)
    assert points.tolist() == [[2, 3], [8, 9]] and values.tolist() == [1, 5]
    points, values = best(x[:3], value[:3], 1, 2)
    assert points.tolist() == [[2, 3], [4, 5]] and values.tolist() == [1, 2]
    same, _ = best(x, value, 2, 3)
    assert torch.equal(same, x)


@pytest.mark.parametrize("stride", [1, 2])
def test_best_of_compares_all_points_of_a_pair(stride: int) -> None:
    fixed, moving, truth = problem(2, 4, 60, 0.4)
    points = torch.stack([truth + 0.1 * k for k in (2, 1, 3)], 1)
    assert torch.equal(best_of(fixed, moving, points.flatten(0, 1), stride), points[:, 1])
    images = [halved(normalise(image), stride) for image in (fixed, moving)]
    values = torch.stack([AffineSSD(*images)(points[:, k])[0] for k in range(3)])
    assert bool((values.argmin(0) == 1).all())
    assert best_of(fixed, moving, truth) is truth


def test_strides_that_do_not_fit_are_left_out() -> None:
    assert usable_strides((8, 4, 2, 1), (128, 128)) == [8, 4, 2, 1]
    assert usable_strides((8, 4, 2, 1), (16, 24)) == [4, 2, 1]
    assert usable_strides((8, 4, 2), (31, 31)) == [1] and usable_strides((1,), (3, 3)) == [1]
    moving = phantom((15, 18))
    truth = poses(2, 1, 15, 0.1)
    fixed = AffineSSD(moving, moving).moved(truth)
    found = AffineSearch((4, 2, 1), scaled=True)(fixed, moving)
    assert found.evaluations.shape == (1, 1) and float(displacement_error(found.x, truth)) < 1e-4


def turns(ndim: int, count: int) -> Tensor:
    """Matrices of rotations of up to 60 degrees, the largest ones among them."""
    ball = poses(ndim, count, 60, 0.0)
    if ndim == 2:
        angle = torch.linspace(-60, 60, count).double().deg2rad()
        return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    return split(ball)[0]


def farthest(ndim: int, count: int) -> float:
    """Degrees from the worst rotation to its nearest start."""
    starts, every = split(rotation_starts(ndim, count).double())[0], turns(ndim, 4001)
    trace = torch.einsum("aij,bij->ab", every, starts)
    cosine = trace / 2 if ndim == 2 else (trace - 1) / 2
    return math.degrees(float(cosine.clamp(-1, 1).acos().amin(1).max()))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_starts_in_the_plane_leave_equal_parts(count: int) -> None:
    assert farthest(2, count) == pytest.approx(60 / count, abs=0.1)


def test_starts_in_space_cover_better_the_more_there_are() -> None:
    """The ball of rotation vectors is wide: 3 starts do not cover it, 7 leave 46 degrees, 13 leave 36."""
    for count, limit in ((1, 60.1), (3, 60.1), (7, 47), (13, 37), (25, 30)):
        assert farthest(3, count) < limit


@DIMENSIONS
@pytest.mark.parametrize("count", [1, 4, 7])
def test_starts_are_rotations_about_the_middle(ndim: int, count: int) -> None:
    A, b = split(rotation_starts(ndim, count))
    assert A.shape == (count, ndim, ndim) and not b.any()
    torch.testing.assert_close(A @ A.mT, torch.eye(ndim).expand_as(A), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(A), torch.ones(count))
    if ndim == 3 or count % 2:
        assert bool(((A - torch.eye(ndim)).abs().amax((1, 2)) < 1e-6).any())  # the identity is among them
    assert len(torch.unique(A.flatten(1).round(decimals=3), dim=0)) == count
    assert torch.equal(rotation_starts(ndim, count), rotation_starts(ndim, count))


@DIMENSIONS
def test_a_group_of_one_object_is_aligned(ndim: int) -> None:
    """I_i = I(p_i): then p_i after x_i is the same map for all i."""
    count = 6
    image, known = phantom([16] * ndim), poses(ndim, count, 12, 0.08)
    images = AffineSSD(image.repeat(count, *(1,) * (ndim + 1)), image.repeat(count, *(1,) * (ndim + 1))).moved(known)
    x = align_group(images)
    common = compose(known, x)
    before, after = displacement_error(known, known.mean(0)), displacement_error(common, common.mean(0))
    assert float(after.max()) < 2e-4 and float(after.max()) < float(before.max()) / 50
    identity = compose(x.mean(0, keepdim=True), inverse(x.mean(0, keepdim=True)))
    torch.testing.assert_close(x.mean(0, keepdim=True), identity)  # size and place of the group stay
