"""The learned optimiser: the paper's sizes, its recurrence written out, and what must not change its steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from affine_search_case import phantom, poses, quarter_turn
from torch import Tensor, nn

from shared_components.affine_search import (
    AffineSSD,
    MetaOptimiser,
    compose,
    halved,
    initial_guess,
    join,
    normalise,
)
from shared_components.affine_search.network import unit

VARIANTS = pytest.mark.parametrize("linear", ["frozen", "trainable"])
DIMENSIONS = pytest.mark.parametrize("ndim", [2, 3])


def moved_weights(network: MetaOptimiser, seed: int = 0, size: float = 0.2) -> MetaOptimiser:
    """The network in double precision, with weights that make it take steps one can see."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(size * torch.randn(value.shape, generator=generator))
        for cell in network.steps:
            cell.bias_ih[: len(cell.bias_ih) // 2] += 8.0  # input and forget gates half open
    return network.double()


def pairs(ndim: int, batch: int = 3, size: int = 16) -> tuple[Tensor, Tensor]:
    moving = phantom([size] * ndim).repeat(batch, *(1,) * (ndim + 1))
    return AffineSSD(moving, moving).moved(poses(ndim, batch, 40, 0.3)), moving


def trainable(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters() if value.requires_grad)


def test_the_paper_has_24000_weights() -> None:
    frozen, learned = MetaOptimiser(), MetaOptimiser(linear="trainable")
    assert trainable(frozen) == 24_000 and trainable(learned) == 24_000 + 318
    assert [trainable(cell) for cell in frozen.steps] == [4_800] * 5
    assert trainable(MetaOptimiser(3, (2, 1))) == 2 * (4 * 48 * 48 * 2 + 2 * 4 * 48)


@DIMENSIONS
def test_linear_layers_start_as_they_should(ndim: int) -> None:
    frozen, learned = MetaOptimiser(ndim), MetaOptimiser(ndim, linear="trainable")
    d = ndim * (ndim + 1)
    torch.testing.assert_close(learned.outward.weight @ learned.inward.weight, torch.eye(d))
    noise = frozen.inward.weight - torch.eye(d).repeat(4, 1)
    assert 0.008 < float(noise.std()) < 0.012
    hidden = torch.arange(4.0 * d)
    torch.testing.assert_close(frozen.outward(hidden), hidden.view(d, 4).mean(1))  # neighbours
    assert not any(layer.bias.any() for net in (frozen, learned) for layer in (net.inward, net.outward))
    for cell in frozen.steps:
        gates = cell.bias_ih.view(4, -1)
        assert torch.equal(cell.bias_ih, cell.bias_hh) and bool((gates[:2] == -4).all()) and not gates[2:].any()


def test_the_seed_decides_all_of_it() -> None:
    one, same, other = (MetaOptimiser(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["hidden"], other["hidden"]) and 0 <= float(one["hidden"].min()) <= 1
    assert not torch.equal(one["steps.0.weight_hh"], one["steps.1.weight_hh"])


@DIMENSIONS
@VARIANTS
@pytest.mark.parametrize("output", ["cell", "hidden"])
def test_a_fresh_network_hardly_moves(ndim: int, linear: str, output: str) -> None:
    fixed, moving = pairs(ndim)
    found = MetaOptimiser(ndim, linear=linear, output=output)(fixed.float(), moving.float())
    assert len(found) == 6 and torch.equal(found[0], initial_guess(fixed.shape[2:], 3))
    assert 0 < float((found[-1] - found[0]).detach().abs().max()) < 1e-2


def written_out(network: MetaOptimiser, fixed: Tensor, moving: Tensor) -> list[Tensor]:
    """Equations 3 to 7 with autograd's gradient and the gates by hand."""
    x = initial_guess(fixed.shape[2:], len(fixed), fixed)
    h, c = (part.expand(len(fixed), -1) for part in network.hidden)
    found = [x]
    for stride, cell in zip(network.strides, network.steps, strict=True):
        x = x.detach().requires_grad_()
        objective = AffineSSD(halved(normalise(fixed), stride), halved(normalise(moving), stride))
        (g,) = torch.autograd.grad(objective(x)[0].sum(), x)
        g = g / (g.norm(dim=1, keepdim=True) + 1e-8)
        gates = network.inward(g) @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh
        i, f, new, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * new.tanh()
        h = o.sigmoid() * c.tanh()
        x = x + network.outward(c if network.output == "cell" else h)
        found.append(x)
    return found


@DIMENSIONS
@VARIANTS
@pytest.mark.parametrize("output", ["cell", "hidden"])
def test_it_is_the_recurrence_of_the_paper_on_every_level(ndim: int, linear: str, output: str) -> None:
    """Between levels x stays as it is: positions in Omega."""
    network = moved_weights(MetaOptimiser(ndim, (4, 2, 1, 1), linear, output))
    fixed, moving = pairs(ndim)
    found, wanted = network(fixed, moving), written_out(network, fixed, moving)
    assert len(found) == len(wanted) == 5
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    assert float((found[-1] - found[0]).detach().abs().max()) > 0.1
    early = network(fixed, moving, steps=2)
    assert len(early) == 3 and torch.equal(early[2], found[2])


def test_levels_see_different_images() -> None:
    fixed, moving = pairs(2)
    network = moved_weights(MetaOptimiser(2, (1, 1)))
    fine = network(fixed, moving)[-1]
    network.strides = (4, 1)
    assert float((network(fixed, moving)[-1] - fine).detach().abs().max()) > 1e-4


def test_directions_have_length_one() -> None:
    lengths = torch.tensor([[1e-4], [1], [9], [1e6]]).double()
    g = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double() * lengths
    torch.testing.assert_close(unit(g).norm(dim=1), torch.ones(4).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(unit(3 * g), unit(g), atol=1e-3, rtol=0)
    assert torch.autograd.gradcheck(unit, g[1:2].clone().requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_gradient_is_no_direction(dtype: torch.dtype) -> None:
    g = torch.zeros(2, 6, dtype=dtype, requires_grad=True)
    assert not unit(g).any()
    (slope,) = torch.autograd.grad(unit(g).sum(), g)
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_images_without_content_give_numbers_and_derivatives(value: float) -> None:
    network = moved_weights(MetaOptimiser(2, (2, 1), "trainable"))
    flat = torch.full((2, 1, 8, 8), value).double()
    x = network(flat, flat)[-1]
    x.square().sum().backward()
    assert bool(x.isfinite().all()) and all(bool(p.grad.isfinite().all()) for p in network.parameters())


def test_at_the_truth_the_input_is_zero() -> None:
    """An exact quarter turn, as seen from the truth: only the biases and the first hidden state make steps."""
    moving, turn = phantom((16, 16)), quarter_turn(2)
    _, gradient = AffineSSD(normalise(AffineSSD(moving, moving).moved(turn)), normalise(moving))(turn)
    assert float(gradient.norm()) < 1e-13


def test_contrast_and_brightness_do_not_matter() -> None:
    network = moved_weights(MetaOptimiser(2, (2, 1, 1)))
    fixed, moving = pairs(2)
    found = network(fixed, moving)[-1]
    for contrast, brightness in ((100.0, 0.0), (1e-3, 5.0)):
        again = network(contrast * fixed + brightness, contrast * moving + brightness)[-1]
        torch.testing.assert_close(again, found, atol=1e-8, rtol=0)


@DIMENSIONS
def test_a_sample_is_the_same_alone_and_in_any_batch(ndim: int) -> None:
    network = moved_weights(MetaOptimiser(ndim, (2, 1)))
    fixed, moving = pairs(ndim, 4)
    together = network(fixed, moving)[-1]
    for k in range(4):
        torch.testing.assert_close(network(fixed[k : k + 1], moving[k : k + 1])[-1][0], together[k])
    assert float((together[0] - together[1]).detach().abs().max()) > 1e-3


@DIMENSIONS
def test_a_start_is_the_same_network_on_a_moved_image(ndim: int) -> None:
    """Exactly, for quarter turns, which map the grid on itself."""
    network = moved_weights(MetaOptimiser(ndim, (2, 1, 1)))
    (fixed, moving), turn = pairs(ndim), quarter_turn(ndim).expand(3, -1)
    inner = network(fixed, AffineSSD(moving, moving).moved(turn))
    outer = network(fixed, moving, turn)
    for x, y in zip(outer, inner, strict=True):
        torch.testing.assert_close(x, compose(turn, y), atol=1e-8, rtol=0)
    assert float((inner[-1] - network(fixed, moving)[-1]).detach().abs().max()) > 1e-3


@DIMENSIONS
def test_several_starts_are_so_many_runs(ndim: int) -> None:
    network = moved_weights(MetaOptimiser(ndim, (2, 1)))
    fixed, moving = pairs(ndim)
    starts = poses(ndim, 2, 50, 0.1, seed=3)
    together = network(fixed, moving, starts.repeat(3, 1))[-1].view(3, 2, -1)
    for k in range(2):
        torch.testing.assert_close(together[:, k], network(fixed, moving, starts[k].expand(3, -1))[-1])
    same = join(torch.eye(ndim), torch.zeros(ndim)).double().expand(3, -1)
    torch.testing.assert_close(network(fixed, moving, same)[-1], network(fixed, moving)[-1])


def loss_slope(network: MetaOptimiser, fixed: Tensor, moving: Tensor, eps: float) -> tuple[float, float]:
    """Derivative of a loss along one direction in the first step's weights: by autograd, by differences."""
    weight = network.steps[0].weight_ih
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5)).double()
    x = network(fixed, moving)[-1]
    (gradient,) = torch.autograd.grad(x.square().sum(), weight)
    values = []
    with torch.no_grad():
        for step in (eps, -2 * eps):
            weight.add_(step * direction)
            values.append(float(network(fixed, moving)[-1].square().sum()))
        weight.add_(eps * direction)
    return float((gradient * direction).sum()), (values[0] - values[1]) / (2 * eps)


@pytest.mark.parametrize("starts", [False, True])
def test_training_sees_through_the_gradient(starts: bool) -> None:
    """The second-order path: the derivative through all later gradients is that of the whole function."""
    network = moved_weights(MetaOptimiser(2, (2, 1, 1)))
    fixed, moving = pairs(2)
    if starts:  # the same through the chain rule of a start
        turn = poses(2, 3, 50, 0.1, seed=3)
        network.forward = lambda fixed, moving: MetaOptimiser.forward(network, fixed, moving, turn)
    found, wanted = loss_slope(network, fixed, moving, 1e-7)
    assert found == pytest.approx(wanted, rel=1e-4)


def test_detached_gradients_leave_the_steps_and_drop_the_path() -> None:
    found: list[Any] = []
    for detach in (False, True):
        network = moved_weights(MetaOptimiser(2, (2, 1, 1), detach_grad=detach))
        fixed, moving = pairs(2)
        x = network(fixed, moving)[-1]
        found.append((x, torch.autograd.grad(x.square().sum(), network.steps[0].weight_ih)[0]))
    (whole, second), (same, first) = found
    assert torch.equal(whole, same) and not torch.allclose(first, second, rtol=1e-3)


def test_no_autograd_inside() -> None:
    network, (fixed, moving) = moved_weights(MetaOptimiser(2, (2, 1))), pairs(2)
    with torch.inference_mode():
        found = network(fixed, moving, poses(2, 3, 10, 0.1))[-1]
    assert torch.equal(found, network(fixed, moving, poses(2, 3, 10, 0.1))[-1])


@pytest.mark.parametrize("shape", [(16, 24), (8, 16, 12)], ids=str)
def test_sides_may_differ(shape: tuple[int, ...]) -> None:
    network = moved_weights(MetaOptimiser(len(shape), (4, 1)))
    moving = phantom(shape)
    fixed = AffineSSD(moving, moving).moved(poses(len(shape), 1, 30, 0.2))
    for a, b in zip(network(fixed, moving), written_out(network, fixed, moving), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("knobs", [{"linear": "learned"}, {"output": "gate"}])
def test_unknown_words_are_refused(knobs: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="frozen or trainable"):
        MetaOptimiser(**knobs)
