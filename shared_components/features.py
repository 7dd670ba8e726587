r"""Features that look alike in images of different kinds.

MIND-SSC (Heinrich et al. 2013) describes a voxel by how much the patches around it differ from each other, a pattern
that stays when bright and dark change places. Images are (B, 1, *spatial), features (B, C, *grid).
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Offset = tuple[int, ...]


def ssc_pairs(ndim: int) -> list[tuple[Offset, Offset]]:
    """Return the pairs of face neighbours that are not opposite to each other: 12 in 3-D, 4 in 2-D.

    Example:
        >>> len(ssc_pairs(3)), ssc_pairs(2)[0]
        (12, ((-1, 0), (0, -1)))
    """
    neighbours = [tuple(sign * (axis == k) for k in range(ndim)) for axis in range(ndim) for sign in (-1, 1)]
    pairs = itertools.combinations(neighbours, 2)
    return [(a, b) for a, b in pairs if sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) == 2]


def mind_ssc(image: Tensor, radius: int = 2, dilation: int = 2) -> Tensor:
    """Return the self-similarity context, in (0, 1], with maximum 1 over the channels at every voxel.

    D_c = mean over (2 radius + 1)^D voxels of (I(x + o_a) - I(x + o_b))^2, D -= min_c D, V = mean_c D, kept within
    1e-3 and 1e3 times its mean over the image, and exp(-D / V). Unchanged by I -> a I + b for any a other than 0.

    Args:
        image: (B, 1, *spatial).
        radius: of the patches, voxels.
        dilation: distance of the neighbours, voxels.

    Returns:
        (B, 12, *spatial) in 3-D, (B, 4, *spatial) in 2-D.
    """
    ndim = image.ndim - 2
    # without an offset of the intensities float32 keeps its digits in the differences
    image = image - image.mean(tuple(range(1, image.ndim)), keepdim=True)
    padded = F.pad(image, (dilation,) * 2 * ndim, mode="replicate")

    def seen(offset: Offset) -> Tensor:
        starts = (dilation * (1 + step) for step in offset)
        return padded[(..., *(slice(start, start + n) for start, n in zip(starts, image.shape[2:], strict=True)))]

    pairs = ssc_pairs(ndim)
    views = {offset: seen(offset) for pair in pairs for offset in pair}
    distance = torch.cat([_box_mean((views[a] - views[b]).square(), radius) for a, b in pairs], 1)
    distance = distance - distance.amin(1, keepdim=True)
    level = distance.mean(1, keepdim=True)
    typical = level.mean(tuple(range(1, level.ndim)), keepdim=True)
    level = level.clamp(1e-3 * typical, 1e3 * typical)
    return torch.exp(-distance / level.clamp_min(1e-18))  # its square, in the gradient, is still a float32


def _box_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over (2 radius + 1)^D voxels, the border repeated; exactly constant where x is, never negative."""
    ndim, width = x.ndim - 2, 2 * radius + 1
    x = F.pad(x, (radius,) * 2 * ndim, mode="replicate")
    for axis in range(2, x.ndim):
        n = x.shape[axis] - 2 * radius
        x = sum(x.narrow(axis, k, n) for k in range(width)) * (1 / width)
    return x


def pool_to_grid(x: Tensor, factor: int) -> Tensor:
    """Return means over cells of ``factor``^D voxels, incomplete cells at the far ends too: ceil(n / factor) cells."""
    pool = F.avg_pool3d if x.ndim == 5 else F.avg_pool2d
    return x if factor == 1 else pool(x, factor, ceil_mode=True, count_include_pad=False)


class MindLoss(nn.Module):
    """Mean squared difference of the MIND-SSC of two images, for registration across modalities.

    Args:
        radius: of the patches, voxels.
        dilation: distance of the neighbours, voxels.
    """

    def __init__(self, radius: int = 2, dilation: int = 2) -> None:
        super().__init__()
        self.radius, self.dilation = radius, dilation

    def forward(self, fixed: Tensor, moved: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the scalar loss; ``mask`` (B, 1, *spatial) says which voxels count."""
        here, there = (mind_ssc(x, self.radius, self.dilation) for x in (fixed.float(), moved.float()))
        square = (here - there).square().mean(1, keepdim=True)
        if mask is None:
            return square.mean()
        return (mask * square).sum() / mask.sum().clamp_min(torch.finfo(square.dtype).eps)
