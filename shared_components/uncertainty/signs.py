"""Signs of error in a field, lengths in mm, that need no truth.

| sign | length |
|---|---|
| inverse | of phi_back(phi(x)) - x, where phi_back is the field of the pair in the other order |
| flips | root mean square over mirror images: between the field of the mirrored pair, mirrored back, and the field |
| shifts | the same for both images moved by a few voxels |
| sequence | root mean square over the last third of the stages: between the field then and in the end |
| motion | of the field itself: who moves far may err far |
| drift | by which a step of least squares in each window would still move the image |
| wide_drift | the same in windows twice as wide, which noise disturbs less |
| mismatch | by which edges would have to move to undo the difference of the images that is left |
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..features import mind_ssc
from ..warp import compose, warp_image

CONTRADICTIONS = ("inverse", "flips", "shifts", "sequence")
DRIFTS = {"drift": 2, "wide_drift": 4}  # by how much their windows are wider than the others
SIGNS = (*CONTRADICTIONS, "motion", *DRIFTS, "mismatch")


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


def shift_by(values: Tensor, shift: Sequence[int]) -> Tensor:
    """Return (B, C, *spatial) moved by whole voxels; what comes in at the border is the border."""
    for axis, step in enumerate(shift, 2):
        index = (torch.arange(values.shape[axis], device=values.device) - step).clamp(0, values.shape[axis] - 1)
        values = values.index_select(axis, index)
    return values


@torch.no_grad()
def find_signs(
    network: Callable[..., Any],
    image: Tensor,
    spacing_mm: Tensor | Sequence[float],
    flips: Sequence[Sequence[int]] = ((0,),),
    sequence: bool = False,
    radius: int = 2,
    shifts: Sequence[Sequence[int]] = (),
    ddf: Tensor | None = None,
    modalities: int = 1,
    other_way: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the signs, each (B, *spatial) in mm, see ``SIGNS``. Passes of slices in one batch, of volumes in turn.

    Args:
        network: ``network(image) -> ddf`` in evaluation mode; with ``return_stages=True`` a dict with "ddf", the field
            after each stage, where ``sequence`` is asked for.
        image: (B, 2, *spatial), channel 0 fixed, 1 moving.
        spacing_mm: (D,) voxel size.
        flips: axes to mirror both images along, a pass each; none leaves this sign out. A network that knows up from
            down should be asked about left and right alone.
        sequence: whether to look at the stages.
        radius: voxels; squares are averaged over windows of 2 radius + 1.
        shifts: (D,) voxels to move both images by, a pass each; none leaves this sign out.
        ddf: (B, D, *spatial), the field that is judged, if it is not the network's as it is: what was made of it
            afterwards moves, drifts and mismatches, but the network contradicts itself all the same.
        modalities: 2: the images differ in kind. Drift is then that of MIND-SSC, and there is no mismatch.
        other_way: instead of ``network`` for the pair in the other order.
    """
    own, stages = _own(network, image, sequence)
    back = (other_way or network)(image.flip(1)).float()
    others = [image.flip([a + 2 for a in axes]) for axes in flips] + [shift_by(image, shift) for shift in shifts]
    found = _passes(network, others) if others else []
    ndim = image.ndim - 2
    spacing = torch.as_tensor(spacing_mm, dtype=torch.float32, device=image.device).flatten()[-ndim:]
    step = spacing.view(-1, *(1,) * ndim)
    signs = {"inverse": _length([compose(back, own)], step, radius)}
    if flips:
        mirrored = [flip_back(field, axes) - own for field, axes in zip(found, flips, strict=False)]
        signs["flips"] = _length(mirrored, step, radius)
    if shifts:
        moved = [
            shift_by(field, [-n for n in shift]) - own for field, shift in zip(found[len(flips) :], shifts, strict=True)
        ]
        signs["shifts"] = _length(moved, step, radius)
    if len(stages) > 1:
        last = stages[-1 - max(1, len(stages) // 3) : -1]
        signs["sequence"] = _length([stage.float() - own for stage in last], step, radius)
    judged = own if ddf is None else ddf.to(own)
    for name, widened in DRIFTS.items():
        signs[name] = drift(image, judged, step, widened * radius, mind_ssc if modalities > 1 else None)
    if modalities == 1:
        signs["mismatch"] = mismatch(image, judged, step, radius)
    return signs | {"motion": _length([judged], step, radius)}


def _own(network: Callable[..., Any], image: Tensor, sequence: bool) -> tuple[Tensor, list[Tensor]]:
    """The network's field and, where they are wanted, those after each of its stages."""
    stages = network(image, return_stages=True)["ddf"] if sequence else [network(image)]
    return stages[-1].float(), stages


def _passes(network: Callable[..., Any], images: Sequence[Tensor]) -> list[Tensor]:
    """The fields of several images; volumes one by one, as memory is for one."""
    if images[0].ndim == 4:
        return list(network(torch.cat(list(images))).float().split(len(images[0])))
    return [network(image).float() for image in images]


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


def drift(
    image: Tensor, ddf: Tensor, step: Tensor, radius: int, describe: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return how far a step of least squares would still move each window, (B, *spatial) mm.

    d = (sum g g' + e 1)^-1 sum g (fixed - moved), g = grad moved, over windows and over the channels of ``describe``;
    e, a tenth of the mean square slope of the whole image, keeps flat places still.
    """
    fixed, moved = image[:, :1].float(), warp_image(image[:, 1:2].float(), ddf)
    if describe is not None:
        fixed, moved = describe(fixed), describe(moved)
    ndim, sizes = image.ndim - 2, step.flatten().tolist()
    slopes = [
        slope / size for slope, size in zip(torch.gradient(moved, dim=tuple(range(2, image.ndim))), sizes, strict=True)
    ]

    def summed(values: Tensor) -> Tensor:
        return window_mean(values.sum(1, keepdim=True), radius)[:, 0]

    right = torch.stack([summed(slope * (fixed - moved)) for slope in slopes], -1)
    matrix = right.new_zeros(*right.shape, ndim)
    for i in range(ndim):
        for j in range(i, ndim):
            matrix[..., i, j] = matrix[..., j, i] = summed(slopes[i] * slopes[j])
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    diagonal += 0.1 * diagonal.flatten(1).mean(1).view(-1, *(1,) * (ndim + 1)) + 1e-12
    return torch.linalg.solve(matrix, right[..., None])[..., 0].norm(dim=-1)


def window_mean(values: Tensor, radius: int) -> Tensor:
    """Return the mean over windows of 2 radius + 1 voxels of (B, C, *spatial), as far as the grid reaches."""
    ndim = values.ndim - 2
    pool = F.avg_pool2d if ndim == 2 else F.avg_pool3d
    for axis in range(ndim):  # one axis after the other: the same mean, in a fraction of the time
        reach = min(radius, (values.shape[axis + 2] - 1) // 2)  # the pool takes no window that is wider than the grid
        width, pad = ([n if k == axis else least for k in range(ndim)] for n, least in ((2 * reach + 1, 1), (reach, 0)))
        values = pool(values, width, stride=1, padding=pad, count_include_pad=False)
    return values
