"""mk-LNCC against a naive loop, its windows, invariances, degenerate images, gradients and cost."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
import torch
from memory_tools import peak_mb
from monai.losses import LocalNormalizedCrossCorrelationLoss
from torch import Tensor

from shared_components.mk_lncc import MultiKernelLNCC, Window, default_windows, window_sums

F64 = torch.float64
KINDS = (Window(0.3, 2, 2, 1), Window(0.7, 3, 1, 2))
SHAPES = [(2, 1, 7, 8), (1, 2, 6, 5, 7)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cut(image: np.ndarray, window: Window) -> list[np.ndarray]:
    """The samples of all windows of an image, one after the other."""
    reach = window.dilation * (window.size - 1)
    starts = product(*(range(0, n - reach, window.stride) for n in image.shape))
    return [image[tuple(slice(i, i + reach + 1, window.dilation) for i in start)] for start in starts]


def naive(fixed: np.ndarray, moved: np.ndarray, squared: bool, epsilon: float, mask: np.ndarray | None = None) -> float:
    total = 0.0
    for window in KINDS:
        values, shares = [], []
        masks = cut(np.ones_like(fixed) if mask is None else mask, window)
        for f, m, w in zip(cut(fixed, window), cut(moved, window), masks, strict=True):
            f, m = f - f.mean(), m - m.mean()
            cov, both = (f * m).sum(), (f**2).sum() * (m**2).sum()
            values.append(cov**2 / (both + epsilon) if squared else cov / np.sqrt(both + epsilon))
            shares.append(w.mean())
        total += window.weight * np.average(values, weights=shares)
    return 1 - total


@pytest.mark.parametrize(("shape", "squared", "masked"), product(SHAPES[:1] + [(2, 1, 6, 5, 7)], [True, False], [0, 1]))
def test_is_the_naive_loop(shape: tuple[int, ...], squared: bool, masked: int) -> None:
    fixed, moved = draw(*shape), draw(*shape, seed=1) + draw(*shape)
    mask = (draw(*shape, seed=2) > 0.7).double() if masked else None
    rows = zip(fixed, moved, [None] * shape[0] if mask is None else [m[0].numpy() for m in mask], strict=True)
    expected = np.mean([naive(f[0].numpy(), m[0].numpy(), squared, 1e-5, w) for f, m, w in rows])
    assert 0.05 < expected < 0.95
    assert MultiKernelLNCC(KINDS, squared)(fixed, moved, mask) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_window_sums_are_sums_over_windows(shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    for window, sums in zip(KINDS, window_sums(x, KINDS), strict=True):
        assert sums.shape[2:] == tuple(window.count(n) for n in shape[2:])
        expected = [part.sum() for image in x.flatten(0, 1).numpy() for part in cut(image, window)]
        np.testing.assert_allclose(sums.flatten().numpy(), expected, rtol=1e-12)


def test_windows_of_the_papers_size() -> None:
    windows = default_windows((80, 192, 192))
    assert windows == (Window(0.3, 20, 2, 5), Window(0.7, 40, 2, 10))
    assert [w.extent for w in windows] == [39, 79]
    assert [[w.count(n) for n in (80, 192, 192)] for w in windows] == [[9, 31, 31], [1, 12, 12]]


def test_windows_of_other_sizes() -> None:
    assert default_windows((192, 160, 200)) == (Window(0.1, 10, 2, 2), Window(0.3, 20, 2, 5), Window(0.6, 40, 2, 10))
    assert default_windows((128, 300)) == (Window(0.3, 32, 2, 8), Window(0.7, 64, 2, 16))
    assert default_windows((64, 64, 90)) == (Window(1.0, 32, 1, 8),)
    assert default_windows((7, 5)) == (Window(1.0, 2, 1, 1),)
    for shape in ((3, 4), (33, 40), (65, 65, 65), (129, 130)):
        assert all(w.count(n) >= 1 for w in default_windows(shape) for n in shape)


@pytest.mark.parametrize("shape", [(1, 1, 20, 24), (1, 1, 66, 70), (1, 1, 16, 14, 15)])
def test_invariance_bounds_and_sign(shape: tuple[int, ...]) -> None:
    fixed, moved = draw(*shape), draw(*shape, seed=1)
    squared, signed = MultiKernelLNCC(), MultiKernelLNCC(squared=False)
    assert squared(fixed, 3 * fixed + 2) == pytest.approx(0, abs=1e-4)
    assert squared(fixed, -3 * fixed + 2) == pytest.approx(0, abs=1e-4), "squared: contrast may be inverted"
    assert signed(fixed, 3 * fixed + 2) == pytest.approx(0, abs=1e-4)
    assert signed(fixed, -3 * fixed + 2) == pytest.approx(2, abs=1e-4)
    value = float(squared(fixed, moved))
    assert 0.5 < value < 1 and squared(fixed, 5 * moved - 1) == pytest.approx(value, abs=1e-5)
    assert squared(moved, fixed) == pytest.approx(value, abs=1e-12)


def test_weights_are_shares() -> None:
    fixed, moved = draw(1, 1, 9, 9), draw(1, 1, 9, 9, seed=1)
    single = [float(MultiKernelLNCC([w])(fixed, moved)) for w in KINDS]
    tenfold = [Window(10 * w.weight, w.size, w.dilation, w.stride) for w in KINDS]
    assert MultiKernelLNCC(tenfold)(fixed, moved) == pytest.approx(0.3 * single[0] + 0.7 * single[1])


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("case", ["fixed flat", "moved flat", "both zero", "half zero", "empty mask"])
def test_degenerate_images_give_finite_values_and_gradients(case: str, squared: bool) -> None:
    fixed, moved = draw(1, 1, 16, 16, dtype=torch.float32), draw(1, 1, 16, 16, seed=1, dtype=torch.float32)
    mask = torch.zeros(1, 1, 16, 16) if case == "empty mask" else None
    if case == "fixed flat":
        fixed = torch.full_like(fixed, 0.3)
    elif case == "moved flat":
        moved = torch.full_like(moved, 0.3)
    elif case == "both zero":
        fixed, moved = torch.zeros_like(fixed), torch.zeros_like(moved)
    elif case == "half zero":
        fixed[..., 8:], moved[..., 6:] = 0, 0
    moved.requires_grad_()
    value = MultiKernelLNCC(squared=squared)(fixed, moved, mask)
    (grad,) = torch.autograd.grad(value, moved)
    assert value.isfinite() and grad.isfinite().all()
    if case != "half zero":
        assert value.detach() == pytest.approx(1.0, abs=1e-3), "no correlation to speak of"


def test_single_precision_far_from_zero() -> None:
    fixed, moved = draw(1, 1, 40, 44, 48), draw(1, 1, 40, 44, 48, seed=1)
    exact = float(MultiKernelLNCC()(fixed, fixed + moved))
    found = MultiKernelLNCC()((fixed + 100).float(), (fixed + moved + 100).float())
    assert found == pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "squared", "masked"), product([(2, 1, 4, 5), (1, 2, 3, 4, 3)], [True, False], [False, True])
)
def test_gradients(shape: tuple[int, ...], squared: bool, masked: bool) -> None:
    fixed, moved = draw(*shape).requires_grad_(), draw(*shape, seed=1).requires_grad_()
    mask = draw(shape[0], 1, *shape[2:], seed=2) if masked else None
    assert torch.autograd.gradcheck(lambda f, m: MultiKernelLNCC(KINDS, squared)(f, m, mask), (fixed, moved))


def test_second_derivatives() -> None:
    fixed, moved = draw(1, 1, 4, 4).requires_grad_(), draw(1, 1, 4, 4, seed=1).requires_grad_()
    assert torch.autograd.gradgradcheck(MultiKernelLNCC(KINDS[:1]), (fixed, moved))


def test_statistics_of_the_fixed_image_can_be_kept() -> None:
    fixed, moved = draw(2, 1, 12, 10, 11), draw(2, 1, 12, 10, 11, seed=1)
    loss = MultiKernelLNCC()
    assert torch.equal(loss(fixed, moved, statistics=loss.fixed_statistics(fixed)), loss(fixed, moved))


def test_half_precision_inputs_are_measured_in_single_precision() -> None:
    loss, (fixed, moved) = MultiKernelLNCC(), (draw(1, 1, 12, 12, 12, seed=s).half() for s in range(2))
    expected = loss(fixed.float(), moved.float())
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(fixed, moved)
    assert value.dtype == torch.float32 and torch.equal(value, expected)


def test_coarse_matrix_products_are_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed, moved = (draw(1, 1, 24, 24, 24, seed=s, dtype=torch.float32) for s in range(2))

    def run() -> list[Tensor]:
        leaf = moved.clone().requires_grad_()
        value = MultiKernelLNCC()(fixed, leaf)
        return [value, *torch.autograd.grad(value, leaf)]

    expected = run()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = run()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_bad_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        MultiKernelLNCC([])
    with pytest.raises(ValueError, match="1 or more"):
        MultiKernelLNCC([Window(1.0, 3, 0)])
    with pytest.raises(ValueError, match="spans 9 voxels"):
        MultiKernelLNCC([Window(1.0, 5, 2)])(draw(1, 1, 8, 20), draw(1, 1, 8, 20))


def peak(loss: str) -> float:
    """MB that value and gradient of a loss need at 128^3."""
    setup = f"""
from monai.losses import LocalNormalizedCrossCorrelationLoss
from shared_components.mk_lncc import MultiKernelLNCC
fixed, moved, loss = draw(1, 1, 128, 128, 128), draw(1, 1, 128, 128, 128, seed=1).requires_grad_(), {loss}
"""
    return peak_mb(setup, "loss(moved, fixed).backward()")


@pytest.mark.slow
def test_is_faster_and_smaller_than_monais_local_correlation() -> None:
    fixed, moved = (
        draw(1, 1, 128, 128, 128, dtype=torch.float32),
        draw(1, 1, 128, 128, 128, dtype=torch.float32, seed=1),
    )
    moved.requires_grad_()
    losses = {"ours": MultiKernelLNCC(), "monai 9": LocalNormalizedCrossCorrelationLoss(kernel_size=9)}
    best = dict.fromkeys(losses, float("inf"))
    for _ in range(4):
        for name, loss in losses.items():
            start = time.perf_counter()
            loss(moved, fixed).backward()
            best[name] = min(best[name], time.perf_counter() - start)
    memory = {
        "ours": peak("MultiKernelLNCC()"),
        "monai 9": peak("LocalNormalizedCrossCorrelationLoss(kernel_size=9)"),
    }
    for name in losses:
        print(
            f"\nlocal correlation 128^3, value and gradient, {name}: {best[name]:.3f} s, {memory[name]:.0f} MB", end=""
        )
    assert best["ours"] < best["monai 9"] / 3, f"{torch.get_num_threads()} threads"
    assert 16 < memory["ours"] < memory["monai 9"] / 2
