"""A convolutional gated recurrent unit in 2-D and 3-D."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvGRU(nn.Module):
    """Gated recurrent unit of convolutions: z = 1 takes the proposal, z = 0 keeps the state.

    Eq. 10-13 of Sandkuehler et al. 2019; the reset gate is that of the state's channel, a typo in eq. 12 apart.

    Args:
        ndim: 2 or 3.
        channels: of input and state.
        noise: standard deviation of the factor N(1, noise) that training puts on every weight of the recurrent kernels,
            drawn anew each time step. The paper's sqrt(0.5)/0.5 is a standard deviation in the authors' code.
        recurrent: False leaves out the state and its kernels: every step begins anew.
    """

    def __init__(self, ndim: int, channels: int, noise: float = 2**0.5, recurrent: bool = True) -> None:
        super().__init__()
        self.channels, self.noise = channels, noise
        layer = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.inputs = layer(channels, 3 * channels, 3, padding=1)  # of reset gate, update gate and proposal
        for part in self.inputs.weight.data.chunk(3):
            nn.init.xavier_normal_(part)
        nn.init.zeros_(self.inputs.bias)
        nn.init.ones_(self.inputs.bias.data[2 * channels :])
        shape = (channels, channels, *(3,) * ndim)
        kernels = [nn.init.xavier_normal_(torch.empty(shape)) for _ in range(3 if recurrent else 0)]
        self.state = nn.Parameter(torch.cat(kernels)) if recurrent else None
        self.convolve = F.conv2d if ndim == 2 else F.conv3d

    def forward(self, x: Tensor, h: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Return the next state of input and state (B, C, *spatial); None is the state 0.

        Args:
            x: the input.
            h: the state.
            generator: of the noise; None: no noise.
        """
        c = self.channels
        inputs = self.inputs(x)
        if h is None or self.state is None:
            return inputs[:, c : 2 * c].sigmoid() * inputs[:, 2 * c :].tanh()
        kernels = self.state if generator is None else self.noisy(generator)
        r, z = (inputs[:, : 2 * c] + self.convolve(h, kernels[: 2 * c], padding=1)).sigmoid().chunk(2, 1)
        proposal = (inputs[:, 2 * c :] + self.convolve(r * h, kernels[2 * c :], padding=1)).tanh()
        return h + z * (proposal - h)

    def noisy(self, generator: torch.Generator) -> Tensor:
        """Return the recurrent kernels, each weight times a number from N(1, noise)."""
        kernels = self.state
        draw = torch.randn(kernels.shape, generator=generator, device=kernels.device, dtype=kernels.dtype)
        return kernels * (1 + self.noise * draw)
