"""Fields in the world, against explicit arithmetic voxel by voxel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from shared_components.geometry import Frame, apply_affine
from shared_components.transform import (
    PhysicalField,
    affine_field,
    carry,
    compose_chain,
    map_points,
    pull,
)
from shared_components.warp import coords_grid, invert, warp_image

MakeFrame = Callable[..., Frame]
Make = Callable[..., torch.Tensor]


def indices(frame: Frame) -> np.ndarray:
    return np.indices(frame.shape).reshape(frame.ndim, -1).T


def on_grid(field: PhysicalField) -> np.ndarray:
    """(N, D) displacements in mm, voxel by voxel."""
    return field.ddf_mm.reshape(field.frame.ndim, -1).T


@pytest.fixture
def network(make_frame: MakeFrame) -> Frame:
    return make_frame("RAS", (14, 12, 16), (3.0, 3.0, 2.5), (8.0, -5.0, 12.0), (-20.0, -15.0, -18.0))


@pytest.fixture
def target(make_frame: MakeFrame) -> Frame:
    """Another orientation, obliquity and spacing, inside the network frame."""
    frame = make_frame("LPS", (7, 8, 6), (1.5, 1.0, 2.0), (-6.0, 3.0, 10.0), (0.0, 0.0, 0.0))
    affine = frame.affine.copy()
    affine[:3, 3] = -frame.center_mm
    return Frame(frame.shape, affine)


@pytest.fixture
def world() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3] = [[1.02, -0.05, 0.03, 4.0], [0.06, 0.97, 0.02, -3.0], [0.01, -0.04, 1.05, 2.0]]
    return matrix


def linear_ddf(frame: Frame, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """A ddf that is linear in the voxel index, so that trilinear interpolation is exact: G n + g."""
    rng = np.random.default_rng(seed)
    G, g = 0.05 * rng.normal(size=(3, 3)), rng.normal(size=3)
    ddf = torch.einsum("ij,bj...->bi...", torch.from_numpy(G), coords_grid(frame.shape, dtype=torch.float64))
    return (ddf + torch.from_numpy(g).view(1, 3, 1, 1, 1)).float(), G, g


@pytest.mark.parametrize("maps", ["none", "after", "before", "both"])
def test_carry_is_the_formula(maps: str, network: Frame, target: Frame, world: np.ndarray) -> None:
    ddf, G, g = linear_ddf(network)
    before = np.linalg.inv(world) if maps in ("before", "both") else None
    after = world if maps in ("after", "both") else None
    field = carry(ddf, network, target, before, after)
    assert field.frame is target and field.ddf_mm.dtype == np.float32 and field.ddf_mm.shape == (3, 7, 8, 6)
    for index, found in zip(indices(target), on_grid(field), strict=True):
        p = (target.affine @ [*index, 1])[:3]
        q = p if before is None else (before @ [*p, 1])[:3]
        n = (np.linalg.inv(network.affine) @ [*q, 1])[:3]
        assert (n >= 0).all() and (n <= np.array(network.shape) - 1).all(), "the test stays inside"
        r = (network.affine @ [*(n + G @ n + g), 1])[:3]
        end = r if after is None else (after @ [*r, 1])[:3]
        np.testing.assert_allclose(found, end - p, atol=2e-4)


def test_carry_continues_the_field_outside_its_frame(make_frame: MakeFrame) -> None:
    network = make_frame(shape=(5, 5, 5), spacing=(2, 2, 2), origin=(0, 0, 0))
    far = make_frame(shape=(3, 3, 3), spacing=(1, 1, 1), origin=(50, 60, 70))
    ddf, *_ = linear_ddf(network)
    corner = 2 * ddf[0, :, -1, -1, -1].numpy()
    np.testing.assert_allclose(on_grid(carry(ddf, network, far)), np.broadcast_to(corner, (27, 3)), atol=1e-6)


def test_carried_forward_and_inverse_fields_undo_each_other(
    network: Frame, target: Frame, world: np.ndarray, smooth_ddf: Make
) -> None:
    ddf = smooth_ddf(network.shape, 1.0, vanish=True, dtype=torch.float32)
    inverse, _ = invert(ddf)
    moving = Frame((9, 9, 9), world @ target.affine)  # around where the fixed grid lands
    forward = carry(ddf, network, target, after=world)
    backward = carry(inverse, network, moving, before=np.linalg.inv(world))
    points = target.to_mm(np.random.default_rng(0).uniform(1, 5, (40, 3)))
    there = forward.map_points(points)
    assert np.linalg.norm(there - points, axis=1).min() > 1
    assert np.linalg.norm(backward.map_points(there) - points, axis=1).max() < 0.15


def test_a_field_must_fit_its_frame(target: Frame) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(3, 7, 8, 6\)"):
        PhysicalField(target, np.zeros((7, 8, 6, 3), np.float32))


def test_identity_resamples_to_the_same_image(target: Frame) -> None:
    image = torch.rand(2, *target.shape, generator=torch.Generator().manual_seed(0))
    moved = PhysicalField(target, np.zeros((3, *target.shape), np.float32)).resample(image, target)
    torch.testing.assert_close(moved, image, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("codes", "axis", "sign"), [("RAS", 0, 1), ("LPS", 0, -1), ("ASL", 2, -1)])
def test_a_step_to_the_right_moves_along_the_axis_that_points_there(
    codes: str, axis: int, sign: int, make_frame: MakeFrame
) -> None:
    source = make_frame(codes, (8, 8, 8), (2.0, 2.0, 2.0))
    image = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    step = np.zeros((3, 8, 8, 8), np.float32)
    step[0] = 2.0  # one voxel, RAS mm
    moved = PhysicalField(source, step).resample(image, source)
    inside = (slice(None), *(slice(1, -1),) * 3)
    torch.testing.assert_close(moved[inside], image.roll(-sign, axis + 1)[inside], atol=1e-4, rtol=0)
    border = moved.select(axis + 1, -1 if sign > 0 else 0)
    torch.testing.assert_close(border, image.min().expand_as(border), atol=1e-5, rtol=0)


def test_resample_onto_another_grid_samples_where_the_points_go(
    network: Frame, target: Frame, world: np.ndarray
) -> None:
    ddf, *_ = linear_ddf(network, seed=2)
    field = carry(ddf, network, target, after=world)
    landed = network.to_vox(field.map_points(target.to_mm(indices(target))))
    np.testing.assert_allclose(field.coords_in(network).flatten(2)[0].T.numpy(), landed, atol=1e-4)
    image = (coords_grid(network.shape)[0] * torch.tensor([1.0, 10, 100]).view(3, 1, 1, 1)).sum(0, keepdim=True)
    inside = ((landed >= 0) & (landed <= np.array(network.shape) - 1)).all(1)
    assert inside.mean() > 0.8
    values = field.resample(image, network).flatten().numpy()
    np.testing.assert_allclose(values[inside], (landed @ [1, 10, 100])[inside], atol=0.02)


def test_labels_are_resampled_without_new_values(network: Frame, target: Frame) -> None:
    ddf, *_ = linear_ddf(network)
    field = carry(ddf, network, target)
    labels = torch.randint(0, 4, (1, *network.shape), generator=torch.Generator().manual_seed(0)).to(torch.int16) * 300
    moved = field.resample(labels, network, "nearest")
    assert moved.dtype == torch.int16 and set(moved.unique().tolist()) == {0, 300, 600, 900}
    landed = network.to_vox(field.map_points(target.to_mm(indices(target))))
    clear = (np.abs(landed - np.floor(landed) - 0.5) > 0.01).all(1)
    nearest = np.rint(landed).astype(int)
    inside = clear & ((nearest >= 0) & (nearest < network.shape)).all(1)
    assert inside.mean() > 0.7
    np.testing.assert_array_equal(moved.numpy().flatten()[inside], labels.numpy()[0][tuple(nearest[inside].T)])


def test_what_lies_outside_is_background() -> None:
    coords = torch.tensor([[0.0, 2, 9]]).view(1, 1, 3, 1).expand(1, 2, 3, 1)
    image = torch.arange(9.0).view(1, 3, 3) - 1000  # air of a CT
    assert pull(image, coords).flatten().tolist() == [-1000, -992, -1000]
    mask = torch.ones(1, 3, 3, dtype=torch.uint8)  # covers the whole grid: its minimum is 1
    assert pull(mask, coords, "nearest").flatten().tolist() == [1, 1, 0]


def test_integer_images_are_rounded_not_cut() -> None:
    image = torch.tensor([[[0, 10], [0, 10]]], dtype=torch.int16)
    coords = torch.tensor([[0.0, 0.0], [0.26, 0.24]]).view(1, 2, 2, 1)
    assert pull(image, coords).flatten().tolist() == [3, 2]


def test_points_inside_are_interpolated_and_outside_stay(target: Frame) -> None:
    ddf = linear_ddf(target)[0][0].numpy()
    field = PhysicalField(target, ddf)
    points = target.to_mm(np.random.default_rng(0).uniform(0, 5, (30, 3)))
    _, G, g = linear_ddf(target)
    np.testing.assert_allclose(field.map_points(points), points + target.to_vox(points) @ G.T + g, atol=1e-5)
    outside = target.to_mm(np.array([[-0.6, 3, 3], [3, 3, 5.6], [100, 0, 0]]))
    np.testing.assert_array_equal(field.displacement_at(outside), 0)
    np.testing.assert_array_equal(field.map_points(outside), outside)
    assert field.map_points(np.zeros((0, 3))).shape == (0, 3)
    assert field.map_points(points[0]).shape == (1, 3)


def test_voxel_ddf_is_the_field_in_its_own_voxels(target: Frame, smooth_ddf: Make) -> None:
    ddf = smooth_ddf(target.shape, 1.0, dtype=torch.float32)
    field = carry(ddf, target, target)
    torch.testing.assert_close(field.voxel_ddf(), ddf, atol=1e-5, rtol=0)
    image = torch.rand(1, *target.shape, generator=torch.Generator().manual_seed(0))
    warped = warp_image((image - image.min())[None], ddf, padding="zeros")[0] + image.min()
    torch.testing.assert_close(field.resample(image, target), warped, atol=1e-4, rtol=0)


def test_affine_field_is_the_map_on_the_grid(target: Frame, world: np.ndarray) -> None:
    field, start = affine_field(world, target), target.to_mm(indices(target))
    np.testing.assert_allclose(on_grid(field), apply_affine(world, start) - start, atol=1e-5)


def test_a_chain_is_followed_first_element_first(network: Frame, target: Frame, world: np.ndarray) -> None:
    near = PhysicalField(target, 0.1 * linear_ddf(target, seed=1)[0][0].numpy())
    wide = carry(linear_ddf(network, seed=3)[0], network, network)
    points = target.to_mm(np.random.default_rng(0).uniform(0, 5, (30, 3)))
    by_hand = wide.map_points(apply_affine(world, near.map_points(points)))
    np.testing.assert_allclose(map_points(points, [near, world, wide]), by_hand)
    assert np.abs(map_points(points, [wide, world, near]) - by_hand).max() > 0.1
    np.testing.assert_array_equal(map_points(points, []), points)


def test_a_collapsed_chain_maps_points_as_its_links_do(network: Frame, target: Frame, world: np.ndarray) -> None:
    near = PhysicalField(target, 0.1 * linear_ddf(target, seed=1)[0][0].numpy())
    wide = carry(linear_ddf(network, seed=3)[0], network, network)
    for chain in ([near, world, wide], [world], [wide, near], []):
        one = compose_chain(chain, target)
        start = target.to_mm(indices(target))
        np.testing.assert_allclose(start + on_grid(one), map_points(start, chain), atol=1e-4)
    between = target.to_mm(np.random.default_rng(0).uniform(0, 5, (30, 3)))
    one = compose_chain([near, world, wide], target)
    np.testing.assert_allclose(one.map_points(between), map_points(between, [near, world, wide]), atol=1e-3)


def test_two_dimensional_fields() -> None:
    frame = Frame((6, 7), np.array([[0, 2.0, 1], [-1.0, 0, 4], [0, 0, 1]]))
    ddf = torch.zeros(1, 2, 6, 7)
    ddf[:, 0] = 1.0  # one voxel along axis 0, which is 1 mm backwards along the second world axis
    field = carry(ddf, frame, frame)
    np.testing.assert_allclose(on_grid(field), np.broadcast_to((0.0, -1.0), (42, 2)), atol=1e-6)
    np.testing.assert_allclose(field.map_points(np.array([[5.0, 2.0]])), [[5.0, 1.0]])
    image = torch.rand(1, 6, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(field.resample(image, frame)[:, :-1], image[:, 1:], atol=1e-5, rtol=0)
