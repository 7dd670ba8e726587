"""The parts of R2N2 beside their equations: positions, certainty, bumps, gates, noise, the two starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from r2n2_case import moving_network, pair
from torch import nn


@pytest.fixture(scope="module")
def network(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("r2n2_registration", "network")


@pytest.fixture(scope="module")
def blocks(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("r2n2_registration", "blocks")


def test_softmax_of_a_peak_is_its_position_and_of_a_constant_the_middle(blocks: ModuleType) -> None:
    place = blocks.PositionNet(2, 1).double()
    nn.init.ones_(place.paths.weight)
    x = torch.zeros(2, 1, 9, 5, dtype=torch.float64)
    x[0, 0, 2, 4] = 1e3
    position, certainty = place(x)
    torch.testing.assert_close(position, torch.tensor([[-0.5, 1.0], [0.0, 0.0]], dtype=torch.float64))
    assert certainty.tolist() == [[2.0], [2.0]], "equal paths are sure"
    with torch.no_grad():
        place.paths.weight[1] = -1
    assert place(x)[1][0].item() == pytest.approx(2 - 1 - 1, abs=0.05), "one sure, the other anywhere but there"
    assert torch.equal(blocks.PositionNet(2, 1, certainty=False).double()(x)[1], torch.full((2, 1), 2.0).double())


def test_positions_are_weighed_by_certainty(blocks: ModuleType) -> None:
    places = [torch.tensor([[0.5, 0.0]]), torch.tensor([[-0.5, 1.0]]), torch.tensor([[0.9, 0.9]])]
    found, weights = blocks.weighted_position(places, [torch.tensor([[w]]) for w in (1.5, 0.5, 0.0)])
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.25]]), atol=1e-5, rtol=0)
    assert weights.tolist() == [[1.5, 0.5, 0.0]]
    nothing, _ = blocks.weighted_position(places, [torch.zeros(1, 1)] * 3)
    assert torch.isfinite(nothing).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_numbers_of_a_bump_stay_in_their_ranges_and_use_them(blocks: ModuleType, ndim: int) -> None:
    shape, generator = blocks.ParameterNet(ndim, 8, max_width=0.3), torch.Generator().manual_seed(0)
    with torch.no_grad():
        shape.hidden.bias.zero_()
        shape.last.weight.copy_(300 * torch.randn(shape.last.weight.shape, generator=generator))
        width, turn, weight = shape(torch.randn(64, 8, *(4,) * ndim, generator=generator))
    assert width.min() > 0 and width.max() <= 0.3 + 1e-7 and width.min() < 0.01 and width.max() > 0.29
    low = 0 if ndim == 2 else -math.pi
    assert turn.min() >= low - 1e-6 and turn.max() <= math.pi + 1e-6 and turn.min() < low + 0.1 and turn.max() > 3.0
    assert weight.abs().max() <= 1 and weight.min() < -0.99 and weight.max() > 0.99


def test_centres_lie_in_the_image_and_certainties_between_0_and_2(network: ModuleType) -> None:
    net = moving_network(network, scale=300.0)
    with torch.no_grad():
        stages = net(20 * pair(batch=8), return_stages=True)
    assert stages["parameters"][..., :2].abs().max() <= 1
    assert (stages["certainty"] >= 0).all() and (stages["certainty"] <= 2).all()


def gated(blocks: ModuleType, update: float, reset: float) -> nn.Module:
    """A ConvGRU whose gates are held open (1) or closed (0)."""
    gru = blocks.ConvGRU(2, 3).double()
    with torch.no_grad():
        gru.inputs.weight[:6], gru.state[:6] = 0, 0
        gru.inputs.bias[:3], gru.inputs.bias[3:6] = 200 * reset - 100, 200 * update - 100
    return gru


def test_gates_of_the_gru_are_those_of_the_paper(blocks: ModuleType) -> None:
    x, h = torch.randn(2, 1, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gated(blocks, update=0, reset=1)(x, h), h)
    proposal = gated(blocks, update=1, reset=0)
    without = (F.conv2d(x, proposal.inputs.weight[6:], padding=1) + 1).tanh()
    torch.testing.assert_close(proposal(x, h), without)
    assert not torch.allclose(gated(blocks, update=1, reset=1)(x, h), without)
    free = blocks.ConvGRU(2, 3).double()
    torch.testing.assert_close(free(x), free(x, torch.zeros_like(h)))


def test_noise_is_a_factor_of_the_recurrent_kernels_alone(blocks: ModuleType) -> None:
    gru = blocks.ConvGRU(2, 8)
    generator = torch.Generator().manual_seed(0)
    factor = torch.stack([gru.noisy(generator) / gru.state for _ in range(200)])
    assert abs(factor.mean().item() - 1) < 0.01 and abs(factor.std().item() - 1.4142) < 0.01
    assert not torch.equal(factor[0], factor[1])
    x = torch.randn(1, 8, 6, 5)
    assert torch.equal(gru(x, None, generator), gru(x)), "none on the input's kernels"
