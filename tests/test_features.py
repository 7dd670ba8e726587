"""MIND-SSC: the facts of the method, against a naive loop and under changes of contrast."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from shared_components.features import MindLoss, mind_ssc, pool_to_grid, ssc_pairs
from shared_components.similarity import make_similarity


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand((2, 1, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(volume: np.ndarray, radius: int, dilation: int) -> np.ndarray:
    """The definition, voxel by voxel, with both borders repeated one after the other."""
    shape, ndim = volume.shape, volume.ndim

    def at(array: np.ndarray, index: tuple[int, ...]) -> float:
        return array[tuple(min(max(i, 0), n - 1) for i, n in zip(index, array.shape, strict=True))]

    patch = list(itertools.product(range(-radius, radius + 1), repeat=ndim))
    found = []
    for a, b in ssc_pairs(ndim):
        square = np.zeros(shape)
        for x in np.ndindex(shape):
            here, there = (tuple(i + dilation * o for i, o in zip(x, offset, strict=True)) for offset in (a, b))
            square[x] = (at(volume, here) - at(volume, there)) ** 2
        mean = np.zeros(shape)
        for x in np.ndindex(shape):
            mean[x] = np.mean([at(square, tuple(i + o for i, o in zip(x, p, strict=True))) for p in patch])
        found.append(mean)
    distance = np.stack(found)
    distance -= distance.min(0)
    level = distance.mean(0)
    level = np.clip(level, 1e-3 * level.mean(), 1e3 * level.mean())
    return np.exp(-distance / level)


@pytest.mark.parametrize(("shape", "radius", "dilation"), [((6, 5, 7), 1, 2), ((7, 6), 2, 1)])
def test_equals_a_naive_loop(shape: tuple[int, ...], radius: int, dilation: int) -> None:
    volume = image(*shape)
    found = mind_ssc(volume, radius, dilation)
    for one, wanted in zip(found, (naive(v[0].numpy(), radius, dilation) for v in volume), strict=True):
        np.testing.assert_allclose(one.numpy(), wanted, atol=1e-12)


def test_channels_range_and_maximum() -> None:
    found = mind_ssc(image(9, 8, 10))
    assert found.shape == (2, 12, 9, 8, 10) and mind_ssc(image(9, 8)).shape == (2, 4, 9, 8)
    assert 0 < found.min() and torch.equal(found.amax(1), torch.ones(2, 9, 8, 10, dtype=torch.float64))


@pytest.mark.parametrize(("a", "b"), [(3.0, 100.0), (-1.0, 0.0), (-0.01, 5.0)])
def test_blind_to_linear_changes_of_contrast(a: float, b: float) -> None:
    volume = image(8, 9, 7)
    torch.testing.assert_close(mind_ssc(a * volume + b), mind_ssc(volume), atol=1e-9, rtol=0)


def test_intensities_of_ct_keep_their_digits_in_float32() -> None:
    volume = image(8, 9, 7)
    found = mind_ssc((200 * volume - 1024).float())
    torch.testing.assert_close(found.double(), mind_ssc(volume), atol=2e-4, rtol=0)


def test_finite_on_constant_images_with_its_gradient() -> None:
    flat = torch.zeros(1, 1, 6, 6, 6, requires_grad=True)
    found = mind_ssc(flat)
    found.sum().backward()
    assert torch.equal(found, torch.ones_like(found)) and torch.isfinite(flat.grad).all()


def test_pairs_are_face_neighbours_at_right_angles() -> None:
    pairs = ssc_pairs(3)
    assert len({frozenset(pair) for pair in pairs}) == 12
    assert all(np.dot(a, b) == 0 for a, b in pairs)


def test_cells_at_the_far_end_are_means_of_what_they_have() -> None:
    x = torch.arange(10.0).view(1, 1, 1, 10).expand(1, 1, 5, 10)
    assert pool_to_grid(x, 4).tolist() == [[[[1.5, 5.5, 8.5]] * 2]]
    assert pool_to_grid(x, 1) is x and pool_to_grid(torch.rand(1, 1, 9, 8, 7), 4).shape[2:] == (3, 2, 2)


def test_loss_finds_the_shift_between_two_contrasts() -> None:
    volume = torch.nn.functional.avg_pool3d(image(20, 20, 20, dtype=torch.float32), 3, 1)
    loss = make_similarity("mind")
    assert isinstance(loss, MindLoss)
    other = -2 * volume
    values = [float(loss(volume, other.roll(shift, 2))) for shift in (-2, -1, 0, 1, 2)]
    assert min(values) == values[2] < 1e-6 and values[0] > values[1] and values[4] > values[3]
    mask = torch.zeros_like(volume)
    mask[:, :, 8:12] = 1
    assert float(loss(volume, other, mask)) < 1e-6 < float(loss(volume, other.roll(1, 3), mask))
