"""The loss of R2N2, and what a small network learns from it on moving blobs."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from shared_components.regularity import isotropic_variation
from shared_components.warp import warp_image


@pytest.fixture(scope="module")
def load(bundle_module: Callable[[str, str], ModuleType]) -> Callable[[str], ModuleType]:
    return lambda name: bundle_module("r2n2_registration", name)


def stages_of(fixed: Tensor, moving: Tensor, fields: list[Tensor]) -> dict[str, Any]:
    return {"fixed": fixed, "ddf": fields, "moved": [warp_image(moving, ddf, padding="zeros") for ddf in fields]}


def shifted(fixed: Tensor, rows: float) -> Tensor:
    ddf = torch.zeros(len(fixed), 2, *fixed.shape[2:], dtype=fixed.dtype)
    ddf[:, 0] = rows
    return ddf


def test_the_loss_is_the_mean_over_all_steps_and_leaves_out_what_is_unknown(load: Callable[[str], ModuleType]) -> None:
    fixed = torch.rand(1, 1, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moving = fixed.roll(3, 2)
    fields = [shifted(fixed, rows) for rows in (0.0, 1.0, 3.0)]
    loss = load("losses").R2N2Loss(tv_weight=0.1)
    value = loss(stages_of(fixed, moving, fields), {})
    # with a shift of k rows, rows 0 ... 11 - k of the fixed image meet rows k ... 11 of the moving one
    errors = [float((fixed[:, :, : 12 - k] - moving[:, :, k:]).square().mean()) for k in (0, 1, 3)]
    assert errors[2] == 0 and errors[0] > 0.1
    assert float(value) == pytest.approx(sum(errors) / 3) and float(loss.terms["tv"]) == 0
    assert float(loss.terms["mse_last"]) == pytest.approx(0, abs=1e-12)


def test_variation_is_that_of_the_last_field_in_units_of_half_the_image(load: Callable[[str], ModuleType]) -> None:
    fixed = torch.zeros(1, 1, 11, 21, dtype=torch.float64)
    ramp, rough = shifted(fixed, 0.0), torch.randn(1, 2, 11, 21, dtype=torch.float64)
    ramp[:, 0] += 0.5 * torch.arange(11.0).view(-1, 1)  # half a voxel a voxel, 0.1 units; of two components
    loss = load("losses").R2N2Loss(tv_weight=0.2)
    assert float(loss(stages_of(fixed, fixed, [rough, ramp]))) == pytest.approx(0.2 * 0.1 / 2)
    assert float(loss.terms["tv"]) == pytest.approx(0.05)
    units = rough / torch.tensor([5.0, 10.0]).view(1, 2, 1, 1)
    loss(stages_of(fixed, fixed, [ramp, rough]))
    assert float(loss.terms["tv"]) == pytest.approx(float(isotropic_variation(units)))


def test_everything_outside_gives_no_nan_and_no_field_a_gradient(load: Callable[[str], ModuleType]) -> None:
    fixed = torch.rand(2, 1, 8, 8)
    for rows in (500.0, 0.0):
        ddf = shifted(fixed, rows).requires_grad_()
        value = load("losses").R2N2Loss()(stages_of(fixed, fixed.flip(2), [ddf]))
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(ddf.grad).all()
        assert bool(ddf.grad.any()) == (rows == 0)


def test_a_small_network_learns_to_bring_blobs_together(load: Callable[[str], ModuleType]) -> None:
    """Blobs up to 3 pixels above or below the middle; new pairs in every step, no labels.

    A rate of 0.003 fails, and some draws of pairs need more steps.
    """
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.arange(24.0).view(shape) for shape in ((1, 24, 1), (1, 1, 24)))

    def blobs(count: int) -> Tensor:
        centres = 12 + 3 * (2 * torch.rand(2, count, 1, 1, generator=generator) - 1)
        return torch.stack([(-((rows - c) ** 2 + (columns - 12) ** 2) / 18).exp() for c in centres], 1)

    torch.manual_seed(0)
    network = load("network").R2N2(channels=8, blocks=1, steps=4)
    loss, held = load("losses").R2N2Loss(tv_weight=0.01), blobs(16)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, amsgrad=True)
    for step in range(100):
        optimizer.zero_grad()
        loss(network.train()(blobs(8), return_stages=True, noise_seed=step)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        stages = network.eval()(held, return_stages=True)
    before = float((network.standardised(held)[:, :1] - network.standardised(held)[:, 1:]).square().mean())
    errors = [float((moved - stages["fixed"]).square().mean()) for moved in stages["moved"]]
    assert errors[-1] < 0.6 * before, (before, errors)
    assert errors[-1] < errors[0] < before, "later bumps go on where the first one ended"
