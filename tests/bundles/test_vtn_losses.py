"""The losses of VTN: Table I, every term and every knob."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from shared_components.affine import affine_ddf, invert_params
from shared_components.regularity import (
    determinant,
    fold_penalty,
    inverse_consistency,
    orthogonality,
    total_variation,
)
from shared_components.similarity import LocalNCC, box_sum, correlation_loss, mse_loss

Load = Callable[[str, str], ModuleType]
SHAPE = (8, 9, 10)
TABLE_I = {
    "A": [1.0],
    "D": [1.0],
    "DD": [0.05, 1.0],
    "DDD": [0.0, 0.05, 1.0],
    "AD": [1.0, 1.0],
    "ADD": [1.0, 0.05, 1.0],
    "ADDD": [1.0, 0.0, 0.05, 1.0],
}
OFF = {"weights": None, "tv_weight": 0.0, "ortho_weight": 0.0, "det_weight": 0.0}


@pytest.fixture(scope="module")
def losses(bundle_module: Load) -> ModuleType:
    return bundle_module("vtn_registration", "losses")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_stages(cascade: str, batch: int = 2, seed: int = 0) -> dict[str, Any]:
    """What the network hands to the loss, made of independent leaves."""
    generator = torch.Generator().manual_seed(seed)

    def field(size: float) -> Tensor:
        return (size * torch.randn(batch, 3, *SHAPE, generator=generator)).requires_grad_()

    has_affine = cascade.startswith("A")
    return {
        "ddf": [field(0.5) for _ in cascade],
        "flow": [field(0.5) for _ in range(cascade.count("D"))],
        "moved": [torch.rand(batch, 1, *SHAPE, generator=generator).requires_grad_() for _ in cascade],
        "A": (0.2 * torch.randn(batch, 3, 3, generator=generator)).requires_grad_() if has_affine else None,
        "b": torch.randn(batch, 3, generator=generator).requires_grad_() if has_affine else None,
    }


def fixed(batch: int = 2) -> dict[str, Tensor]:
    return {"fixed": draw(batch, 1, *SHAPE, seed=9)}


@pytest.mark.parametrize(("cascade", "weights"), TABLE_I.items())
def test_table_i(losses: ModuleType, cascade: str, weights: list[float]) -> None:
    assert losses.stage_weights(cascade) == weights
    assert losses.VTNLoss(cascade).weights == weights
    stages, targets = make_stages(cascade), fixed()
    loss = losses.VTNLoss(cascade)
    value = loss(stages, targets)
    expected = sum(w * correlation_loss(targets["fixed"], m) for w, m in zip(weights, stages["moved"], strict=True))
    expected = expected + sum(0.5 * total_variation(flow) for flow in stages["flow"])
    if stages["A"] is not None:
        expected = expected + 0.1 * orthogonality(stages["A"]) + 0.1 * 0.5 * determinant(stages["A"])
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(("cascade", "weights"), TABLE_I.items())
def test_stages_without_weight_have_no_similarity_term(losses: ModuleType, cascade: str, weights: list[float]) -> None:
    stages = make_stages(cascade)
    loss = losses.VTNLoss(cascade)
    grads = torch.autograd.grad(loss(stages, fixed()), stages["moved"], allow_unused=True)
    assert [g is not None and bool(g.abs().max() > 0) for g in grads] == [w > 0 for w in weights]
    noted = [f"similarity_{name}{i + 1}" in loss.terms for i, name in enumerate(cascade)]
    assert noted == [w > 0 for w in weights]


def test_the_first_dense_stage_learns_from_the_last_similarity(losses: ModuleType, bundle_module: Load) -> None:
    """Figure 2: dense1 has no similarity of its own and is trained through the stages behind it."""
    network = bundle_module("vtn_registration", "network").VTN("ADDD", (16, 16, 16), 2, 2, 2, identity_start=False)
    image = draw(1, 2, 16, 16, 16)
    for stage, reached in ((3, [True, True, True]), (2, [True, True, False]), (0, [False, False, False])):
        weights = [float(i == stage) for i in range(4)]
        loss = losses.VTNLoss("ADDD", **{**OFF, "weights": weights})
        network.zero_grad()
        loss(network(image, return_stages=True), {"fixed": image[:, :1]}).backward()
        got = [any(p.grad is not None and p.grad.abs().max() > 0 for p in d.parameters()) for d in network.dense]
        assert got == reached
        assert network.affine.head_matrix.weight.grad.abs().max() > 0


def test_weights_must_fit_the_cascade(losses: ModuleType) -> None:
    assert losses.VTNLoss("DD", weights=(0.3, 0.7)).weights == [0.3, 0.7]
    with pytest.raises(ValueError, match="'ADD' needs 3 similarity weights, got 2"):
        losses.VTNLoss("ADD", weights=[0.3, 0.7])


def test_terms_are_detached_unweighted_and_sum_to_the_loss(losses: ModuleType) -> None:
    knobs = {"tv_weight": 2.0, "ortho_weight": 0.3, "det_weight": 0.4, "invertibility_weight": 0.5}
    knobs |= {"fold_weight": 0.6, "endpoint_weight": 0.7}
    loss, stages = losses.VTNLoss("ADD", **knobs), make_stages("ADD")
    targets = fixed() | {"ddf": draw(2, 3, *SHAPE)}
    value = loss(stages, targets)
    weights = {"similarity_A1": 1.0, "similarity_D2": 0.05, "similarity_D3": 1.0, "tv": 2.0, "ortho": 0.3, "det": 0.4}
    weights |= {"inverse": 0.5, "folds": 0.6, "endpoint": 0.7}
    assert set(loss.terms) == {*weights, "loss"}
    assert not any(term.requires_grad for term in loss.terms.values()) and value.requires_grad
    assert all(term > 0 for term in loss.terms.values())
    torch.testing.assert_close(sum(w * loss.terms[k] for k, w in weights.items()), loss.terms["loss"])
    torch.testing.assert_close(value.detach(), loss.terms["loss"])
    loss(make_stages("ADD", seed=1), targets)
    assert loss.terms["loss"] != value.detach(), "terms are those of the last call"


@pytest.mark.parametrize("knob", ["tv_weight", "ortho_weight", "det_weight"])
def test_each_regulariser_can_be_turned(losses: ModuleType, knob: str) -> None:
    stages, targets = make_stages("AD"), fixed()
    terms = {
        "tv_weight": 0.5 * total_variation(stages["flow"][0]),
        "ortho_weight": orthogonality(stages["A"]),
        "det_weight": 0.5 * determinant(stages["A"]),
    }
    base = losses.VTNLoss("AD", **OFF)(stages, targets)
    turned = losses.VTNLoss("AD", **{**OFF, knob: 3.0})(stages, targets)
    assert terms[knob] > 0.01
    torch.testing.assert_close(turned - base, 3 * terms[knob])


def test_similarities_can_differ_between_affine_and_dense_stages(losses: ModuleType) -> None:
    stages, targets = make_stages("AD"), fixed()
    (a, d), f = stages["moved"], targets["fixed"]
    cases = [
        ({"similarity": "mse"}, mse_loss(f, a) + mse_loss(f, d)),
        ({"similarity": "lncc", "radius": 2}, LocalNCC(2)(f, a) + LocalNCC(2)(f, d)),
        ({"similarity": "lncc", "radius": 1, "affine_similarity": "cc"}, correlation_loss(f, a) + LocalNCC(1)(f, d)),
        ({"similarity": "lncc", "radius": 1, "affine_radius": 3}, LocalNCC(3)(f, a) + LocalNCC(1)(f, d)),
    ]
    for knobs, expected in cases:
        torch.testing.assert_close(losses.VTNLoss("AD", **OFF, **knobs)(stages, targets), expected)


def test_foreground_counts_windows_that_touch_the_fixed_image(losses: ModuleType) -> None:
    stages, targets = make_stages("D"), fixed()
    targets["fixed"][..., 4:] = 0
    mask = box_sum((targets["fixed"] > 0).float(), 2) > 0.5
    assert mask[0, 0, 4, 4].tolist() == [True] * 6 + [False] * 4
    knobs = {**OFF, "similarity": "lncc", "radius": 2}
    value = losses.VTNLoss("D", **knobs, foreground=True)(stages, targets)
    moved = stages["moved"][0]
    torch.testing.assert_close(value, LocalNCC(2)(targets["fixed"], moved, mask))
    (grad,) = torch.autograd.grad(value, moved)
    assert grad[..., 8:].abs().max() == 0 < grad[..., :8].abs().max()
    assert losses.VTNLoss("D", **knobs)(stages, targets) != value


def test_invertibility_needs_both_orders_of_each_pair(losses: ModuleType) -> None:
    loss = losses.VTNLoss("D", **OFF, invertibility_weight=1e-3)
    with pytest.raises(ValueError, match="both orders"):
        loss(make_stages("D", batch=3), fixed(3))
    stages, targets = make_stages("D", batch=4), fixed(4)
    base = losses.VTNLoss("D", **OFF)(stages, targets)
    ddf = stages["ddf"][-1]
    expected = 1e-3 * inverse_consistency(ddf[:2], ddf[2:])
    assert expected > 1e-5
    torch.testing.assert_close(loss(stages, targets) - base, expected, atol=1e-6, rtol=1e-4)


def test_invertibility_is_nothing_for_a_map_and_its_inverse(losses: ModuleType) -> None:
    A, b = 0.03 * draw(1, 3, 3), draw(1, 3, seed=1) - 0.5
    stages = make_stages("A")
    stages["ddf"] = [torch.cat([affine_ddf(A, b, SHAPE), affine_ddf(*invert_params(A, b), SHAPE)])]
    loss = losses.VTNLoss("A", **OFF, invertibility_weight=1.0)
    loss(stages, fixed())
    assert loss.terms["inverse"] < 1e-8
    stages["ddf"] = [affine_ddf(A, b, SHAPE).repeat(2, 1, 1, 1, 1)]
    loss(stages, fixed())
    assert loss.terms["inverse"] > 0.1


def test_folds_and_endpoint_look_at_the_final_field(losses: ModuleType) -> None:
    stages, targets = make_stages("DD"), fixed() | {"ddf": draw(2, 3, *SHAPE)}
    final = stages["ddf"][-1]
    loss = losses.VTNLoss("DD", **OFF, fold_weight=2.0, endpoint_weight=3.0)
    base = losses.VTNLoss("DD", **OFF)(stages, targets)
    distance = (final - targets["ddf"]).square().sum(1).sqrt().mean()
    expected = 2 * fold_penalty(final, margin=0.05) + 3 * distance
    torch.testing.assert_close(loss(stages, targets) - base, expected)
    grads = torch.autograd.grad(loss(stages, targets), stages["ddf"], allow_unused=True)
    assert grads[0] is None and grads[1].abs().max() > 0


def test_supervision_alone_pulls_the_field_to_the_target(losses: ModuleType) -> None:
    """The paper's supervised row: no image term, only the distance to a given field."""
    loss = losses.VTNLoss("D", **{**OFF, "weights": [0.0]}, endpoint_weight=1.0)
    stages, target = make_stages("D"), torch.zeros(2, 3, *SHAPE)
    target[:, 0], target[:, 2] = 3.0, 4.0
    stages["ddf"] = [torch.zeros_like(target)]
    assert loss(stages, fixed() | {"ddf": target}) == pytest.approx(5.0)
    stages["ddf"] = [target]
    assert loss(stages, fixed() | {"ddf": target}) == 0


def test_a_perfect_registration_costs_nothing(losses: ModuleType) -> None:
    stages, targets = make_stages("ADDD"), fixed()
    for key in ("ddf", "flow"):
        stages[key] = [torch.zeros_like(field) for field in stages[key]]
    stages["moved"] = [targets["fixed"] * 2 + 1 for _ in stages["moved"]]
    stages["A"] = torch.zeros(2, 3, 3)
    loss = losses.VTNLoss("ADDD", invertibility_weight=1e-3, fold_weight=1.0)
    assert loss(stages, targets) == pytest.approx(0, abs=1e-4)
