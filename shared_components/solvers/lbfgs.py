"""L-BFGS with Armijo line search for many small problems at once, each sample for itself.

The "plain" method of Kanter & Lellmann (Flexible Meta-Learning, MIDL 2022); two-loop recursion and Armijo's rule as in
Nocedal & Wright (Numerical Optimization, alg. 7.4 and 3.1). All unfinished samples are evaluated together, one trial
point each, whether it begins an iteration or halves a step: nobody waits for another's line search, and nothing is
evaluated after its end. A round waits for the device once, to see who is left.

Two facts keep a round short. Nothing of a line search is stored: a failed trial leaves point and memory as they are, so
the next round finds the same direction again. And pairs (s, y) are kept divided by sqrt(y.s): rho = 1 / y.s becomes 1,
and an empty entry, all zero, vanishes from the recursion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``objective(x, which)``: points (b, n) of the samples ``which`` (b,), int64, to values (b,) and gradients (b, n)."""


@dataclass(frozen=True)
class LbfgsResult:
    """Where each sample ended.

    Attributes:
        x: the points, (B, n).
        value: of the objective there, (B,).
        gradient: there, (B, n).
        iterations: accepted steps, (B,) int64.
        evaluations: of the objective, the start's included, (B,) int64.
    """

    x: Tensor
    value: Tensor
    gradient: Tensor
    iterations: Tensor
    evaluations: Tensor


class _Samples(NamedTuple):
    """The b unfinished samples; axis -2 is theirs everywhere."""

    which: Tensor  # (b, 1), among the B
    x: Tensor  # (b, n)
    value: Tensor  # (b, 1)
    gradient: Tensor  # (b, n)
    scale: Tensor  # (b, 1), H0 = scale I
    length: Tensor  # (b, 1), of the next trial
    done: Tensor  # (b, 1), accepted steps
    pairs: Tensor  # (2, memory, b, n): s and y, newest first


@dataclass(frozen=True)
class Lbfgs:
    """L-BFGS; the defaults are the paper's.

    A sample ends when its line search fails (the paper's "step 0": point and memory stay, so every further iteration
    would fail likewise), when the step is too short to change the point, at a gradient of exactly zero, after
    ``iterations``, or by ``tolerance``. A start whose value or gradient is not finite is returned as it is.

    Attributes:
        iterations: at most, per sample.
        memory: pairs kept for the inverse Hessian; only pairs of positive curvature, y.s > 0, are.
        armijo: c of the sufficient decrease f(x + t d) <= f(x) + c t g.d.
        halvings: trials of a line search, t = 1, 1/2, ..., 2^(1 - halvings). One that is not finite has failed.
        tolerance: a sample ends after a step that lowered f by less than this part of |f|. 0: never, as in the paper.
        scaled: take H0 = (s.y / y.y) I of the newest pair instead of the paper's H0 = I / |g(start)|, which stays for
            the whole run. Converges faster where the curvature changes along the way.
    """

    iterations: int = 30
    memory: int = 5
    armijo: float = 1e-4
    halvings: int = 10
    tolerance: float = 0.0
    scaled: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.memory < 1 or self.halvings < 1:
            raise ValueError(f"iterations must be >= 0, memory and halvings >= 1, got {self}")
        if not 0 < self.armijo < 1 or not self.tolerance >= 0:
            raise ValueError(f"armijo must lie between 0 and 1 and tolerance be >= 0, got {self}")

    @torch.no_grad()
    def minimise(self, objective: Objective, start: Tensor) -> LbfgsResult:
        """Minimise each sample's objective from its start; no gradients flow through the result.

        Args:
            objective: see ``Objective``; called with no more than the unfinished samples, once a round. It runs without
                autograd: one that differentiates needs ``torch.enable_grad`` inside.
            start: points (B, n), floating.

        Raises:
            ValueError: ``start`` or what ``objective`` returns has the wrong shape.
        """
        if start.ndim != 2 or not start.is_floating_point():
            raise ValueError(f"start must be floating, (B, n), got {start.dtype}, {tuple(start.shape)}")
        which = torch.arange(len(start), device=start.device)[:, None]
        value, gradient = _evaluate(objective, start, which)
        norm = gradient.square().sum(1, keepdim=True).sqrt()
        going = torch.isfinite(value) & torch.isfinite(norm) & (norm > 0) & (self.iterations > 0)
        none, pairs = torch.zeros_like(which), start.new_zeros(2, self.memory, *start.shape)
        at = _Samples(which, start, value, gradient, 1 / norm, torch.ones_like(norm), none, pairs)
        found = LbfgsResult(start.clone(), value[:, 0].clone(), gradient.clone(), none[:, 0].clone(), none[:, 0] + 1)
        evaluations = 1
        while True:
            left = going[:, 0].nonzero()[:, 0]
            if len(left) < len(going):
                _write(found, at, evaluations)
                at = _Samples(*(part.index_select(-2, left) for part in at))
            if not len(left):
                return found
            at, going = self._round(objective, at)
            evaluations += 1

    def _round(self, objective: Objective, at: _Samples) -> tuple[_Samples, Tensor]:
        """Try one point of every sample; return the samples after it and which of them go on."""
        direction, slope, pairs = self._direction(at)
        x = at.x + at.length * direction
        value, gradient = _evaluate(objective, x, at.which)
        moved = (x != at.x).any(1, keepdim=True)
        fits = moved & (value <= at.value + self.armijo * at.length * slope)
        fits = fits & torch.isfinite(value + gradient.sum(1, keepdim=True))
        failed = ~fits & (at.length <= 2.0 ** (1 - self.halvings))
        s, y = x - at.x, gradient - at.gradient
        curvature = (s * y).sum(1, keepdim=True)
        newest = torch.stack((s, y))[:, None] * curvature.rsqrt()
        pairs = torch.where(fits & (curvature > 0), torch.cat((newest, pairs[:, :-1]), 1), pairs)
        done = at.done + fits
        over = (gradient == 0).all(1, keepdim=True) | (done >= self.iterations)
        over = over | (at.value - value < self.tolerance * at.value.abs())
        x, gradient = torch.where(fits, x, at.x), torch.where(fits, gradient, at.gradient)
        length, value = torch.where(fits, 1.0, at.length / 2), torch.where(fits, value, at.value)
        after = _Samples(at.which, x, value, gradient, at.scale, length, done, pairs)
        return after, moved & ~failed & ~(fits & over)

    def _direction(self, at: _Samples) -> tuple[Tensor, Tensor, Tensor]:
        """Return -H g, its slope g.d and the memory, emptied where -H g does not descend: there -H0 g is taken."""
        s, y = (half.unbind(0) for half in at.pairs)
        q, alphas = at.gradient, []
        for k in range(self.memory):
            alphas.append((s[k] * q).sum(1, keepdim=True))
            q = torch.addcmul(q, alphas[k], y[k], value=-1)
        scale = at.scale
        if self.scaled:
            square = y[0].square().sum(1, keepdim=True)  # y.y / y.s
            scale = torch.where(square > 0, 1 / square, scale)
        q = q * scale
        for k in reversed(range(self.memory)):
            q = torch.addcmul(q, alphas[k] - (y[k] * q).sum(1, keepdim=True), s[k])
        slope = -(at.gradient * q).sum(1, keepdim=True)
        descends = torch.isfinite(slope) & (slope < 0)
        q = torch.where(descends, q, at.scale * at.gradient)
        slope = -(at.gradient * q).sum(1, keepdim=True)
        return -q, slope, at.pairs.masked_fill(~descends, 0)


def _evaluate(objective: Objective, x: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (b, 1) and gradients (b, n) in the precision of x."""
    value, gradient = objective(x, which[:, 0])
    if value.shape != x.shape[:1] or gradient.shape != x.shape:
        shapes = f"{tuple(value.shape)} and {tuple(gradient.shape)}"
        raise ValueError(f"objective must return (b,) and (b, n) for x of shape {tuple(x.shape)}, got {shapes}")
    return value.to(x)[:, None], gradient.to(x)


def _write(found: LbfgsResult, at: _Samples, evaluations: int) -> None:
    """Note down where all samples are: finished ones for good, the others will be overwritten."""
    which = at.which[:, 0]
    found.x[which], found.gradient[which] = at.x, at.gradient
    found.value[which], found.iterations[which] = at.value[:, 0], at.done[:, 0]
    found.evaluations[which] = evaluations
