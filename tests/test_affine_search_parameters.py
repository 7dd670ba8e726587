"""The parameters of affine maps: groups, voxels, and how far two maps are apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from shared_components.affine_search import (
    compose,
    dimension,
    displacement_error,
    from_matrix_vox,
    initial_guess,
    inverse,
    join,
    matrix_vox,
    pixel,
    rotation_starts,
    split,
)

SHAPES = pytest.mark.parametrize("shape", [(8, 8), (9, 14), (6, 6, 6), (5, 8, 7)], ids=str)
DIMENSIONS = pytest.mark.parametrize("ndim", [2, 3])


def identity(ndim: int, batch: int = 1) -> Tensor:
    return join(torch.eye(ndim).double(), torch.zeros(ndim).double()).repeat(batch, 1)


def maps(ndim: int, batch: int, seed: int = 0) -> Tensor:
    """Maps that are far from the identity and from singular."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, ndim * (ndim + 1), generator=generator, dtype=torch.float64) - 0.5
    return identity(ndim, batch) + 0.6 * noise


def apply(x: Tensor, z: Tensor) -> Tensor:
    """phi_x (B, N, D) of positions (N, D), written out."""
    A, b = split(x)
    return torch.einsum("bij,nj->bni", A, z) + b[:, None]


def cell_centres(ndim: int, m: int) -> Tensor:
    """The m^D middles of the cells of [-1, 1]^D."""
    axis = (torch.arange(m, dtype=torch.float64) + 0.5) * 2 / m - 1
    return torch.cartesian_prod(*[axis] * ndim)


@DIMENSIONS
def test_parameters_come_apart_and_together(ndim: int) -> None:
    x = maps(ndim, 4)
    A, b = split(x)
    assert dimension(x) == ndim and A.shape == (4, ndim, ndim) and b.shape == (4, ndim)
    assert torch.equal(A[:, 0, 1], x[:, 1])  # by rows
    assert torch.equal(join(A, b), x)


@SHAPES
def test_identity_moves_nothing(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    assert torch.equal(matrix_vox(identity(ndim), shape)[0], torch.eye(ndim + 1).double())
    z = cell_centres(ndim, 3)
    assert torch.equal(apply(identity(ndim), z)[0], z)


@DIMENSIONS
def test_compose_is_one_map_after_the_other(ndim: int) -> None:
    outer, inner, z = maps(ndim, 5, 1), maps(ndim, 5, 2), cell_centres(ndim, 3)
    A, b = split(outer)
    one_by_one = torch.einsum("bij,bnj->bni", A, apply(inner, z)) + b[:, None]
    torch.testing.assert_close(apply(compose(outer, inner), z), one_by_one)
    assert float((compose(outer, inner) - compose(inner, outer)).abs().max()) > 0.01  # the order matters


@DIMENSIONS
def test_inverse_undoes_a_map_from_both_sides(ndim: int) -> None:
    x, same = maps(ndim, 6), identity(ndim, 6)
    torch.testing.assert_close(compose(x, inverse(x)), same)
    torch.testing.assert_close(compose(inverse(x), x), same)


def test_inverse_of_a_flat_map_is_refused() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        inverse(torch.zeros(1, 6))


@SHAPES
def test_voxel_matrices_say_the_same_in_voxels(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    x = maps(ndim, 4)
    index = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in shape))
    middle, h = (torch.tensor(shape).double() - 1) / 2, 2 / max(shape)
    wanted = apply(x, h * (index - middle)) / h + middle
    matrix = matrix_vox(x, shape)
    found = torch.einsum("bij,nj->bni", matrix[:, :ndim, :ndim], index) + matrix[:, None, :ndim, ndim]
    torch.testing.assert_close(found, wanted)
    last = torch.eye(ndim + 1).double()[ndim]
    assert torch.equal(matrix[:, ndim], last.expand(4, -1))


@SHAPES
def test_voxel_matrices_compose_and_come_back(shape: tuple[int, ...]) -> None:
    outer, inner = maps(len(shape), 4, 1), maps(len(shape), 4, 2)
    torch.testing.assert_close(from_matrix_vox(matrix_vox(outer, shape), shape), outer)
    product = matrix_vox(outer, shape) @ matrix_vox(inner, shape)
    torch.testing.assert_close(matrix_vox(compose(outer, inner), shape), product)


def test_a_rotation_is_one_of_the_grid_too_where_sides_differ() -> None:
    start = rotation_starts(2, 2).double()
    matrix = matrix_vox(start, (9, 30))[:, :2, :2]
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(2).double().expand(2, 2, 2), atol=1e-6, rtol=0)


def test_the_longest_side_is_two_long() -> None:
    assert pixel((64, 128)) == 2 / 128 and pixel((4, 4, 4)) == 0.5


@SHAPES
def test_initial_guess_is_the_papers(shape: tuple[int, ...]) -> None:
    x = initial_guess(shape, 3)
    A, b = split(x)
    assert x.shape == (3, len(shape) * (len(shape) + 1)) and x.dtype == torch.float32
    torch.testing.assert_close(A, 1.005 * torch.eye(len(shape)).expand_as(A))
    torch.testing.assert_close(b / pixel(shape), torch.full_like(b, math.sqrt(2)))
    assert initial_guess(shape, like=torch.zeros(1).double()).dtype == torch.float64


@DIMENSIONS
@pytest.mark.parametrize("m", [4, 16])
def test_displacement_error_is_the_mean_over_the_square(ndim: int, m: int) -> None:
    """On cell centres exactly, with the second moment (1 - 1/m^2)/3 in place of 1/3."""
    x, truth = maps(ndim, 5, 1), maps(ndim, 5, 2)
    z = cell_centres(ndim, m)
    sampled = (apply(x, z) - apply(truth, z)).square().sum(-1).mean(-1)
    A, b = split(x - truth)
    matrix, shift = A.square().sum((1, 2)), b.square().sum(1)
    torch.testing.assert_close((1 - 1 / m**2) / 3 * matrix + shift, sampled)
    torch.testing.assert_close(displacement_error(x, truth), sampled + matrix / (3 * m**2))
    torch.testing.assert_close(displacement_error(x, truth), matrix / 3 + shift)


@DIMENSIONS
def test_displacement_error_of_the_truth_is_zero_and_descends(ndim: int) -> None:
    truth = maps(ndim, 3)
    assert torch.equal(displacement_error(truth, truth), torch.zeros(3).double())
    x = maps(ndim, 3, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(displacement_error(x, truth).sum(), x)
    nearer = x.detach() - 0.1 * gradient
    assert bool((displacement_error(nearer, truth) < displacement_error(x.detach(), truth)).all())


def test_displacement_error_of_the_table_for_a_half_turn() -> None:
    """A half turn is the worst of all rotations: 10.7 in the paper's integral form, 4 times the mean."""
    half = join(-torch.eye(2), torch.zeros(2))[None]
    assert float(4 * displacement_error(half, identity(2).float())) == pytest.approx(32 / 3)


def test_single_precision_is_good_to_a_thousandth_of_a_pixel() -> None:
    x = maps(3, 8)
    difference = matrix_vox(x.float(), (160, 192, 128)).double() - matrix_vox(x, (160, 192, 128))
    assert np.abs(difference.numpy()).max() < 1e-3
