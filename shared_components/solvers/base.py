"""What all prepared solvers share: the scaling by lambda, the null space, and the check of the numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .methods import Method, Statistics, judge, refuse_nonfinite
from .system import System, unpack


class Solver(ABC):
    """A system made ready, to be solved for any number of right-hand sides, as the backward pass needs it.

    Constants v are in the null space of A where M(x) v = 0 for all x, that is where mean(M) v = 0, as all M(x) are
    positive semi-definite. ``directions`` and ``strengths`` are the eigenvectors and eigenvalues of mean(M) / lambda.
    Right-hand sides lose what lies in the null space, and solutions have nothing there.
    """

    def __init__(self, system: System, method: Method) -> None:
        scaled = system.scaled()
        self.method = method
        self.lam = system.lam.detach().view(-1, *(1,) * (system.blocks.ndim - 1))
        self.blocks, self.weights, self.shape = scaled.blocks, scaled.weights, scaled.shape
        self.mean = unpack(self.blocks.flatten(2).mean(2))
        if method.tolerance is not None:
            if not bool(((system.lam > 0) & torch.isfinite(system.lam)).all()):
                raise ValueError(f"lambda must be positive and finite, got {system.lam.tolist()}")
            refuse_nonfinite(self.mean, "the data term")
        strengths, self.directions = torch.linalg.eigh(self.mean)
        # nothing below rounding is data: there A is as good as singular, and dividing by it would amplify noise
        limit = torch.finfo(strengths.dtype).eps * (strengths[:, -1:].clamp_min(0) + max(self.weights))
        self.strengths = torch.where(strengths > limit, strengths, 0)
        null = self.directions * (self.strengths == 0).to(strengths).unsqueeze(1)
        self.null = null @ self.directions.mT

    def __call__(self, b: Tensor, start: Tensor | None = None) -> tuple[Tensor, Statistics]:
        """Return z (B, D, *spatial) and what it took, or raise or warn where the method says so."""
        z, statistics = self.run(b.detach(), None if start is None else start.detach())
        judge(statistics, self.method)
        return z, statistics

    def run(self, b: Tensor, start: Tensor | None) -> tuple[Tensor, Statistics]:
        """Return the same without judgement."""
        with torch.autocast(b.device.type, enabled=False):  # also where the backward pass runs under autocast
            return self.solve(b / self.lam, start)

    @abstractmethod
    def solve(self, b: Tensor, start: Tensor | None) -> tuple[Tensor, Statistics]:
        """Solve the system divided by lambda."""

    def project(self, x: Tensor) -> Tensor:
        """Return x without its part in the null space."""
        mean = x.flatten(2).mean(2, keepdim=True)
        return x - (self.null @ mean).view(*x.shape[:2], *(1,) * len(self.shape))
