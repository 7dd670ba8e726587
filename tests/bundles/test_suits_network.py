"""SUITS untrained: sizes, what is shared, the laws of one step, descent on known displacements."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared_components.solvers import Spectral
from shared_components.warp import warp_image

SIZE = (24, 28, 20)


@pytest.fixture(scope="module")
def network(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("suits_registration", "network")


@pytest.fixture(scope="module")
def descent(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("suits_registration", "descent")


def blob(*shape: int, seed: int = 0, channels: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """A smooth random image."""
    coarse = [max(2, n // 5) for n in shape]
    noise = torch.rand((1, channels, *coarse), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return F.interpolate(noise, shape, mode="trilinear" if len(shape) == 3 else "bilinear", align_corners=True)


def energy(z: Tensor, moved: Tensor, fixed: Tensor, ddf: Tensor, smoothness: float, slopes: Tensor) -> Tensor:
    residual = (slopes * z[:, None]).sum(2) + moved - fixed
    total = 0.5 * (residual**2).sum()
    for axis in range(2, z.ndim):
        total = total + 0.5 * smoothness * ((ddf + z).diff(dim=axis) ** 2).sum()
    return total


def test_table_1_has_its_weights_and_shares_the_last_three_layers(network: ModuleType) -> None:
    cnn = network.FeatCNN()
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(cnn) == 97_484 and count(network.FeatCNN((1, 1, 2, 1, 1))) == 97_484
    assert count(network.FeatCNN(affine_norm=True)) == 97_804
    assert [count(own) for own in cnn.own] == [2_016 + 13_856] * 2 and count(cnn.shared) == 2 * 27_680 + 10_380
    assert count(network.SUITS()) == 97_484


@pytest.mark.parametrize(("strides", "factor"), [((1, 2, 2, 1, 1), 4), ((1, 1, 2, 1, 1), 2)])
def test_features_lie_on_the_control_points_within_0_and_1(
    network: ModuleType, strides: tuple[int, ...], factor: int
) -> None:
    image = blob(22, 27, 17)
    cnn = network.FeatCNN(strides)
    found = [cnn(network.standardised(image), branch) for branch in (0, 1)]
    assert all(one.shape == (1, 12, *(-(-n // factor) for n in image.shape[2:])) for one in found)
    assert all(0 < one.min() and one.max() < 1 for one in found) and not torch.allclose(*found)


def test_a_batch_gives_what_its_images_give_alone(network: ModuleType) -> None:
    images = torch.cat([blob(*SIZE), 3 * blob(*SIZE, seed=1)])
    net = network.SUITS(iterations=2)
    with torch.no_grad():
        pair = torch.cat([images, images.flip(0)], 1)
        both, alone = net(pair), torch.cat([net(one) for one in pair.split(1)])
        torch.testing.assert_close(both, alone, atol=1e-5, rtol=0)
        norm = network._Norm(1)
        torch.testing.assert_close(torch.cat([norm(one) for one in images.split(1)]), norm(images))


def test_alike_features_do_not_move(network: ModuleType, descent: ModuleType) -> None:
    features = blob(8, 7, 6, channels=12)
    zero = torch.zeros(1, 3, 8, 7, 6)
    assert descent.update(features, features, zero, 10.0, Spectral()).abs().max() < 1e-6
    image = blob(*SIZE)
    with torch.no_grad():
        assert network.SUITS(features="mind")(torch.cat([image, image], 1)).abs().max() < 1e-4


def test_without_data_a_step_undoes_what_is_not_constant(descent: ModuleType) -> None:
    ddf = blob(8, 7, 6, channels=3, dtype=torch.float64)
    flat = torch.zeros(1, 4, 8, 7, 6, dtype=torch.float64)
    left = ddf + descent.update(flat, flat, ddf, 10.0, Spectral(1e-10))
    assert left.flatten(2).std(2).max() < 1e-8


def test_a_step_minimises_its_energy(descent: ModuleType) -> None:
    moved, fixed = (blob(6, 5, 4, channels=3, seed=s, dtype=torch.float64) for s in (0, 1))
    ddf = 0.3 * blob(6, 5, 4, channels=3, seed=2, dtype=torch.float64)
    z = descent.update(moved, fixed, ddf, 2.0, Spectral(1e-12)).requires_grad_()
    slope = torch.autograd.grad(energy(z, moved, fixed, ddf, 2.0, descent.slopes(moved)), z)[0]
    assert slope.abs().max() < 1e-8


def test_strong_smoothness_leaves_a_translation(descent: ModuleType) -> None:
    moved, fixed = (blob(8, 7, 6, channels=3, seed=s, dtype=torch.float64) for s in (0, 1))
    z = descent.update(moved, fixed, torch.zeros(1, 3, 8, 7, 6, dtype=torch.float64), 1e6, Spectral(1e-10))
    assert z.abs().max() > 1e-3 and z.flatten(2).std(2).max() < 1e-4 * z.abs().max()


def test_slopes_are_central_differences(descent: ModuleType) -> None:
    x = torch.arange(5.0).square().view(1, 1, 5, 1).expand(1, 1, 5, 3)
    assert descent.slopes(x)[0, 0, 0, :, 0].tolist() == [0.5, 2.0, 4.0, 6.0, 3.5]
    assert not descent.slopes(x)[0, 0, 1].any()


def test_axes_may_be_permuted(descent: ModuleType) -> None:
    moved, fixed = (blob(8, 7, 6, channels=2, seed=s, dtype=torch.float64) for s in (0, 1))
    zero = torch.zeros(1, 3, 8, 7, 6, dtype=torch.float64)
    z = descent.update(moved, fixed, zero, 3.0, Spectral(1e-10))
    turn = lambda x: x.permute(0, 1, 4, 2, 3)  # noqa: E731
    turned = descent.update(turn(moved), turn(fixed), turn(zero), 3.0, Spectral(1e-10))
    torch.testing.assert_close(turned, turn(z)[:, [2, 0, 1]], atol=1e-7, rtol=0)


@pytest.mark.parametrize("upsampling", ["box", "spline"])
def test_a_constant_stays_a_constant_in_voxels(descent: ModuleType, upsampling: str) -> None:
    field = descent.dense(torch.full((1, 3, 6, 7, 5), 0.75), 4, (22, 28, 19), upsampling)
    torch.testing.assert_close(field, torch.full((1, 3, 22, 28, 19), 3.0))
    assert descent.dense(field, 1, (22, 28, 19)) is field


@pytest.mark.parametrize("factor", [2, 4])
def test_spline_is_the_quadratic_b_spline_and_the_box_is_near(descent: ModuleType, factor: int) -> None:
    """Peaks of one control point; the middle of a cell lies between two voxels."""
    control = torch.zeros(1, 2, 9, 5)
    control[:, :, 4] = 1
    x = (torch.arange(9 * factor) - (4 * factor + (factor - 1) / 2)) / factor
    near, far = 0.75 - x**2, 0.5 * (1.5 - x.abs()) ** 2
    wanted = torch.where(x.abs() <= 0.5, near, torch.where(x.abs() <= 1.5, far, torch.zeros(())))
    found = {
        name: descent.dense(control, factor, (9 * factor, 5 * factor), name)[0, 0, :, 7] for name in descent.UPSAMPLING
    }
    torch.testing.assert_close(found["spline"], factor * wanted, atol=1e-5, rtol=0)
    away = (found["box"] - factor * wanted).abs().max() / factor
    assert 0.01 < away < (0.06 if factor == 4 else 0.3)


def test_upsampling_puts_control_points_into_the_middle_of_their_cells(descent: ModuleType) -> None:
    """A linear displacement on the cells is the same linear displacement on the voxels, away from the border."""
    cells = 4 * torch.arange(8.0) + 1.5
    control = (0.1 * cells / 4).view(1, 1, 8, 1).expand(1, 2, 8, 8)
    field = descent.dense(control.contiguous(), 4, (32, 32))[0, 0, 6:-6, 16]
    torch.testing.assert_close(field, 0.1 * torch.arange(6.0, 26.0), atol=1e-5, rtol=0)


def test_descent_recovers_a_translation(network: ModuleType) -> None:
    """By MIND of a smooth image: two voxels along each axis, in fifteen iterations, at little smoothness."""
    wide = blob(40, 40, 40, seed=3)
    fixed, moving = wide[..., 4:-4, 4:-4, 4:-4], wide[..., 6:-2, 5:-3, 3:-5]
    shift = torch.tensor([-2.0, -1.0, 1.0])
    net = network.SUITS(features="mind", smoothness=0.1)
    with torch.no_grad():
        stages = net(torch.cat([fixed, 5 - 2 * moving], 1), return_stages=True)["ddf"]
    inner = (slice(None), slice(None), *(slice(8, -8),) * 3)
    assert len(stages) == 15 and stages[-1].shape == (1, 3, 32, 32, 32)
    error = [(ddf[inner].mean((0, 2, 3, 4)) - shift).abs().max() for ddf in stages]
    assert error[-1] < 0.2 and error[-1] < 0.3 * error[0]
    before = (moving - fixed)[inner].square().mean()
    assert (warp_image(moving, stages[-1]) - fixed)[inner].square().mean() < 0.1 * before


def test_stages_end_with_what_the_network_gives(network: ModuleType) -> None:
    image = torch.cat([blob(*SIZE), blob(*SIZE, seed=1)], 1)
    net = network.SUITS(iterations=3)
    with torch.no_grad():
        assert torch.equal(net(image), net(image, return_stages=True)["ddf"][-1])
        assert torch.equal(net(7 * image + 3), net(7 * image + 3)), "repeatable"
        torch.testing.assert_close(net(7 * image + 3), net(image), atol=1e-3, rtol=0)


def test_swapped_branches_take_swapped_images(network: ModuleType) -> None:
    torch.manual_seed(0)
    net, image = network.SUITS(), network.standardised(blob(*SIZE))
    with torch.no_grad():
        here = net.describe(image, 0)
        net.swap = True
        assert torch.equal(net.describe(image, 1), here) and not torch.equal(net.describe(image, 0), here)


def test_in_two_dimensions_too(network: ModuleType) -> None:
    image = torch.cat([blob(24, 28), blob(24, 28, seed=1)], 1)
    for features in ("mind", "cnn"):
        net = network.SUITS(features=features, ndim=2, iterations=2)
        with torch.no_grad():
            assert net(image).shape == (1, 2, 24, 28)
    assert net.describe(image[:, :1], 0).shape == (1, 4, 6, 7)


def test_words_are_checked(network: ModuleType) -> None:
    with pytest.raises(ValueError, match="features must be one of cnn, mind"):
        network.SUITS(features="sift")
    with pytest.raises(ValueError, match="upsampling must be one of box, spline"):
        network.SUITS(upsampling="cubic")
    with pytest.raises(ValueError, match="no solver 'magic'"):
        network.SUITS(solver="magic")
