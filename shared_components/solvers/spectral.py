r"""Conjugate gradients with the exact inverse of P = lambda L + mean of M as preconditioner.

The cosines diagonalise L, a rotation of the components diagonalises the mean block, so P^-1 is a transform, a division
and a transform back. The transforms are small matrix products: fast on any device, for any length, in batches, and
nothing but products has to be exported. With r = P z known, A z = r + (M - mean) z: no Laplacian is ever computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .axes import along_axes, cosines
from .base import Solver
from .cg import conjugate_gradients
from .methods import Method, Statistics
from .system import System, laplacian, multiply, packing


class SpectralSolver(Solver):
    """Prepared for ``Spectral``. Works in components along the eigenvectors of the mean block."""

    def __init__(self, system: System, method: Method) -> None:
        super().__init__(system, method)
        dtype, device = self.blocks.dtype, self.blocks.device
        ndim = len(self.shape)
        lines = [cosines(n, dtype, device) for n in self.shape]
        self.transform = [matrix for matrix, _ in lines]
        self.back = [matrix.mT for matrix in self.transform]
        diagonal = torch.diag_embed(self.strengths)
        rotated = (_rotation(self.directions) @ self.blocks.flatten(2)).view_as(self.blocks)
        packed = torch.stack([diagonal[:, i, j] for i, j in packing(ndim)], 1)
        self.deviation = rotated - packed.view(*packed.shape, *(1,) * ndim)
        total = self.strengths.view(-1, ndim, *(1,) * ndim)
        for axis, (weight, (_, values)) in enumerate(zip(self.weights, lines, strict=True)):
            total = total + weight * values.view([-1 if a == axis else 1 for a in range(ndim)])
        self.scale = torch.where(total > 0, 1 / total, 0)
        # products in TF32 or bfloat16 make P^-1 inexact, which costs iterations, but r = P z would be wrong
        self.exact = dtype == torch.float64 or torch.get_float32_matmul_precision() == "highest"

    def solve(self, b: Tensor, start: Tensor | None) -> tuple[Tensor, Statistics]:
        """Solve the system divided by lambda."""
        turned = self._turn(self.directions.mT, self.project(b))
        start = None if start is None else self._turn(self.directions.mT, start)
        z, statistics = conjugate_gradients(turned, self._operator, self._precondition, self.method, start)
        return self.project(self._turn(self.directions, z)), statistics

    def _precondition(self, r: Tensor) -> Tensor:
        return along_axes(along_axes(r, self.transform).mul_(self.scale), self.back)

    def _operator(self, z: Tensor, r: Tensor | None) -> Tensor:
        """Return A z from r = P z, or from z alone."""
        if r is None or not self.exact:
            r = laplacian(z, self.weights) + z * self.strengths.view(*z.shape[:2], *(1,) * len(self.shape))
        return multiply(self.deviation, z).add_(r)

    @staticmethod
    def _turn(matrix: Tensor, x: Tensor) -> Tensor:
        return (matrix @ x.flatten(2)).view_as(x)


def _rotation(directions: Tensor) -> Tensor:
    """Return the matrices (B, K, K) that take packed blocks M to packed Q^T M Q, Q = directions (B, D, D)."""
    pairs = packing(directions.shape[-1])
    rows = []
    for i, j in pairs:
        outer = directions[:, :, i, None] * directions[:, None, :, j]
        rows.append(torch.stack([outer[:, k, m] + (outer[:, m, k] if k != m else 0) for k, m in pairs], -1))
    return torch.stack(rows, 1)
