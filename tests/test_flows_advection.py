"""Advection of maps: exact on affine maps, fourth order, equal to its textbook form, and where characteristics lead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from memory_tools import peak_mb, saved_bytes
from scipy.integrate import solve_ivp
from torch import Tensor

from shared_components.affine import affine_ddf, from_matrix, to_matrix
from shared_components.flows import MultiGaussian, advect, cfl_limit, clamp_velocity, exponential, inverse_map
from shared_components.warp import compose, jacobian_determinant, resize

F64 = torch.float64
SmoothDdf = Callable[..., Tensor]
SHAPES = [(9, 8), (6, 7, 5)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def random_affine(shape: tuple[int, ...], seed: int = 0, size: float = 0.2) -> tuple[Tensor, Tensor]:
    return size * draw(2, len(shape), len(shape), seed=seed), draw(2, len(shape), seed=seed + 1)


def after(A: Tensor, b: Tensor, shift: Tensor, shape: tuple[int, ...]) -> Tensor:
    """ddf of x -> phi(x - shift) for the affine map phi."""
    translation = to_matrix(torch.zeros_like(A), -shift, shape)
    return affine_ddf(*from_matrix(to_matrix(A, b, shape) @ translation, shape), shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_velocity_changes_nothing(shape: tuple[int, ...]) -> None:
    ddf = draw(2, len(shape), *shape).float()
    assert torch.equal(advect(ddf, torch.zeros_like(ddf)), ddf)


@pytest.mark.parametrize(("shape", "steps"), product([(9, 8), (6, 7, 5), (2, 3), (2, 4, 2)], [1, 3]))
def test_a_constant_velocity_shifts_affine_maps_exactly_up_to_the_border(shape: tuple[int, ...], steps: int) -> None:
    A, b = random_affine(shape)
    shift = draw(2, len(shape), seed=5)
    dvf = shift.view(2, -1, *(1,) * len(shape)).expand(-1, -1, *shape)
    moved = advect(affine_ddf(A, b, shape), dvf, steps, cfl=None)
    torch.testing.assert_close(moved, after(A, b, shift, shape), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_affine_velocity_leads_to_the_matrix_exponential_with_order_four(shape: tuple[int, ...]) -> None:
    (A, b), (V, w) = random_affine(shape), random_affine(shape, seed=7)
    generator = to_matrix(V, w, shape) - torch.eye(len(shape) + 1, dtype=F64)
    expected = affine_ddf(*from_matrix(to_matrix(A, b, shape) @ torch.matrix_exp(-generator), shape), shape)
    errors = [
        (advect(affine_ddf(A, b, shape), affine_ddf(V, w, shape), steps, None) - expected).abs().max().item()
        for steps in (4, 8, 16)
    ]
    assert errors[0] < 1e-2
    assert 13 < errors[0] / errors[1] < 19 and 14 < errors[1] / errors[2] < 18


@pytest.mark.parametrize("recompute", [True, False])
def test_order_four_for_a_smooth_velocity(recompute: bool, smooth_ddf: SmoothDdf) -> None:
    ddf, dvf = smooth_ddf((20, 18, 16), 2.0), smooth_ddf((20, 18, 16), 3.0, seed=1, vanish=True)
    exact = advect(ddf, dvf, 64, None)
    errors = [(advect(ddf, dvf, steps, None, recompute) - exact).norm() for steps in (5, 10, 20)]
    assert 13 < errors[0] / errors[1] < 19 and 14 < errors[1] / errors[2] < 18


def swirl(n: int) -> Callable[[float, np.ndarray], np.ndarray]:
    """Velocity of points (2 * N,) on a grid of n x n voxels that turns around four centres, zero at the border."""

    def velocity(_: float, flat: np.ndarray) -> np.ndarray:
        x, y = np.pi * flat.reshape(2, -1) / (n - 1)
        parts = [-(np.sin(x) ** 2) * np.sin(2 * y), np.sin(2 * x) * np.sin(y) ** 2]
        return 0.05 * (n - 1) * np.stack(parts).reshape(-1)

    return velocity


def test_arrives_where_the_characteristics_come_from() -> None:
    """phi o exp(-v) with exp(-v) by an adaptive solver on a closed formula, so that nothing is shared."""
    errors = []
    for n in (32, 63):
        velocity, grid = swirl(n), np.indices((n, n)).astype(float)
        dvf = torch.from_numpy(velocity(0, grid.reshape(-1)).reshape(1, 2, n, n))
        end = solve_ivp(lambda t, p, v=velocity: -v(t, p), (0, 1), grid.reshape(-1), rtol=1e-8, atol=1e-8).y[:, -1]
        expected = end.reshape(1, 2, n, n) - grid
        found = advect(torch.zeros_like(dvf), dvf).numpy()
        errors.append(np.abs(found - expected).max() / (n - 1))
        assert np.abs(expected).max() > 0.045 * (n - 1)
        assert np.abs(found + expected).max() > 0.09 * (n - 1), "the other sign is far off"
    assert errors[1] * 62 < 0.04, "voxels"
    assert 3 < errors[0] / errors[1] < 5, "second order in the voxel size"


@pytest.mark.parametrize("shape", [(48, 40), (24, 22, 20)])
def test_equals_the_map_at_time_0_after_the_exponential_of_minus_v(
    shape: tuple[int, ...], smooth_ddf: SmoothDdf
) -> None:
    ddf, dvf = smooth_ddf(shape, 2.0), smooth_ddf(shape, 2.0, seed=1, vanish=True)
    moved = advect(ddf, dvf)
    assert (moved - compose(ddf, exponential(-dvf))).norm(dim=1).max() < 0.05
    assert (moved - compose(ddf, exponential(dvf))).norm(dim=1).max() > 2
    assert (moved - compose(exponential(-dvf), ddf)).norm(dim=1).max() > 0.2, "the order matters"


def test_there_and_back(smooth_ddf: SmoothDdf) -> None:
    dvf = smooth_ddf((48, 48), 3.0, vanish=True)
    zero = torch.zeros_like(dvf)
    back, forth = advect(zero, dvf), inverse_map(dvf)
    assert back.abs().max() > 2
    assert compose(forth, back).abs().max() < 0.01 and compose(back, forth).abs().max() < 0.01


@pytest.mark.parametrize("shape", [(40, 36), (20, 22, 18)])
def test_inverse_of_an_affine_start_and_two_velocities(shape: tuple[int, ...], smooth_ddf: SmoothDdf) -> None:
    A, b = (part[:1] for part in random_affine(shape, size=0.05))
    start = affine_ddf(A, b, shape)
    back = affine_ddf(*from_matrix(torch.linalg.inv(to_matrix(A, b, shape)), shape), shape)
    for seed in (1, 2):
        dvf = smooth_ddf(shape, 1.5, seed=seed, vanish=True)
        start, back = advect(start, dvf), inverse_map(dvf, back)
    inner = (..., *(slice(6, -6) for _ in shape))
    assert compose(start, back)[inner].abs().max() < 0.1 and compose(back, start)[inner].abs().max() < 0.1
    assert start[inner].abs().max() > 1


def test_inverse_on_a_finer_grid_than_the_velocity(smooth_ddf: SmoothDdf) -> None:
    dvf = smooth_ddf((24, 20), 1.5, vanish=True)
    fine = resize(advect(torch.zeros_like(dvf), dvf), (47, 39))
    back = inverse_map(dvf, torch.zeros_like(fine))
    assert back.shape == fine.shape and fine.abs().max() > 1.5
    assert compose(fine, back).abs().max() < 0.1


@pytest.mark.parametrize(("shape", "half"), [((12, 15), (6, 7)), ((12, 16, 9), (6, 8, 4))])
def test_affine_maps_pass_a_coarse_grid_unchanged(shape: tuple[int, ...], half: tuple[int, ...]) -> None:
    A, b = random_affine(shape)
    fine = affine_ddf(A, b, shape)
    zero = torch.zeros(2, len(half), *half, dtype=F64)
    torch.testing.assert_close(resize(advect(resize(fine, half), zero), shape), fine, atol=1e-12, rtol=0)
    shift = draw(2, len(shape), seed=5)
    scale = torch.tensor([(m - 1) / (n - 1) for m, n in zip(half, shape, strict=True)], dtype=F64)
    dvf = (shift * scale).view(2, -1, *(1,) * len(shape)).expand(-1, -1, *half)
    moved = resize(advect(resize(fine, half), dvf, cfl=None), shape)
    torch.testing.assert_close(moved, after(A, b, shift, shape), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(5, 4), (2, 6), (1, 5), (3, 2, 4), (4, 1, 3)])
def test_the_frugal_scheme_is_the_textbook_one(shape: tuple[int, ...]) -> None:
    ddf, dvf = (draw(2, len(shape), *shape, seed=seed).requires_grad_() for seed in (0, 1))
    weight = draw(2, len(shape), *shape, seed=2)
    results = [advect(ddf, dvf, 3, None, recompute) for recompute in (True, False)]
    torch.testing.assert_close(*results, atol=1e-10, rtol=0)
    for mine, theirs in zip(*(torch.autograd.grad((r * weight).sum(), (ddf, dvf)) for r in results), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [(4, 3), (3, 2, 3)])
def test_gradients(shape: tuple[int, ...]) -> None:
    ddf, dvf = (draw(4 - len(shape), len(shape), *shape, seed=seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda u, v: advect(u, v, 2), (ddf, dvf))
    assert torch.autograd.gradcheck(
        lambda u, v: inverse_map(v, 0.01 * u, 2), (ddf, 0.1 * dvf.detach().requires_grad_())
    )


def test_a_gradient_is_found_in_one_argument_alone() -> None:
    ddf, dvf = draw(1, 2, 5, 6), draw(1, 2, 5, 6, seed=1)
    both = torch.autograd.grad(
        advect(a := ddf.clone().requires_grad_(), v := dvf.clone().requires_grad_()).sum(), (a, v)
    )
    (alone,) = torch.autograd.grad(advect(ddf, v).sum(), v)
    assert torch.equal(alone, both[1])
    (alone,) = torch.autograd.grad(advect(a, dvf).sum(), a)
    assert torch.equal(alone, both[0])


def test_inputs_are_left_alone() -> None:
    ddf, dvf = draw(1, 2, 5, 6).requires_grad_(), draw(1, 2, 5, 6, seed=1).requires_grad_()
    before = ddf.detach().clone(), dvf.detach().clone()
    advect(ddf, dvf).square().sum().backward()
    assert torch.equal(ddf.detach(), before[0]) and torch.equal(dvf.detach(), before[1])


def saved_fields(steps: int, recompute: bool) -> float:
    """What autograd holds for the way back, in fields, each storage once."""
    ddf, dvf = (draw(1, 3, 8, 7, 6, seed=seed).requires_grad_() for seed in (0, 1))
    held = saved_bytes(lambda: advect(ddf, dvf, steps, recompute=recompute))
    return held / (ddf.numel() * ddf.element_size())


def test_what_waits_for_the_gradient_does_not_grow_with_the_steps() -> None:
    assert saved_fields(10, recompute=True) == saved_fields(40, recompute=True) <= 4
    assert saved_fields(10, recompute=False) > 20


def test_the_clamp_is_the_papers_in_three_dimensions() -> None:
    assert cfl_limit(10, 3) == pytest.approx(0.75 * 2 * math.sqrt(2) / 3 * 10)
    assert cfl_limit(10, 3) == pytest.approx(7.071, abs=1e-3)
    assert cfl_limit(20, 2, safety=1.0) == pytest.approx(20 * math.sqrt(2))
    dvf = draw(1, 3, 4, 4, 4) * 10
    clamped = clamp_velocity(dvf, 10)
    assert clamped.abs().max() == pytest.approx(cfl_limit(10, 3))
    small = dvf.abs() <= cfl_limit(10, 3)
    assert torch.equal(clamped[small], dvf[small]) and torch.equal(clamped.sign(), dvf.sign())
    ddf = torch.zeros_like(dvf)
    assert torch.equal(advect(ddf, dvf, 10), advect(ddf, clamped, 10, cfl=None))


@pytest.mark.parametrize("shape", [(24, 24), (14, 14, 14)])
def test_the_clamp_keeps_large_velocities_from_blowing_up(shape: tuple[int, ...], smooth_ddf: SmoothDdf) -> None:
    ddf, dvf = draw(1, len(shape), *shape), smooth_ddf(shape, 80.0, vanish=True)
    assert advect(ddf, dvf).abs().max() < 100
    assert not advect(ddf, dvf, cfl=None).abs().max() < 1e6


@pytest.mark.parametrize("shape", [(64, 48), (32, 28, 30)])
def test_a_smooth_velocity_across_the_border_makes_no_folds_and_no_wiggles(shape: tuple[int, ...]) -> None:
    dvf = MultiGaussian()(draw(1, len(shape), *shape))
    dvf *= 0.1 * max(shape) / dvf.abs().max()
    edge = dvf[:, 0, 0].abs().max()
    moved = advect(torch.zeros_like(dvf), dvf)
    assert edge > 0.02 * max(shape), "what flows in comes from beyond the border"
    assert jacobian_determinant(moved).min() > 0.1 and moved.abs().max() < 1.5 * dvf.abs().max()
    torch.testing.assert_close(moved, advect(torch.zeros_like(dvf), dvf, 80), atol=1e-3, rtol=0)


def test_precision_follows_the_map(smooth_ddf: SmoothDdf) -> None:
    ddf, dvf = (smooth_ddf((9, 8), 2.0, seed=seed, dtype=torch.float32) for seed in (0, 1))
    expected = advect(ddf, dvf)
    exact = advect(ddf.double(), dvf.double())
    torch.testing.assert_close(expected.double(), exact, atol=2e-6, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(advect(ddf, dvf), expected)
        torch.testing.assert_close(advect(ddf, dvf, recompute=False), expected, atol=2e-6, rtol=0)
    assert advect(ddf.half(), dvf).dtype == torch.float16


def test_bad_arguments_are_refused() -> None:
    ddf = torch.zeros(1, 2, 4, 4)
    for steps, dvf in ((0, ddf), (10, torch.zeros(1, 2, 4, 5))):
        with pytest.raises(ValueError, match="steps >= 1 and equal shapes"):
            advect(ddf, dvf, steps)


def peak(steps: int, recompute: bool) -> float:
    """MB that the map and its gradients need at half the paper's size."""
    setup = """
from shared_components.flows import advect
ddf, dvf = (draw(1, 3, 40, 96, 96, seed=seed).requires_grad_() for seed in (0, 1))
"""
    return peak_mb(setup, f"advect(ddf, dvf, {steps}, recompute={recompute}).sum().backward()")


@pytest.mark.slow
def test_peak_memory_and_time_at_the_papers_half_resolution() -> None:
    frugal, more, plain = peak(10, True), peak(20, True), peak(10, False)
    print(f"\nadvection 3x40x96x96: {frugal:.0f} MB, 20 steps {more:.0f} MB, autograd {plain:.0f} MB")
    assert plain > 10 * frugal and more < 2 * frugal and frugal > 20
    ddf, dvf = (draw(1, 3, 40, 96, 96, seed=seed).float().requires_grad_() for seed in (0, 1))
    for recompute in (True, False):
        start = time.perf_counter()
        moved = advect(ddf, dvf, recompute=recompute)
        middle = time.perf_counter()
        moved.sum().backward()
        print(f"recompute {recompute}: {middle - start:.2f} s there, {time.perf_counter() - middle:.2f} s back")
