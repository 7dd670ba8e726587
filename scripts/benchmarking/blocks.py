"""The library's blocks beside MONAI's, both in one run: the warp, the local correlation, mk-LNCC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.losses import LocalNormalizedCrossCorrelationLoss
from monai.networks.blocks import Warp
from torch import Tensor, nn

from shared_components.mk_lncc import MultiKernelLNCC, default_windows
from shared_components.similarity import LocalNCC
from shared_components.warp import warp_image

from .networks import smooth_pair
from .timing import interleave, ratio

WINDOW = 9  # voxels
Row = dict[str, Any]


def loss_pair(size: int, device: torch.device, window: int = WINDOW) -> tuple[Tensor, Tensor]:
    """Return fixed and moved image (1, 1, size, size, size), textured, zero as far from the border as windows reach."""
    pair = smooth_pair((size,) * 3, device)
    margin = 2 * (window // 2)
    inside = nn.functional.pad(torch.ones(1, 1, *(size - 2 * margin,) * 3), [margin] * 6).to(device)
    texture = torch.rand(pair[:, :1].shape, generator=torch.Generator().manual_seed(1)).to(device)
    return inside * (pair[:, :1] + texture) / 2, inside * (pair[:, 1:] + texture) / 2


def block_rows(device: torch.device, repeats: int, sizes: Sequence[int] = (96, 128), window: int = WINDOW) -> list[Row]:
    """Return rows for the warp at each size and the losses at the last, forward and with the gradient."""
    rows = []
    for size in sizes:
        pair = smooth_pair((size,) * 3, device)
        ddf = 4 * (nn.functional.interpolate(pair[:, :1], size=(size,) * 3).repeat(1, 3, 1, 1, 1) - 0.5).contiguous()
        theirs = Warp(mode="bilinear", padding_mode="border")
        rows += _block(f"warp, {size}³", warp_image, theirs, (pair[:, 1:].contiguous(), ddf), repeats)
    size, inputs = sizes[-1], loss_pair(sizes[-1], device, window)
    name = f"local correlation, {size}³, window {window}³"
    rows += _block(name, LocalNCC(window // 2), monai_lncc(window), inputs, repeats)
    for theirs in (window, large_window(size)):
        name = f"mk-LNCC, {size}³; MONAI's local correlation in windows of {theirs}³"
        rows += _block(name, MultiKernelLNCC(), monai_lncc(theirs), inputs, repeats, same=False)
    return rows


def monai_lncc(window: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return MONAI's loss as ours are called and counted: (fixed, moved) -> 0 for equal images."""
    loss = LocalNormalizedCrossCorrelationLoss(kernel_size=window)
    return lambda fixed, moved: 1 + loss(moved, fixed)


def large_window(size: int) -> int:
    """Return the odd number of voxels which mk-LNCC's smallest window spans on a grid of that size."""
    return min(kind.extent for kind in default_windows((size,) * 3)) // 2 * 2 + 1


def _block(
    name: str,
    ours: Callable[..., Tensor],
    theirs: Callable[..., Tensor],
    inputs: tuple[Tensor, Tensor],
    repeats: int,
    same: bool = True,
) -> list[Row]:
    """Return two rows; gradients go to the second input (the field, the moved image), as in training and refinement.

    ``same``: both calculate the same, and how far they differ is told.
    """
    rows = []
    for gradient in (False, True):
        second = inputs[1].clone().requires_grad_(gradient)

        def run(block: Callable[..., Tensor], second: Tensor = second) -> Tensor:
            value = block(inputs[0], second)
            return torch.autograd.grad(value.sum(), second)[0] if second.requires_grad else value

        found = interleave({"ours": lambda: run(ours), "monai": lambda: run(theirs)}, repeats, 1, second.device)
        gain = ratio(found["monai"], found["ours"])
        row = {
            "group": "blocks",
            "name": f"{name}, {'with gradient' if gradient else 'forward'}",
            **found["ours"].facts(),
        }
        row |= {"monai_seconds": round(found["monai"].seconds, 5), "speed_up": gain["ratio"]}
        row |= {"speed_up_low": gain["low"], "speed_up_high": gain["high"]}
        if same and not gradient:
            row["difference"] = float((run(ours) - run(theirs)).abs().max())
        rows.append(row)
    return rows
