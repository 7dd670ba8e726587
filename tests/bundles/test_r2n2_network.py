"""R2N2 untrained: sizes, the identity, the parts by themselves, the state, steps, stopping, 2-D and 3-D."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from r2n2_case import SIZES, count, moving_network, pair

from shared_components.warp import warp_image


@pytest.fixture(scope="module")
def network(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("r2n2_registration", "network")


@pytest.fixture(scope="module")
def blocks(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("r2n2_registration", "blocks")


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
