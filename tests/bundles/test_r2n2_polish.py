"""Bumps fitted to their pair: the way down is the right one, truth is found, nothing folds, the pairs stay apart."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from r2n2_case import SIZES, moving_network, pair
from torch import Tensor

from shared_components.errors import InputError
from shared_components.metrics import folded_cells
from shared_components.warp import coords_grid, warp_image


@pytest.fixture(scope="module")
def load(bundle_module: Callable[[str, str], ModuleType]) -> Callable[[str], ModuleType]:
    return lambda name: bundle_module("r2n2_registration", name)


def texture(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A smooth random image (1, 1, *shape) of unit spread, in float64."""
    noise = torch.rand(1, 1, *(n + 8 for n in shape), generator=torch.Generator().manual_seed(seed)).double()
    pool = torch.nn.functional.avg_pool2d if len(shape) == 2 else torch.nn.functional.avg_pool3d
    image = pool(pool(noise, 5, 1), 5, 1)
    return (image - image.mean()) / image.std()


def some_bumps(ndim: int, steps: int = 3, seed: int = 1) -> Tensor:
    """Bumps (1, T, P) about the middle, in float64."""
    draw = torch.rand(1, steps, {2: 7, 3: 12}[ndim], generator=torch.Generator().manual_seed(seed)).double()
    low, span = torch.zeros(draw.shape[-1]), torch.ones(draw.shape[-1])
    low[:ndim], span[:ndim] = -0.4, 0.8
    low[ndim : 2 * ndim], span[ndim : 2 * ndim] = 0.25, 0.2
    low[-ndim:], span[-ndim:] = -0.06, 0.12
    return low + span * draw


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_normal_equations_hold_the_slope_of_the_energy(load: Callable[[str], ModuleType], ndim: int) -> None:
    """The right-hand side is half the negative gradient that differences of the energy give, for every number."""
    polish, shape = load("polish"), SIZES[ndim]
    image = torch.cat([texture(shape, 0), texture(shape, 1)], 1)[0]
    how = polish.PolishSettings(leash=2.0, least_width=0.1, points=100)
    fit = polish._Fit(some_bumps(ndim)[0], image, False, how)
    assert fit.fixed.numel() <= 100
    # the sampled slope of an image is a smoothed one: let the image be linear, so that both are exact
    slope = torch.tensor([0.3 + axis for axis in range(ndim)]).double()
    grid = coords_grid(shape, torch.device("cpu"))[0].double()
    ramp = (slope.view(-1, *(1,) * ndim) * grid).sum(0)
    fit.moving = torch.stack([ramp, *(s.expand(shape) for s in slope)])[None]
    at = fit._moved(fit.proposed, 0.01 * torch.ones_like(fit.stiff))
    _, right = fit._normal(at, fit._look(at))
    step = 1e-6
    for k in range(fit.stiff.numel()):
        probe = torch.zeros_like(fit.stiff).flatten()
        probe[k] = step
        up, down = (fit._look(fit._moved(at, sign * probe.view_as(fit.stiff))).energy for sign in (1, -1))
        found, wanted = -2 * right[k].item(), ((up - down) / (2 * step)).item()
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5), k


@pytest.mark.parametrize(("ndim", "variance"), [(2, False), (2, True), (3, False)])
def test_bumps_that_are_nearly_right_become_right(load: Callable[[str], ModuleType], ndim: int, variance: bool) -> None:
    polish, deformation, shape = load("polish"), load("deformation"), {2: (48, 40), 3: (24, 20, 22)}[ndim]
    truth = some_bumps(ndim)
    if variance:
        truth[..., ndim : 2 * ndim] = truth[..., ndim : 2 * ndim].square()
    ddf = deformation.field_of(truth, shape, variance)
    moving = texture(shape)
    image = torch.cat([warp_image(moving, ddf), moving], 1)
    draw = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2)).double()
    proposed = truth * (1 + 0.1 * draw)
    found = polish.polish(proposed, image, variance, polish.PolishSettings(leash=1000.0))
    assert found.shape == truth.shape and found.dtype == torch.float64
    errors = [
        float((deformation.field_of(numbers.double(), shape, variance) - ddf).norm(dim=1).mean())
        for numbers in (proposed, found)
    ]
    assert errors[0] > 0.01 and errors[1] < 0.05 * errors[0], errors
    assert bool((found[..., ndim : 2 * ndim] > 0).all())


def test_what_is_right_stays_and_no_iterations_change_nothing(load: Callable[[str], ModuleType]) -> None:
    polish, deformation = load("polish"), load("deformation")
    truth, moving = some_bumps(2), texture((48, 40))
    image = torch.cat([warp_image(moving, deformation.field_of(truth, (48, 40))), moving], 1)
    none = polish.polish(truth, image, False, polish.PolishSettings(iterations=0))
    torch.testing.assert_close(none, truth)
    some = polish.polish(truth, image, False, polish.PolishSettings())
    fields = [deformation.field_of(numbers, (48, 40)) for numbers in (none, some)]
    assert float((fields[0] - fields[1]).abs().max()) < 0.05


def test_the_leash_holds(load: Callable[[str], ModuleType]) -> None:
    """The shorter, the nearer the bumps stay to those proposed."""
    polish = load("polish")
    image = torch.cat([texture((48, 40), 0), texture((48, 40), 1)], 1)
    proposed = some_bumps(2)
    gone = []
    for leash in (0.03, 0.3, 30.0):
        found = polish.polish(proposed, image, False, polish.PolishSettings(iterations=6, leash=leash))
        gone.append(float((found[..., :2] - proposed[..., :2]).norm()))
    assert gone[0] < 0.1 * gone[1] < 0.1 * gone[2] and gone[2] > 0.01, gone


def test_what_the_narrowest_width_keeps_back_is_not_charged(load: Callable[[str], ModuleType]) -> None:
    polish = load("polish")
    image = torch.cat([texture((48, 40), 0), texture((48, 40), 1)], 1)
    fit = polish._Fit(some_bumps(2)[0], image[0], False, polish.PolishSettings(least_width=100.0))
    step = torch.full_like(fit.stiff, -0.3)
    gone = fit._gone(fit._moved(fit._moved(fit.proposed, step), step))
    assert not gone[:, 2:4].any() and torch.allclose(gone[:, [0, 1, 4, 5, 6]], torch.tensor(-0.6).double())


def test_it_does_not_fold(load: Callable[[str], ModuleType]) -> None:
    """Two images that have nothing in common ask for folds; without a look at them there would be some."""
    polish, deformation = load("polish"), load("deformation")
    image = torch.cat([texture((48, 40), 0), texture((48, 40), 1)], 1)
    how = polish.PolishSettings(iterations=25, leash=1000.0, least_width=0.5)
    proposed = some_bumps(2, steps=8)
    free = polish._Fit(proposed[0], image[0], False, how).run(None)
    assert folded_cells(deformation.field_of(polish._numbers(free, False, 2)[None], (48, 40))).any()
    assert not folded_cells(deformation.field_of(proposed, (48, 40))).any()
    found = polish.polish(proposed, image, False, how)
    assert not folded_cells(deformation.field_of(found, (48, 40))).any()
    assert not torch.equal(found, proposed), "all the same it went as far as it could"


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_a_network_proposes_is_polished(load: Callable[[str], ModuleType], ndim: int) -> None:
    network = moving_network(load("network"), 0.001, ndim=ndim)
    moving = texture({2: (48, 40), 3: (24, 20, 22)}[ndim]).float()
    moved = warp_image(moving, load("deformation").field_of(some_bumps(ndim).float(), moving.shape[2:]))
    image = torch.cat([torch.cat([moved, moving], 1), torch.cat([moving, moved], 1)])
    whole = load("polish").Polished(network, 15).eval()
    with torch.no_grad():
        stages, plain = whole(image, return_stages=True), network(image, return_stages=True)
        ddf, alone, nothing = whole(image), whole(image[1:]), whole(image, steps=0)
    assert torch.equal(stages["proposed"], plain["parameters"]) and "proposed" not in plain
    assert torch.equal(stages["ddf"][-1], ddf) and torch.equal(stages["ddf"][-2], plain["ddf"][-2])
    assert torch.equal(network.field_of(stages["parameters"], image.shape[2:]), ddf)
    before, after = (float((s["moved"][-1] - s["fixed"]).square().mean()) for s in (plain, stages))
    assert after < before
    torch.testing.assert_close(ddf[1:], alone, rtol=1e-3, atol=1e-3)
    assert not nothing.any()


def test_a_pair_that_stopped_early_keeps_its_bumps_and_no_others(load: Callable[[str], ModuleType]) -> None:
    """What has no weight is no bump: a pair gives the same alone as beside one that goes on."""
    network, polish = load("network"), load("polish")
    net, image = moving_network(network, steps=8), pair(batch=2)
    with torch.no_grad():
        found = net(image, return_stages=True)
    left = net.remaining(found["parameters"], found["certainty"], image.shape[2:])[0]
    net.tolerance = float(left[1:4].max()) + 1e-6
    whole = polish.Polished(net, 5).eval()
    with torch.no_grad():
        both, alone = (whole(image[:count], return_stages=True) for count in (2, 1))
    made = both["parameters"][0, :, -2:].any(-1)
    assert torch.equal(made, both["proposed"][0, :, -2:].any(-1)) and made.sum() == alone["parameters"].shape[1]
    torch.testing.assert_close(both["ddf"][-1][:1], alone["ddf"][-1], rtol=1e-2, atol=1e-2)


def test_neither_training_nor_zero_iterations_polish_and_nonsense_is_told(load: Callable[[str], ModuleType]) -> None:
    network, polished, image = moving_network(load("network"), noise=0.0), load("polish").Polished, pair()
    with torch.no_grad():
        plain = network(image)
        assert torch.equal(polished(network, 0)(image), plain)
        assert torch.equal(polished(network, 5).train()(image), plain)
    composed = load("network").R2N2(channels=2, composition="compose")
    assert polished(composed, 0).how.iterations == 0
    with pytest.raises(InputError, match="put together by 'compose' cannot be polished; set polish to 0"):
        polished(composed, 2)
    for wrong, sentence in (((-1,), "polish must be a whole"), ((2.5,), "polish must be"), ((2, 0.0), "leash must be")):
        with pytest.raises(InputError, match=sentence):
            polished(network, *wrong)
    with pytest.raises(InputError, match="shrink must be a whole number from 1 on, not 0"):
        load("network").R2N2(shrink=0)


def test_the_inferer_polishes_for_a_network_that_comes_alone(load: Callable[[str], ModuleType]) -> None:
    network, results, image = moving_network(load("network")), load("results"), pair()
    whole = load("polish").Polished(network, 3).eval()
    with torch.no_grad():
        alone = results.BumpInferer(polish=3)(image, network)
        assert torch.equal(alone, results.BumpInferer()(image, whole))
        proposed = network(image, return_stages=True)["parameters"]
    assert torch.equal(results.BumpInferer(polish=0)(image, network)[..., :7], proposed)
    assert torch.equal(results.BumpInferer(2, polish=3)(image, network)[..., :7], proposed[:, :3])
    assert not torch.equal(alone[..., :7], proposed)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_network_may_look_at_coarser_images(load: Callable[[str], ModuleType], ndim: int) -> None:
    """Its bumps are the same as on the coarser grid, in millimetres; fields are as fine as the images given."""
    coarse = pair(ndim)
    fine = coarse
    for axis in range(2, coarse.ndim):
        fine = fine.repeat_interleave(2, axis)
    whole, half = (moving_network(load("network"), ndim=ndim, shrink=shrink) for shrink in (1, 2))
    half.load_state_dict(whole.state_dict())
    with torch.no_grad():
        small, large = whole(coarse, return_stages=True, steps=1), half(fine, return_stages=True, steps=1)
    assert large["ddf"][-1].shape[2:] == fine.shape[2:] and large["moved"][-1].shape == fine[:, :1].shape
    pool = torch.nn.functional.avg_pool2d if ndim == 2 else torch.nn.functional.avg_pool3d
    assert float(small["ddf"][-1].abs().max()) > 0.1
    torch.testing.assert_close(pool(large["ddf"][-1], 2), 2 * small["ddf"][-1], rtol=0.05, atol=0.15)
    with pytest.raises(InputError, match="cannot be made coarser by 2; give a size that it divides"):
        half(torch.zeros(1, 2, *(9,) * ndim))
