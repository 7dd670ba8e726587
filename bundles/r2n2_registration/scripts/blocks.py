"""The parts of the recurrent network: residual blocks around a ConvGRU, position and parameter net (eq. 10-18)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.recurrent import ConvGRU

from .deformation import turn_numbers, unit_coords

TANH_GAIN = 5 / 3


def convolution(ndim: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, gain: float = 1.0) -> nn.Module:
    """Return a convolution that keeps the size at stride 1, Xavier weights, no offset at first."""
    layer = (nn.Conv2d if ndim == 2 else nn.Conv3d)(inputs, outputs, kernel, stride, kernel // 2)
    nn.init.xavier_normal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def coarser(x: Tensor, factor: int) -> Tensor:
    """Return means over cells of so many voxels along every axis; what is left at the end of an axis is lost."""
    if factor == 1:
        return x
    return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, factor)


def spatial_softmax(x: Tensor) -> Tensor:
    """Return the softmax over all positions of each channel (eq. 14), in float32 at least."""
    flat = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(2)
    return flat.softmax(-1).view(x.shape)


def normed(x: Tensor, norm: bool) -> Tensor:
    """Return x, instance-normalised if asked for, as the authors' code has it; the paper does not mention it."""
    return F.instance_norm(x) if norm and x[0, 0].numel() > 1 else x


class ResidualBlock(nn.Module):
    """act(conv(act(conv x)) + x)."""

    def __init__(self, ndim: int, channels: int, norm: bool = False) -> None:
        super().__init__()
        self.first = convolution(ndim, channels, channels, gain=TANH_GAIN)
        self.second = convolution(ndim, channels, channels, gain=TANH_GAIN)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Return as many channels of the same size."""
        y = self.second(normed(self.first(x), self.norm).tanh())
        return torch.tanh(normed(y, self.norm) + x)


class GR2U(nn.Module):
    """Gated recurrent registration unit: residual blocks, a ConvGRU, and a way around it (fig. 4c)."""

    def __init__(self, ndim: int, channels: int, blocks: int, norm: bool, noise: float, recurrent: bool) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(ndim, channels, norm) for _ in range(blocks)))
        self.gru = ConvGRU(ndim, channels, noise, recurrent)

    def forward(self, x: Tensor, h: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return the output and the state, which is that of the ConvGRU without the way around it."""
        x = self.blocks(x)
        h = self.gru(x, h, generator)
        return torch.tanh(h + x), h


class PositionNet(nn.Module):
    """Where to deform, and how sure that is (eq. 14, 15, 17, fig. 4a).

    Args:
        ndim: 2 or 3.
        channels: of the input.
        certainty: False leaves out the second path; every position is as sure as any other.
    """

    def __init__(self, ndim: int, channels: int, certainty: bool = True) -> None:
        super().__init__()
        self.paths = convolution(ndim, channels, 2 if certainty else 1, 1)
        for path in self.paths.weight.data.split(1):
            nn.init.xavier_normal_(path)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the position (B, D) in units and its certainty (B, 1) in [0, 2]."""
        left, right = (found := spatial_softmax(self.paths(x)))[:, 0], found[:, -1]
        axes = range(1, left.ndim)
        coords = unit_coords(left.shape[1:], left)
        position = torch.stack([(left * x).sum(tuple(axes)) for x in coords], -1)
        return position, 2 - (left - right).abs().sum(tuple(axes))[:, None]


class ParameterNet(nn.Module):
    """What the deformation looks like: width, weight and turn (eq. 18, fig. 4b); nothing moves before training.

    Args:
        ndim: 2 or 3.
        channels: of the input.
        hidden: width of the fully connected layer in between.
        max_width: the largest width, in units.
    """

    def __init__(self, ndim: int, channels: int, hidden: int = 1024, max_width: float = 0.3) -> None:
        super().__init__()
        self.ndim, self.max_width, self.half = ndim, max_width, channels // 2
        self.first = convolution(ndim, channels, channels)
        self.content = convolution(ndim, self.half, self.half)
        self.hidden = nn.Linear(self.half, hidden)
        self.last = nn.Linear(hidden, 2 * ndim + turn_numbers(ndim))
        for value in self.last.parameters():
            nn.init.zeros_(value)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return width (B, D) in (0, max_width], turn in radians and weight (B, D) in [-1, 1]."""
        content, attention = self.first(x).split([self.half, x.shape[1] - self.half], 1)
        content = self.content(content.tanh())
        weighed = (content * spatial_softmax(attention)).tanh().flatten(2).sum(-1)
        numbers = self.last(self.hidden(weighed).tanh())
        numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))  # under autocast
        width, weight, turn = numbers.split([self.ndim, self.ndim, turn_numbers(self.ndim)], -1)
        turn = torch.pi * (turn.sigmoid() if self.ndim == 2 else turn.tanh())
        return self.max_width * (1e-5 + (1 - 1e-5) * width.sigmoid()), turn, weight.tanh()


def weighted_position(positions: Sequence[Tensor], certainties: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean (B, D) of the positions, weighed by their certainty (eq. 16), and the certainties (B, levels)."""
    weights = torch.cat(list(certainties), -1)
    total = (torch.stack(list(positions), -1) * weights[:, None]).sum(-1)
    return total / (weights.sum(-1, keepdim=True) + 1e-6), weights
