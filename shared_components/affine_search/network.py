r"""A learned optimiser for affine registration: LSTM cells that turn gradients into steps (Kanter & Lellmann 2022).

The images enter only through grad f(x_k). One step (eqs. 3-6), each with an LSTM cell of its own:

    g = grad f(x_k) / |grad f(x_k)|,   (h, c) = LSTM_k(L_in g, (h, c)),   x_{k+1} = x_k + L_out c

A model of several levels is the same recurrence with images of another resolution in some of its steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .parameters import compose, initial_guess, join, split
from .ssd import AffineSSD, halved, normalise


class MetaOptimiser(nn.Module):
    """K learned steps from an initial guess to affine parameters.

    Defaults are the paper's network: 4,800 weights a step, 24,000 in all, and 318 in the linear layers if trained.

    Args:
        ndim: D, 2 or 3; there are d = D (D + 1) parameters.
        strides: one entry a step: that step sees images averaged over blocks of so many pixels. (1, 1, 1, 1, 1) is the
            paper's model, (8, 4, 2, 1) its model of four levels (16 to 128 pixels).
        linear: "frozen", the authors' code: L_in repeats the parameters (with noise of 0.01), L_out averages
            neighbours; "trainable", shared by all steps, as the paper's text has it: L_out starts as the left inverse
            of L_in.
        output: "cell", the authors' code: L_out sees the cell state, whose range grows by 1 a step; "hidden", the
            text's o_k: the hidden state, within (-1, 1).
        expansion: the LSTM is so many times as wide as x; 4 in the paper.
        detach_grad: treat grad f(x_k) as a given input in training, without derivatives through it.
        seed: of the fixed noise in L_in and of the first hidden state, uniform in (0, 1) for all samples alike.
    """

    def __init__(
        self,
        ndim: int = 2,
        strides: Sequence[int] = (1, 1, 1, 1, 1),
        linear: str = "frozen",
        output: str = "cell",
        expansion: int = 4,
        detach_grad: bool = False,
        seed: int = 45,
    ) -> None:
        super().__init__()
        if linear not in ("frozen", "trainable") or output not in ("cell", "hidden"):
            raise ValueError(f"linear must be frozen or trainable, output cell or hidden, got {linear}, {output}")
        self.ndim, self.strides, self.detach_grad = ndim, tuple(strides), detach_grad
        self.linear, self.output = linear, output
        d = ndim * (ndim + 1)
        width = expansion * d
        generator = torch.Generator().manual_seed(seed)
        self.steps = nn.ModuleList(_cell(width, generator) for _ in self.strides)
        self.inward, self.outward = nn.Linear(d, width), nn.Linear(width, d)
        self._start_linear(linear, expansion, generator)
        self.register_buffer("hidden", torch.rand(2, width, generator=generator))

    def _start_linear(self, linear: str, expansion: int, generator: torch.Generator) -> None:
        frozen = linear == "frozen"
        eye = torch.eye(self.inward.in_features)
        noise = 0.01 * torch.randn(self.inward.weight.shape, generator=generator) if frozen else 0.0
        spread = torch.full((1, expansion), 1 / expansion)
        with torch.no_grad():
            self.inward.weight.copy_(eye.repeat(expansion, 1) + noise)
            self.outward.weight.copy_(torch.kron(eye, spread) if frozen else torch.kron(spread, eye))
            self.inward.bias.zero_()
            self.outward.bias.zero_()
        for layer in (self.inward, self.outward):
            layer.requires_grad_(not frozen)

    def forward(
        self, fixed: Tensor, moving: Tensor, start: Tensor | None = None, steps: int | None = None
    ) -> list[Tensor]:
        """Return the iterates x_0, ..., x_K, each (B * S, D (D + 1)); images and weights must be of one number type.

        From a start s the network searches y with phi_x = phi_s(phi_y): it sees what it would see if the moving image
        had been moved by phi_s beforehand, whatever the start.

        Args:
            fixed: (B, 1, *spatial), normalised here.
            moving: likewise, on the same grid.
            start: maps (B * S, D (D + 1)), S of them a pair, one after another; None is the identity.
            steps: how many steps to take; None is all.
        """
        fixed, moving = normalise(fixed), normalise(moving)
        batch = (fixed if start is None else start).shape[0]  # not len(): a traced network takes batches of any size
        y = initial_guess(fixed.shape[2:], batch, fixed)
        state = tuple(part.to(y.dtype).expand(batch, -1) for part in self.hidden)
        found, objective, stride = [y if start is None else compose(start, y)], None, 0
        for step, cell in list(zip(self.strides, self.steps, strict=True))[:steps]:
            if step != stride:
                objective = AffineSSD(halved(fixed, step), halved(moving, step), len(y) // len(fixed))
                stride = step
            direction = self._direction(objective, found[-1], start)
            state = cell(self.inward(direction), state)
            y = y + self.outward(state[1] if self.output == "cell" else state[0])
            found.append(y if start is None else compose(start, y))
        return found

    def _direction(self, objective: AffineSSD, x: Tensor, start: Tensor | None) -> Tensor:
        """Return the gradient with respect to y, of unit length."""
        _, gradient = objective(x.detach() if self.detach_grad else x)
        if start is not None:  # x = (A_s A_y, A_s b_y + b_s): the chain rule multiplies by A_s^T
            turn = split(start)[0].transpose(1, 2)
            A, b = split(gradient)
            gradient = join(turn @ A, (turn @ b.unsqueeze(-1)).squeeze(-1))
        return unit(gradient.detach() if self.detach_grad else gradient)


def unit(gradient: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Return gradients (B, n) divided by their Euclidean norm + epsilon; 0 stays 0, with a finite derivative."""
    tiny = torch.finfo(gradient.dtype).tiny
    return gradient / (gradient.square().sum(1, keepdim=True).clamp_min(tiny).sqrt() + epsilon)


def _cell(width: int, generator: torch.Generator) -> nn.LSTMCell:
    """Return a cell that does next to nothing: input and forget gates start at -8 (two biases of -4 each)."""
    cell = nn.LSTMCell(width, width)
    with torch.no_grad():
        for weight in (cell.weight_ih, cell.weight_hh):
            nn.init.xavier_normal_(weight, generator=generator)
        for bias in (cell.bias_ih, cell.bias_hh):
            bias.zero_()
            bias[: 2 * width] = -4.0  # PyTorch's order of gates: input, forget, cell, output
    return cell
