"""Algebraic multigrid of pyamg on the assembled matrix, float64 on the CPU, pair after pair: the reference.

The only place where a matrix is assembled, and where scipy and pyamg run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from ..errors import InputError
from .base import Solver
from .methods import Amg, Statistics
from .system import System, packing


def assemble(blocks: np.ndarray, weights: Sequence[float], lam: float = 1.0) -> sparse.bsr_array:
    """Return M + lambda L of one pair as a sparse matrix of D x D blocks, the components of a voxel side by side.

    Args:
        blocks: packed M, (D (D + 1) / 2, *spatial), float64.
        weights: of the links along each axis.
        lam: lambda.
    """
    shape = blocks.shape[1:]
    ndim, n = len(shape), int(np.prod(shape))
    graph = sparse.csr_array((n, n))
    for axis, weight in enumerate(weights):
        part = sparse.csr_array(np.ones((1, 1)))
        for other, length in enumerate(shape):
            part = sparse.kron(part, _path(length) if other == axis else sparse.eye_array(length), format="csr")
        graph = graph + weight * part
    data = np.empty((n, ndim, ndim))
    for k, (i, j) in enumerate(packing(ndim)):
        data[:, i, j] = data[:, j, i] = blocks[k].ravel()
    diagonal = sparse.bsr_array((data, np.arange(n), np.arange(n + 1)), shape=(ndim * n, ndim * n))
    return (diagonal + lam * sparse.kron(graph, np.eye(ndim), format="bsr")).tobsr((ndim, ndim))


def _path(n: int) -> sparse.csr_array:
    """Return the Laplacian of a line of n voxels."""
    step = sparse.diags_array([-np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n))
    return (step.T @ step).tocsr()


def hierarchy(matrix: sparse.bsr_array, kind: str) -> Any:
    """Return pyamg's solver of the matrix: "smoothed_aggregation" or "ruge_stuben"."""
    import pyamg  # half a second, and nobody else needs it

    if kind == "ruge_stuben":
        return pyamg.ruge_stuben_solver(sparse.csr_array(matrix))
    ndim = matrix.blocksize[0]
    before = np.random.get_state()  # pyamg draws the starts of its eigenvalue estimates from the global generator
    try:
        np.random.seed(0)
        return pyamg.smoothed_aggregation_solver(matrix, B=np.tile(np.eye(ndim), (matrix.shape[0] // ndim, 1)))
    finally:
        np.random.set_state(before)


class AmgSolver(Solver):
    """Prepared for ``Amg``: the matrices and hierarchies of all pairs."""

    def __init__(self, system: System, method: Amg) -> None:
        super().__init__(system, method)
        blocks = self.blocks.double().cpu().numpy()
        self.matrices = [assemble(pair, self.weights) for pair in blocks]
        self.nulls = self.null.double().cpu().numpy()
        self.preconditioners = [self._preconditioner(*pair) for pair in zip(self.matrices, self.nulls, strict=True)]

    def _preconditioner(self, matrix: sparse.bsr_array, null: np.ndarray) -> LinearOperator:
        """Return a V-cycle; of a singular matrix, that of one nearby which is not, outside the null space."""
        if not null.any():
            return hierarchy(matrix, self.method.kind).aspreconditioner()
        shift = 1e-6 * max(self.weights) * sparse.eye_array(matrix.shape[0], format="bsr")
        levels = hierarchy((matrix + shift).tobsr(matrix.blocksize), self.method.kind).aspreconditioner()

        def outside(x: np.ndarray) -> np.ndarray:
            x = x.reshape(-1, len(null))
            return (x - x.mean(0) @ null).ravel()

        return LinearOperator(matrix.shape, lambda x: outside(levels @ outside(x)), dtype=matrix.dtype)

    def solve(self, b: Tensor, start: Tensor | None) -> tuple[Tensor, Statistics]:
        """Solve the system divided by lambda."""
        guesses = [None] * len(b) if start is None else self._vectors(start)
        found = zip(self.matrices, self.preconditioners, self._vectors(self.project(b)), guesses, strict=True)
        rows = [self._pair(*row) for row in found]
        ndim = len(self.shape)
        z = torch.as_tensor(np.stack([row[0].reshape(-1, ndim).T for row in rows])).to(b).view_as(b)
        _, steps, residuals, converged = zip(*rows, strict=True)
        facts = (torch.tensor(steps), torch.tensor(residuals, dtype=b.dtype), torch.tensor(converged))
        return self.project(z), Statistics(self.method.name, *(fact.to(b.device) for fact in facts))

    @staticmethod
    def _vectors(b: Tensor) -> np.ndarray:
        return b.double().cpu().flatten(2).transpose(1, 2).flatten(1).numpy()

    def _pair(
        self, matrix: sparse.bsr_array, preconditioner: LinearOperator, b: np.ndarray, start: np.ndarray | None
    ) -> tuple[np.ndarray, int, float, bool]:
        """Return solution, iterations, relative residual and whether that is within the tolerance."""
        steps, size, tolerance = 0, float(np.linalg.norm(b)), self.method.tolerance
        if not np.isfinite(size):
            raise InputError("the right-hand side is not finite; look for NaN or infinity in the images or features")

        def count(_: np.ndarray) -> None:
            nonlocal steps
            steps += 1

        options = {"rtol": tolerance or 0.0, "atol": 0.0, "maxiter": self.method.max_iterations, "callback": count}
        z, failed = cg(matrix, b, start, M=preconditioner, **options)
        residual = float(np.linalg.norm(b - matrix @ z)) / max(size, np.finfo(float).tiny)
        return z, steps, residual, tolerance is None or not failed
