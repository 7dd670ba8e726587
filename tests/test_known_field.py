"""Learning from known fields: the relative error, where it counts, and heads on features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared_components.known_field import KnownFieldLoss


class Constant(nn.Module):
    """A loss of images that is always 0.25."""

    terms = {"mse": torch.tensor(0.25)}

    def forward(self, stages: Any, targets: Any) -> Tensor:
        return torch.tensor(0.25)


@pytest.fixture
def targets() -> dict[str, Tensor]:
    """Two pairs; the body is the left half of the image."""
    generator = torch.Generator().manual_seed(0)
    fixed = torch.zeros(2, 1, 8, 8)
    fixed[..., :4] = 0.5
    return {"fixed": fixed, "ddf": torch.randn(2, 2, 8, 8, generator=generator)}


def error(ddf: Tensor, targets: dict[str, Tensor], **options: Any) -> float:
    loss = KnownFieldLoss(Constant(), base_weight=0.0, floor=0.0, **options)
    return float(loss({"ddf": [ddf]}, targets))


def test_nothing_is_an_error_of_one_and_the_truth_of_none(targets: dict[str, Tensor]) -> None:
    truth = targets["ddf"]
    assert error(torch.zeros_like(truth), targets) == pytest.approx(1.0)
    assert error(truth, targets) == 0
    assert error(0.5 * truth, targets) == pytest.approx(0.25)


def test_only_the_body_counts(targets: dict[str, Tensor]) -> None:
    wrong = targets["ddf"].clone()
    wrong[..., 4:] += 100
    assert error(wrong, targets) == 0
    wrong[0, :, 0, 0] += 1
    assert error(wrong, targets) > 0


def test_a_pair_at_rest_counts_little(targets: dict[str, Tensor]) -> None:
    still = {**targets, "ddf": 1e-3 * targets["ddf"]}
    assert float(KnownFieldLoss(Constant(), base_weight=0.0)({"ddf": [torch.zeros(2, 2, 8, 8)]}, still)) < 1e-3


def test_terms_are_weighed_and_told(targets: dict[str, Tensor]) -> None:
    loss = KnownFieldLoss(Constant(), channels=(3,), base_weight=2.0, field_weight=3.0, head_weight=5.0, floor=0.0)
    features = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)),)
    value = loss({"ddf": [torch.zeros(2, 2, 8, 8), targets["ddf"]], "features": [features]}, targets)
    terms = loss.terms
    assert set(terms) == {"mse", "field", "heads", "loss"} and float(terms["field"]) == pytest.approx(0.5)
    assert float(terms["loss"]) == pytest.approx(2 * 0.25 + 3 * 0.5 + 5 * float(terms["heads"]))
    assert value.requires_grad and float(value.detach()) == float(terms["loss"])


@pytest.mark.parametrize("ndim", [2, 3])
def test_heads_learn_what_features_tell_of_the_field(ndim: int) -> None:
    """The features are a mixture of the true field on a coarser grid: a head finds the way back."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(4, ndim, *(8,) * ndim, generator=generator)
    pool = torch.nn.functional.avg_pool2d if ndim == 2 else torch.nn.functional.avg_pool3d
    mixing = torch.randn(5, ndim, generator=generator)
    features = (torch.einsum("cd,bd...->bc...", mixing, pool(truth, 2)),)
    targets = {"fixed": torch.ones(4, 1, *(8,) * ndim), "ddf": truth}
    torch.manual_seed(0)
    loss = KnownFieldLoss(Constant(), channels=(5,), ndim=ndim, floor=0.0)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    stages, told = {"ddf": [truth], "features": [features]}, []
    for _ in range(150):
        optimizer.zero_grad()
        loss(stages, targets).backward()
        optimizer.step()
        told.append(float(loss.terms["heads"]))
    assert told[-1] < 0.01 < 0.5 < told[0]


def test_pairs_without_a_truth_are_refused(targets: dict[str, Tensor]) -> None:
    with pytest.raises(KeyError, match="ddf"):
        KnownFieldLoss(Constant())({"ddf": [targets["ddf"]]}, {"fixed": targets["fixed"]})
