"""Solutions in float64 from iterations in float32: residual and sum in double precision, corrections in single."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .base import Solver
from .cg import dot
from .methods import Method, Statistics, refuse_nonfinite
from .system import System, laplacian, multiply

SAFETY = 0.5  # a correction aims at so much of what is needed, as its own residual is known to float32 only
COARSEST, FINEST = 0.1, 1e-5  # relative residuals that a correction may be asked for
PROGRESS = 0.5  # corrections go on while the residual falls at least by this


class MixedSolver(Solver):
    """Prepared for a method with ``mixed``: the float32 solver within, and the float64 one should it ever be needed."""

    def __init__(self, system: System, method: Method, kind: type[Solver]) -> None:
        super().__init__(system, method)
        self.double = lambda: kind(system, method)
        scaled = System(self.blocks.float(), torch.ones_like(system.lam, dtype=torch.float32), self.weights)
        self.single = kind(scaled, replace(method, on_failure="ignore"))

    def solve(self, b: Tensor, start: Tensor | None) -> tuple[Tensor, Statistics]:
        """Solve the system divided by lambda."""
        b, tolerance = self.project(b), self.method.tolerance
        z = torch.zeros_like(b) if start is None else start
        r = b if start is None else self._residual(b, z)
        size, norm = dot(b, b).sqrt(), dot(r, r).sqrt()
        refuse_nonfinite(size.unsqueeze(1), "the right-hand side")
        iterations = torch.zeros(len(b), dtype=torch.int64, device=b.device)
        while bool((norm > tolerance * size).any()):
            need = torch.where(norm > tolerance * size, SAFETY * tolerance * size / norm, 1)
            aim = min(max(float(need.min()), FINEST), COARSEST)
            self.single.method = replace(self.single.method, tolerance=aim)
            scale = torch.where(norm > tolerance * size, norm, 0).view(-1, *(1,) * (b.ndim - 1))
            right = torch.where(scale > 0, r / scale, 0).float()
            change, facts = self.single.solve(right, None)
            z, before = z + change.double() * scale, norm
            r = self._residual(b, z)
            norm, iterations = dot(r, r).sqrt(), iterations + facts.iterations
            if bool(((norm > tolerance * size) & (norm > PROGRESS * before)).any()):
                return self._finish(b, z, iterations)
        residual = norm / size.clamp_min(torch.finfo(b.dtype).tiny)
        return self.project(z), Statistics(self.method.name, iterations, residual, norm <= tolerance * size)

    def _residual(self, b: Tensor, z: Tensor) -> Tensor:
        return b - multiply(self.blocks, z).add_(laplacian(z, self.weights))

    def _finish(self, b: Tensor, z: Tensor, iterations: Tensor) -> tuple[Tensor, Statistics]:
        """Go on in float64: what float32 cannot see, such as a data term 1e-7 of lambda, or too tight a tolerance."""
        z, facts = self.double().solve(b, z)
        return z, replace(facts, iterations=facts.iterations + iterations)
