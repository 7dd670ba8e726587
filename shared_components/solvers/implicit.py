r"""The one way in: ``prepare`` a system, ``solve`` it, and let gradients through.

The gradient is that of the solution, not of the iterations: with g the gradient of z = A^-1 b, w = A^-1 g solves the
same symmetric system, by the same prepared solver; then grad b = w and grad A = -w z^T (SUITS eq. 8, 9), of which only
what A is made of is needed: grad M(x) = -w(x) z(x)^T, and grad lambda = -w . L z.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import Solver
from .choice import choose
from .methods import Amg, Auto, Method, Multigrid, Pcg, Solution, Spectral, Statistics, find_method
from .mixed import MixedSolver
from .multigrid import MultigridSolver
from .pairwise import PairwiseSolver, worth_splitting
from .pcg import PcgSolver
from .spectral import SpectralSolver
from .system import System, laplacian, normal_equations, packing


def prepare(system: System, method: Method | str = "auto") -> Solver | PairwiseSolver:
    """Return a solver of the system for any number of right-hand sides; no gradients pass.

    Args:
        system: the pairs.
        method: numbers, or a name for the default ones: spectral, multigrid, pcg, amg, auto.

    Raises:
        InputError: numbers in the system that are not finite.
        ValueError: unknown method.
    """
    method = find_method(method)
    with torch.no_grad(), torch.autocast(system.blocks.device.type, enabled=False):
        if isinstance(method, Auto):
            method = choose(system, method)
        if isinstance(method, Amg):
            from .amg import AmgSolver  # scipy and pyamg are needed by nobody else

            return AmgSolver(system, method)
        solvers: dict[type[Method], type[Solver]] = {
            Spectral: SpectralSolver,
            Multigrid: MultigridSolver,
            Pcg: PcgSolver,
        }
        kind = solvers[type(method)]
        if getattr(method, "mixed", False) and system.blocks.dtype == torch.float64 and method.tolerance is not None:
            kind = partial(MixedSolver, kind=kind)
        return PairwiseSolver(system, method, kind) if worth_splitting(system, method) else kind(system, method)


def solve(
    system: System,
    b: Tensor,
    method: Method | str = "auto",
    start: Tensor | None = None,
    grad_A: bool = False,  # noqa: N803 (as in the paper)
) -> Solution:
    """Solve A z = b for all pairs; differentiable.

    Args:
        system: A.
        b: right-hand sides (B, D, *spatial).
        method: numbers, or a name for the default ones.
        start: first guess (B, D, *spatial), default zero; no gradient passes.
        grad_A: False: gradients reach b only, A counts as constant, as in the paper. True: also the blocks and lambda,
            which makes them those of z.

    Raises:
        InputError: input that is not finite.
        ValueError: shapes that do not fit.
        NotConvergedError: the tolerance was not reached and ``method.on_failure`` is "raise".
    """
    if b.shape != (len(system.blocks), len(system.shape), *system.shape):
        raise ValueError(f"b must be {(len(system.blocks), len(system.shape), *system.shape)}, got {tuple(b.shape)}")
    if start is not None and start.shape != b.shape:
        raise ValueError(f"start must have the shape of b, {tuple(b.shape)}, got {tuple(start.shape)}")
    b, start = b.to(system.blocks.dtype), None if start is None else start.to(system.blocks.dtype)
    solver = prepare(system, method)
    blocks, lam = (system.blocks, system.lam) if grad_A else (system.blocks.detach(), system.lam.detach())
    if torch.is_grad_enabled() and any(x.requires_grad for x in (b, blocks, lam)):
        return Solution(*_Solve.apply(b, blocks, lam, solver, start))
    with torch.no_grad():
        return Solution(*solver(b, start))


def gauss_newton_step(
    jacobian: Tensor,
    residual: Tensor,
    ddf: Tensor | None,
    lam: float | Tensor,
    method: Method | str = "auto",
    spacing: Sequence[float] | None = None,
    grad_A: bool = False,  # noqa: N803
) -> Solution:
    """Return the z that minimises 1/2 sum_c |J_c z + r_c|^2 + lambda/2 |grad(u + z)|^2 (SUITS eq. 4-6).

    Gradients, with w the adjoint solution: grad r_c = -J_c . w; grad J_c = -r_c w, and with ``grad_A`` also
    -(J_c . z) w - (J_c . w) z.

    Args:
        jacobian: J, gradients of the moved features, (B, C, D, *spatial).
        residual: r = moved - fixed features, (B, C, *spatial).
        ddf: u, the displacement so far, (B, D, *spatial); None for zero.
        lam: lambda, one for all pairs or (B,).
        method: numbers, or a name for the default ones.
        spacing: of the voxels along each axis; default: differences count alike along all axes.
        grad_A: let gradients through A as well; see ``solve``.

    Raises:
        InputError, ValueError, NotConvergedError: as ``solve`` and ``normal_equations``.
    """
    system, b = normal_equations(jacobian, residual, ddf, lam, spacing)
    return solve(system, b, method, grad_A=grad_A)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, b: Tensor, blocks: Tensor, lam: Tensor, solver: Solver | PairwiseSolver, start: Tensor | None
    ) -> tuple[Tensor, Statistics]:
        z, statistics = solver(b, start)
        ctx.solver = solver
        ctx.save_for_backward(z)
        return z, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        w, _ = ctx.solver(grad)
        blocks = lam = None
        if ctx.needs_input_grad[1]:
            pairs = packing(z.shape[1])
            parts = [w[:, i] * z[:, j] + (w[:, j] * z[:, i] if i != j else 0) for i, j in pairs]
            blocks = torch.stack(parts, 1).neg_()
        if ctx.needs_input_grad[2]:
            lam = -(w * laplacian(z, ctx.solver.weights)).flatten(1).sum(1)
        return w, blocks, lam, None, None
