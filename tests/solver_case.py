"""Systems for the tests of the solvers, and their dense matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shared_components.solvers import System, normal_equations


def features(
    shape: Sequence[int], kind: str = "rough", batch: int = 2, channels: int = 3, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients J (B, C, D, *shape), residual r (B, C, *shape) and displacement u (B, D, *shape), float64.

    "rough": independent numbers, J of 0.3; "zero": J = 0; "vanishing": J = 0 but in a corner; "one axis": gradients
    along the first axis only, so that the data leave all other components free.
    """
    generator, ndim = torch.Generator().manual_seed(seed), len(shape)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, *shape, generator=generator, dtype=torch.float64)

    jacobian = 0.3 * draw(batch, channels, ndim)
    if kind == "zero":
        jacobian.zero_()
    elif kind == "vanishing":
        for axis, n in enumerate(shape, start=3):
            jacobian.narrow(axis, (n + 1) // 2, n // 2).zero_()
    elif kind == "one axis":
        jacobian[:, :, 1:] = 0
    return jacobian, draw(batch, channels), draw(batch, ndim)


def smooth_features(
    shape: Sequence[int], batch: int = 1, channels: int = 12, seed: int = 0, sigma: float = 2.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Like ``features``, of smooth random features such as descriptors in [0, 1]: sum_c |J_c|^2 about 0.1."""
    from scipy.ndimage import gaussian_filter

    noise = torch.randn(2, batch, channels, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ndim = len(shape)
    smooth = torch.from_numpy(gaussian_filter(noise.numpy(), (0, 0, 0, *(sigma,) * ndim)))
    fixed, moving = 0.5 + 0.15 * smooth / smooth.std()
    jacobian = torch.stack(torch.gradient(moving, dim=tuple(range(2, 2 + ndim))), 2)
    return jacobian, moving - fixed, torch.zeros(batch, ndim, *shape, dtype=torch.float64)


def make(
    shape: Sequence[int],
    lam: float | Tensor,
    kind: str = "rough",
    spacing: Sequence[float] | None = None,
    seed: int = 0,
) -> tuple[System, Tensor]:
    """The system and right-hand side of ``features``."""
    return normal_equations(*features(shape, kind, seed=seed), lam, spacing)


def dense(system: System) -> Tensor:
    """A as matrices (B, D n, D n), column by column from ``apply``."""
    ndim, n = len(system.shape), system.blocks[0, 0].numel()
    units = torch.eye(ndim * n, dtype=system.blocks.dtype).view(ndim * n, ndim, *system.shape)
    found = []
    for blocks, lam in zip(system.blocks, system.lam, strict=True):
        alone = System(blocks.expand(len(units), *blocks.shape), lam.expand(len(units)), system.weights)
        found.append(alone.apply(units).flatten(1).mT)
    return torch.stack(found)


def exact(system: System, b: Tensor) -> Tensor:
    """The solution of smallest norm from the dense matrix."""
    return (torch.linalg.pinv(dense(system), hermitian=True) @ b.flatten(1).unsqueeze(2)).view_as(b)


def distance(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    return ((a - b).norm() / b.norm()).item()
