"""Signs of error in a field, lengths in mm, that need no truth.

| sign | length |
|---|---|
| inverse | of phi_back(phi(x)) - x, where phi_back is the field of the pair in the other order |
| flips | root mean square over mirror images: between the field of the mirrored pair, mirrored back, and the field |
| sequence | root mean square over the last third of the stages: between the field then and in the end |
| motion | of the field itself: who moves far may err far |
| mismatch | by which edges would have to move to undo the difference of the images that is left |
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..warp import compose, warp_image

CONTRADICTIONS = ("inverse", "flips", "sequence")
SIGNS = (*CONTRADICTIONS, "motion", "mismatch")


def flip_axes(ndim: int, count: int) -> list[tuple[int, ...]]:
    """Return ``count`` ways to mirror a picture, sets of axes: single axes first, then two at once, and so on.

    Example:
        >>> flip_axes(2, 3)
        [(0,), (1,), (0, 1)]
    """
    sizes = range(1, ndim + 1)
    return [axes for size in sizes for axes in itertools.combinations(range(ndim), size)][:count]


def flip_back(ddf: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the field (B, D, *spatial) of a pair from that of the pair mirrored along ``axes``."""
    signs = torch.ones(ddf.shape[1], dtype=ddf.dtype, device=ddf.device)
    signs[list(axes)] = -1
    return ddf.flip([axis + 2 for axis in axes]) * signs.view(-1, *(1,) * (ddf.ndim - 2))


@torch.no_grad()
def find_signs(
    network: Callable[..., Any],
    image: Tensor,
    spacing_mm: Tensor | Sequence[float],
    flips: Sequence[Sequence[int]] = ((0,),),
    sequence: bool = False,
    radius: int = 2,
) -> dict[str, Tensor]:
    """Return the signs, each (B, *spatial) in mm, see ``SIGNS``; all passes of the network in one batch.

    Args:
        network: ``network(image) -> ddf`` in evaluation mode; with ``return_stages=True`` a dict with "ddf", the field
            after each stage, where ``sequence`` is asked for.
        image: (B, 2, *spatial), channel 0 fixed, 1 moving.
        spacing_mm: (D,) voxel size.
        flips: axes to mirror both images along, a pass each; none leaves this sign out. A network that knows up from
            down should be asked about left and right alone.
        sequence: whether to look at the stages.
        radius: voxels; squares are averaged over windows of 2 radius + 1.
    """
    inputs = [image, image.flip(1), *(image.flip([axis + 2 for axis in axes]) for axes in flips)]
    stages = network(torch.cat(inputs), return_stages=True)["ddf"] if sequence else [network(torch.cat(inputs))]
    ddf, back, *mirrored = stages[-1].float().split(len(image))
    ndim = image.ndim - 2
    spacing = torch.as_tensor(spacing_mm, dtype=torch.float32, device=image.device).flatten()[-ndim:]
    step = spacing.view(-1, *(1,) * ndim)
    found = {"inverse": _length([compose(back, ddf)], step, radius)}
    if flips:
        others = [flip_back(field, axes) - ddf for field, axes in zip(mirrored, flips, strict=True)]
        found["flips"] = _length(others, step, radius)
    if len(stages) > 1:
        last = stages[-1 - max(1, len(stages) // 3) : -1]
        found["sequence"] = _length([stage[: len(image)].float() - ddf for stage in last], step, radius)
    return found | {"motion": _length([ddf], step, radius), "mismatch": mismatch(image, ddf, step, radius)}


def _length(fields: Sequence[Tensor], step: Tensor, radius: int) -> Tensor:
    """Root mean square length in mm of fields in voxels, over the fields and over windows."""
    square = sum((field * step).square().sum(1, keepdim=True) for field in fields) / len(fields)
    return window_mean(square, radius)[:, 0].sqrt()


def mismatch(image: Tensor, ddf: Tensor, step: Tensor, radius: int) -> Tensor:
    """Return how far edges would have to move to undo the difference that is left, (B, *spatial) mm.

    Root of the windows' mean (fixed - moved)^2 over their mean |grad fixed|^2 a mm, to which 0.3 of that of the whole
    image is added, so that noise in flat places is no edge.
    """
    fixed, moved = image[:, :1].float(), warp_image(image[:, 1:2].float(), ddf)
    slopes = torch.gradient(fixed, dim=tuple(range(2, image.ndim)))
    steep = sum((slope / size).square() for slope, size in zip(slopes, step.flatten().tolist(), strict=True))
    usual = 0.3 * steep.flatten(1).mean(1).view(-1, *(1,) * (image.ndim - 1))
    return (window_mean((fixed - moved).square(), radius) / (window_mean(steep, radius) + usual + 1e-12))[:, 0].sqrt()


def window_mean(values: Tensor, radius: int) -> Tensor:
    """Return the mean over windows of 2 radius + 1 voxels of (B, C, *spatial); at the border of what is inside."""
    pool = F.avg_pool2d if values.ndim == 4 else F.avg_pool3d
    return pool(values, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
