"""AVSM untrained: sizes, order of composition, units, padding, what each step sees, the gradient through it all."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.affine import affine_ddf, compose_affines
from shared_components.warp import coords_grid, warp_image

SIZE = (16, 32, 16)
AFFINE = torch.tensor([[1.03, 0.05, -0.02, 0.04], [-0.04, 0.96, 0.03, -0.05], [0.02, -0.03, 1.01, 0.02]])


@pytest.fixture(scope="module")
def network(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("avsm_registration", "network")


def blob(*shape: int, seed: int = 0, channels: int = 2, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Smooth random images in [0, 1]."""
    coarse = [max(2, n // 5) for n in shape]
    noise = torch.rand((batch, channels, *coarse), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return F.interpolate(noise, shape, mode="trilinear", align_corners=True)


def answering(net: nn.Module, affine: Tensor | None = None, momentum: Tensor | None = None) -> nn.Module:
    """Make the affine network say ``affine`` and the momentum network ``momentum``, whatever they see."""
    with torch.no_grad():
        if affine is not None:
            net.affine.head[2].weight.zero_()
            net.affine.head[2].bias.copy_(affine.flatten())
        if momentum is not None:
            net.momentum.last[1].weight.zero_()
            net.momentum.last[1].bias.copy_(momentum)
    return net


def small(network: ModuleType, **options: Any) -> nn.Module:
    return network.AVSM(**{"size": SIZE, "width": 2, "affine_width": 2, "affine_steps": 1} | options)


def test_the_papers_networks_have_their_weights(network: ModuleType) -> None:
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(network.AffineNet()) == 147_920 and count(network.MomentumNet()) == 5_938_515
    assert count(network.AVSM()) == 147_920 + 5_938_515
    assert network.AffineNet().head[0].in_features == 4 * 3 * 6 * 6


def test_momenta_lie_on_half_the_grid_and_have_either_sign(network: ModuleType) -> None:
    found = network.MomentumNet(4)(2 * blob(*SIZE) - 1)
    assert found.shape == (1, 3, 8, 16, 8) and found.min() < 0 < found.max()


@pytest.mark.parametrize("composition", ["paper", "pullback"])
def test_affine_steps_compose_in_the_order_that_was_asked_for(network: ModuleType, composition: str) -> None:
    first, second = AFFINE, torch.tensor([[0.9, 0, 0.1, 0], [0, 1.1, 0, 0.2], [0.05, 0, 1, -0.1]])
    net = small(network, composition=composition, affine_steps=2)
    answers = iter([first, second])
    net.affine.forward = lambda fixed, moved: next(answers)[None]
    found = net(blob(*SIZE), return_stages=True, velocity_steps=0)["affines"]
    assert torch.equal(found[0][0], first)
    point = torch.tensor([0.3, -0.7, 0.5])
    apply = lambda affine, x: affine[:, :3] @ x + affine[:, 3]  # noqa: E731
    wanted = apply(second, apply(first, point)) if composition == "paper" else apply(first, apply(second, point))
    torch.testing.assert_close(apply(found[1][0], point), wanted)
    A, b = first[:, :3], first[:, 3]
    if composition == "paper":  # eq. 1
        torch.testing.assert_close(found[1][0, :, :3], second[:, :3] @ A)
        torch.testing.assert_close(found[1][0, :, 3], second[:, :3] @ b + second[:, 3])


def test_warping_in_turn_is_the_pullback_order(network: ModuleType, smooth_image: Callable[..., Tensor]) -> None:
    """Inside, where nothing comes from beyond the border."""
    image = smooth_image((32, 32, 32))
    first = torch.tensor([[[1.15, 0, 0, 0.05], [0, 0.9, 0, 0], [0, 0, 1, 0]]], dtype=torch.float64)
    second = torch.tensor([[[0.95, 0.3, 0, 0], [-0.3, 0.95, 0, -0.1], [0, 0, 1, 0.05]]], dtype=torch.float64)
    field = lambda affine: affine_ddf(*network.affine_in_voxels(affine, (32,) * 3), (32,) * 3)  # noqa: E731
    in_turn = warp_image(warp_image(image, field(first)), field(second))
    errors = []
    for pair in ((first, second), (second, first)):
        once = warp_image(image, field(compose_affines(*pair)))
        errors.append(float((once - in_turn)[..., 8:-8, 8:-8, 8:-8].abs().max()))
    assert errors[0] < 0.01 and errors[1] > 4 * errors[0]


def test_affine_maps_of_the_cube_are_those_of_the_voxels(network: ModuleType) -> None:
    ddf = affine_ddf(*network.affine_in_voxels(AFFINE[None], SIZE), SIZE)
    half = (torch.tensor(SIZE).view(1, 3, 1, 1, 1) - 1) / 2
    cube = coords_grid(SIZE) / half - 1
    wanted = torch.einsum("ij,bj...->bi...", AFFINE[:, :3], cube) + AFFINE[:, 3].view(1, 3, 1, 1, 1)
    torch.testing.assert_close((coords_grid(SIZE) + ddf) / half - 1, wanted, atol=1e-5, rtol=0)


def test_a_step_is_raw_or_about_the_identity(network: ModuleType) -> None:
    image = blob(*SIZE)
    raw = answering(small(network), AFFINE)(image, velocity_steps=0)
    biased = answering(small(network, identity_bias=True), AFFINE - torch.eye(3, 4))(image, velocity_steps=0)
    torch.testing.assert_close(raw, biased)
    untrained = small(network)(image, return_stages=True)["affines"][-1][0, :, :3]
    assert untrained.abs().max() < 0.6, "far from the identity, as in the paper"


def test_without_momentum_the_affine_map_stays(network: ModuleType) -> None:
    net = answering(small(network, velocity_steps=3), AFFINE, torch.zeros(3))
    stages = net(blob(*SIZE), return_stages=True)
    for ddf in stages["ddf"]:
        torch.testing.assert_close(ddf, stages["affine_ddf"], atol=1e-4, rtol=0)
    assert stages["affine_ddf"].abs().max() > 1


@pytest.mark.parametrize("spacing_mm", [None, 2.0, (1.0, 2.0, 1.5)])
def test_a_constant_momentum_is_a_shift_in_units_of_the_domain(network: ModuleType, spacing_mm: Any) -> None:
    """v = m, and the map phi(x - v), here for an affine phi; along an axis of length 1 m is a part of its extent."""
    momentum = torch.tensor([0.05, -0.04, 0.03])
    net = answering(small(network, velocity_steps=1, spacing_mm=spacing_mm), AFFINE, momentum)
    stages = net(blob(*SIZE), return_stages=True)
    extent = (torch.tensor(SIZE) - 1) * torch.tensor(spacing_mm or 1.0)
    length = torch.ones(3) if spacing_mm is None else extent / extent.max()
    shift = momentum * (torch.tensor(SIZE) - 1) / length
    phi = stages["affine_ddf"] + coords_grid(SIZE)
    A, _ = network.affine_in_voxels(AFFINE[None], SIZE)
    wanted = phi - ((torch.eye(3) + A[0]) @ shift).view(1, 3, 1, 1, 1) - coords_grid(SIZE)
    torch.testing.assert_close(stages["ddf"][0], wanted, atol=2e-3, rtol=0)
    torch.testing.assert_close(stages["velocities"][0], stages["momenta"][0], atol=1e-4, rtol=0)
    m = stages["momenta"][0][0, :, 3, 3, 3] * stages["half_voxel"]
    torch.testing.assert_close(m, momentum)
    torch.testing.assert_close(stages["voxel"] * (torch.tensor(SIZE) - 1), length)


def test_gaussians_are_round_in_space_if_the_spacing_is_known(network: ModuleType) -> None:
    """On voxels of 1 x 2 x 1 mm, 4 mm from the middle along both; without it the same number of voxels along both."""
    point = torch.zeros(1, 1, 33, 33, 33)
    point[..., 16, 16, 16] = 1
    near, far = (4, 2), (4, 4)
    for spacing_mm, (first, second) in (((1.0, 2.0, 1.0), near), (None, far)):
        smooth = small(network, spacing_mm=spacing_mm, sigmas=[0.05]).smoother((33, 33, 33))(point)[0, 0]
        torch.testing.assert_close(smooth[16 - first, 16, 16], smooth[16, 16 - second, 16], atol=0, rtol=1e-3)


def test_other_sizes_are_padded_with_zeros_and_cut_back(network: ModuleType) -> None:
    net, image = small(network, size=(24, 28, 20)), blob(24, 28, 20)
    whole = F.pad(image, (6, 6, 2, 2, 4, 4))
    ddf = net(image)
    assert ddf.shape == (1, 3, 24, 28, 20)
    torch.testing.assert_close(ddf, net(whole)[..., 4:-4, 2:-2, 6:-6])
    assert network.padded((16, 17, 1)) == (16, 32, 16)
    assert net(image[..., :-1, :3]).shape == (1, 3, 24, 27, 3)


def test_a_grid_that_the_affine_part_was_not_made_for(network: ModuleType) -> None:
    """It sees that image on its own grid, so what it says of the cube hardly changes."""
    net, image = small(network), blob(*SIZE)
    finer = F.interpolate(image, (32, 48, 32), mode="trilinear", align_corners=True)
    here, there = (net(x, return_stages=True, velocity_steps=1) for x in (image, finer))
    torch.testing.assert_close(here["affines"][0], there["affines"][0], atol=1e-3, rtol=0)
    assert there["ddf"][0].shape == (1, 3, 32, 48, 32)


def test_every_step_sees_the_original_warped_once(network: ModuleType) -> None:
    net, image = answering(small(network, velocity_steps=2), AFFINE), blob(*SIZE)
    seen: list[Tensor] = []
    net.momentum.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    stages = net(image, return_stages=True)
    for wanted, found in zip([stages["affine_ddf"], stages["ddf"][0]], seen, strict=True):
        moved = warp_image(image[:, 1:], wanted, padding="zeros")
        torch.testing.assert_close(found, 2 * torch.cat([image[:, :1], moved], 1) - 1, atol=1e-5, rtol=0)
    torch.testing.assert_close(stages["moved"][1], warp_image(image[:, 1:], stages["ddf"][1], padding="zeros"))


@pytest.mark.parametrize("steps", [0, 1, 4, 6])
def test_steps_are_free_at_test_time(network: ModuleType, steps: int) -> None:
    net, image = answering(small(network, affine_steps=3), AFFINE), blob(*SIZE)
    with torch.no_grad():
        stages = net(image, return_stages=True, velocity_steps=steps)
        net.velocity_steps = steps
        assert torch.equal(net(image), stages["ddf"][-1] if steps else stages["affine_ddf"])
        assert len(stages["affines"]) == 3 and len(stages["ddf"]) == len(stages["momenta"]) == steps
        assert len(net(image, return_stages=True, affine_steps=5)["affines"]) == 5


def test_a_doubled_batch_gives_what_two_runs_give(network: ModuleType) -> None:
    net, image = small(network, affine_steps=2), blob(*SIZE, seed=1)
    with torch.no_grad():
        both = net(torch.cat([image, image.flip(1)]))
        torch.testing.assert_close(both, torch.cat([net(image), net(image.flip(1))]), atol=1e-4, rtol=0)
        assert not torch.allclose(*both.chunk(2), atol=1e-2)


def test_gradients_reach_both_networks_through_the_integrator(network: ModuleType) -> None:
    """Against differences, in double precision: momentum, smoothing, advection, resampling, two steps, checkpoints."""
    net = small(network, size=(16, 16, 16), affine_steps=2, velocity_steps=2, time_steps=3).double()
    net = answering(net, torch.eye(3, 4) + 0.3 * (AFFINE - torch.eye(3, 4)))
    image = blob(16, 16, 16, seed=4, dtype=torch.float64)
    target = blob(16, 16, 16, seed=5, channels=1, dtype=torch.float64)
    last, head = net.momentum.last[1], net.affine.head[2]
    names = ("momentum.last.1.bias", "affine.head.2.bias")

    def loss(*values: Tensor) -> Tensor:
        stages = torch.func.functional_call(net, dict(zip(names, values, strict=True)), (image, True))
        return (stages["moved"][-1] - target).square().sum()

    values = [x.detach().clone().requires_grad_() for x in (last.bias, head.bias)]
    assert torch.autograd.gradcheck(loss, values, eps=1e-7, atol=1e-4, rtol=1e-3)


def test_recomputing_changes_no_gradient(network: ModuleType) -> None:
    found = []
    for recompute in (True, False):
        torch.manual_seed(0)
        net = answering(small(network, affine_steps=3, recompute=recompute).double(), 0.2 * AFFINE)
        net.identity_bias = True
        net(blob(*SIZE, dtype=torch.float64)).square().mean().backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-6)
    assert sum(float(g.abs().sum()) for g in found[0]) > 0


def test_a_frozen_affine_part_learns_nothing(network: ModuleType) -> None:
    net, image = small(network), blob(*SIZE)
    net(image, frozen_affine=True).square().mean().backward()
    assert all(p.grad is None for p in net.affine.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.momentum.parameters() if p.ndim > 1)


def test_half_precision_keeps_affine_maps_exact(network: ModuleType) -> None:
    net, image = answering(small(network), AFFINE), blob(*SIZE)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        halved = net(image, velocity_steps=0)
    torch.testing.assert_close(halved, net(image, velocity_steps=0).detach())
    assert halved.dtype == torch.float32


def test_words_are_checked(network: ModuleType) -> None:
    with pytest.raises(ValueError, match="composition must be one of paper, pullback"):
        network.AVSM(SIZE, composition="inverse")
    with pytest.raises(ValueError, match="padding must be one of"):
        small(network, padding="mirror")(blob(*SIZE))
