r"""Conjugate gradients with a geometric V-cycle as preconditioner, matrix-free.

On each grid the smoother is a Chebyshev polynomial of the block Jacobi iteration: with A = D - N, D the D x D block of
each voxel and N its neighbours, D^-1 A has eigenvalues in [0, 2], whatever the data, so nothing has to be estimated.
The coarse system is the finite-volume one of the same energy: data blocks are summed, links are face over distance.
Corrections are interpolated linearly and residuals restricted by the transpose, so that the cycle is symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .axes import along_axes
from .base import Solver
from .cg import conjugate_gradients
from .grids import Grid, add_neighbours, pyramid
from .methods import Multigrid, Statistics
from .system import System, inverse, laplacian, multiply, packing, unpack

LOWEST = 0.5  # of the eigenvalues of D^-1 A that smoothing damps; those below are left to the coarser grid


@dataclass(frozen=True)
class Level:
    """One grid with its data: D and its inverse, packed (B, K, *spatial)."""

    grid: Grid
    diagonal: Tensor
    inverse: Tensor


def block_diagonal(blocks: Tensor, degree: Tensor) -> Tensor:
    """Return the D x D block of each voxel in A: data plus the sum of its links (1, *spatial), packed."""
    diagonal = blocks.clone()
    for k, (i, j) in enumerate(packing(blocks.ndim - 2)):
        if i == j:
            diagonal[:, k] += degree
    return diagonal


def dense_inverse(blocks: Tensor, grid: Grid) -> Tensor:
    """Return the (pseudo-)inverse (B, D n, D n) of A on a grid of few voxels, computed in float64."""
    batch, ndim, n = len(blocks), blocks.ndim - 2, blocks[0, 0].numel()
    diagonal = unpack(block_diagonal(blocks.double(), grid.degree).flatten(2).transpose(1, 2).flatten(0, 1))
    matrix = diagonal.new_zeros(batch, ndim, n, ndim, n)
    voxel = torch.arange(n, device=blocks.device)
    matrix[:, :, voxel, :, voxel] = diagonal.view(batch, n, ndim, ndim).transpose(0, 1)
    units = torch.eye(n, dtype=torch.float64, device=blocks.device).view(n, 1, *blocks.shape[2:])
    around = add_neighbours(torch.zeros_like(units), units, grid.links).view(n, n)
    for axis in range(ndim):
        matrix[:, axis, :, axis, :] -= around
    return torch.linalg.pinv(matrix.view(batch, ndim * n, ndim * n), hermitian=True).to(blocks.dtype)


class MultigridSolver(Solver):
    """Prepared for ``Multigrid``: its levels, and the inverse on the coarsest grid."""

    def __init__(self, system: System, method: Multigrid) -> None:
        super().__init__(system, method)
        blocks = self.blocks
        *grids, last = pyramid(self.shape, self.weights, method.smallest, blocks.dtype, blocks.device)
        self.levels: list[Level] = []
        for grid in grids:
            diagonal = block_diagonal(blocks, grid.degree)
            self.levels.append(Level(grid, diagonal, inverse(diagonal)))
            blocks = along_axes(blocks, grid.sums)
        self.coarsest = dense_inverse(blocks, last)

    def solve(self, b: Tensor, start: Tensor | None) -> tuple[Tensor, Statistics]:
        """Solve the system divided by lambda."""
        z, statistics = conjugate_gradients(
            self.project(b),
            lambda z, r: multiply(self.blocks, z).add_(laplacian(z, self.weights)),
            self.cycle,
            self.method,
            start,
        )
        return self.project(z), statistics

    def cycle(self, b: Tensor, depth: int = 0) -> Tensor:
        """Return one V-cycle's approximation of A^-1 b, from the grid ``depth`` on."""
        if depth == len(self.levels):
            return (self.coarsest @ b.flatten(1).unsqueeze(2)).view_as(b)
        level = self.levels[depth]
        x = self._smooth(level, b, None)
        residual = add_neighbours(b.clone(), x, level.grid.links).sub_(multiply(level.diagonal, x))
        x += along_axes(self.cycle(along_axes(residual, level.grid.down), depth + 1), level.grid.up)
        return self._smooth(level, b, x)

    def _smooth(self, level: Level, b: Tensor, x: Tensor | None) -> Tensor:
        """Return x after Chebyshev sweeps on the eigenvalues of D^-1 A in [LOWEST, 2], None standing for zero."""
        centre, half = (2 + LOWEST) / 2, (2 - LOWEST) / 2
        rho, step = half / centre, None
        for _ in range(self.method.sweeps):
            if x is None:
                change = multiply(level.inverse, b)
            else:
                change = multiply(level.inverse, add_neighbours(b.clone(), x, level.grid.links)).sub_(x)
            if step is None:
                step = change.mul_(1 / centre)
            else:
                after = 1 / (2 * centre / half - rho)
                step = step.mul_(after * rho).add_(change, alpha=2 * after / half)
                rho = after
            x = step.clone() if x is None else x + step
        return x
