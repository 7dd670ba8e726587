r"""The exponential of a stationary velocity by scaling and squaring."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..warp import compose


def exponential(dvf: Tensor, squarings: int = 7, recompute: bool = True) -> Tensor:
    """Return the ddf of exp(v): the map that v reaches in unit time from the identity.

    exp(v) = exp(v / 2^n) o ... (Arsigny et al. 2006): the first factor is taken as x + v / 2^n and composed with itself
    n times. The error falls by half with every squaring, down to that of the interpolation; outside the grid the value
    at the border goes on.

    Args:
        dvf: (B, D, *spatial) voxels per unit of time.
        squarings: n; v / 2^n should stay below half a voxel.
        recompute: keep one field a squaring for the gradient and sample again, instead of keeping what sampling needs.

    Returns:
        (B, D, *spatial) voxels, differentiable.

    Raises:
        ValueError: for a negative number of squarings.
    """
    if squarings < 0:
        raise ValueError(f"squarings must not be negative, got {squarings}")
    ddf = dvf.to(torch.promote_types(dvf.dtype, torch.float32)) / 2**squarings
    keep = not (recompute and torch.is_grad_enabled() and dvf.requires_grad)
    for _ in range(squarings):
        ddf = compose(ddf, ddf) if keep else checkpoint(compose, ddf, ddf, use_reentrant=False)
    return ddf.to(dvf.dtype)
