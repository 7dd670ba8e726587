"""Grids of half the size: where their voxels lie, how strongly they are linked, and the ways there and back.

A coarse voxel is two fine ones along each coarsened axis, at an odd end one; its size and the position of its centre
are kept, so that any length is halved without padding, down to one voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .axes import kept


@dataclass(frozen=True)
class Line:
    """One axis of a grid: centres and sizes of its voxels, float64 (n,), in voxels of the finest grid."""

    centres: Tensor
    sizes: Tensor

    @classmethod
    def fine(cls, n: int) -> Line:
        """Return n voxels of size 1."""
        return cls(torch.arange(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.sizes)

    def pairs(self) -> Tensor:
        """Return the 0/1 matrix (ceil(n / 2), n) of which voxels each coarse one consists of."""
        n = len(self)
        matrix = torch.zeros((n + 1) // 2, n, dtype=torch.float64)
        matrix[torch.arange(n) // 2, torch.arange(n)] = 1
        return matrix

    def halved(self) -> Line:
        """Return the coarse axis."""
        pairs = self.pairs()
        sizes = pairs @ self.sizes
        return Line(pairs @ (self.sizes * self.centres) / sizes, sizes)

    def interpolation(self, coarse: Line) -> Tensor:
        """Return the matrix (n, len(coarse)) that interpolates linearly, constant beyond the outermost centres."""
        matrix = torch.zeros(len(self), len(coarse), dtype=torch.float64)
        rows = torch.arange(len(self))
        if len(coarse) == 1:
            return matrix + 1
        left = (torch.searchsorted(coarse.centres, self.centres, right=True) - 1).clamp(0, len(coarse) - 2)
        share = (self.centres - coarse.centres[left]) / (coarse.centres[left + 1] - coarse.centres[left])
        share = share.clamp(0, 1)
        matrix[rows, left] = 1 - share
        matrix[rows, left + 1] = share
        return matrix


def link_weights(lines: Sequence[Line], weights: Sequence[float]) -> list[Tensor]:
    """Return the weights of the links along each axis: face over distance, float64, broadcastable to (1, 1, *spatial).

    Axes along which nothing changes have length 1, so that an even grid needs one number.
    """
    found = []
    for axis, weight in enumerate(weights):
        total = torch.ones((1,) * (len(lines) + 2), dtype=torch.float64)
        for other, values in enumerate(lines):
            factors = weight / values.centres.diff() if other == axis else values.sizes
            if len(factors) and bool((factors == factors[0]).all()):
                factors = factors[:1]
            total = total * factors.view([-1 if a == other + 2 else 1 for a in range(total.ndim)])
        found.append(total)
    return found


def add_neighbours(out: Tensor, z: Tensor, links: Sequence[Tensor]) -> Tensor:
    """Add the weighted neighbours of z (B, D, *spatial) to ``out`` in place, and return it."""
    for axis, link in enumerate(links, start=2):
        n = z.shape[axis]
        out.narrow(axis, 0, n - 1).addcmul_(z.narrow(axis, 1, n - 1), link)
        out.narrow(axis, 1, n - 1).addcmul_(z.narrow(axis, 0, n - 1), link)
    return out


def strong_axes(lines: Sequence[Line], weights: Sequence[float], share: float = 0.3) -> list[bool]:
    """Return which axes to halve: those linked at least ``share`` times as strongly as the strongest.

    Smoothing acts along strong links only, so on voxels much longer along one axis that axis waits.
    """
    strengths = [
        weight / float(line.centres.diff().min()) ** 2 if len(line) > 1 else 0.0
        for line, weight in zip(lines, weights, strict=True)
    ]
    return [strength > 0 and strength >= share * max(strengths) for strength in strengths]


@dataclass(frozen=True)
class Grid:
    """What the geometry of one grid of a pyramid decides, whatever the data.

    Attributes:
        links: weights along each axis, see ``link_weights``.
        degree: their sum at each voxel, (1, *spatial).
        up: interpolation from the next coarser grid along each axis, None where it is the same; all None on the last.
        down: the transposes.
        sums: which voxels the coarser ones consist of.
    """

    links: list[Tensor]
    degree: Tensor
    up: list[Tensor | None]
    down: list[Tensor | None]
    sums: list[Tensor | None]


@kept(8)
def pyramid(
    shape: tuple[int, ...], weights: tuple[float, ...], smallest: int, dtype: torch.dtype, device: torch.device
) -> list[Grid]:
    """Return the grids, finest first, down to one of at most ``smallest`` voxels."""

    def local(parts: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if part is None else part.to(device, dtype) for part in parts]

    lines, grids = [Line.fine(n) for n in shape], []
    while True:
        links = link_weights(lines, weights)
        total = torch.zeros((1, 1, *map(len, lines)), dtype=torch.float64)
        add_neighbours(total, torch.ones_like(total), links)
        last = total.numel() <= smallest
        halve = [False] * len(shape) if last else strong_axes(lines, weights)
        coarse = [line.halved() if yes else line for line, yes in zip(lines, halve, strict=True)]
        up = [fine.interpolation(new) if new is not fine else None for fine, new in zip(lines, coarse, strict=True)]
        down = [None if way is None else way.mT for way in up]
        sums = [line.pairs() if yes else None for line, yes in zip(lines, halve, strict=True)]
        grids.append(Grid(local(links), total[0].to(device, dtype), local(up), local(down), local(sums)))
        if last:
            return grids
        lines = coarse
