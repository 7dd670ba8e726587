"""Frames: voxels and millimetres, and the grid a network sees."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest

from shared_components.geometry import (
    Frame,
    apply_affine,
    canonical_axes,
    cut_frame,
    orientation_codes,
    vox_to_vox,
)

MakeFrame = Callable[..., Frame]
CODES = ["RAS", "LAS", "LPS", "ASL", "PIR"]
OBLIQUE = [(0.0, 0.0, 0.0), (12.0, -7.0, 9.0)]


@pytest.mark.parametrize(("codes", "oblique"), product(CODES, OBLIQUE))
def test_frame_maps_voxels_to_mm_and_back(codes: str, oblique: tuple[float, ...], make_frame: MakeFrame) -> None:
    frame = make_frame(codes, oblique=oblique)
    assert orientation_codes(frame.affine) == codes
    np.testing.assert_allclose(frame.spacing, (1.0, 1.5, 2.0))
    points = np.random.default_rng(0).uniform(-5, 30, (50, 3))
    expected = [frame.affine @ [*p, 1] for p in points]
    np.testing.assert_allclose(frame.to_mm(points), np.asarray(expected)[:, :3])
    np.testing.assert_allclose(frame.to_vox(frame.to_mm(points)), points, atol=1e-10)
    np.testing.assert_allclose(frame.to_vox(frame.center_mm), (9.5, 11.5, 13.5))


def test_corners_are_the_outermost_voxel_centres(make_frame: MakeFrame) -> None:
    frame = make_frame(oblique=OBLIQUE[1])
    expected = [frame.to_mm(np.array(c)) for c in product((0, 19), (0, 23), (0, 27))]
    np.testing.assert_allclose(frame.corners_mm(), expected)


def test_frames_are_checked_and_normalised() -> None:
    with pytest.raises(ValueError, match="3-D frame needs a 4x4 affine"):
        Frame((4, 5, 6), np.eye(3))
    frame = Frame(np.array([4, 5]), np.eye(3, dtype=np.float32))  # type: ignore[arg-type]
    assert frame.shape == (4, 5) and frame.affine.dtype == np.float64 and frame.ndim == 2


def test_same_grid_looks_at_shape_and_corners(make_frame: MakeFrame) -> None:
    frame = make_frame()
    nudged, stretched = frame.affine.copy(), frame.affine.copy()
    nudged[0, 3] += 1e-4
    stretched[2, 2] *= 1.0005  # 0.027 mm at the far end
    assert frame.same_grid(Frame(frame.shape, nudged))
    assert not frame.same_grid(Frame(frame.shape, stretched))
    assert frame.same_grid(Frame(frame.shape, stretched), tolerance_mm=0.05)
    assert not frame.same_grid(Frame((20, 24, 27), frame.affine))


def test_apply_affine_keeps_leading_axes() -> None:
    matrix = np.array([[0, 2.0, 1], [1, 0, -1], [0, 0, 1]])
    assert apply_affine(matrix, np.array([[[3, 4]], [[0, 0]]])).tolist() == [[[9, 2]], [[1, -1]]]


def test_vox_to_vox_goes_through_the_world(make_frame: MakeFrame) -> None:
    source, target = make_frame("LPS", oblique=OBLIQUE[1]), make_frame("ASL", spacing=(2.0, 1.0, 0.7))
    world = np.eye(4)
    world[:3] = [[0.99, -0.1, 0.03, 4], [0.11, 1.02, 0, 5], [0, 0.04, 0.97, 6]]
    points = np.random.default_rng(1).uniform(0, 20, (30, 3))
    np.testing.assert_allclose(
        apply_affine(vox_to_vox(source, target), points), target.to_vox(source.to_mm(points)), atol=1e-10
    )
    through = target.to_vox(apply_affine(world, source.to_mm(points)))
    np.testing.assert_allclose(apply_affine(vox_to_vox(source, target, world), points), through, atol=1e-10)


@pytest.mark.parametrize("codes", ["".join(c) for p in permutations(("RL", "AP", "SI")) for c in product(*p)])
def test_canonical_axes_turn_any_orientation_to_ras(codes: str, make_frame: MakeFrame) -> None:
    affine = make_frame(codes, oblique=(5.0, 4.0, -6.0)).affine
    turned = affine[:3, :3] @ canonical_axes(affine)
    turned = turned / np.linalg.norm(turned, axis=0)
    assert (turned.diagonal() > 0.9).all()


@pytest.mark.parametrize(("codes", "oblique"), product(CODES, OBLIQUE))
def test_cut_frame_is_ras_centred_and_along_the_fixed_axes(
    codes: str, oblique: tuple[float, ...], make_frame: MakeFrame
) -> None:
    fixed = make_frame(codes, oblique=oblique)
    frame = cut_frame(fixed, (16, 12, 9), (3.0, 2.0, 1.0))
    assert frame.shape == (16, 12, 9)
    assert orientation_codes(frame.affine) == "RAS"
    np.testing.assert_allclose(frame.center_mm, fixed.center_mm, atol=1e-10)
    np.testing.assert_allclose(frame.spacing, (3.0, 2.0, 1.0))
    along = np.abs((frame.matrix / frame.spacing).T @ (fixed.matrix / fixed.spacing))
    np.testing.assert_allclose(np.sort(along, axis=0), [[0] * 3, [0] * 3, [1] * 3], atol=1e-10)


def test_cut_frame_around_a_given_point_with_one_spacing(make_frame: MakeFrame) -> None:
    frame = cut_frame(make_frame("LPS"), (7, 8, 9), 1.25, center_mm=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(frame.center_mm, (1, 2, 3))
    np.testing.assert_allclose(frame.affine[:3, :3], np.eye(3) * 1.25, atol=1e-12)


def test_cut_frame_of_the_same_size_is_the_fixed_grid(make_frame: MakeFrame) -> None:
    fixed = make_frame("RAS", oblique=OBLIQUE[1])
    assert cut_frame(fixed, fixed.shape, fixed.spacing).same_grid(fixed, tolerance_mm=1e-9)


def test_cut_frame_in_two_dimensions() -> None:
    flipped = Frame((10, 14), np.array([[0, 2.0, 5], [-1.0, 0, 7], [0, 0, 1]]))
    frame = cut_frame(flipped, (6, 4), (1.0, 3.0))
    np.testing.assert_allclose(frame.matrix, np.diag((1.0, 3.0)))
    np.testing.assert_allclose(frame.center_mm, flipped.center_mm)
