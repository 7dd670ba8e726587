"""The network's view of a pair: initial alignment, anti-aliasing, resampling, intensities."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch

from shared_components.errors import InputError
from shared_components.geometry import Frame, orientation_codes
from shared_components.pairs.frames import (
    bring,
    center_of_mass_mm,
    initial_world,
    intensity_window,
    network_frame,
    overlap,
    scale,
    smooth_for,
    spacing_along,
)
from shared_components.warp import coords_grid

MakeFrame = Callable[..., Frame]
OBLIQUE = (12.0, -7.0, 9.0)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def blob(frame: Frame, center_vox: tuple[float, ...], low: float = 0.0) -> torch.Tensor:
    """(1, *shape) Gaussian blob of 1.5 voxels around a voxel position, on a ground of ``low``."""
    middle = torch.tensor(center_vox).view(1, -1, *(1,) * frame.ndim)
    return torch.exp(-((coords_grid(frame.shape) - middle) ** 2).sum(1) / 4.5) * 100 + low


@pytest.mark.parametrize(("codes", "low"), product(["RAS", "LPS", "ASL"], [0.0, -1000.0]))
def test_centre_of_mass_is_in_mm_and_counts_from_the_minimum(codes: str, low: float, make_frame: MakeFrame) -> None:
    frame = make_frame(codes, oblique=OBLIQUE)
    found = center_of_mass_mm(blob(frame, (8.0, 13.0, 15.0), low), frame)
    np.testing.assert_allclose(found, frame.to_mm(np.array([8.0, 13, 15])), atol=0.02)


def test_centre_of_mass_of_a_flat_image_is_the_middle(make_frame: MakeFrame) -> None:
    frame = make_frame("LPS")
    np.testing.assert_allclose(center_of_mass_mm(torch.full((1, *frame.shape), 7.0), frame), frame.center_mm)


def test_initial_world_lays_fixed_mass_on_moving_mass(make_frame: MakeFrame) -> None:
    fixed, moving = make_frame("RAS", oblique=OBLIQUE), make_frame("LPS", origin=(60.0, -30.0, 9.0))
    a, b = (8.0, 13.0, 15.0), (11.0, 12.0, 14.0)
    world = initial_world(blob(fixed, a), fixed, blob(moving, b), moving, "centre_of_mass")
    np.testing.assert_array_equal(world[:3, :3], np.eye(3))
    shifted = fixed.to_mm(np.array(a)) + world[:3, 3]
    np.testing.assert_allclose(shifted, moving.to_mm(np.array(b)), atol=0.05)


def test_initial_world_from_the_header_a_matrix_or_a_wrong_word(make_frame: MakeFrame) -> None:
    frame = make_frame()
    image = draw(1, *frame.shape)
    np.testing.assert_array_equal(initial_world(image, frame, image, frame, "header"), np.eye(4))
    matrix = np.diag([1.0, 2.0, 3.0, 1.0])
    np.testing.assert_array_equal(initial_world(image, frame, image, frame, matrix), matrix)
    with pytest.raises(InputError, match="centre_of_mass, header.*'moments'"):
        initial_world(image, frame, image, frame, "moments")


def test_network_frame_lies_around_the_mass_or_the_grid(make_frame: MakeFrame) -> None:
    fixed = make_frame("LPS", oblique=OBLIQUE)
    image = blob(fixed, (8.0, 13.0, 15.0))
    around_mass = network_frame(image, fixed, (8, 10, 12), 2.0)
    assert around_mass.shape == (8, 10, 12) and orientation_codes(around_mass.affine) == "RAS"
    np.testing.assert_allclose(around_mass.center_mm, fixed.to_mm(np.array([8.0, 13, 15])), atol=0.02)
    around_grid = network_frame(image, fixed, (8, 10, 12), 2.0, center="grid")
    np.testing.assert_allclose(around_grid.center_mm, fixed.center_mm)


def test_smoothing_keeps_constants_and_the_sum(make_frame: MakeFrame) -> None:
    frame = make_frame(shape=(21, 23, 25), spacing=(1.0, 1.0, 2.0))
    spacing = np.array([3.0, 2.0, 4.0])
    flat = torch.full((1, *frame.shape), 3.5)
    torch.testing.assert_close(smooth_for(flat, frame, spacing), flat)
    image = torch.zeros(1, *frame.shape)
    image[0, 8:13, 9:14, 10:15] = draw(5, 5, 5)
    blurred = smooth_for(image, frame, spacing)
    assert blurred.sum() == pytest.approx(float(image.sum()), rel=1e-5)
    assert blurred.max() < 0.7 * image.max()


def test_smoothing_has_the_width_that_makes_up_the_difference(make_frame: MakeFrame) -> None:
    frame = make_frame(shape=(41, 41, 41), spacing=(1.0, 1.0, 1.0))
    point = torch.zeros(1, 41, 41, 41)
    point[0, 20, 20, 20] = 1
    blurred = smooth_for(point, frame, np.array([4.0, 1.0, 2.5]))[0]
    offset = torch.arange(-20, 21.0)
    for axis, target in enumerate((4.0, 1.0, 2.5)):
        profile = blurred.sum([a for a in range(3) if a != axis])
        variance = float((profile * offset**2).sum())
        assert variance == pytest.approx((target**2 - 1) / (8 * np.log(2)), rel=0.05, abs=1e-6)


def test_smoothing_leaves_images_that_are_refined(make_frame: MakeFrame) -> None:
    frame = make_frame(shape=(6, 7, 8), spacing=(2.0, 2.0, 2.0))
    image = draw(1, 6, 7, 8)
    assert smooth_for(image, frame, np.array([2.0, 1.0, 0.5])).equal(image)


def test_smoothing_of_tiny_images(make_frame: MakeFrame) -> None:
    frame = make_frame(shape=(1, 2, 3), spacing=(1.0, 1.0, 1.0))
    blurred = smooth_for(draw(1, 1, 2, 3), frame, np.array([9.0, 9.0, 9.0]))
    assert blurred.shape == (1, 1, 2, 3) and blurred.isfinite().all()


@pytest.mark.parametrize(("codes", "expected"), [("RAS", (1, 2, 3)), ("LPS", (1, 2, 3)), ("ASL", (2, 3, 1))])
def test_spacing_follows_the_axes_of_the_source(codes: str, expected: tuple[float, ...], make_frame: MakeFrame) -> None:
    network = make_frame("RAS", spacing=(1.0, 2.0, 3.0), oblique=OBLIQUE)
    source = make_frame(codes, spacing=(0.5, 0.6, 0.7), oblique=OBLIQUE)
    np.testing.assert_allclose(spacing_along(source, network), expected)


def test_spacing_along_a_slanted_axis_lies_between(make_frame: MakeFrame) -> None:
    network = make_frame("RAS", spacing=(1.0, 3.0, 2.0))
    slanted = spacing_along(make_frame("RAS", oblique=(0.0, 0.0, 45.0)), network)
    np.testing.assert_allclose(slanted, (2.0, 2.0, 2.0))
    isotropic = spacing_along(make_frame("LPS", oblique=(20.0, 30.0, 40.0)), make_frame(spacing=(2.0, 2.0, 2.0)))
    np.testing.assert_allclose(isotropic, (2.0, 2.0, 2.0))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_bring_to_its_own_grid_is_the_identity(mode: str, make_frame: MakeFrame) -> None:
    frame = make_frame("LPS", (7, 8, 9), oblique=OBLIQUE)
    image = draw(1, 7, 8, 9)
    torch.testing.assert_close(bring(image, frame, frame, None, mode), image, atol=1e-4, rtol=0)
    labels = (image * 5).to(torch.int16)
    found = bring(labels, frame, frame, None, "nearest")
    assert found.dtype == torch.int16 and found.equal(labels)


def test_bring_goes_through_the_world(make_frame: MakeFrame) -> None:
    network = make_frame("RAS", (20, 20, 20), (1.0, 1.0, 1.0), origin=(-10.0, -10.0, -10.0))
    source = make_frame("LPS", (26, 26, 26), (1.0, 1.0, 1.0), OBLIQUE, origin=(0.0, 0.0, 0.0))
    source = Frame(
        source.shape, np.block([[source.matrix, -source.center_mm[:, None]], [np.zeros((1, 3)), np.ones((1, 1))]])
    )
    world = np.eye(4)
    world[:3, 3] = (3.0, -2.0, 1.5)
    image = blob(source, tuple(source.to_vox(np.array([4.0, 0.0, 2.0]))))
    brought = bring(image, source, network, world)
    # the blob lies at (4, 0, 2) mm of the source, hence where the world map leads there from: (1, 2, 0.5)
    np.testing.assert_allclose(center_of_mass_mm(brought, network), (1.0, 2.0, 0.5), atol=0.1)


def test_bring_anti_aliases_intensities_but_not_labels(make_frame: MakeFrame) -> None:
    source = make_frame("RAS", (40, 40, 40), (1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    network = make_frame("RAS", (8, 8, 8), (4.0, 4.0, 4.0), origin=(4.0, 4.0, 4.0))
    board = coords_grid(source.shape).sum(1) % 2
    assert (bring(board, source, network) - 0.5).abs().max() < 0.05
    assert bring(board.to(torch.uint8), source, network, None, "nearest").unique().tolist() == [0]


def test_outside_the_source_is_its_minimum_and_no_label(make_frame: MakeFrame) -> None:
    source = make_frame("RAS", (6, 6, 6), (1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    network = make_frame("RAS", (6, 6, 6), (1.0, 1.0, 1.0), origin=(3.0, 0.0, 0.0))
    image = draw(1, 6, 6, 6) - 1000
    brought = bring(image, source, network)
    torch.testing.assert_close(brought[:, :3], image[:, 3:], atol=1e-3, rtol=0)
    torch.testing.assert_close(brought[:, 3:], image.min().expand(1, 3, 6, 6), atol=1e-3, rtol=0)
    mask = bring(torch.ones(1, 6, 6, 6, dtype=torch.uint8), source, network, None, "nearest")
    assert mask[0, :, 0, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_window_is_the_minimum_and_the_percentile_of_the_rest() -> None:
    image = torch.cat([torch.full((5000,), -3.0), torch.arange(1.0, 1001)]).view(1, 60, 100)
    assert intensity_window(image) == (-3.0, 995.0)
    assert intensity_window(image, percentile=50) == (-3.0, 500.0)
    assert intensity_window(torch.full((1, 4, 4), 2.0)) == (2.0, 3.0)
    low, high = intensity_window(torch.tensor([[[0.0, 0, 0, 1e30]]]))
    assert (low, high) == (0.0, pytest.approx(1e30))


def test_scaling_maps_the_window_to_0_1_and_clips() -> None:
    image = torch.tensor([-5.0, 0, 5, 10, 50])
    assert scale(image, (0.0, 10.0)).tolist() == [0, 0, 0.5, 1, 1]


def test_overlap_is_the_share_of_one_view_that_the_other_sees(make_frame: MakeFrame) -> None:
    fixed = make_frame("RAS", (24, 24, 24), (1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0))
    flipped = make_frame("LPS", (24, 24, 24), (1.0, 1.0, 1.0), origin=(23.0, 23.0, 0.0))
    assert overlap(fixed, flipped, np.eye(4), fixed) == 1.0
    far, half = np.eye(4), np.eye(4)
    far[0, 3], half[0, 3] = 100.0, 12.0
    assert overlap(fixed, flipped, far, fixed) == 0.0
    assert overlap(fixed, flipped, half, fixed) == pytest.approx(0.5, abs=0.05)
    wide = make_frame("RAS", (48, 24, 24), (1.0, 1.0, 1.0), origin=(-24.0, 0.0, 0.0))
    assert overlap(fixed, flipped, np.eye(4), wide) == 1.0, "what the fixed image does not cover does not count"
    assert overlap(fixed, flipped, np.eye(4), Frame((4, 4, 4), np.diag([1, 1, 1, 1.0]) + 500 * np.eye(4, k=3))) == 0.0
    slices = make_frame("RAS", (24, 24, 2), (1.0, 1.0, 0.4), origin=(0.0, 0.0, 8.2))
    for pair in ((fixed, slices), (slices, fixed)):
        assert overlap(*pair, np.eye(4), fixed) == 1.0, "a few slices lie wholly inside"


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAL"])
def test_a_grid_within_the_fixed_image_follows_its_short_sides(make_frame: MakeFrame, codes: str) -> None:
    """A thin slab: along its thin side the grid is the slab, along the others it lies around the mass as ever."""
    sides = {"R": 40, "L": 40, "A": 30, "P": 30, "S": 6, "I": 6}
    frame = make_frame(codes, tuple(sides[code] for code in codes), (2.0, 2.0, 2.0), origin=OBLIQUE)
    image = blob(frame, tuple(0.25 * n for n in frame.shape))
    free, kept = (network_frame(image, frame, (16, 12, 20), 3.0, within=within) for within in (False, True))
    assert free.shape == (16, 12, 20) and kept.shape == (16, 12, 4)
    assert network_frame(image, frame, (16, 12, 4), 3.0, within=True).shape == (16, 12, 4)
    np.testing.assert_allclose(kept.matrix, free.matrix)
    np.testing.assert_allclose(kept.center_mm[:2], free.center_mm[:2])
    np.testing.assert_allclose(kept.center_mm[2], frame.center_mm[2])
    assert abs(free.center_mm[2] - frame.center_mm[2]) > 1
