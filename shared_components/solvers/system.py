r"""The linear system of diffusion-regularised Gauss-Newton steps, never assembled: A = M + lambda L.

M holds one symmetric D x D block a voxel, M(x) = sum_c J_c(x) J_c(x)^T for features with gradients J_c; L is the graph
Laplacian of the grid on each of the D components: number of neighbours on the diagonal, -1 for each of them, so that
constants lie in its null space (Neumann boundary). A is symmetric and positive semi-definite.

Blocks are packed, (B, D (D + 1) / 2, *spatial): the upper triangle row by row, in 3-D 00, 01, 02, 11, 12, 22.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def packing(ndim: int) -> tuple[tuple[int, int], ...]:
    """Return row and column of each entry of a packed symmetric block.

    Example:
        >>> packing(2)
        ((0, 0), (0, 1), (1, 1))
    """
    return tuple((i, j) for i in range(ndim) for j in range(i, ndim))


def gram(jacobian: Tensor) -> Tensor:
    """Return sum_c J_c J_c^T, packed, of feature gradients (B, C, D, *spatial)."""
    return torch.stack([(jacobian[:, :, i] * jacobian[:, :, j]).sum(1) for i, j in packing(jacobian.shape[2])], 1)


def multiply(blocks: Tensor, z: Tensor) -> Tensor:
    """Return the packed blocks times the vectors z (B, D, *spatial), voxel by voxel."""
    ndim = z.shape[1]
    place = {pair: k for k, pair in enumerate(packing(ndim))}
    rows = []
    for i in range(ndim):
        row = blocks[:, place[0, i]] * z[:, 0]
        for j in range(1, ndim):
            row = torch.addcmul(row, blocks[:, place[min(i, j), max(i, j)]], z[:, j])
        rows.append(row)
    return torch.stack(rows, 1)


def inverse(blocks: Tensor) -> Tensor:
    """Return the inverses of packed positive definite blocks, 2 x 2 or 3 x 3, packed."""
    if blocks.shape[1] == 3:
        a, b, d = blocks.unbind(1)
        return torch.stack([d, -b, a], 1) / (a * d - b * b).unsqueeze(1)
    a, b, c, d, e, f = blocks.unbind(1)
    first = (d * f - e * e, c * e - b * f, b * e - c * d)
    det = a * first[0] + b * first[1] + c * first[2]
    return torch.stack([*first, a * f - c * c, b * c - a * e, a * d - b * b], 1) / det.unsqueeze(1)


def unpack(packed: Tensor) -> Tensor:
    """Return the full matrices (B, D, D) of packed ones (B, D (D + 1) / 2)."""
    ndim = 2 if packed.shape[1] == 3 else 3
    place = {pair: k for k, pair in enumerate(packing(ndim))}
    rows = [[packed[:, place[min(i, j), max(i, j)]] for j in range(ndim)] for i in range(ndim)]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def laplacian(z: Tensor, weights: Sequence[float]) -> Tensor:
    """Return L z of (B, D, *spatial), the links along each axis weighted.

    From differences, so that a constant gives exactly zero and smooth fields keep their digits in float32.
    """
    out = torch.zeros_like(z)
    for axis, weight in enumerate(weights, start=2):
        n = z.shape[axis]
        step = torch.diff(z, dim=axis)
        out.narrow(axis, 1, n - 1).add_(step, alpha=weight)
        out.narrow(axis, 0, n - 1).sub_(step, alpha=weight)
    return out


@dataclass(frozen=True)
class System:
    """A = M + lambda L for a batch of pairs.

    Attributes:
        blocks: M, packed, (B, D (D + 1) / 2, *spatial), positive semi-definite.
        lam: lambda > 0, one a pair, (B,).
        weights: of the links along each axis, 1 / spacing^2.
    """

    blocks: Tensor
    lam: Tensor
    weights: tuple[float, ...]

    @classmethod
    def build(cls, blocks: Tensor, lam: float | Tensor, spacing: Sequence[float] | None = None) -> System:
        """Return the system of packed blocks.

        Args:
            blocks: (B, D (D + 1) / 2, *spatial); half precision becomes float32.
            lam: one for all pairs, or (B,).
            spacing: of the voxels along each axis, in any unit; default 1: differences count alike along all axes.

        Raises:
            ValueError: shapes that do not fit; lambda or a spacing that is not positive.
        """
        ndim = blocks.ndim - 2
        if ndim not in (2, 3) or blocks.shape[1] != ndim * (ndim + 1) // 2:
            raise ValueError(f"blocks must be (B, 3, X, Y) or (B, 6, X, Y, Z), got {tuple(blocks.shape)}")
        blocks = blocks.float() if blocks.dtype.itemsize < 4 else blocks
        if isinstance(lam, Tensor):
            lam = lam.to(blocks).expand(len(blocks))
        elif not 0 < lam < float("inf"):
            raise ValueError(f"lambda must be positive and finite, got {lam}")
        else:
            lam = blocks.new_full((len(blocks),), lam)
        spacing = (1.0,) * ndim if spacing is None else tuple(float(h) for h in spacing)
        if len(spacing) != ndim or min(spacing) <= 0:
            raise ValueError(f"spacing must be {ndim} positive numbers, got {spacing}")
        return cls(blocks, lam, tuple(h**-2 for h in spacing))

    @property
    def shape(self) -> tuple[int, ...]:
        """The grid."""
        return tuple(int(n) for n in self.blocks.shape[2:])  # while tracing, sizes are float32-prone tensors

    def smoothness(self, z: Tensor) -> Tensor:
        """Return lambda L z of (B, D, *spatial)."""
        return laplacian(z, self.weights) * self.lam.view(-1, *(1,) * (z.ndim - 1))

    def apply(self, z: Tensor) -> Tensor:
        """Return A z of (B, D, *spatial); differentiable."""
        return multiply(self.blocks, z) + self.smoothness(z)

    def scaled(self) -> System:
        """Return A / lambda, without gradients: what the solvers work on, so that no lambda appears in them."""
        blocks, lam = self.blocks.detach(), self.lam.detach()
        return System(blocks / lam.view(-1, *(1,) * (blocks.ndim - 1)), torch.ones_like(lam), self.weights)


def normal_equations(
    jacobian: Tensor, residual: Tensor, ddf: Tensor | None, lam: float | Tensor, spacing: Sequence[float] | None = None
) -> tuple[System, Tensor]:
    """Return A and b of the minimum over z of 1/2 sum_c |J_c z + r_c|^2 + lambda/2 |grad(u + z)|^2 (SUITS eq. 4-6).

    A = sum_c J_c J_c^T + lambda L, b = -sum_c r_c J_c - lambda L u; differentiable in all tensors.

    Args:
        jacobian: J, gradients of the moved features, (B, C, D, *spatial).
        residual: r = moved - fixed features, (B, C, *spatial).
        ddf: u, the displacement so far, (B, D, *spatial); None for zero.
        lam: lambda, one for all or (B,).
        spacing: of the voxels along each axis, see ``System.build``.

    Raises:
        ValueError: shapes that do not fit, lambda that is not positive.
    """
    spatial = tuple(residual.shape[2:])
    if jacobian.shape != (*residual.shape[:2], len(spatial), *spatial):
        raise ValueError(
            f"gradients (B, C, D, *spatial) and residual (B, C, *spatial) do not fit: {tuple(jacobian.shape)} and "
            f"{tuple(residual.shape)}"
        )
    jacobian, residual = (x.float() if x.dtype.itemsize < 4 else x for x in (jacobian, residual))
    with torch.autocast(jacobian.device.type, enabled=False):
        system = System.build(gram(jacobian), lam, spacing)
        b = -(residual.unsqueeze(2) * jacobian).sum(1)
        return system, b if ddf is None else b - system.smoothness(ddf.to(b.dtype))
