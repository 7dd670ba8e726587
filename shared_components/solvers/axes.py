"""Small dense matrices applied along each axis of a field: cosine transforms, and the ways between grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def kept(size: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Keep the last ``size`` results of a function of a grid's shape, dtype and device, as plain tensors.

    Not while torch compiles or exports: what it holds then are no numbers.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        cached = lru_cache(size)(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                return function(*args, **kwargs)
            with torch.inference_mode(False), torch.no_grad():
                return cached(*args, **kwargs)

        return call

    return decorate


def along_axes(x: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """Multiply (B, D, *spatial) by a matrix (out, n) along each spatial axis; None leaves an axis alone."""
    for axis, matrix in enumerate(matrices, start=2):
        if matrix is None:
            continue
        shape, n = x.shape, x.shape[axis]
        if axis == x.ndim - 1:
            x = x.reshape(-1, n) @ matrix.mT
        else:
            inner = shape[axis + 1 :].numel()
            x = x.reshape(-1, n, inner)
            x = torch.bmm(matrix.expand(len(x), -1, -1), x)
        x = x.reshape(*shape[:axis], len(matrix), *shape[axis + 1 :])
    return x


@kept(64)
def cosines(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the eigenvectors and eigenvalues of the Laplacian of a line of n: rows of the orthonormal DCT-II matrix.

    Returns:
        (n, n), and 2 - 2 cos(pi k / n), (n,).
    """
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(torch.pi / n * torch.outer(k, k + 0.5)) * (2 / n) ** 0.5
    matrix[0] *= 0.5**0.5
    values = 4 * torch.sin(torch.pi / (2 * n) * k).square()
    return matrix.to(device, dtype), values.to(device, dtype)
