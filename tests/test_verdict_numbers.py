"""The numbers of a verdict against values known from thought."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared_components.geometry import Frame
from shared_components.images import Image
from shared_components.pairs.load import Pair
from shared_components.results import Registration
from shared_components.verdict.numbers import (
    add_numbers,
    agreement,
    coverage,
    describe_view,
    edge_agreement,
    foreground,
    mutual_information,
    volume,
)

SHAPE = (20, 22, 24)


def ball(shape=SHAPE, radius: float = 6.0, shift=(0.0, 0.0, 0.0)) -> torch.Tensor:
    """A ball that brightens towards one side, on a background of 0."""
    axes = [torch.arange(n) - (n - 1) / 2 - s for n, s in zip(shape, shift, strict=True)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return (grid.norm(dim=0) < radius).float() * (0.7 + 0.02 * grid[0] + 0.015 * grid[1])


def registration(ddf: torch.Tensor, image: torch.Tensor, affine=None, initial=None) -> Registration:
    frame = Frame(tuple(image.shape), np.diag([2.0] * image.ndim + [1.0]))
    images = {side: Image(image[None], frame, None, np.dtype("float32")) for side in ("fixed", "moving")}
    start = np.eye(image.ndim + 1) if initial is None else initial
    return Registration(Pair(images, initial=start, network=frame), ddf, affine)


def test_the_foreground_is_what_stands_out() -> None:
    image = ball()
    noise = 0.03 * torch.rand(SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(foreground(image + noise), image > 0)
    assert not foreground(torch.zeros(4, 4)).any()


def test_mutual_information_of_the_same_is_one_and_of_strangers_nought() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(200_000, generator=generator) for _ in range(2))
    assert mutual_information(a, a) == pytest.approx(1)
    assert mutual_information(a, 1 - a) == pytest.approx(1, abs=0.01), "another contrast is no other image"
    assert mutual_information(a, b) < 0.002
    assert mutual_information(a, torch.zeros_like(a)) == 0 == mutual_information(a[:0], a[:0])


def test_edges_agree_whichever_way_the_contrast_goes() -> None:
    image = ball()[None, None]
    where = torch.ones_like(image, dtype=torch.bool)
    assert edge_agreement(image, image, where) == pytest.approx(1, abs=1e-5)
    assert edge_agreement(image, 1 - 0.5 * image, where) == pytest.approx(1, abs=1e-2)
    assert edge_agreement(image, ball(shift=(0, 6, 6))[None, None], where) < 0.5
    assert edge_agreement(image, torch.zeros_like(image), where) == 0


def test_the_true_shift_makes_everything_agree() -> None:
    image = torch.stack([ball(), ball(shift=(0, 3, 0))])[None]
    ddf = torch.zeros(1, 3, *SHAPE)
    ddf[:, 1] = 3
    found = agreement(image, ddf)
    assert set(found) == {"correlation", "nmi", "edges", "local", "overlap"}
    for name, numbers in found.items():
        assert numbers["after"] > numbers["initial"] + 0.05, name
    assert found["overlap"]["after"] > 0.99 and found["edges"]["after"] > 0.9


def test_content_that_leaves_is_counted_in_percent() -> None:
    slab = torch.zeros(10, 8, 8)
    slab[2:8, 2:6, 2:6] = 1.0
    ddf = torch.zeros(1, 3, 10, 8, 8)
    assert coverage(registration(ddf, slab)) == {"fixed_outside_percent": 0, "moving_outside_percent": 0}
    ddf[:, 0] = 4  # of the planes 2 to 7 those from 6 on look beyond plane 9
    found = coverage(registration(ddf, slab))
    assert found["fixed_outside_percent"] == pytest.approx(100 * 2 / 6, abs=1e-3)
    assert found["moving_outside_percent"] == pytest.approx(100 * 2 / 6, abs=1e-3), "planes 2 and 3 lie before plane 0"


def test_volume_is_that_of_the_whole_map() -> None:
    image = ball()
    grid = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in SHAPE], indexing="ij"))
    initial = np.diag([1.1, 1.0, 1.0, 1.0])
    found = volume(registration(0.25 * grid[None], image, initial=initial), image)
    for name in ("low", "middle", "high"):
        assert found[name] == pytest.approx(1.25**3 * 1.1, rel=1e-4)
    assert found["affine"] is None
    world = np.diag([2.0, 1.0, 1.0, 1.0])
    assert volume(registration(0 * grid[None], image, affine=world), image)["affine"] == pytest.approx(2)


def test_a_view_is_described_by_size_place_and_greys() -> None:
    found = describe_view(ball(), (2.0, 2.0, 2.0))
    assert found["size"] == pytest.approx(4 / 3 * np.pi * 12**3 / 1000, rel=0.05)
    for axis in range(3):
        assert found[f"spread_{axis}"] == pytest.approx(12 / 5**0.5, rel=0.05)
        assert abs(found[f"lean_{axis}"]) < 0.01
    assert found["floor"] == 0 and found["saturated"] == 0 and found["mean"] == pytest.approx(0.7, abs=0.01)
    large = ball((26, 26, 26), 11.0)
    noisy = large * (1 + 0.3 * torch.randn(large.shape, generator=torch.Generator().manual_seed(1))).clamp_min(0.3)
    assert describe_view(noisy, (2.0,) * 3)["noise"] > 2 * describe_view(large, (2.0,) * 3)["noise"]
    cone = ball()
    cone[12:] *= 0  # what was cut off no longer leans
    assert abs(describe_view(cone, (2.0,) * 3)["lean_0"]) > 0.2
    assert describe_view(ball().clamp_max(0.7) / 0.7, (2.0,) * 3)["saturated"] > 0.3


def test_the_numbers_join_the_metrics_in_2d_too() -> None:
    image = ball((20, 22, 24))[:, :, 12]
    result = registration(torch.zeros(1, 2, 20, 22), image)
    found = add_numbers({"field": {}}, result, torch.stack([image, image]))
    assert set(found) == {"field", "agreement", "coverage", "volume", "input"}
    assert found["input"]["fixed"] == found["input"]["moving"] and found["input"]["fixed"]["spacing"] == [2.0, 2.0]
    assert found["agreement"]["nmi"] == {"initial": 1.0, "after": 1.0}
