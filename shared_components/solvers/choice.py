r"""Which method ``Auto`` takes: the spectral solver where the data term is nearly constant beside lambda L.

Conjugate gradients need about sqrt(kappa) iterations in proportion, kappa the condition number that the preconditioner
leaves. The spectral one leaves how much M differs from its mean, judged where L helps least, on the longest wave of the
grid, of eigenvalue mu:

    kappa = (max_x tr M + lambda mu) / (min_x s(M) + lambda mu),   mu = sum_axes w (pi / n)^2

with s(M) <= smallest eigenvalue of M(x). Counted for a residual of 1e-5 on 23 x 31 x 32, lambda from 0.03 to 100, with
features smooth, rough, vanishing in most of the grid, label-like, of one channel, and with sharp edges of height 6: up
to kappa = 20 the spectral solver needed 3 to 11 iterations, above that 9 to 400 (about 1 to 5 times sqrt(kappa)),
multigrid 3 to 13 everywhere. An iteration of multigrid costs as much as two (46 x 62 x 64, one CPU thread) to six
(23 x 31 x 32) spectral ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .methods import Auto, Method, Multigrid, Spectral, refuse_nonfinite
from .system import System


def weakest(blocks: Tensor) -> Tensor:
    """Return a lower bound of the smallest eigenvalue of packed blocks (B, K, *spatial), (B, *spatial).

    det / (tr / (D - 1))^(D - 1): the other eigenvalues' product is at most that of as many equal ones of their sum.
    """
    if blocks.shape[1] == 3:
        a, b, d = blocks.unbind(1)
        return (a * d - b * b) / (a + d).clamp_min(torch.finfo(a.dtype).tiny)
    a, b, c, d, e, f = blocks.unbind(1)
    det = a * (d * f - e * e) + b * (c * e - b * f) + c * (b * e - c * d)
    return det / (a + d + f).div(2).square().clamp_min(torch.finfo(a.dtype).tiny)


def contrast(system: System) -> Tensor:
    """Return kappa of each pair (B,); see above."""
    blocks, lam = system.blocks.detach(), system.lam.detach()
    ndim = len(system.shape)
    trace = blocks[:, [0, 2]].sum(1) if ndim == 2 else blocks[:, [0, 3, 5]].sum(1)
    wave = lam * sum(w * (torch.pi / n) ** 2 for w, n in zip(system.weights, system.shape, strict=True))
    lowest = weakest(blocks).flatten(1).amin(1).clamp_min(0)
    return (trace.flatten(1).amax(1) + wave) / (lowest + wave)


def choose(system: System, method: Auto) -> Method:
    """Return Spectral if kappa is at most ``method.contrast`` for all pairs, or while nothing may be checked."""
    numbers = (method.tolerance, method.max_iterations, method.on_failure)
    if method.tolerance is None:
        return Spectral(*numbers)
    found = contrast(system)
    refuse_nonfinite(found.unsqueeze(1), "the data term")
    return Spectral(*numbers) if bool((found <= method.contrast).all()) else Multigrid(*numbers)
