"""Gradients through the solver: finite differences, the paper's definition, local formulas, unrolled iterations."""

from __future__ import annotations

import pytest
import torch
from solver_case import distance, features
from torch import Tensor
from torch.autograd import gradcheck

from shared_components.solvers import (
    Amg,
    Method,
    Multigrid,
    Pcg,
    Spectral,
    System,
    gauss_newton_step,
    implicit,
    normal_equations,
    prepare,
    solve,
)

SHAPES = [(4, 3), (3, 4, 2)]
TIGHT = (Spectral(1e-13), Multigrid(1e-13), Pcg(1e-13), Amg(1e-13))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def _given(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.requires_grad_() for x in features(shape, channels=2))


def _weights(z: Tensor) -> Tensor:
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(5), dtype=z.dtype)


def _gradients(z: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return torch.autograd.grad((z * _weights(z)).sum(), inputs)


@shapes
@pytest.mark.parametrize("method", [Spectral(1e-13), Multigrid(1e-13)], ids=lambda m: m.name)
def test_full_gradient_is_that_of_the_solution(shape: tuple[int, ...], method: Method) -> None:
    lam = torch.tensor([0.7, 4.0], dtype=torch.float64, requires_grad=True)
    spacing = (1.0, 2.0, 1.5)[: len(shape)]
    gradcheck(lambda j, r, u, s: gauss_newton_step(j, r, u, s, method, spacing, grad_A=True).z, (*_given(shape), lam))


@shapes
def test_the_papers_gradient_is_that_with_a_constant_matrix(shape: tuple[int, ...]) -> None:
    given = _given(shape)
    frozen = System.build(normal_equations(*(x.detach() for x in given), 2.0)[0].blocks, 2.0)

    def constant(jacobian: Tensor, residual: Tensor, ddf: Tensor) -> Tensor:
        return solve(frozen, normal_equations(jacobian, residual, ddf, 2.0)[1], Spectral(1e-13)).z

    gradcheck(constant, given)
    paper = _gradients(gauss_newton_step(*given, 2.0, Spectral(1e-13)).z, given)
    for found, expected in zip(paper, _gradients(constant(*given), given), strict=True):
        assert distance(found, expected) < 1e-10


@pytest.mark.parametrize("method", TIGHT, ids=lambda m: m.name)
@pytest.mark.parametrize("grad_a", [False, True])
def test_local_formulas(method: Method, grad_a: bool) -> None:
    given = jacobian, residual, _ = _given((3, 4, 2))
    system, b = normal_equations(*(x.detach() for x in given), 2.0)
    solver = prepare(system, Spectral(1e-13))
    z, w = solver(b)[0].unsqueeze(1), solver(_weights(b))[0].unsqueeze(1)
    inner = lambda x, y: (x * y).sum(2)  # noqa: E731
    expected = -residual.unsqueeze(2) * w
    if grad_a:
        expected = expected - inner(jacobian, z).unsqueeze(2) * w - inner(jacobian, w).unsqueeze(2) * z
    found = _gradients(gauss_newton_step(*given, 2.0, method, grad_A=grad_a).z, given)
    assert distance(found[0], expected) < 1e-8
    assert distance(found[1], -inner(jacobian, w)) < 1e-8
    assert distance(found[2], -system.smoothness(w.squeeze(1))) < 1e-8


def _unrolled(system: System, b: Tensor, steps: int) -> Tensor:
    """Plain conjugate gradients, every operation recorded."""
    inner = lambda x, y: (x * y).flatten(1).sum(1).view(-1, *(1,) * (b.ndim - 1))  # noqa: E731
    z, r = torch.zeros_like(b), b
    p = r
    for _ in range(steps):
        v = system.apply(p)
        alpha = inner(r, r) / inner(p, v)
        z, after = z + alpha * p, r - alpha * v
        p = after + inner(after, after) / inner(r, r) * p
        r = after
    return z


@shapes
@pytest.mark.parametrize("grad_a", [False, True])
def test_implicit_gradients_equal_unrolled_ones(shape: tuple[int, ...], grad_a: bool) -> None:
    given = _given(shape)
    system, b = normal_equations(*given, 2.0)
    if not grad_a:
        system = System(system.blocks.detach(), system.lam, system.weights)
    unrolled = _unrolled(system, b, 60)
    found = gauss_newton_step(*given, 2.0, Multigrid(1e-13), grad_A=grad_a).z
    assert distance(found, unrolled) < 1e-8
    for ours, theirs in zip(_gradients(found, given), _gradients(unrolled, given), strict=True):
        assert distance(ours, theirs) < 1e-6


def test_leaving_the_matrix_out_matters() -> None:
    given = _given((3, 4, 2))
    paper, full = (_gradients(gauss_newton_step(*given, 2.0, grad_A=a).z, given) for a in (False, True))
    assert distance(paper[0], full[0]) > 0.1 and torch.equal(paper[1], full[1])


def test_forward_and_backward_share_one_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    before = implicit.prepare
    monkeypatch.setattr(implicit, "prepare", lambda *given: calls.append("prepared") or before(*given))
    given = _given((3, 4, 2))
    _gradients(gauss_newton_step(*given, 2.0, "multigrid", grad_A=True).z, given)
    assert calls == ["prepared"]


@pytest.mark.parametrize("method", TIGHT, ids=lambda m: m.name)
def test_gradients_without_data_are_finite(method: Method) -> None:
    given = tuple(x.requires_grad_() for x in features((4, 3, 5), "zero"))
    z = gauss_newton_step(*given, 2.0, method, grad_A=True).z
    jacobian, residual, ddf = _gradients(z, given)
    assert bool(jacobian.isfinite().all()) and not residual.any()
    weights = _weights(z)
    assert distance(ddf, weights.mean((2, 3, 4), keepdim=True) - weights) < 1e-9


def test_nothing_is_recorded_without_need() -> None:
    given = features((4, 3))
    assert not gauss_newton_step(*given, 2.0).z.requires_grad
    jacobian, residual, ddf = given
    assert gauss_newton_step(jacobian, residual.requires_grad_(), ddf, 2.0).z.requires_grad
    system, b = normal_equations(jacobian.requires_grad_(), residual.detach(), ddf, 2.0)
    assert not solve(system, b.detach(), "spectral").z.requires_grad  # only through A, which the paper leaves out
