"""Differentiable solvers of diffusion-regularised normal equations, A = sum_c J_c J_c^T + lambda L, batched over pairs.

``gauss_newton_step`` takes gradients of features and gives the displacement update of SUITS, or of any Gauss-Newton
registration; ``solve`` takes any symmetric D x D data term a voxel. Methods are frozen numbers:

    spectral    a few products with small cosine matrices an iteration; where smoothness dominates (lambda about 10)
    multigrid   some 6 iterations whatever lambda and data; where the data term dominates
    pcg         block Jacobi: the plain one to compare with
    amg         pyamg on the assembled matrix, CPU: the reference
    auto        spectral or multigrid, see ``choice``

In float32 the solution is right to about 1e-6, but its residual computed afresh is not: lambda L turns the rounding of
z into noise of the finest scale. ``Statistics.residual`` is what conjugate gradients track; in float64 both agree.

Beside them, ``Lbfgs`` minimises many small problems at once, a few unknowns a sample, such as the affine maps of pairs.
"""

from .implicit import gauss_newton_step, prepare, solve
from .lbfgs import Lbfgs, LbfgsResult, Objective
from .methods import (
    METHODS,
    Amg,
    Auto,
    Method,
    Multigrid,
    NotConvergedError,
    Pcg,
    Solution,
    Spectral,
    Statistics,
    find_method,
)
from .system import System, gram, laplacian, normal_equations

__all__ = [
    "METHODS",
    "Amg",
    "Auto",
    "Lbfgs",
    "LbfgsResult",
    "Method",
    "Multigrid",
    "NotConvergedError",
    "Objective",
    "Pcg",
    "Solution",
    "Spectral",
    "Statistics",
    "System",
    "find_method",
    "gauss_newton_step",
    "gram",
    "laplacian",
    "normal_equations",
    "prepare",
    "solve",
]
