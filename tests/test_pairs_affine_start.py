"""The affine start in world coordinates, found by the learned optimiser: on any two grids, by word or by call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from two_d_case import CASES, CENTER, TRUE_SHIFT_MM, write_pair

from shared_components.affine_search import AffineSearch, MetaOptimiser
from shared_components.geometry import Frame, apply_affine
from shared_components.pairs import affine_start, make_preprocessing
from shared_components.pairs.affine_start import SETTINGS, learned_world, optimiser
from shared_components.pairs.frames import initial_world, network_frame

DIMENSIONS = pytest.mark.parametrize("ndim", [2, 3])
SIZES = {2: (32, 32), 3: (16, 16, 16)}
BLOBS = np.array([[0, 0, 0], [-24, 6, 12], [14, 22, -18], [20, -22, 6]]), (17, 9, 8, 7), (1.0, 0.8, 0.7, 0.9)
_SHIPPED = dict(SETTINGS)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small grids and untrained weights, which leave the starts nearly where they are."""
    for ndim, size in SIZES.items():
        path = tmp_path / f"affine_{ndim}d.pt"
        torch.save(MetaOptimiser(ndim, (2, 1), "trainable", expansion=2).state_dict(), path)
        search = AffineSearch((2, 1), iterations=20, scaled=True, kept=3)
        changed = {"size": size, "spacing": "fit", "strides": (2, 1), "expansion": 2, "starts": 5 if ndim == 2 else 9}
        monkeypatch.setitem(SETTINGS, ndim, dataclasses.replace(SETTINGS[ndim], search=search, weights=path, **changed))
    optimiser.cache_clear()
    yield
    optimiser.cache_clear()


def paint(frame: Frame, world: np.ndarray) -> Tensor:
    """(1, *shape): the object, taken to where ``world`` has it."""
    index = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), -1).reshape(-1, frame.ndim)
    places = apply_affine(np.linalg.inv(world), frame.to_mm(index))
    value = sum(
        height * np.exp(-((places - place[: frame.ndim]) ** 2).sum(-1) / (2 * width**2))
        for place, width, height in zip(*BLOBS, strict=True)
    )
    return torch.from_numpy(80 * value.reshape(1, *frame.shape)).float()


def make_grid(shape: tuple[int, ...], spacing: float, signs: tuple[int, ...], degrees: float, middle: float) -> Frame:
    """A grid with flipped axes, turned in the plane of the first two, about (middle, ...) mm."""
    ndim, turn = len(shape), np.eye(len(shape))
    angle = np.radians(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] = turn * signs * spacing
    affine[:-1, -1] = middle - affine[:-1, :-1] @ (np.array(shape) - 1) / 2
    return Frame(shape, affine)


def case(ndim: int, degrees: float = 35.0) -> tuple[Tensor, Frame, Tensor, Frame, np.ndarray]:
    """Two images of one object on grids of their own, and the map between them: a turn and a long shift."""
    fixed = make_grid((44, 40, 42)[:ndim], 2.5, (1, 1, 1)[:ndim], 0, 0.0)
    moving = make_grid((46, 48, 44)[:ndim], 2.6, (-1, 1, -1)[:ndim], 10, 60.0)
    world = make_grid((1,) * ndim, 1.0, (1,) * ndim, degrees, 0.0).affine
    world[:-1, -1] = [62.0, 57.0, 64.0][:ndim]
    return paint(fixed, np.eye(ndim + 1)), fixed, paint(moving, world), moving, world


def error_mm(found: np.ndarray, world: np.ndarray) -> float:
    """Mean distance over points 30 mm around the object."""
    ndim = len(world) - 1
    corners = np.stack(np.meshgrid(*[[-30.0, 30.0]] * ndim), -1).reshape(-1, ndim)
    return float(np.linalg.norm(apply_affine(found, corners) - apply_affine(world, corners), axis=1).mean())


@DIMENSIONS
@pytest.mark.parametrize("learned", [True, False])
def test_the_true_map_is_found_in_the_world(ndim: int, learned: bool, small: None) -> None:
    *images, world = case(ndim)
    found = learned_world(*images, learned=learned)
    assert found.shape == (ndim + 1, ndim + 1) and found.dtype == np.float64
    np.testing.assert_array_equal(found[-1], np.eye(ndim + 1)[-1])
    before = error_mm(initial_world(*images, "centre_of_mass"), world)
    assert error_mm(found, world) < 1.5 < 20 < before


@DIMENSIONS
def test_the_word_means_the_same(ndim: int, small: None) -> None:
    *images, _ = case(ndim)
    np.testing.assert_array_equal(initial_world(*images, "meta_affine"), learned_world(*images))


def test_more_starts_find_more(small: None) -> None:
    *images, world = case(2, 58.0)
    assert error_mm(learned_world(*images, starts=7), world) < 1.5
    assert error_mm(learned_world(*images, starts=1), world) > 10


def test_the_network_makes_steps_only_where_it_is_asked_to(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = MetaOptimiser.forward

    def watched(self: MetaOptimiser, fixed: Tensor, moving: Tensor, start: Tensor) -> list[Tensor]:
        seen.append((fixed.shape, moving.shape, len(start)))
        return forward(self, fixed, moving, start)

    monkeypatch.setattr(MetaOptimiser, "forward", watched)
    *images, _ = case(2)
    learned_world(*images, learned=False)
    assert not seen
    learned_world(*images, starts=3)
    learned_world(*images)
    assert seen == [((1, 1, 32, 32), (1, 1, 32, 32), 3), ((1, 1, 32, 32), (1, 1, 32, 32), 5)]


def test_the_same_images_give_the_same_map(small: None) -> None:
    *images, _ = case(2)
    np.testing.assert_array_equal(learned_world(*images), learned_world(*images))


def test_images_without_content_are_no_fault(small: None) -> None:
    _, fixed, _, moving, _ = case(2)
    found = learned_world(torch.zeros(1, *fixed.shape), fixed, torch.ones(1, *moving.shape), moving)
    assert np.isfinite(found).all() and np.linalg.det(found) > 0.5


@pytest.mark.parametrize("name", CASES)
def test_from_files_to_the_network_view(name: str, small: None, tmp_path: Path) -> None:
    files = write_pair(tmp_path, CASES[name])
    item = make_preprocessing([48, 48], "fit", initial_transform="meta_affine")(dict(files))
    corners = CENTER + np.array([[-10.0, -15.0], [10, -15], [-10, 15], [10, 15]])
    away = apply_affine(item["pair"].initial, corners) - corners - TRUE_SHIFT_MM
    assert float(np.linalg.norm(away, axis=1).mean()) < 1.5
    fixed, moving = item["image"]
    assert float((fixed - moving).abs().mean()) < 0.02 < float(fixed.std())


def test_weights_are_read_once(small: None, tmp_path: Path) -> None:
    assert optimiser(2) is optimiser(2) and optimiser(2) is not optimiser(3)
    assert not optimiser(2).training
    saved = torch.load(tmp_path / "affine_2d.pt", weights_only=True)
    assert all(torch.equal(value, saved[name]) for name, value in optimiser(2).state_dict().items())


def test_grids_can_be_searched(ndims: tuple[int, ...] = (2, 3)) -> None:
    """The shipped settings fit together: strides divide the grid, the levels too, and weights lie in the package."""
    for ndim in ndims:
        chosen = _SHIPPED[ndim]
        assert len(chosen.size) == ndim and chosen.weights.parent == affine_start.WEIGHTS
        assert all(n % stride == 0 for n in chosen.size for stride in (*chosen.strides, *chosen.search.strides))
        assert chosen.search.kept <= chosen.starts


@DIMENSIONS
def test_shipped_weights_find_a_pose(ndim: int) -> None:
    if not _SHIPPED[ndim].weights.is_file():
        pytest.skip(f"{_SHIPPED[ndim].weights.name} is not there yet")
    optimiser.cache_clear()
    *images, world = case(ndim)
    assert error_mm(learned_world(*images), world) < {2: 5, 3: 12}[ndim]  # it has learned brains, not blobs
    assert all(bool(value.isfinite().all()) for value in optimiser(ndim).state_dict().values())


def test_fit_fills_the_grid_with_the_longest_side() -> None:
    frame = Frame((40, 100), np.diag([2.0, 1.5, 1.0]))
    image = torch.ones(1, 40, 100)
    found = network_frame(image, frame, (64, 32), "fit", "grid")
    assert found.shape == (64, 32)
    np.testing.assert_allclose(found.spacing, 150 / 32)
    np.testing.assert_allclose(found.center_mm, frame.center_mm)
