"""Affine parameters, matrices and fields."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from shared_components.affine import (
    affine_ddf,
    compose_affine,
    compose_affines,
    compose_params,
    from_matrix,
    invert_params,
    to_matrix,
)
from shared_components.geometry import apply_affine
from shared_components.warp import affine_coords, compose, coords_grid, coords_of, warp_image

SHAPES = [(8, 11), (6, 9, 7)]
F64 = torch.float64


def draw(ndim: int, batch: int = 2, seed: int = 0, size: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    A = size * torch.randn(batch, ndim, ndim, generator=generator, dtype=F64)
    return A, torch.randn(batch, ndim, generator=generator, dtype=F64)


@pytest.mark.parametrize("shape", SHAPES)
def test_field_is_the_formula_about_the_middle(shape: tuple[int, ...]) -> None:
    A, b = draw(len(shape))
    center = (torch.tensor(shape, dtype=F64) - 1) / 2
    x = coords_grid(shape, dtype=F64)[0].flatten(1).T
    expected = (x - center) @ A.mT + b[:, None]
    torch.testing.assert_close(affine_ddf(A, b, shape).flatten(2).mT, expected, atol=1e-12, rtol=0)


def test_shift_alone_is_constant_and_matrix_alone_leaves_the_middle() -> None:
    A, b = draw(3, batch=1)
    shifted = affine_ddf(torch.zeros_like(A), b, (5, 7, 9))
    torch.testing.assert_close(shifted, b.view(1, 3, 1, 1, 1).expand(1, 3, 5, 7, 9))
    assert affine_ddf(A, torch.zeros_like(b), (5, 7, 9))[0, :, 2, 3, 4].abs().max() < 1e-12


def test_rotation_about_the_middle_turns_an_image() -> None:
    image = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0), dtype=F64)
    quarter = torch.tensor([[[0.0, -1], [1, 0]]], dtype=F64)  # e0 -> e1 -> -e0
    moved = warp_image(image, affine_ddf(quarter - torch.eye(2, dtype=F64), torch.zeros(1, 2, dtype=F64), (7, 7)))
    # pull-back: moved(c + e0) is image(c + e1), so the content turns the other way
    assert moved[0, 0, 4, 3] == pytest.approx(float(image[0, 0, 3, 4]))
    torch.testing.assert_close(moved, torch.rot90(image, -1, (2, 3)), atol=1e-12, rtol=0)


def test_rotation_keeps_distances_from_the_middle() -> None:
    turn = torch.matrix_exp(torch.tensor([[[0.0, 0.4, -0.2], [-0.4, 0, 0.3], [0.2, -0.3, 0]]], dtype=F64))
    ddf = affine_ddf(turn - torch.eye(3, dtype=F64), torch.zeros(1, 3, dtype=F64), (6, 7, 8))
    center = torch.tensor([2.5, 3, 3.5], dtype=F64).view(1, 3, 1, 1, 1)
    before = (coords_grid((6, 7, 8), dtype=F64) - center).norm(dim=1)
    torch.testing.assert_close((coords_of(ddf) - center).norm(dim=1), before)
    assert ddf.norm(dim=1).max() > 1


@pytest.mark.parametrize("shape", SHAPES)
def test_matrix_and_parameters_are_two_forms_of_one_map(shape: tuple[int, ...]) -> None:
    A, b = draw(len(shape), seed=3)
    matrix = to_matrix(A, b, shape)
    for one, other in zip(from_matrix(matrix, shape), (A, b), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(affine_coords(matrix, shape), coords_of(affine_ddf(A, b, shape)))
    index = np.indices(shape).reshape(len(shape), -1).T
    mapped = apply_affine(matrix[1].numpy(), index)
    np.testing.assert_allclose(coords_of(affine_ddf(A, b, shape))[1].flatten(1).T.numpy(), mapped, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_affine_after_affine_is_exact_up_to_the_border(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    outer, inner = draw(ndim, seed=1), draw(ndim, seed=2)
    inner_ddf = affine_ddf(*inner, shape)
    exact = affine_ddf(*compose_params(outer, inner), shape)
    torch.testing.assert_close(compose_affine(*outer, inner_ddf), exact, atol=1e-12, rtol=0)
    # the same by interpolation: equal where nothing leaves the grid, clamped elsewhere
    clamped = compose(affine_ddf(*outer, shape), inner_ddf)
    size = torch.tensor(shape, dtype=F64).view(1, ndim, *(1,) * ndim)
    stays = ((coords_of(inner_ddf) >= 0) & (coords_of(inner_ddf) <= size - 1)).all(1, keepdim=True)
    assert 0.2 < stays.double().mean() < 1
    assert ((clamped - exact) * stays).abs().max() < 1e-10
    assert ((clamped - exact) * ~stays).abs().max() > 0.01


def test_composed_parameters_are_the_product_of_matrices() -> None:
    outer, inner = draw(3, seed=4), draw(3, seed=5)
    product_ = to_matrix(*outer, (6, 9, 7)) @ to_matrix(*inner, (6, 9, 7))
    torch.testing.assert_close(to_matrix(*compose_params(outer, inner), (6, 9, 7)), product_)


def test_affine_after_any_field_moves_where_the_field_went() -> None:
    (A, b), shape = draw(3, seed=6), (4, 5, 6)
    ddf = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(7), dtype=F64) * 3
    there = coords_of(ddf).flatten(2)
    matrix = to_matrix(A, b, shape)
    expected = matrix[:, :3, :3] @ there + matrix[:, :3, 3:]
    torch.testing.assert_close(coords_of(compose_affine(A, b, ddf)).flatten(2), expected)


@pytest.mark.parametrize("ndim", [2, 3])
def test_inverse_parameters_undo_the_map(ndim: int) -> None:
    A, b = draw(ndim, seed=8)
    inverse = invert_params(A, b)
    for pair in ((inverse, (A, b)), ((A, b), inverse)):
        for part in compose_params(*pair):
            assert part.abs().max() < 1e-12


def test_a_singular_map_has_no_inverse() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        invert_params(-torch.eye(3)[None], torch.zeros(1, 3))


@pytest.mark.parametrize(("dtype", "ndim"), product([torch.bfloat16, torch.float16], [2, 3]))
def test_autocast_does_not_touch_affine_maps(dtype: torch.dtype, ndim: int) -> None:
    """Rounding A to half precision would move the corner of a 128^3 grid by tenths of a voxel."""
    shape = (128, 20, 20)[:ndim]
    A, b = (p.float() for p in draw(ndim, seed=9))
    ddf = affine_ddf(A, 3 * b, shape)
    matrix = to_matrix(A, b, shape)

    def run() -> list[torch.Tensor]:
        outer = compose_params((A, b), (A, 2 * b))
        return [
            affine_ddf(A, b, shape),
            compose_affine(A, b, ddf),
            *outer,
            *invert_params(A, b),
            *from_matrix(matrix, shape),
        ]

    plain = run()
    with torch.autocast("cpu", dtype):
        cast = run()
    for one, other in zip(plain, cast, strict=True):
        assert other.dtype == torch.float32 and torch.equal(one, other)


def test_gradients_of_composition() -> None:
    A, b = (p.requires_grad_() for p in draw(2, batch=1))
    ddf = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=F64).requires_grad_()
    assert torch.autograd.gradcheck(compose_affine, (A, b, ddf))


@pytest.mark.parametrize("ndim", [2, 3])
def test_maps_compose_as_functions(ndim: int) -> None:
    (A1, b1), (A2, b2) = draw(ndim, seed=1, size=1.0), draw(ndim, seed=2, size=1.0)
    x = torch.randn(2, ndim, generator=torch.Generator().manual_seed(3), dtype=F64)
    maps = [torch.cat([A, b.unsqueeze(-1)], -1) for A, b in ((A1, b1), (A2, b2))]
    joined = compose_affines(*maps)
    inner = (A2 @ x.unsqueeze(-1)).squeeze(-1) + b2
    outer = (A1 @ inner.unsqueeze(-1)).squeeze(-1) + b1
    torch.testing.assert_close((joined[..., :ndim] @ x.unsqueeze(-1)).squeeze(-1) + joined[..., ndim], outer)
