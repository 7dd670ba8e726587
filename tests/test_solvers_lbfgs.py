"""L-BFGS: against its textbook recursion and scipy's minima, and each sample for itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import Tensor

from shared_components.solvers import Lbfgs, LbfgsResult, Objective

both = pytest.mark.parametrize("scaled", [False, True], ids=["paper", "scaled"])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quadratics(samples: int, n: int, condition: float) -> tuple[Objective, Tensor]:
    """Return bowls, each with its own axes, and their minima (samples, n), of value 0."""
    axes = torch.linalg.qr(normal(samples, n, n))[0]
    hessian = axes @ torch.diag_embed(condition ** torch.linspace(0, 1, n).double().expand(samples, n)) @ axes.mT
    minima = normal(samples, n, seed=1)

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        away = x - minima[which]
        gradient = (hessian[which] * away[:, None]).sum(2)
        return (away * gradient).sum(1) / 2, gradient

    return objective, minima


def rosenbrock(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Return scipy's ``rosen``, sample k steeper by k / 100, and its gradient."""
    steep = 1 + which[:, None] / 100
    a, b = x[:, 1:], x[:, :-1]
    bend, gradient = a - b * b, torch.zeros_like(x)
    gradient[:, 1:] += 200 * steep * bend
    gradient[:, :-1] -= 400 * steep * b * bend + 2 * (1 - b)
    return (100 * steep * bend**2 + (1 - b) ** 2).sum(1), gradient


def waves(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Return a bowl with waves: both signs of curvature on the way, minima everywhere."""
    return (0.1 * x**2 - torch.cos(3 * x)).sum(1), 0.2 * x + 3 * torch.sin(3 * x)


class Recorder:
    """An objective that notes every point of every sample, and the size of every call."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.points, self.sizes = objective, {}, []

    def __call__(self, x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        self.sizes.append(len(which))
        for k, point in zip(which.tolist(), x, strict=True):
            self.points.setdefault(k, []).append(point.numpy().copy())
        return self.objective(x, which)


def textbook(f: Callable, x: np.ndarray, knobs: Lbfgs) -> tuple[list[np.ndarray], np.ndarray, list[int]]:
    """Return all points tried, the last accepted one and the trials of each search: one sample, lists and loops."""
    (value, g), tried, pairs, trials = f(x), [x], [], []
    first = 1 / np.linalg.norm(g)
    for _ in range(knobs.iterations):
        q, alphas = g.copy(), []
        for s, y in reversed(pairs):
            alphas.append((s @ q) / (y @ s))
            q -= alphas[-1] * y
        s, y = pairs[-1] if knobs.scaled and pairs else (first, 1.0)
        q *= np.dot(s, y) / np.dot(y, y)
        for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
            q += s * (alpha - (y @ q) / (y @ s))
        for trial in range(knobs.halvings):
            t = 0.5**trial
            tried.append(x - t * q)
            new, new_g = f(tried[-1])
            if new <= value - knobs.armijo * t * (g @ q):
                break
        else:
            return tried, x, trials
        trials.append(trial + 1)
        s, y = tried[-1] - x, new_g - g
        pairs = [*pairs, (s, y)][-knobs.memory :] if y @ s > 0 else pairs
        x, value, g = tried[-1], new, new_g
    return tried, x, trials


def alone(objective: Objective, k: int) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """Return sample k's objective as scipy takes it."""

    def f(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = objective(torch.as_tensor(x)[None], torch.tensor([k]))
        return float(value), gradient[0].numpy()

    return f


def same(found: LbfgsResult, other: LbfgsResult) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(found).values(), vars(other).values(), strict=True))


@both
@pytest.mark.parametrize("objective", [rosenbrock, waves], ids=["rosenbrock", "waves"])
def test_every_trial_is_the_textbooks(objective: Objective, scaled: bool) -> None:
    knobs, start = Lbfgs(iterations=8, memory=3, armijo=0.3, scaled=scaled), 2 * normal(20, 4)
    recorder = Recorder(objective)
    found = knobs.minimise(recorder, start)
    longest = 0
    for k in range(20):
        tried, end, trials = textbook(alone(objective, k), start[k].numpy(), knobs)
        longest = max(longest, *trials)
        assert len(tried) == len(recorder.points[k]) == int(found.evaluations[k])
        np.testing.assert_allclose(recorder.points[k], tried, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(found.x[k], end, rtol=1e-6, atol=1e-6)
        assert int(found.iterations[k]) == len(trials)
    assert longest > 1  # else halving was not seen


@pytest.mark.parametrize(("scaled", "iterations"), [(True, 13), (False, 30)], ids=["scaled", "paper"])
def test_quadratics_of_six_unknowns_are_solved(scaled: bool, iterations: int) -> None:
    objective, minima = quadratics(50, 6, 3.0)
    start = torch.zeros_like(minima)
    found = Lbfgs(iterations, scaled=scaled).minimise(objective, start)
    assert float(found.value.max()) < 1e-10 < 1e-2 < float(objective(start, torch.arange(50))[0].min())
    assert float((found.x - minima).abs().max()) < 1e-5


def test_a_bowl_that_the_first_step_meets_is_solved_at_once() -> None:
    start = torch.eye(3).double()  # H0 = 1 / |g| = 1: the first trial is the minimum, of zero gradient
    found = Lbfgs().minimise(lambda x, which: ((x * x).sum(1) / 2, x.clone()), start)
    assert torch.equal(found.x, torch.zeros_like(start)) and not found.gradient.any() and not found.value.any()
    assert found.iterations.tolist() == [1, 1, 1] and found.evaluations.tolist() == [2, 2, 2]


@both
@pytest.mark.parametrize("objective", [rosenbrock, waves], ids=["rosenbrock", "waves"])
def test_armijo_holds_at_every_step_and_nothing_rises(objective: Objective, scaled: bool) -> None:
    start, which = 2 * normal(40, 6), torch.arange(40)
    before = Lbfgs(iterations=0).minimise(objective, start)
    assert torch.equal(before.x, start) and int(before.evaluations.max()) == 1 and int(before.iterations.max()) == 0
    negative = 0
    for k in range(1, 11):  # a run of k iterations begins with the run of k - 1
        after = Lbfgs(iterations=k, scaled=scaled).minimise(objective, start)
        step = after.x - before.x
        took = after.iterations > before.iterations
        promised = 1e-4 * (before.gradient * step).sum(1)  # c t g.d
        assert bool((promised[took] < 0).all()) and not step[~took].any()
        assert bool((after.value <= before.value + promised + 1e-12 * before.value.abs()).all())
        value, gradient = objective(after.x, which)
        assert torch.equal(value, after.value) and torch.equal(gradient, after.gradient)
        negative += int((((after.gradient - before.gradient) * step).sum(1) < 0).sum())
        before = after
    assert negative or objective is rosenbrock  # pairs that must not be stored did occur


@both
def test_minima_are_scipys_on_rosenbrock(scaled: bool) -> None:
    start = 0.7 * normal(24, 6)
    found = Lbfgs(iterations=400, halvings=40, scaled=scaled).minimise(rosenbrock, start)
    options = {"ftol": 0.0, "gtol": 1e-9, "maxiter": 2000, "maxcor": 5}
    values = []
    for k, x in enumerate(start.numpy()):
        best = optimize.minimize(alone(rosenbrock, k), x, jac=True, method="L-BFGS-B", options=options)
        values.append(best.fun)
    agree, flat = (found.value - torch.tensor(values)).abs() < 1e-8, found.gradient.norm(dim=1) < 1e-4
    assert int(agree.sum()) >= 20  # the others fell into the second minimum, near (-1, 1, ...), of value about 4
    assert bool((agree | flat).all())


@both
def test_a_sample_is_the_same_alone_and_in_any_batch(scaled: bool) -> None:
    start, knobs = 2 * normal(33, 6), Lbfgs(iterations=60, tolerance=1e-2, scaled=scaled)
    found = knobs.minimise(rosenbrock, start)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(2))
    mixed = knobs.minimise(lambda x, which: rosenbrock(x, order[which]), start[order])
    assert same(mixed, LbfgsResult(*(part[order] for part in vars(found).values())))
    for k in (0, 7, 32):
        one = knobs.minimise(lambda x, which, k=k: rosenbrock(x, which + k), start[k : k + 1])
        assert same(one, LbfgsResult(*(part[k : k + 1] for part in vars(found).values())))
    assert len(found.evaluations.unique()) > 3  # they did not all end together


def test_finished_samples_are_not_evaluated_again() -> None:
    recorder = Recorder(waves)
    found, sizes = Lbfgs(tolerance=1e-3).minimise(recorder, 3 * normal(30, 6)), recorder.sizes
    assert found.evaluations.tolist() == [len(recorder.points[k]) for k in range(30)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 30 and 0 < sizes[-1] < 15
    assert len(sizes) == int(found.evaluations.max())  # no round waited for another sample's search


def test_a_step_too_short_to_move_ends_a_sample() -> None:
    found = Lbfgs().minimise(lambda x, which: (0 * x[:, 0] + 1e20, x / x), torch.full((2, 3), 1e20).double())
    assert found.evaluations.tolist() == [2, 2] and not found.iterations.any()


def test_a_failed_search_is_a_step_of_zero() -> None:
    start = normal(8, 6)
    found = Lbfgs(halvings=7).minimise(lambda x, which: ((x * x).sum(1), -2 * x), start)  # points uphill
    assert torch.equal(found.x, start) and torch.equal(found.value, (start * start).sum(1))
    assert found.evaluations.tolist() == [8] * 8 and not found.iterations.any()


def test_search_tries_so_many_lengths_and_no_more() -> None:
    """|x| from 1 with H0 = 1 lands on 0; behind a wall at 1 - 2^-k only the step of 2^-k is allowed."""

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        wall = x[:, 0] < 1 - 0.5 ** which.to(x)
        return torch.where(wall, 9.0, x[:, 0].abs()), x.sign()

    found = Lbfgs(iterations=1, halvings=4).minimise(objective, torch.ones(6, 1).double())
    assert found.x[:, 0].tolist() == [0, 0.5, 0.75, 0.875, 1, 1]
    assert found.evaluations.tolist() == [2, 3, 4, 5, 5, 5] and found.iterations.tolist() == [1, 1, 1, 1, 0, 0]


def test_zero_gradients_stay_and_disturb_nobody() -> None:
    objective, minima = quadratics(4, 6, 10.0)
    start = minima.clone()
    start[1] += 1
    found = Lbfgs().minimise(objective, start)
    assert torch.equal(found.x[[0, 2, 3]], minima[[0, 2, 3]]) and bool(torch.isfinite(found.x).all())
    assert found.evaluations[[0, 2, 3]].tolist() == [1, 1, 1] and int(found.iterations[1]) > 5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_has_failed(bad: float) -> None:
    """x - log(x), of minimum 1, is not defined below 0; samples that begin there are left alone."""

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        inside = (x > 0).all(1)
        value = (x - torch.log(x.clamp_min(1e-300))).sum(1)
        gradient = 1 - 1 / x
        gradient = torch.where(inside[:, None] | (which[:, None] % 2 == 0), gradient, torch.nan)
        return torch.where(inside, value, bad), gradient

    start = torch.full((4, 3), 0.02).double()
    start[0] = torch.tensor([0.05, 3.0, 0.4]).double()
    start[2:, 1] = -1  # sample 2 has a gradient there, sample 3 has none
    found = Lbfgs(iterations=60).minimise(objective, start)
    assert float((found.x[:2] - 1).abs().max()) < 1e-4 and bool(torch.isfinite(found.gradient[:2]).all())
    assert torch.equal(found.x[2:], start[2:]) and found.evaluations[2:].tolist() == [1, 1]


def test_a_finite_value_with_a_gradient_that_is_not_has_failed() -> None:
    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        return (x * x).sum(1) / 2, torch.where(x.abs() < 0.1, torch.nan, x)

    found = Lbfgs().minimise(objective, torch.tensor([[1.2, 0.2]]).double())
    assert bool(torch.isfinite(found.gradient).all()) and float(found.x.abs().min()) >= 0.1


def test_a_useless_direction_gives_way_to_the_gradients() -> None:
    """A first pair of y.s = 1e-310, with which H g overflows, then a good one, of H = 2 along x_0.

    The steps are -H0 g = -1, -H0 g again with the memory emptied, and then -2 * 0.5 by the good pair alone.
    """

    def objective(x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        table = torch.tensor([[1, 1e-190], [1, -1e-120], [0.5, -1e-120]], dtype=torch.float64)
        return x[:, 0], table[(1 - x[:, 0].round().long()).clamp(max=2)]

    found = Lbfgs(iterations=3).minimise(objective, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert float(found.x[0, 0]) == pytest.approx(-2, abs=1e-12) and found.evaluations.tolist() == [4]


def test_tolerance_ends_a_sample_after_its_small_step() -> None:
    values = torch.stack([Lbfgs(iterations=k).minimise(rosenbrock, normal(20, 4)).value for k in range(31)])
    small = (values[:-1] - values[1:]) / values[:-1] < 0.05
    first = torch.where(small.any(0), small.int().argmax(0) + 1, 30)
    assert torch.equal(Lbfgs(tolerance=0.05).minimise(rosenbrock, normal(20, 4)).iterations, first)
    assert len(first.unique()) > 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_precision_and_input_are_kept(dtype: torch.dtype) -> None:
    start = normal(5, 6).to(dtype).requires_grad_()
    kept = start.detach().clone()
    found = Lbfgs().minimise(waves, start)
    assert found.x.dtype == found.value.dtype == found.gradient.dtype == dtype and torch.equal(start, kept)
    assert found.iterations.dtype == found.evaluations.dtype == torch.int64 and not found.x.requires_grad
    assert [tuple(part.shape) for part in vars(found).values()] == [(5, 6), (5,), (5, 6), (5,), (5,)]
    assert len(Lbfgs().minimise(waves, start[:0]).x) == 0


@pytest.mark.parametrize("knob", ["iterations=-1", "memory=0", "halvings=0", "armijo=0.0", "tolerance=-1.0"])
def test_knobs_out_of_range_are_refused(knob: str) -> None:
    name, value = knob.split("=")
    with pytest.raises(ValueError, match=knob):
        Lbfgs(**{name: float(value)})


def test_wrong_shapes_are_refused() -> None:
    for start in (normal(6), torch.ones(2, 6, dtype=torch.int64)):
        with pytest.raises(ValueError, match="start"):
            Lbfgs().minimise(waves, start)
    with pytest.raises(ValueError, match="objective must return"):
        Lbfgs().minimise(lambda x, which: (x.sum(1, keepdim=True), x), normal(3, 6))
