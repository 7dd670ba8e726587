"""The solvers: all of them against the dense matrix, and the facts of the energy they minimise."""

from __future__ import annotations

import pytest
import torch
from solver_case import dense, distance, exact, features, make, smooth_features
from torch import Tensor

from shared_components.solvers import (
    Amg,
    Method,
    Multigrid,
    Pcg,
    Spectral,
    System,
    find_method,
    gauss_newton_step,
    gram,
    laplacian,
    normal_equations,
    prepare,
    solve,
)

TIGHT = (
    Spectral(1e-10),
    Spectral(1e-10, mixed=True),
    Multigrid(1e-10),
    Pcg(1e-10),
    Amg(1e-10),
    Amg(1e-10, kind="ruge_stuben"),
)
TORCH = ("spectral", "multigrid", "pcg")
method_of = pytest.mark.parametrize("method", TIGHT, ids=str)


@method_of
@pytest.mark.parametrize("kind", ["rough", "zero", "vanishing", "one axis"])
@pytest.mark.parametrize("shape", [(7, 10), (5, 4, 7), (3, 12, 5), (1, 6, 5)], ids=str)
def test_all_methods_solve_the_dense_system(method: Method, kind: str, shape: tuple[int, ...]) -> None:
    for lam in (0.1, 100.0):
        system, b = make(shape, lam, kind)
        found = solve(system, b, method)
        assert distance(found.z, exact(system, b)) < 1e-6
        assert bool(found.statistics.converged.all()) and float(found.statistics.residual.max()) <= 1e-10


@method_of
def test_voxels_much_longer_along_one_axis(method: Method) -> None:
    system, b = make((7, 6, 4), 1.0, "rough", (1.0, 1.5, 6.0))
    assert distance(solve(system, b, method).z, exact(system, b)) < 1e-6


@method_of
def test_pairs_of_a_batch_do_not_see_each_other(method: Method) -> None:
    lam = torch.tensor([0.1, 50.0], dtype=torch.float64)
    system, b = make((5, 6, 4), lam)
    together = solve(system, b, method)
    for k in range(2):
        alone = solve(System(system.blocks[k : k + 1], lam[k : k + 1], system.weights), b[k : k + 1], method)
        assert distance(together.z[k : k + 1], alone.z) < 1e-8
        if not getattr(method, "mixed", False):  # whose corrections aim at what the slowest pair needs
            assert int(alone.statistics.iterations) == int(together.statistics.iterations[k])


def test_the_matrix_is_symmetric_and_positive() -> None:
    system, _ = make((4, 5, 3), 2.0)
    matrix = dense(system)
    assert torch.allclose(matrix, matrix.mT, atol=1e-12)
    assert float(torch.linalg.eigvalsh(matrix).min()) > 0
    without = torch.linalg.eigvalsh(dense(make((4, 5, 3), 2.0, "zero")[0]))
    assert float(without.min()) > -1e-12
    assert ((without.abs() < 1e-10).sum(1) == 3).all()  # one constant a component, and nothing else


def test_the_laplacian_counts_neighbours() -> None:
    z = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    z[0, 0, 0, 0] = z[0, 1, 1, 1] = 1.0
    found = laplacian(z, (1.0, 4.0))
    assert found[0, 0].tolist() == [[5, -4, 0], [-1, 0, 0], [0, 0, 0]]
    assert found[0, 1].tolist() == [[0, -1, 0], [-4, 10, -4], [0, -1, 0]]
    assert laplacian(torch.full((1, 3, 4, 3, 5), 7.3), (1.0, 1.0, 1.0)).abs().max() == 0


def _energy(
    z: Tensor, jacobian: Tensor, residual: Tensor, ddf: Tensor, lam: float, spacing: tuple[float, ...]
) -> Tensor:
    data = ((jacobian * z.unsqueeze(1)).sum(2) + residual).square().sum()
    steps = [torch.diff(ddf + z, dim=axis).square().sum() / h**2 for axis, h in enumerate(spacing, start=2)]
    return 0.5 * data + 0.5 * lam * sum(steps)


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)], ids=str)
def test_the_solution_minimises_the_energy(shape: tuple[int, ...]) -> None:
    given, spacing = features(shape), (1.0, 2.0, 0.5)[: len(shape)]
    z = gauss_newton_step(*given, 3.0, Spectral(1e-12), spacing).z.requires_grad_()
    energy = _energy(z, *given, 3.0, spacing)
    (slope,) = torch.autograd.grad(energy, z)
    scale = torch.autograd.grad(
        _energy(torch.zeros_like(z).requires_grad_(), *given, 3.0, spacing), z, allow_unused=True
    )
    assert scale[0] is None and slope.abs().max() < 1e-9
    for seed in range(3):
        other = z + 1e-3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=z.dtype)
        assert _energy(other, *given, 3.0, spacing) > energy


@method_of
def test_without_data_the_step_undoes_the_displacement_up_to_a_constant(method: Method) -> None:
    jacobian, residual, ddf = features((6, 5, 4), "zero")
    z = gauss_newton_step(jacobian, residual, ddf, 10.0, method).z
    assert distance(z, ddf.mean((2, 3, 4), keepdim=True) - ddf) < 1e-7


@pytest.mark.parametrize("name", ["spectral", "multigrid", "pcg", "amg", "auto"])
def test_nothing_to_do_gives_zero(name: str) -> None:
    jacobian, residual, ddf = features((6, 5, 4))
    found = gauss_newton_step(jacobian, 0 * residual, None, 10.0, name)
    assert not found.z.any() and not found.statistics.iterations.any() and bool(found.statistics.converged.all())
    assert torch.equal(gauss_newton_step(jacobian, 0 * residual, torch.ones_like(ddf), 10.0, name).z, found.z)


def test_a_huge_lambda_moves_everything_alike() -> None:
    jacobian, residual, _ = features((6, 5, 4))
    z = gauss_newton_step(jacobian, residual, None, 1e7, Spectral(1e-10)).z
    blocks, b = gram(jacobian).flatten(2).sum(2), -(residual.unsqueeze(2) * jacobian).sum(1).flatten(2).sum(2)
    for k in range(2):
        m = blocks[k]
        matrix = torch.stack([m[[0, 1, 2]], m[[1, 3, 4]], m[[2, 4, 5]]])
        expected = torch.linalg.solve(matrix, b[k]).view(3, 1, 1, 1)
        assert (z[k] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["spectral", "multigrid", "pcg", "amg"])
def test_axes_can_change_places(name: str) -> None:
    jacobian, residual, ddf = features((6, 5, 4))
    turn = lambda x: x.movedim(-1, -3)  # noqa: E731
    plain = gauss_newton_step(jacobian, residual, ddf, 5.0, type(find_method(name))(1e-10), (1.0, 2.0, 3.0)).z
    turned = gauss_newton_step(
        turn(jacobian)[:, :, [2, 0, 1]], turn(residual), turn(ddf)[:, [2, 0, 1]], 5.0,
        type(find_method(name))(1e-10), (3.0, 1.0, 2.0),
    ).z  # fmt: skip
    assert distance(turned, turn(plain)[:, [2, 0, 1]]) < 1e-7


def test_a_constant_data_term_takes_the_spectral_solver_one_iteration() -> None:
    jacobian, residual, ddf = features((7, 6, 9))
    jacobian = jacobian.mean((3, 4, 5), keepdim=True).expand_as(jacobian)
    found = gauss_newton_step(jacobian, residual, ddf, 0.3, Spectral(1e-9))
    assert found.statistics.iterations.tolist() == [1, 1]


@pytest.mark.parametrize(("name", "most"), [("spectral", 8), ("multigrid", 12)])
def test_few_iterations_on_features_like_the_papers(name: str, most: int) -> None:
    system, b = normal_equations(*smooth_features((23, 31, 32)), 10.0)
    steps = solve(system, b, name).statistics.iterations
    assert int(steps.max()) <= most
    assert int(steps.max()) * 4 < int(solve(system, b, "pcg").statistics.iterations.max())


def test_multigrid_hardly_minds_grid_or_lambda() -> None:
    steps = [
        int(solve(*normal_equations(*smooth_features(shape), lam), "multigrid").statistics.iterations.max())
        for shape in ((12, 13, 14), (24, 26, 28))
        for lam in (0.1, 10.0, 100.0)
    ]
    assert max(steps) <= 16 and max(steps) <= 2 * min(steps)


@pytest.mark.parametrize("name", [*TORCH, "auto"])
def test_float32_and_half_precision(name: str) -> None:
    given = smooth_features((14, 15, 17))
    system, b = normal_equations(*given, 10.0)
    truth = solve(system, b, Spectral(1e-12)).z
    single = gauss_newton_step(*(x.float() for x in given), 10.0, name)
    assert single.z.dtype == torch.float32 and distance(single.z.double(), truth) < 1e-4
    half = gauss_newton_step(*(x.bfloat16() for x in given), 10.0, name)
    assert half.z.dtype == torch.float32 and distance(half.z.double(), truth) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        under = gauss_newton_step(*(x.float() for x in given), 10.0, name)
    assert torch.equal(under.z, single.z)


@pytest.mark.parametrize("name", ["spectral", "multigrid", "pcg", "amg"])
def test_a_good_start_saves_iterations(name: str) -> None:
    system, b = make((6, 7, 5), 1.0)
    first = solve(system, b, name)
    again = solve(system, b, name, start=first.z)
    assert int(again.statistics.iterations.max()) <= 1
    assert distance(again.z, exact(system, b)) < 1e-4


@pytest.mark.parametrize("name", TORCH)
def test_memory_grows_with_the_grid_and_holds_no_matrix(name: str) -> None:
    jacobian, residual, ddf = features((20, 18, 16), batch=1)
    system, _ = normal_equations(jacobian, residual, ddf, 10.0)
    solver = prepare(system, name)
    held: dict[int, int] = {}

    def count(thing: object) -> None:
        if isinstance(thing, Tensor):
            held[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes() // 8
        elif isinstance(thing, list | tuple):
            for part in thing:
                count(part)
        elif hasattr(thing, "__dict__"):
            for part in vars(thing).values():
                count(part)

    count(solver)
    assert 12 * residual[0, 0].numel() <= sum(held.values()) <= 30 * residual[0, 0].numel()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("method", [Spectral(None, 6), Multigrid(None, 3), Pcg(None, 8)], ids=lambda m: m.name)
def test_a_fixed_number_of_iterations_can_be_traced(method: Method) -> None:
    def step(jacobian: Tensor, residual: Tensor, ddf: Tensor) -> Tensor:
        return gauss_newton_step(jacobian, residual, ddf, 10.0, method).z

    traced = torch.jit.trace(step, features((4, 5, 6), seed=1), check_trace=False)
    other = features((4, 5, 6), seed=2)
    assert distance(traced(*other), step(*other)) < 1e-10
    found = gauss_newton_step(*other, 10.0, method).statistics
    assert found.iterations.tolist() == [method.max_iterations] * 2 and bool(found.converged.all())


def test_iterations_without_end_do_no_harm() -> None:
    system, b = make((6, 5, 4), 10.0)
    b[1] = 0
    for name in TORCH:
        z = solve(system, b, type(find_method(name))(None, 200)).z
        assert distance(z[:1], exact(system, b)[:1]) < 1e-9 and not z[1].any()


def test_products_of_less_precision_do_not_spoil_the_solution() -> None:
    system, b = normal_equations(*(x.float() for x in smooth_features((14, 15, 17))), 10.0)
    before = torch.get_float32_matmul_precision()
    plain = solve(system, b, Spectral(1e-5)).z
    try:
        torch.set_float32_matmul_precision("medium")
        rough = solve(system, b, Spectral(1e-5)).z
    finally:
        torch.set_float32_matmul_precision(before)
    assert distance(rough, plain) < 1e-3


@pytest.mark.parametrize("method, lam, count", [(Spectral, 0.01, 2000), (Multigrid, 10.0, 200), (Pcg, 10.0, 200)])
def test_many_more_iterations_than_needed_do_no_harm(method: type[Method], lam: float, count: int) -> None:
    """As in a traced network: nothing is checked, the same number of steps for every pair."""
    system, b = normal_equations(*(x.float() for x in features((8, 7, 6))), lam)
    b = torch.cat([b[:1], 0 * b[1:]])
    wanted = solve(system, b, method(1e-6)).z
    found = solve(system, b, method(None, count)).z
    assert torch.isfinite(found).all() and not found[1].any()
    torch.testing.assert_close(found, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)
