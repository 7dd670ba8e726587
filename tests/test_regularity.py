"""Regularity losses against analytic values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from shared_components.affine import affine_ddf, compose_params, invert_params
from shared_components.regularity import (
    central_half,
    determinant,
    diffusion,
    fold_penalty,
    inverse_consistency,
    isotropic_variation,
    orthogonality,
    total_variation,
)
from shared_components.warp import compose, coords_grid, jacobian_determinant

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rotations(ndim: int, batch: int = 3, seed: int = 0) -> torch.Tensor:
    skew = normal(batch, ndim, ndim, seed=seed)
    return torch.matrix_exp(skew - skew.mT)


def test_total_variation_of_a_ramp() -> None:
    n = (5, 6, 7)
    ddf = torch.zeros(2, 3, *n, dtype=F64)
    ddf[0, 1] = 0.3 * coords_grid(n, dtype=F64)[0, 2]  # component 1 along axis 2; the second sample is zero
    steps = n[0] * n[1] * (n[2] - 1)
    assert total_variation(ddf) == pytest.approx(0.3**2 * steps / (3 * n[0] * n[1] * n[2]) / 2)
    assert diffusion(ddf) == pytest.approx(0.3**2 / 3 / 2)


@pytest.mark.parametrize("loss", [total_variation, diffusion, fold_penalty])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_translation_costs_nothing(loss: Callable[..., torch.Tensor], ndim: int) -> None:
    assert loss(torch.full((1, ndim, *(5,) * ndim), 3.7)) == 0


@pytest.mark.parametrize("loss", [total_variation, diffusion])
def test_a_checkerboard_costs_most(loss: Callable[..., torch.Tensor]) -> None:
    """Among fields within [-1, 1] nothing is rougher; central differences would call it smooth."""
    board = (coords_grid((6, 6, 6), dtype=F64).sum(1, keepdim=True) % 2 * 2 - 1).expand(1, 3, 6, 6, 6)
    others = [normal(1, 3, 6, 6, 6, seed=seed).sign() for seed in range(5)]
    others.append((coords_grid((6, 6, 6), dtype=F64)[:, :1] % 2 * 2 - 1).expand(1, 3, 6, 6, 6))
    assert all(loss(board) > 1.5 * loss(other) for other in others)


def test_diffusion_counts_where_the_weight_is() -> None:
    ddf = torch.zeros(1, 2, 6, 5, dtype=F64)
    ddf[0, 0, 3:] = 1.0  # one step, between rows 2 and 3
    weight = torch.zeros(1, 1, 6, 5, dtype=F64)
    weight[:, :, 2] = 1
    assert diffusion(ddf, weight) == pytest.approx(1 / 2)  # along axis 0 every weighted difference is 1, along axis 1 0
    assert diffusion(ddf, torch.ones_like(weight)) == pytest.approx(float(diffusion(ddf)))
    assert diffusion(ddf, weight.roll(1, 2)) == 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_orthogonality_is_the_sum_over_singular_values(ndim: int) -> None:
    A = 0.2 * normal(4, ndim, ndim)
    values = torch.linalg.svdvals(torch.eye(ndim, dtype=F64) + A)
    expected = (values**2 + values**-2).sum(-1).mean() - 2 * ndim
    assert expected > 0.1
    assert orthogonality(A, epsilon=0.0) == pytest.approx(float(expected), abs=1e-10)
    assert orthogonality(A) == pytest.approx(float(expected), abs=5e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_orthogonality_is_zero_for_rotations_and_blind_to_them(ndim: int) -> None:
    eye, Q = torch.eye(ndim, dtype=F64), rotations(ndim)
    assert abs(orthogonality(Q - eye)) < 1e-8
    A = 0.2 * normal(3, ndim, ndim, seed=1)
    assert orthogonality(Q @ (eye + A) - eye) == pytest.approx(float(orthogonality(A)), rel=1e-9)
    assert orthogonality((eye + A) @ Q - eye) == pytest.approx(float(orthogonality(A)), rel=1e-9)


@pytest.mark.parametrize("ndim", [2, 3])
def test_orthogonality_grows_towards_singular_matrices(ndim: int) -> None:
    costs = []
    for smallest in (0.5, 0.1, 0.0):
        A = torch.zeros(1, ndim, ndim, dtype=F64)
        A[0, 0, 0] = smallest - 1
        costs.append(float(orthogonality(A)))
    assert costs[0] < costs[1] / 10 < costs[2] / 1000
    assert torch.isfinite(torch.tensor(costs)).all()


def test_determinant_of_rotations_reflections_and_scalings() -> None:
    eye = torch.eye(3, dtype=F64)
    assert determinant(rotations(3) - eye) < 1e-20
    mirror = torch.diag(torch.tensor([-1.0, 1, 1], dtype=F64))
    assert determinant((mirror @ rotations(3)) - eye) == pytest.approx(4.0)
    assert determinant(0.1 * eye[None]) == pytest.approx((1.1**3 - 1) ** 2)
    assert determinant(torch.stack([mirror - eye, eye - eye])) == pytest.approx(2.0), "mean over the batch"


def test_autocast_does_not_touch_matrix_losses() -> None:
    A = 0.1 * normal(2, 3, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        cast = orthogonality(A), determinant(A)
    assert cast == (orthogonality(A), determinant(A))


def test_central_half_of_128_is_64() -> None:
    x = torch.empty(1, 3, 128, 128, 128, device="meta")
    assert central_half(x).shape == (1, 3, 64, 64, 64)
    line = torch.arange(128).view(1, 1, 128)
    assert central_half(line).flatten()[[0, -1]].tolist() == [32, 95]
    assert central_half(torch.arange(9).view(1, 1, 9)).flatten().tolist() == [2, 3, 4, 5, 6]
    assert central_half(torch.arange(3).view(1, 1, 3)).numel() == 3


def test_inverse_consistency_of_an_affine_map_and_its_inverse() -> None:
    shape = (24, 20, 22)
    A, b = 0.04 * normal(1, 3, 3), normal(1, 3, seed=1)
    f12, f21 = affine_ddf(A, b, shape), affine_ddf(*invert_params(A, b), shape)
    assert inverse_consistency(f12, f21) < 1e-20
    assert inverse_consistency(f12, f21, crop=False) > 1e-4, "the clamp at the border is what the crop is for"
    assert inverse_consistency(f12, f12) > 0.1
    residual = compose_params((A, b), (A, b))
    expected = 2 * central_half(affine_ddf(*residual, shape)).square().sum(1).mean()
    assert inverse_consistency(f12, f12) == pytest.approx(float(expected))


def test_inverse_consistency_is_the_mean_squared_length_in_both_orders() -> None:
    a, b = torch.zeros(2, 2, 8, 8, dtype=F64), torch.zeros(2, 2, 8, 8, dtype=F64)
    a[:, 0], b[:, 1] = 3.0, 4.0  # a * b moves by (3, 4) everywhere: 25 voxels squared, twice
    assert inverse_consistency(a, b) == pytest.approx(50.0)
    a, b = 2 * normal(2, 2, 8, 8), 2 * normal(2, 2, 8, 8, seed=1)
    one, other = (central_half(compose(*pair)).square().sum(1).mean() for pair in ((a, b), (b, a)))
    assert one != pytest.approx(float(other), rel=1e-3)
    assert inverse_consistency(a, b) == pytest.approx(float(one + other))


@pytest.mark.parametrize("ndim", [2, 3])
def test_fold_penalty_of_analytic_fields(ndim: int) -> None:
    shape = (6, 7, 5)[:ndim]
    assert fold_penalty(torch.zeros(1, ndim, *shape)) == 0
    stretch = torch.zeros(1, ndim, *shape, dtype=F64)
    stretch[:, 0] = -1.5 * coords_grid(shape, dtype=F64)[:, 0]  # x -> -0.5 x: the determinant is -0.5
    assert fold_penalty(stretch) == pytest.approx(0.5)
    assert fold_penalty(stretch, margin=0.25) == pytest.approx(0.75)
    assert fold_penalty(-stretch / 3) == 0


def test_fold_penalty_sees_what_central_differences_miss() -> None:
    ddf = torch.zeros(1, 2, 8, 8, dtype=F64)
    ddf[:, 0] = 0.7 * (torch.arange(8) % 2).view(8, 1)  # steps of +-0.7 ...
    assert fold_penalty(ddf) == 0
    ddf *= 2  # ... and of +-1.4, while the central difference stays 0
    assert fold_penalty(ddf) == pytest.approx(0.4 * 3 / 8)  # 3 steps down on 8 voxels, either way


def test_fold_penalty_does_not_depend_on_the_direction_of_the_axes() -> None:
    """Turning all axes round swaps forward and backward differences: both must be looked at."""
    for ndim in (2, 3):
        ddf = normal(1, ndim, *(5,) * ndim, seed=ndim)
        turned = -ddf.flip(tuple(range(2, 2 + ndim)))
        assert fold_penalty(ddf) == pytest.approx(float(fold_penalty(turned)))
        forward = torch.relu(-jacobian_determinant(ddf, "forward")).mean()
        assert fold_penalty(ddf) != pytest.approx(float(forward), rel=1e-3)


def test_fold_penalty_pushes_folds_open() -> None:
    ddf = (-1.5 * coords_grid((5, 5), dtype=F64)).requires_grad_()
    ddf.data[:, 1] = 0
    before = fold_penalty(ddf)
    (grad,) = torch.autograd.grad(before, ddf)
    assert fold_penalty(ddf - 0.5 * grad) < before


@pytest.mark.parametrize("loss", [total_variation, diffusion, fold_penalty])
@pytest.mark.parametrize("ndim", [2, 3])
def test_gradients_of_field_losses(loss: Callable[..., torch.Tensor], ndim: int) -> None:
    ddf = normal(1, ndim, *(4,) * ndim).requires_grad_()
    assert loss(ddf) > 0
    assert torch.autograd.gradcheck(loss, (ddf,))


@pytest.mark.parametrize("loss", [orthogonality, determinant])
@pytest.mark.parametrize("ndim", [2, 3])
def test_gradients_of_matrix_losses(loss: Callable[..., torch.Tensor], ndim: int) -> None:
    assert torch.autograd.gradcheck(loss, (0.2 * normal(2, ndim, ndim).requires_grad_(),))


def test_gradients_of_inverse_consistency() -> None:
    fields = [(0.3 + 0.4 * normal(1, 2, 6, 6, seed=s).sigmoid()).requires_grad_() for s in range(2)]
    assert torch.autograd.gradcheck(inverse_consistency, fields)


@pytest.mark.parametrize("shape", [(9, 6), (7, 5, 6)], ids=str)
def test_isotropic_variation_of_ramps_and_constants(shape: tuple[int, ...]) -> None:
    """Components a x_0 and b x_1: the lengths of their differences are |a| and |b|, also with both in one component."""
    grid = coords_grid(shape, dtype=F64)
    ramps = torch.cat([3 * grid[:, :1], 4 * grid[:, 1:2]], 1)
    assert float(isotropic_variation(ramps)) == pytest.approx(3.5)
    assert float(isotropic_variation(ramps.sum(1, keepdim=True))) == pytest.approx(5.0)
    flat = torch.full((2, 2, *shape), 0.7, dtype=F64, requires_grad=True)
    value = isotropic_variation(flat)
    (slope,) = torch.autograd.grad(value, flat)
    assert value.item() == 0 and torch.equal(slope, torch.zeros_like(slope))
    field = normal(1, 2, *shape).requires_grad_()
    assert torch.autograd.gradcheck(isotropic_variation, field)
