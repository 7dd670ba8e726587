"""For the tests of R2N2: small networks that move something, pairs to be moved."""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZES = {2: (24, 20), 3: (16, 12, 14)}


def count(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def pair(ndim: int = 2, batch: int = 2, seed: int = 0) -> Tensor:
    """Smooth random pairs in [0, 1]."""
    coarse = torch.rand(batch, 2, *(5,) * ndim, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, SIZES[ndim], mode=("bilinear", "trilinear")[ndim - 2], align_corners=True)


def moving_network(network: ModuleType, scale: float = 0.05, **options: object) -> nn.Module:
    """A small network in evaluation mode that moves things."""
    net = network.R2N2(**{"channels": 4, "steps": 5, "blocks": 1, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in net.shape_net.last.parameters():
            value += scale * torch.randn(value.shape, generator=generator)
    return net.eval()
