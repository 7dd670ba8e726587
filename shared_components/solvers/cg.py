"""Preconditioned conjugate gradients on a batch: every pair has its own step lengths and its own end."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .methods import Method, Statistics, refuse_nonfinite

Preconditioner = Callable[[Tensor], Tensor]
Operator = Callable[[Tensor, Tensor], Tensor]


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products (B,) of two batches."""
    return torch.bmm(a.reshape(len(a), 1, -1), b.reshape(len(b), -1, 1)).view(-1)


def conjugate_gradients(
    b: Tensor, operator: Operator, precondition: Preconditioner, method: Method, start: Tensor | None = None
) -> tuple[Tensor, Statistics]:
    """Solve A x = b for symmetric positive semi-definite A and b in its range.

    Args:
        b: (B, D, *spatial).
        operator: ``operator(z, r)`` returns A z; where ``r`` is given not None, z = precondition(r) is known, so that
            a preconditioner that is nearly A saves most of the product.
        precondition: a symmetric positive definite approximation of the inverse of A.
        method: tolerance and number of iterations.
        start: first guess; default zero.

    Returns:
        x, and what it took. A pair that has converged is left alone while others go on, so that it does not matter
        with which others it is solved.
    """
    checked = method.tolerance is not None
    x = torch.zeros_like(b) if start is None else start.clone()
    r = b.clone() if start is None else b - operator(x, None)
    size = dot(b, b).sqrt()
    if checked:
        refuse_nonfinite(size.unsqueeze(1), "the right-hand side")
    # without tolerance: what is exact to the last digit stops moving, or rounding would grow from there on
    bound = size * (method.tolerance or torch.finfo(b.dtype).eps)
    norm = dot(r, r).sqrt()
    active = norm > bound
    iterations = torch.zeros_like(active, dtype=torch.int64)
    p = v = gamma = None
    for _ in range(method.max_iterations):
        if checked and not bool(active.any()):
            break
        z = precondition(r)
        s = operator(z, r)
        before, gamma = gamma, dot(r, z)
        if before is None:
            p, v = z.clone(), s.clone()
        else:
            beta = _column(torch.where(active, gamma / before, 0), b)
            p, v = torch.addcmul(z, beta, p, out=p), torch.addcmul(s, beta, v, out=v)
        curvature = dot(p, v)
        active = active & (curvature > 0)
        alpha = _column(torch.where(active, gamma / curvature, 0), b)
        x.addcmul_(alpha, p)
        r.addcmul_(alpha, v, value=-1)
        iterations += active
        norm = dot(r, r).sqrt()
        active = active & (norm > bound)
    converged = norm <= bound if checked else torch.ones_like(active)
    return x, Statistics(method.name, iterations, norm / size.clamp_min(torch.finfo(b.dtype).tiny), converged)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (like.ndim - 1))
