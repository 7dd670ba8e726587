"""The algebra of displacement fields: composition, inverse, resizing, Jacobians."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch

from shared_components import warp
from shared_components.affine import affine_ddf
from shared_components.warp import (
    compose,
    coords_grid,
    invert,
    jacobian_determinant,
    jacobian_matrix,
    resize,
    warp_image,
)

Make = Callable[..., torch.Tensor]
SHAPES = [(40, 36), (24, 22, 20)]
F64 = torch.float64


def inside(x: torch.Tensor, margin: int) -> torch.Tensor:
    return x[(..., *(slice(margin, -margin) for _ in x.shape[2:]))]


def constant(shape: tuple[int, ...], values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=F64).view(1, -1, *(1,) * len(shape)).expand(1, -1, *shape).clone()


@pytest.mark.parametrize("shape", SHAPES)
def test_composition_is_warping_twice(shape: tuple[int, ...], smooth_ddf: Make, smooth_image: Make) -> None:
    image, outer, inner = smooth_image(shape), smooth_ddf(shape, 2.0, seed=1), smooth_ddf(shape, 2.0, seed=2)
    twice = warp_image(warp_image(image, outer), inner)
    once = warp_image(image, compose(outer, inner))
    swapped = warp_image(image, compose(inner, outer))
    error = inside(once - twice, 3).abs().max()
    assert error < 0.05 * inside(image - twice, 3).abs().max()
    assert error < 0.2 * inside(swapped - twice, 3).abs().max(), "the order is tested too"


@pytest.mark.parametrize("shape", SHAPES)
def test_composition_is_associative(shape: tuple[int, ...], smooth_ddf: Make) -> None:
    a, b, c = (smooth_ddf(shape, 1.5, seed=seed) for seed in (1, 2, 3))
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    assert inside(left - right, 5).abs().max() < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_is_neutral(shape: tuple[int, ...], smooth_ddf: Make) -> None:
    ddf = smooth_ddf(shape, 3.0, batch=2)
    zero = torch.zeros_like(ddf)
    torch.testing.assert_close(compose(ddf, zero), ddf, atol=1e-12, rtol=0)
    torch.testing.assert_close(compose(zero, ddf), ddf, atol=1e-12, rtol=0)


def test_translations_add() -> None:
    result = compose(constant((6, 7), (1.0, -0.5)), constant((6, 7), (0.25, 2.0)))
    torch.testing.assert_close(result, constant((6, 7), (1.25, 1.5)))


def test_fields_of_different_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        compose(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 5, 4))


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_undoes_the_field_on_both_sides(shape: tuple[int, ...], smooth_ddf: Make) -> None:
    ddf = smooth_ddf(shape, 2.5, batch=2, vanish=True)
    inverse, residual = invert(ddf)
    assert isinstance(residual, float) and residual < 0.05
    assert compose(ddf, inverse).abs().max() < 5e-3
    assert compose(inverse, ddf).abs().max() < 0.1  # the inverse is interpolated here
    assert inverse.abs().max() > 1.5


def test_inverse_of_a_translation_and_of_a_scaling_are_exact() -> None:
    shape = (15, 15)
    inverse, residual = invert(constant(shape, (1.5, -2.0)))
    torch.testing.assert_close(inverse, constant(shape, (-1.5, 2.0)))
    assert residual < 1e-9
    centred = coords_grid(shape, dtype=F64) - 7
    inverse, _ = invert(-0.2 * centred, tolerance=1e-9)  # x -> 0.8 x, so its inverse is x -> 1.25 x
    torch.testing.assert_close(inside(inverse, 2), inside(0.25 * centred, 2), atol=1e-6, rtol=0)


def test_inverse_improves_with_iterations(smooth_ddf: Make) -> None:
    ddf = smooth_ddf(SHAPES[0], 3.0, vanish=True)
    found = [invert(ddf, iterations=n) for n in (0, 2, 20)]
    errors = [float(compose(ddf, inverse).abs().max()) for inverse, _ in found]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert found[0][1] > 4 * found[2][1], "the residual says so"


def test_a_folded_field_has_no_inverse_and_the_residual_says_so() -> None:
    ddf = torch.zeros(1, 2, 48, 48, dtype=F64)
    ddf[:, 0] = 6 * torch.sin(torch.arange(48, dtype=F64) * 2 * torch.pi / 16).view(48, 1)
    assert jacobian_determinant(ddf).min() < -1
    assert invert(ddf)[1] > 0.5


def test_inverse_carries_gradients(smooth_ddf: Make) -> None:
    ddf = smooth_ddf((8, 9), 0.7).requires_grad_()
    invert(ddf, iterations=5)[0].square().sum().backward()
    assert ddf.grad is not None and ddf.grad.abs().min(1).values.max() > 0


@pytest.mark.parametrize(("old", "new"), [((9, 5), (17, 17)), ((17, 9, 5), (9, 5, 9)), ((5, 6, 7), (8, 11, 4))])
def test_resize_is_exact_for_linear_fields(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    ndim = len(old)
    A = 0.2 * torch.randn(1, ndim, ndim, generator=torch.Generator().manual_seed(0), dtype=F64)
    b = torch.arange(1, ndim + 1, dtype=F64)[None]
    scale = (torch.tensor(new, dtype=F64) - 1) / (torch.tensor(old, dtype=F64) - 1)
    # the same map in the new voxels: S A S^-1, S b
    expected = affine_ddf(scale.view(1, -1, 1) * A / scale, scale * b, new)
    torch.testing.assert_close(resize(affine_ddf(A, b, old), new), expected, atol=1e-12, rtol=0)


def test_resize_keeps_where_the_image_ends_up(smooth_ddf: Make, smooth_image: Make) -> None:
    fine, coarse = (49, 45), (25, 23)
    ddf = smooth_ddf(coarse, 1.5)
    image = smooth_image(fine)
    moved = warp_image(image, resize(ddf, fine))[..., ::2, ::2]
    direct = warp_image(image[..., ::2, ::2], ddf)
    assert (moved - direct).abs().max() < 0.01 < (direct - image[..., ::2, ::2]).abs().max()


def test_resize_to_the_same_shape_is_the_field() -> None:
    ddf = torch.rand(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert resize(ddf, ddf.shape[2:]).equal(ddf)


@pytest.mark.parametrize(("ndim", "difference"), product([2, 3], ["central", "forward"]))
def test_jacobian_of_an_affine_field_is_its_matrix_everywhere(ndim: int, difference: str) -> None:
    A = 0.3 * torch.randn(2, ndim, ndim, generator=torch.Generator().manual_seed(1), dtype=F64)
    shape = (6, 5, 4)[:ndim]
    ddf = affine_ddf(A, torch.ones(2, ndim, dtype=F64), shape)
    expected = torch.eye(ndim, dtype=F64) + A
    matrix = jacobian_matrix(ddf, difference).flatten(3).movedim(-1, 1)  # (B, N, i, j)
    torch.testing.assert_close(matrix, expected[:, None].expand_as(matrix), atol=1e-12, rtol=0)
    det = jacobian_determinant(ddf, difference)
    assert det.shape == (2, *shape)
    torch.testing.assert_close(det, torch.linalg.det(expected).view(2, *(1,) * ndim).expand_as(det))


def test_differences_are_central_and_forward() -> None:
    ddf = torch.zeros(1, 2, 4, 3, dtype=F64)
    ddf[0, 0] = torch.tensor([0.0, 1, 4, 9], dtype=F64).view(4, 1)
    assert jacobian_matrix(ddf, "central")[0, 0, 0, :, 0].tolist() == [2.0, 3.0, 5.0, 6.0]
    assert jacobian_matrix(ddf, "forward")[0, 0, 0, :, 0].tolist() == [2.0, 4.0, 6.0, 6.0]
    with pytest.raises(ValueError, match="central"):
        jacobian_matrix(ddf, "backward")


@pytest.mark.parametrize("difference", ["central", "forward"])
def test_a_reflection_folds_everywhere(difference: str) -> None:
    ddf = coords_grid((5, 5, 5), dtype=F64) * torch.tensor([-2.0, 0, 0], dtype=F64).view(1, 3, 1, 1, 1)
    det = jacobian_determinant(ddf, difference)
    torch.testing.assert_close(det, -torch.ones_like(det))


@pytest.mark.parametrize("shape", [(7, 9), (6, 5, 7)], ids=str)
def test_inside_tells_what_comes_from_within_the_grid(shape: tuple[int, ...]) -> None:
    ddf = torch.zeros(2, len(shape), *shape)
    assert warp.inside(ddf).all()
    ddf[0, 0] = -2.0
    ddf[1, 1] = 100.0
    mask = warp.inside(ddf.requires_grad_())
    assert mask.shape == (2, 1, *shape) and not mask.requires_grad
    assert not mask[0, :, :2].any() and mask[0, :, 2:].all() and not mask[1].any()
