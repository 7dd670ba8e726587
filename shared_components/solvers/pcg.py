"""Conjugate gradients with the inverse of each voxel's block as preconditioner."""

from __future__ import annotations

from torch import Tensor

from .base import Solver
from .cg import conjugate_gradients
from .grids import pyramid
from .methods import Method, Statistics
from .multigrid import block_diagonal
from .system import System, inverse, laplacian, multiply


class PcgSolver(Solver):
    """Prepared for ``Pcg``."""

    def __init__(self, system: System, method: Method) -> None:
        super().__init__(system, method)
        everything = self.blocks[0, 0].numel()  # no coarser grids
        (grid,) = pyramid(self.shape, self.weights, everything, self.blocks.dtype, self.blocks.device)
        self.inverse = inverse(block_diagonal(self.blocks, grid.degree))

    def solve(self, b: Tensor, start: Tensor | None) -> tuple[Tensor, Statistics]:
        """Solve the system divided by lambda."""
        z, statistics = conjugate_gradients(
            self.project(b),
            lambda z, r: multiply(self.blocks, z).add_(laplacian(z, self.weights)),
            lambda r: multiply(self.inverse, r),
            self.method,
            start,
        )
        return self.project(z), statistics
