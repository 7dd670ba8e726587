"""Similarity losses against naive code, their invariances, degenerate inputs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from shared_components.mk_lncc import MultiKernelLNCC
from shared_components.similarity import (
    GlobalNCC,
    LocalNCC,
    MeanSquares,
    box_sum,
    correlation_loss,
    make_similarity,
    mse_loss,
)

F64 = torch.float64
Loss = Callable[..., Tensor]
LOSSES: list[Loss] = [correlation_loss, mse_loss, LocalNCC(1), LocalNCC(2)]
IDS = ["cc", "mse", "lncc1", "lncc2"]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive_lncc(fixed: np.ndarray, moved: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """Squared correlation in the window around each voxel, cut at the border, one voxel at a time."""
    out = np.empty(fixed.shape)
    for index in np.ndindex(fixed.shape):
        window = tuple(slice(max(i - radius, 0), i + radius + 1) for i in index)
        f, m = fixed[window] - fixed[window].mean(), moved[window] - moved[window].mean()
        out[index] = (f * m).mean() ** 2 / (((f**2).mean() + epsilon) * ((m**2).mean() + epsilon))
    return out


@pytest.mark.parametrize("shape", [(2, 1, 6, 7), (2, 1, 5, 6, 4), (1, 3, 4, 4, 4)])
def test_correlation_is_numpys(shape: tuple[int, ...]) -> None:
    fixed, moved = draw(*shape), draw(*shape, seed=1) + draw(*shape)
    expected = np.mean([1 - np.corrcoef(f.flatten(), m.flatten())[0, 1] for f, m in zip(fixed, moved, strict=True)])
    assert 0.1 < expected < 0.9
    assert correlation_loss(fixed, moved, epsilon=0) == pytest.approx(expected)
    assert correlation_loss(fixed, moved) == pytest.approx(expected, abs=1e-4)


def test_correlation_loss_is_0_for_a_positive_and_2_for_a_negative_slope() -> None:
    fixed = draw(2, 1, 5, 6, 7)
    assert correlation_loss(fixed, 3 * fixed + 7) == pytest.approx(0, abs=1e-4)
    assert correlation_loss(fixed, -3 * fixed + 7) == pytest.approx(2, abs=1e-4)
    moved = draw(2, 1, 5, 6, 7, seed=1)
    assert correlation_loss(fixed, 5 * moved - 2) == pytest.approx(float(correlation_loss(fixed, moved)), abs=1e-4)


def test_correlation_in_single_precision_far_from_zero() -> None:
    fixed, moved = draw(1, 1, 20, 20, 20), draw(1, 1, 20, 20, 20, seed=1) + draw(1, 1, 20, 20, 20)
    exact = float(correlation_loss(fixed, moved))
    assert correlation_loss((fixed + 100).float(), (moved + 100).float()) == pytest.approx(exact, abs=1e-4)


def test_local_ncc_is_invariant_and_bounded() -> None:
    fixed, moved = draw(1, 1, 7, 8, 6), draw(1, 1, 7, 8, 6, seed=1)
    loss = LocalNCC(2, epsilon=1e-10)
    value = float(loss(fixed, moved))
    assert 0 < value < 1
    assert loss(fixed, 2 * moved + 1) == pytest.approx(value, abs=1e-6)
    assert loss(fixed, -2 * moved + 1) == pytest.approx(value, abs=1e-6), "squared: contrast may be inverted"
    assert loss(fixed, 0.5 * fixed + 3) == pytest.approx(0, abs=1e-6)
    assert loss(moved, fixed) == pytest.approx(value)


@pytest.mark.parametrize(("shape", "radius"), product([(6, 7), (5, 6, 4)], [1, 2, 3]))
def test_local_ncc_is_the_naive_loop_with_windows_cut_at_the_border(shape: tuple[int, ...], radius: int) -> None:
    fixed, moved = draw(2, 1, *shape), draw(2, 1, *shape, seed=1)
    loss = LocalNCC(radius)
    expected = np.stack(
        [naive_lncc(f[0].numpy(), m[0].numpy(), radius, 1e-5) for f, m in zip(fixed, moved, strict=True)]
    )
    assert loss(fixed, moved) == pytest.approx(1 - expected.mean(), abs=1e-10)
    mask = (draw(2, 1, *shape, seed=2) > 0.6).double()
    masked = 1 - np.mean([e[w[0].numpy() > 0].mean() for e, w in zip(expected, mask, strict=True)])
    assert loss(fixed, moved, mask) == pytest.approx(float(masked), abs=1e-10)
    assert loss(fixed, moved, mask.bool()) == pytest.approx(float(masked), abs=1e-10)


def test_statistics_of_the_fixed_image_can_be_kept() -> None:
    fixed, moved = draw(1, 2, 6, 7, 5), draw(1, 2, 6, 7, 5, seed=1)
    loss = LocalNCC(2)
    assert torch.equal(loss(fixed, moved, statistics=loss.fixed_statistics(fixed)), loss(fixed, moved))


@pytest.mark.parametrize("loss", [correlation_loss, mse_loss], ids=["cc", "mse"])
def test_a_mask_leaves_only_what_it_covers(loss: Loss) -> None:
    fixed, moved = draw(2, 1, 6, 6), draw(2, 1, 6, 6, seed=1)
    mask = torch.zeros(2, 1, 6, 6, dtype=F64)
    mask[:, :, 1:4, 2:5] = 1
    inside = float(loss(fixed[:, :, 1:4, 2:5], moved[:, :, 1:4, 2:5]))
    assert inside != pytest.approx(float(loss(fixed, moved)), abs=1e-3)
    assert loss(fixed, moved, mask) == pytest.approx(inside)
    assert loss(fixed, moved, mask.bool()) == pytest.approx(inside)
    assert loss(fixed, moved, 0.5 * mask) == pytest.approx(inside), "weights count relative to each other"
    assert loss(fixed, moved + 10 * (1 - mask), mask) == pytest.approx(inside)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
def test_an_all_covering_mask_changes_nothing_also_with_channels(loss: Loss) -> None:
    fixed, moved = draw(2, 3, 6, 5, 6), draw(2, 3, 6, 5, 6, seed=1)
    assert loss(fixed, moved, torch.ones(2, 1, 6, 5, 6)) == pytest.approx(float(loss(fixed, moved)), abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@pytest.mark.parametrize("case", ["fixed flat", "moved flat", "both zero", "half zero", "empty mask"])
def test_degenerate_images_give_finite_values_and_gradients(loss: Loss, case: str) -> None:
    fixed, moved, mask = draw(1, 1, 8, 8, dtype=torch.float32), draw(1, 1, 8, 8, seed=1, dtype=torch.float32), None
    if case == "fixed flat":
        fixed = torch.full_like(fixed, 0.3)
    elif case == "moved flat":
        moved = torch.full_like(moved, 0.3)
    elif case == "both zero":
        fixed, moved = torch.zeros_like(fixed), torch.zeros_like(moved)
    elif case == "half zero":
        fixed[..., 4:], moved[..., 3:] = 0, 0
    else:
        mask = torch.zeros_like(fixed)
    moved.requires_grad_()
    value = loss(fixed, moved, mask)
    (grad,) = torch.autograd.grad(value, moved)
    assert value.isfinite() and grad.isfinite().all()
    if loss is not mse_loss and case != "half zero":
        assert value.detach() == pytest.approx(1.0, abs=1e-3), "no correlation to speak of"


def test_mse_is_the_mean_of_squares() -> None:
    fixed = torch.zeros(2, 1, 2, 2)
    moved = torch.tensor([[[[1.0, 2], [3, 4]]], [[[0.0, 0], [0, 2]]]])
    assert mse_loss(fixed, moved) == pytest.approx((30 + 4) / 8)


@pytest.mark.parametrize(("radius", "shape"), product([1, 2, 3, 4, 5], [(1, 2, 9, 12), (2, 1, 7, 4, 8)]))
def test_box_sum_is_brute_force(radius: int, shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    expected = np.empty(shape)
    for index in np.ndindex(shape[2:]):
        window = (..., *(slice(max(i - radius, 0), i + radius + 1) for i in index))
        expected[(..., *index)] = x.numpy()[window].reshape(*shape[:2], -1).sum(-1)
    np.testing.assert_allclose(box_sum(x, radius).numpy(), expected, rtol=1e-12)


def test_box_sum_does_not_cancel() -> None:
    """Running sums by difference would leave rounding noise of the large values over the empty part."""
    x = torch.zeros(1, 1, 64)
    x[..., :20] = 1e8
    assert box_sum(x, 3)[0, 0, 24:].abs().max() == 0


@pytest.mark.parametrize(("radius", "shape"), product([1, 2], [(1, 2, 4, 5), (1, 1, 3, 4, 3)]))
def test_gradients_of_box_sum(radius: int, shape: tuple[int, ...]) -> None:
    x = draw(*shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: box_sum(t, radius), (x,))
    assert torch.autograd.gradgradcheck(lambda t: box_sum(t, radius) ** 2, (x,))


@pytest.mark.parametrize("loss", LOSSES, ids=IDS)
@pytest.mark.parametrize(("shape", "masked"), product([(2, 1, 5, 4), (1, 2, 3, 4, 3)], [False, True]))
def test_gradients_of_losses(loss: Loss, shape: tuple[int, ...], masked: bool) -> None:
    fixed, moved = draw(*shape).requires_grad_(), draw(*shape, seed=1).requires_grad_()
    mask = draw(shape[0], 1, *shape[2:], seed=2) if masked else None
    assert torch.autograd.gradcheck(lambda f, m: loss(f, m, mask), (fixed, moved))


@pytest.mark.parametrize("loss", [correlation_loss, LocalNCC(2)], ids=["cc", "lncc"])
def test_half_precision_inputs_are_measured_in_single_precision(loss: Loss) -> None:
    fixed, moved = (draw(1, 1, 12, 12, 12, seed=s).half() for s in range(2))
    expected = loss(fixed.float(), moved.float())
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(fixed, moved)
        mixed = loss(fixed.float(), moved)
    assert value.dtype == torch.float32 and torch.equal(value, expected) and torch.equal(mixed, expected)


def test_losses_by_name() -> None:
    fixed, moved = draw(1, 1, 8, 8, 8), draw(1, 1, 8, 8, 8, seed=1)
    assert isinstance(make_similarity("cc"), GlobalNCC) and isinstance(make_similarity("mse"), MeanSquares)
    assert torch.equal(make_similarity("cc")(fixed, moved), correlation_loss(fixed, moved))
    assert torch.equal(make_similarity("mse")(fixed, moved), mse_loss(fixed, moved))
    assert torch.equal(make_similarity("lncc", radius=3)(fixed, moved), LocalNCC(3)(fixed, moved))
    assert isinstance(make_similarity("mk_lncc"), MultiKernelLNCC)
    with pytest.raises(ValueError, match="'cc', 'lncc', 'mind', 'mk_lncc', 'mse'.*got 'mi'"):
        make_similarity("mi")
    with pytest.raises(ValueError, match="radius"):
        LocalNCC(0)


def test_sharp_correlation_keeps_its_ends_and_pulls_hardest_at_the_match(smooth_image):
    image = smooth_image((9, 10, 8), seed=1)
    sharp, plain = LocalNCC(2, 1e-9, sharpness=0.05), LocalNCC(2, 1e-9)
    assert float(sharp(image, 3 * image + 1)) == pytest.approx(0, abs=1e-4)
    assert float(sharp(image, torch.ones_like(image))) == pytest.approx(1)
    squared = torch.linspace(0, 1, 11, dtype=torch.float64)
    gain = sharp._gain(squared)
    assert gain[0] == 0 and gain[-1] == pytest.approx(1) and (gain.diff() > 0).all()
    assert (gain.diff().diff() > 0).all(), "the slope grows towards the match"
    assert torch.equal(plain._gain(squared), squared)


def test_gradient_of_sharp_correlation(smooth_image):
    fixed, moved = (smooth_image((6, 5, 7), seed=seed) for seed in (1, 2))
    assert torch.autograd.gradcheck(LocalNCC(1, sharpness=0.05), (fixed, moved.requires_grad_()))
