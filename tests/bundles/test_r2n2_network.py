"""R2N2 untrained: sizes, the identity, the parts by themselves, the state, steps, stopping, 2-D and 3-D."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.warp import warp_image

SIZES = {2: (24, 20), 3: (16, 12, 14)}


@pytest.fixture(scope="module")
def network(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("r2n2_registration", "network")


@pytest.fixture(scope="module")
def blocks(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("r2n2_registration", "blocks")


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


# ---- sizes -----------------------------------------------------------------------------------------------------------


def test_defaults_are_the_papers_network(network: ModuleType) -> None:
    net = network.R2N2()
    assert count(net) == 3_593_611 and net.steps == 25
    assert count(net.stem) == 6_304
    assert [count(unit.gru) for unit in net.units] == [55_392, 221_376, 885_120]
    assert [count(unit.blocks) for unit in net.units] == [55_488, 221_568, 885_504]
    assert count(net.shape_net) == 874_885 and [count(place) for place in net.positions] == [66, 130, 258]
    assert count(network.R2N2(channels=[32, 64, 128, 256])) == 3_593_611
    assert count(network.R2N2(blocks=6)) == 4_756_171 and count(network.R2N2(last_stride=1)) == 3_331_467


def test_the_levels_are_half_a_quarter_and_an_eighth_of_the_image(network: ModuleType) -> None:
    net = moving_network(network)
    sizes = []
    for part in (*net.positions, net.shape_net):
        part.register_forward_pre_hook(lambda module, x: sizes.append(x[0].shape[2:]))
    net(torch.rand(1, 2, 64, 48), steps=1)
    assert [tuple(size) for size in sizes] == [(32, 24), (16, 12), (8, 6), (4, 3)]


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_fresh_network_is_the_identity(network: ModuleType, ndim: int) -> None:
    net, image = network.R2N2(ndim=ndim, channels=4, steps=3), pair(ndim)
    for mode in (net.eval(), net.train()):
        ddf = mode(image)
        assert ddf.shape == (2, ndim, *SIZES[ndim]) and torch.equal(ddf, torch.zeros_like(ddf))
    stages = net(image, return_stages=True)
    inner = (..., *(slice(1, -1),) * ndim)
    moving = net.standardised(image)[:, 1:]
    torch.testing.assert_close(stages["moved"][-1][inner], moving[inner], atol=1e-5, rtol=0)
    numbers = stages["parameters"][..., ndim:]
    torch.testing.assert_close(numbers[..., :ndim], torch.full_like(numbers[..., :ndim], 0.15))
    turn = numbers[..., ndim:-ndim]
    torch.testing.assert_close(turn, torch.full_like(turn, math.pi / 2 if ndim == 2 else 0.0))


def test_at_first_only_the_weights_of_the_bumps_learn(network: ModuleType) -> None:
    net = network.R2N2(channels=4, steps=3)
    stages = net(pair(), return_stages=True)
    sum((moved - stages["fixed"]).square().mean() for moved in stages["moved"]).backward()
    rows = net.shape_net.last.weight.grad.abs().sum(1)
    assert not rows[[0, 1, 4]].any() and rows[[2, 3]].all()  # widths, angle; weights
    others = [value for name, value in net.named_parameters() if "shape_net.last" not in name]
    assert all(value.grad is None or not value.grad.any() for value in others)


# ---- the parts -------------------------------------------------------------------------------------------------------


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


def test_a_network_may_begin_with_the_difference(network: ModuleType) -> None:
    """Every second feature of the stem is one of moved minus fixed; nothing moves; names and shapes are the paper's."""
    torch.manual_seed(0)
    net, paper = network.R2N2(channels=4, init="difference"), network.R2N2(channels=4)
    image = pair()[:1, :1]
    with torch.no_grad():
        alike = net._still(image) + F.conv2d(image, net.stem.weight[:, 1:2], stride=2, padding=3)
        flat = net._still(torch.zeros_like(image))
        assert not net(torch.cat([image, image.flip(2)], 1)).any()
    torch.testing.assert_close(alike[:, ::2], flat[:, ::2], atol=1e-5, rtol=0)
    assert float((alike - flat)[:, 1::2].abs().max()) > 0.1
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in paper.state_dict().items()}
    with pytest.raises(ValueError, match="init must be one of paper, difference, not 'other'"):
        network.R2N2(init="other")


# ---- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [2, 3])
def test_stages_end_with_what_the_network_gives(network: ModuleType, ndim: int) -> None:
    net, image = moving_network(network, ndim=ndim), pair(ndim)
    with torch.no_grad():
        ddf, stages = net(image), net(image, return_stages=True)
    parameters = stages["parameters"]
    assert parameters.shape == (2, 5, 7 if ndim == 2 else 12) and stages["certainty"].shape == (2, 5, 3)
    assert torch.equal(net.field_of(parameters, SIZES[ndim]), ddf) and float(ddf.abs().max()) > 0.3
    for t in range(5):
        wanted = net.field_of(parameters[:, : t + 1], SIZES[ndim])
        torch.testing.assert_close(stages["ddf"][t], wanted, atol=1e-5, rtol=0)
        moved = warp_image(net.standardised(image)[:, 1:], wanted, padding="zeros")
        torch.testing.assert_close(stages["moved"][t], moved, atol=1e-4, rtol=0)


def test_every_pair_and_every_run_begins_anew(network: ModuleType) -> None:
    net, image = moving_network(network), pair()
    with torch.no_grad():
        first, other, again = net(image), net(image.flip(0)), net(image)
        assert torch.equal(first, again)
        torch.testing.assert_close(other.flip(0), first, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.cat([net(one) for one in image.split(1)]), first, atol=1e-5, rtol=0)
    assert not list(net.buffers())


def test_the_state_is_carried_from_step_to_step(network: ModuleType) -> None:
    """A network that moves nothing sees the same in every step: it can tell them apart by its state alone."""
    found = {}
    for recurrent in (True, False):
        torch.manual_seed(0)
        net = network.R2N2(channels=4, blocks=1, steps=3, recurrent=recurrent).eval()
        with torch.no_grad():
            found[recurrent] = net(pair(), return_stages=True)["parameters"][..., :2]
    torch.testing.assert_close(found[False][:, 1], found[False][:, 0], atol=1e-6, rtol=0)
    assert (found[True].diff(dim=1).abs().amax((0, 2)) > 1e-4).all()
    assert count(network.R2N2(channels=4)) - count(network.R2N2(channels=4, recurrent=False)) == 27 * (16 + 64 + 256)


def test_any_number_of_steps(network: ModuleType) -> None:
    net, image = moving_network(network), pair()
    with torch.no_grad():
        long = net(image, return_stages=True, steps=9)
        assert torch.equal(long["parameters"][:, :5], net(image, return_stages=True)["parameters"])
        assert len(long["ddf"]) == len(long["moved"]) == 9
        none = net(image, return_stages=True, steps=0)
        assert not net(image, steps=0).any() and none["parameters"].shape == (2, 0, 7) and none["ddf"] == []


@pytest.mark.parametrize("size", [(256, 256), (37, 53), (16, 16), (8, 9)])
def test_any_size(network: ModuleType, size: tuple[int, int]) -> None:
    net = moving_network(network, steps=2)
    with torch.no_grad():
        ddf = net(torch.rand(1, 2, *size))
    assert ddf.shape == (1, 2, *size) and torch.isfinite(ddf).all() and ddf.any()


def test_scale_of_intensities_does_not_matter(network: ModuleType) -> None:
    net, image = moving_network(network), pair()
    scaled = torch.stack([900 * image[:, 0] - 70, 3 * image[:, 1] + 5], 1)
    with torch.no_grad():
        torch.testing.assert_close(net(scaled), net(image), atol=1e-3, rtol=0)
        assert torch.isfinite(net(torch.ones_like(image))).all(), "a constant image"
    flat = net.standardised(torch.randn(1, 2, 50, 50)).flatten(2)
    assert flat.abs().max() == 2 and flat.mean(-1).abs().max() < 0.1


def test_half_precision_features_give_fields_in_full(network: ModuleType) -> None:
    net, image = moving_network(network), pair()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(image)
    with torch.no_grad():
        full = net(image)
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    torch.testing.assert_close(half, full, atol=0.15 * float(full.abs().max()), rtol=0)


def test_noise_is_for_training_only_and_repeatable(network: ModuleType) -> None:
    net, image = moving_network(network), pair()
    with torch.no_grad():
        quiet = net(image, noise_seed=3)
        assert torch.equal(quiet, net(image))
        net.train()
        noisy = net(image, noise_seed=3)
        assert torch.equal(noisy, net(image, noise_seed=3))
        others = [net(image, noise_seed=4), net(image), net(image), quiet]
        assert not any(torch.allclose(noisy, other, atol=1e-4) for other in others)
        assert not torch.allclose(others[1], others[2], atol=1e-4), "without a seed it is drawn"
        net.noise = 0.0
        torch.testing.assert_close(net(image), quiet, atol=1e-5, rtol=0)


def test_recomputed_steps_have_the_same_gradients(network: ModuleType) -> None:
    net, image, found = moving_network(network).train(), pair(), []
    for recompute in (False, True):
        net.recompute = recompute
        net.zero_grad()
        stages = net(image, return_stages=True, noise_seed=7)
        sum((moved - stages["fixed"]).square().mean() for moved in stages["moved"]).backward()
        found.append([value.grad.clone() for value in net.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert all(value.abs().sum() > 0 for value in found[0]), "every weight learns"


def test_all_knobs_build_networks_that_differ(network: ModuleType) -> None:
    found = []
    for options in (
        {},
        {"variance": True},
        {"composition": "compose"},
        {"coordinates": False},
        {"norm": True},
        {"last_stride": 1},
        {"certainty": False},
        {"recurrent": False},
        {"padding": "border"},
        {"clamp": 1.0},
        {"max_width": 0.2},
    ):
        torch.manual_seed(0)
        net = moving_network(network, scale=0.2, **options)
        with torch.no_grad():
            found.append(net(pair()))
        net(pair()).sum().backward()
        assert all(value.grad is not None for value in net.parameters()), options
    for k, one in enumerate(found):
        assert torch.isfinite(one).all()
        assert not any(torch.allclose(one, other, atol=1e-4) for other in found[:k]), k
    with pytest.raises(ValueError, match="composition must be one of add, compose"):
        network.R2N2(composition="multiply")


# ---- stopping --------------------------------------------------------------------------------------------------------


def test_a_pair_stops_when_little_is_left_and_others_go_on(network: ModuleType) -> None:
    net, image = moving_network(network, steps=12), pair(seed=3)
    with torch.no_grad():
        stages = net(image, return_stages=True)
        left = net.remaining(stages["parameters"], stages["certainty"], SIZES[2])
        assert left.shape == (2, 12)
        calm = [(row < tolerance).tolist() for tolerance in [float(left.flatten().median())] for row in left]
        net.tolerance = float(left.flatten().median())
        stopped = net(image, return_stages=True)
    ends = []
    for row in calm:
        threes = [t for t in range(2, 12) if all(row[t - 2 : t + 1])]
        ends.append(threes[0] + 1 if threes else 12)
    assert stopped["parameters"].shape[1] == max(ends) and min(ends) < 12, ends
    for one, whole, end in zip(stopped["parameters"], stages["parameters"], ends, strict=True):
        torch.testing.assert_close(one[:end], whole[:end])
        assert not one[end:, -2:].any(), "no weight after its end"
    with torch.no_grad():
        torch.testing.assert_close(net(image[:1]), net(image)[:1], atol=1e-5, rtol=0)


def test_a_stopping_rule_keeps_to_the_largest_number_of_steps(network: ModuleType) -> None:
    net, image = moving_network(network), pair()
    with torch.no_grad():
        net.tolerance = 1e-9
        assert net(image, return_stages=True)["parameters"].shape[1] == 5
        net.tolerance = 1e9
        assert net(image, return_stages=True)["parameters"].shape[1] == 3
        assert net.train()(image, return_stages=True)["parameters"].shape[1] == 5, "not in training"
