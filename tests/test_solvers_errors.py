"""What the solvers refuse, and what they say when they do not converge."""

from __future__ import annotations

import warnings

import pytest
import torch
from solver_case import features, make

from shared_components.errors import InputError
from shared_components.solvers import (
    Amg,
    Multigrid,
    NotConvergedError,
    Pcg,
    Spectral,
    System,
    find_method,
    gauss_newton_step,
    normal_equations,
    solve,
)

NAMES = ("spectral", "multigrid", "pcg", "amg", "auto")


@pytest.mark.parametrize("kind", [Spectral, Multigrid, Pcg, Amg])
def test_a_tolerance_out_of_reach(kind: type) -> None:
    system, b = make((6, 7, 5), 0.1)
    with pytest.raises(
        NotConvergedError, match=r"relative residual of \d\.\de-\d\d \(pair \d\) after 1 iterations"
    ) as caught:
        solve(system, b, kind(1e-12, 1))
    assert (caught.value.statistics.residual > 1e-12).all() and not caught.value.statistics.converged.any()
    with pytest.warns(RuntimeWarning, match=kind.__name__.lower()):
        found = solve(system, b, kind(1e-12, 1, "warn"))
    residual = (b - system.apply(found.z)).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
    assert torch.allclose(residual, found.statistics.residual, rtol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(solve(system, b, kind(1e-12, 1, "ignore")).z, found.z)


def test_the_backward_pass_tells_too() -> None:
    jacobian, residual, ddf = features((6, 7, 5))
    residual.requires_grad_()
    with pytest.warns(RuntimeWarning, match="pcg stopped"):
        z = gauss_newton_step(jacobian, residual, ddf, 0.1, Pcg(1e-12, 3, "warn"))
    with pytest.warns(RuntimeWarning, match="pcg stopped"):
        z.z.sin().sum().backward()


def test_solving_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    system, b = make((6, 7, 5), 10.0)
    for name in NAMES:
        solve(system, b, name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_numbers_that_are_not_finite(name: str, value: float, which: int) -> None:
    given = features((6, 7, 5))
    given[which][1].view(-1)[17] = value
    with pytest.raises(InputError, match="not finite; look for NaN"):
        gauss_newton_step(*given, 10.0, name)


def test_the_sentence_names_the_pair() -> None:
    system, b = make((6, 7), 10.0)
    b[1, 0, 2, 3] = float("nan")
    with pytest.raises(InputError, match="right-hand side of pair 1 is not finite"):
        solve(system, b, "spectral")


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan"), float("inf")])
def test_lambda_must_be_positive(lam: float) -> None:
    with pytest.raises(ValueError, match="lambda must be positive and finite"):
        normal_equations(*features((6, 7)), lam)
    with pytest.raises(ValueError, match="lambda"):
        solve(*normal_equations(*features((6, 7)), torch.tensor(lam)), "spectral")


def test_shapes_that_do_not_fit() -> None:
    jacobian, residual, ddf = features((6, 7, 5))
    with pytest.raises(ValueError, match="do not fit"):
        normal_equations(jacobian[:, :, :2], residual, ddf, 1.0)
    with pytest.raises(ValueError, match="blocks must be"):
        System.build(residual, 1.0)
    with pytest.raises(ValueError, match="spacing must be 3 positive"):
        normal_equations(jacobian, residual, ddf, 1.0, (1.0, 0.0, 2.0))
    system, b = normal_equations(jacobian, residual, ddf, 1.0)
    with pytest.raises(ValueError, match="b must be"):
        solve(system, b[:, :2])
    with pytest.raises(ValueError, match="start must have"):
        solve(system, b, start=b[:1])


def test_methods_check_their_numbers() -> None:
    for wrong in ({"tolerance": 0.0}, {"max_iterations": 0}, {"on_failure": "print"}, {"sweeps": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Multigrid(**wrong)
    with pytest.raises(ValueError, match="kind must be one of"):
        Amg(kind="classical")
    with pytest.raises(ValueError, match="no solver 'jacobi'; choose from spectral, multigrid, pcg, amg, auto"):
        find_method("jacobi")
    assert find_method("pcg", tolerance=1e-3) == Pcg(1e-3)
