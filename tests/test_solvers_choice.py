"""Mixed precision, batches split over threads, and the choice that ``auto`` makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from solver_case import distance, exact, features, make, smooth_features
from torch import Tensor

from shared_components.errors import InputError
from shared_components.solvers import (
    Auto,
    Multigrid,
    NotConvergedError,
    Spectral,
    System,
    find_method,
    gauss_newton_step,
    gram,
    normal_equations,
    pairwise,
    solve,
)
from shared_components.solvers.choice import choose, weakest
from shared_components.solvers.system import unpack

TORCH = ("spectral", "multigrid", "pcg")


def test_mixed_precision_reaches_double_precision() -> None:
    system, b = normal_equations(*smooth_features((14, 15, 17), batch=2), 10.0)
    b[1] = 0
    truth = solve(system, b, Spectral(1e-13)).z
    mixed = solve(system, b, Spectral(1e-10, mixed=True))
    assert mixed.z.dtype == torch.float64 and distance(mixed.z, truth) < 1e-9 and not mixed.z[1].any()
    residual = (b - system.apply(mixed.z))[0].norm() / b[0].norm()
    assert float(residual) == pytest.approx(float(mixed.statistics.residual[0]), rel=1e-3) and float(residual) < 1e-10
    plain = int(solve(system, b, Spectral(1e-10)).statistics.iterations[0])
    assert plain <= int(mixed.statistics.iterations[0]) <= plain + 6
    single = solve(System(system.blocks.float(), system.lam.float(), system.weights), b, Spectral(1e-5, mixed=True))
    assert single.z.dtype == torch.float32


def test_mixed_precision_sees_data_that_float32_does_not() -> None:
    jacobian, residual, ddf = features((6, 5, 4))
    system, b = normal_equations(1e-5 * jacobian, residual, ddf, 10.0)
    assert distance(solve(system, b, Spectral(1e-12, mixed=True)).z, exact(system, b)) < 1e-3


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_split_over_threads(
    name: str, threads: int, monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]
) -> None:
    method = find_method(name, tolerance=1e-9)
    given = tuple(x.requires_grad_() for x in features((5, 6, 7), batch=3))

    def step() -> tuple[Tensor, ...]:
        found = gauss_newton_step(*given, 2.0, method, grad_A=True)
        return found.z, found.statistics.iterations, *torch.autograd.grad(found.z.square().sum(), given)

    set_threads(threads)
    together = step()
    monkeypatch.setattr(pairwise, "SMALLEST", 1)
    for split, whole in zip(step(), together, strict=True):
        assert torch.allclose(split, whole, rtol=1e-7, atol=1e-9)
    assert torch.get_num_threads() == threads
    system, b = normal_equations(*(x.detach().clone() for x in given), 2.0)
    with pytest.raises(NotConvergedError, match=r"\(pair \d\) after 1 iterations"):
        solve(system, b, type(method)(1e-12, 1))
    b[2, 0, 1, 1, 1] = float("nan")
    with pytest.raises(InputError, match="right-hand side of pair 2"):
        solve(system, b, method)
    system.blocks[1, 0, 1, 1, 1] = float("inf")
    with pytest.raises(InputError, match="data term of pair 1"):
        solve(system, b, method)


@pytest.mark.parametrize(("lam", "expected"), [(10.0, "spectral"), (0.03, "multigrid")])
def test_auto_takes_what_needs_less_work(lam: float, expected: str) -> None:
    system, b = normal_equations(*smooth_features((16, 17, 18)), lam)
    found = solve(system, b)
    assert found.statistics.method == expected
    other = solve(system, b, {"spectral": "multigrid", "multigrid": "spectral"}[expected])
    assert distance(found.z, other.z) < 1e-4
    steps = int(found.statistics.iterations), int(other.statistics.iterations)
    assert steps[0] <= steps[1] if expected == "spectral" else 2 * steps[0] < steps[1]


def test_auto_looks_at_every_pair_and_passes_its_numbers_on() -> None:
    system, _ = make((6, 7, 5), torch.tensor([100.0, 0.01]))
    assert choose(system, Auto(1e-4, 77, "warn")) == Multigrid(1e-4, 77, "warn")
    assert choose(make((6, 7, 5), 100.0)[0], Auto(1e-4, 77, "warn")) == Spectral(1e-4, 77, "warn")
    assert choose(system, Auto(1e-4, contrast=float("inf"))) == Spectral(1e-4)
    assert choose(system, Auto(None, 5)) == Spectral(None, 5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_weakest_direction_is_bounded_from_below(ndim: int) -> None:
    jacobian, _, _ = features((9, 8, 7)[:ndim])
    blocks = gram(jacobian)
    smallest = torch.linalg.eigvalsh(unpack(blocks.flatten(2).movedim(2, 1).flatten(0, 1)))[:, 0]
    bound = weakest(blocks).flatten()
    assert (bound <= smallest + 1e-12).all() and (bound / smallest).mean() > 0.4
