"""The learned optimiser as a network, with its losses: fields, starts, polishing, export."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from affine_search_case import phantom, poses
from ignite.engine import Engine
from torch import Tensor, nn

from shared_components.affine_search import (
    AffineSearch,
    AffineSSD,
    best_of,
    displacement_error,
    initial_guess,
    matrix_vox,
    normalise,
    rotation_starts,
)
from shared_components.warp import warp_image

NAME = "meta_affine_registration"
SIZES = pytest.mark.parametrize("size", [(16, 16), (16, 24), (8, 12, 16)], ids=str)


@pytest.fixture(scope="module")
def scripts(bundle_module) -> ModuleType:
    return bundle_module(NAME, "network")


@pytest.fixture(scope="module")
def losses(bundle_module) -> ModuleType:
    return bundle_module(NAME, "losses")


def make(scripts: ModuleType, size: tuple[int, ...], **knobs: Any) -> Any:
    """A network with weights that make it take steps."""
    network = scripts.MetaAffine(size, **{"strides": (4, 2, 1), **knobs})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.15 * torch.randn(value.shape, generator=generator))
        for cell in network.steps:
            cell.bias_ih[: len(cell.bias_ih) // 2] += 5.0
    return network


def pairs(size: tuple[int, ...], batch: int = 2, seed: int = 0, degrees: float = 40) -> tuple[Tensor, Tensor]:
    """Images (B, 2, *size) and the exact maps."""
    moving, truth = phantom(size).repeat(batch, 1, *(1,) * len(size)), poses(len(size), batch, degrees, 0.2, seed)
    return torch.cat([AffineSSD(moving, moving).moved(truth), moving], 1).float(), truth.float()


def test_default_is_the_papers_size(scripts: ModuleType) -> None:
    network = scripts.MetaAffine()
    assert sum(value.numel() for value in network.parameters() if value.requires_grad) == 24_000
    assert sum(value.numel() for value in network.parameters()) == 24_318
    other = scripts.MetaAffine((16, 24))
    assert {k: v.shape for k, v in other.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


@SIZES
def test_the_field_is_that_of_the_map(scripts: ModuleType, size: tuple[int, ...]) -> None:
    network, (image, _) = make(scripts, size), pairs(size)
    x, ddf, matrix = network.parameters_of(image), network(image), network.affine_matrix(image)
    assert ddf.shape == (2, len(size), *size) and torch.equal(matrix, matrix_vox(x, size))
    index = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")).float().flatten(1)
    wanted = matrix[:, :-1, :-1] @ index + matrix[:, :-1, -1:] - index
    torch.testing.assert_close(ddf.flatten(2), wanted, atol=1e-4, rtol=0)
    assert float(ddf.detach().abs().max()) > 0.5


def test_the_field_of_the_truth_moves_the_image(scripts: ModuleType) -> None:
    image, truth = pairs((32, 32))
    moved = warp_image(image[:, 1:], scripts.field(truth, (32, 32)))
    inside = (..., slice(4, -4), slice(4, -4))
    assert float((moved - image[:, :1])[inside].abs().max()) < 1e-2 < 0.3 < float((image[:, 1:] - image[:, :1]).max())


@SIZES
def test_a_fresh_network_leaves_the_images_nearly_where_they_are(scripts: ModuleType, size: tuple[int, ...]) -> None:
    ddf = scripts.MetaAffine(size, (4, 1))(pairs(size)[0])
    start = scripts.field(initial_guess(size, 2), size)
    assert float((ddf - start).detach().abs().max()) < 0.1


def test_several_starts_keep_the_one_of_lowest_difference(scripts: ModuleType) -> None:
    network, (image, _) = make(scripts, (16, 16), starts=5), pairs((16, 16), 6)
    found = network.candidates(image)
    x = network.parameters_of(image)
    assert found.shape == (30, 6)
    values = AffineSSD(normalise(image[:, :1]), normalise(image[:, 1:]), 5)(found)[0].view(6, 5)
    lowest = values.argmin(1)
    assert torch.equal(x, found.view(6, 5, 6)[torch.arange(6), lowest]) and len(lowest.unique()) > 1
    start = rotation_starts(2, 5).repeat(6, 1)
    again = super(scripts.MetaAffine, network).forward(image[:, :1], image[:, 1:], start)[-1]
    assert torch.equal(found, again)


def test_one_start_is_the_papers_network(scripts: ModuleType) -> None:
    network, (image, _) = make(scripts, (16, 16)), pairs((16, 16))
    stages = network(image, return_stages=True)
    assert len(stages["x"]) == 4
    assert torch.equal(stages["x"][-1], network.parameters_of(image))
    assert torch.equal(scripts.field(stages["x"][-1], (16, 16)), network(image))
    network.active = 1  # as far as training has come
    assert len(network(image, return_stages=True)["x"]) == 2
    assert torch.equal(network.parameters_of(image), stages["x"][-1])


@SIZES
@pytest.mark.parametrize("starts", [1, 3])
def test_traced_it_is_the_same_for_other_images_and_batches(
    scripts: ModuleType, size: tuple[int, ...], starts: int
) -> None:
    network = make(scripts, size, starts=starts).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(network, pairs(size, 1)[0], check_trace=False)
        for batch in (1, 3):
            image = pairs(size, batch, seed=7)[0]
            eager = network(image)
            torch.testing.assert_close(traced(image), eager, atol=1e-4, rtol=0)
            assert float(eager.abs().max()) > 0.5


def test_no_autograd_inside(scripts: ModuleType) -> None:
    network, (image, _) = make(scripts, (16, 16), starts=3), pairs((16, 16))
    with torch.inference_mode():
        found = network(image)
    assert torch.equal(found, network(image))


def test_polishing_goes_on_from_all_starts(scripts: ModuleType) -> None:
    network, (image, truth) = make(scripts, (16, 16), starts=3), pairs((16, 16), 4, degrees=20)
    search = AffineSearch((2, 1), iterations=10, scaled=True)
    polished = scripts.Polished(network, search)
    wanted = search(image[:, :1], image[:, 1:], network.candidates(image).detach()).x
    assert torch.equal(polished.affine_matrix(image), matrix_vox(wanted, (16, 16)))
    assert torch.equal(polished(image), scripts.field(wanted, (16, 16)))
    learned = best_of(image[:, :1], image[:, 1:], network.candidates(image))
    assert float(displacement_error(wanted, truth).mean()) < float(displacement_error(learned, truth).mean())
    plain = scripts.Polished(network)
    assert torch.equal(plain(image), network(image)) and torch.equal(
        plain.affine_matrix(image), network.affine_matrix(image)
    )
    stages = polished(image, return_stages=True)
    assert torch.equal(stages["x"][-1], network(image, return_stages=True)["x"][-1])


def test_the_inferer_polishes_whatever_network_it_gets(scripts: ModuleType) -> None:
    network, (image, _) = make(scripts, (16, 16), starts=3), pairs((16, 16), 2, degrees=20)
    search = AffineSearch((2, 1), iterations=10, scaled=True)
    polished, inferer = scripts.Polished(network, search), scripts.PolishedInferer(search)
    for handed_in in (network, polished):  # by MONAI Label, and by the configuration
        assert torch.equal(inferer(image, handed_in), polished(image))
        assert inferer.network.affine_only
        assert torch.equal(inferer.network.affine_matrix(image), polished.affine_matrix(image))
    assert not torch.equal(inferer(image, network), network(image))


def test_sizes_that_strides_do_not_divide_are_refused(scripts: ModuleType) -> None:
    with pytest.raises(ValueError, match="divisible"):
        scripts.MetaAffine((16, 18), (4, 1))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_loss_is_the_error_of_the_last_iterate(losses: ModuleType, ndim: int) -> None:
    early, last, truth = (poses(ndim, 4, 50, 0.3, seed) for seed in (1, 2, 3))
    loss = losses.DisplacementLoss()({"x": [early, last]}, truth)
    torch.testing.assert_close(loss, displacement_error(last, truth).mean())
    torch.testing.assert_close(losses.table_mse(last, truth), 2**ndim * displacement_error(last, truth))


def test_validation_reports_the_papers_numbers(losses: ModuleType) -> None:
    handler = losses.DisplacementHandler(limit=0.05)
    truth = torch.zeros(4, 6)
    x = torch.zeros(4, 6)
    x[:, 4] = torch.tensor([0.0, 0.1, 0.2, 1.0])  # integral form: 4 e^2
    engine = Engine(lambda _, batch: {"pred": {"x": [truth, x]}, "label": truth})
    handler.attach(engine, "mse")
    engine.run([0])
    values = np.array([0, 0.04, 0.16, 4.0])
    found = engine.state.metrics
    names = {"mse": values.mean(), "median": np.median(values), "worst": 4.0, "success": 0.5}
    assert {name: found[name] for name in names} == pytest.approx(names, abs=1e-6)


def test_the_first_validation_is_an_improvement_and_then_less_is_better(losses: ModuleType) -> None:
    assert losses.is_better(3.0, -1) and losses.is_better(0.0, -1)
    assert losses.is_better(0.4, 0.5) and not losses.is_better(0.5, 0.4) and not losses.is_better(0.0, 0.0)
    assert isinstance(losses.DisplacementLoss(), nn.Module)
