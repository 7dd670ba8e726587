"""The multi-Gaussian smoother against direct sums, and the laws of a kernel: gain, symmetry, positivity."""

from __future__ import annotations

import copy
import time
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from shared_components.flows import MultiGaussian

F64 = torch.float64
SHAPES = [(8, 9), (7, 1, 10), (5, 6, 4)]
WAYS = list(product(["circular", "zeros"], ["fft", "separable"]))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def axis_matrix(n: int, sigma_vox: float, padding: str) -> np.ndarray:
    """Gaussian weights from every voxel of an axis to every other, summed one image at a time."""
    reach = range(-40, 41) if padding == "circular" else range(1)
    matrix = np.array([[sum(gauss(i - j + k * n, sigma_vox) for k in reach) for j in range(n)] for i in range(n)])
    return matrix / sum(gauss(i, sigma_vox) for i in range(-400, 401))


def gauss(x: float, sigma: float) -> float:
    return float(np.exp(-0.5 * (x / sigma) ** 2)) if sigma else float(x == 0)


@pytest.mark.parametrize(("shape", "way"), product(SHAPES, WAYS))
def test_is_the_weighted_sum_of_gaussian_convolutions(shape: tuple[int, ...], way: tuple[str, str]) -> None:
    momentum, sigmas, weights = draw(2, len(shape), *shape), (0.1, 0.3), (1.0, 3.0)
    expected = np.zeros(momentum.shape)
    for sigma, weight in zip(sigmas, weights, strict=True):
        part = momentum.numpy()
        for axis, n in enumerate(shape, 2):
            matrix = axis_matrix(n, sigma * (n - 1), way[0])
            part = np.moveaxis(np.tensordot(part, matrix, (axis, 1)), -1, axis)
        expected += weight / 4 * part
    smooth = MultiGaussian(sigmas, weights, *way)(momentum)
    np.testing.assert_allclose(smooth.numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("method", ["fft", "separable"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_momentum_is_the_velocity(shape: tuple[int, ...], method: str) -> None:
    constant = draw(2, len(shape), *(1,) * len(shape)).expand(-1, -1, *shape)
    torch.testing.assert_close(MultiGaussian(method=method)(constant), constant, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", ["fft", "separable"])
def test_zeros_outside_pull_the_border_down_and_leave_the_middle(method: str) -> None:
    smooth = MultiGaussian([0.05], [1.0], "zeros", method)(torch.ones(1, 1, 61, 61, dtype=F64))[0, 0]
    assert smooth[30, 30] == pytest.approx(1, abs=1e-6)
    assert smooth[0, 30] == pytest.approx(0.5 + gauss(0, 3) / (2 * 3 * (2 * np.pi) ** 0.5), abs=1e-6)


def dense(kernel: MultiGaussian, shape: tuple[int, ...]) -> Tensor:
    """The smoother as a matrix, a column for every voxel."""
    count = int(np.prod(shape))
    return kernel(torch.eye(count, dtype=F64).view(count, 1, *shape)).reshape(count, count)


@pytest.mark.parametrize(("shape", "way"), product([(12, 10), (5, 4, 6)], WAYS))
@pytest.mark.parametrize("sigmas", [(0.05, 0.1, 0.15, 0.2, 0.25), (0.25,)], ids=["paper", "wide"])
def test_is_self_adjoint_and_positive(shape: tuple[int, ...], way: tuple[str, str], sigmas: tuple[float, ...]) -> None:
    matrix = dense(MultiGaussian(sigmas, range(1, len(sigmas) + 1), *way), shape)
    torch.testing.assert_close(matrix, matrix.mT, atol=1e-14, rtol=0)
    values = torch.linalg.eigvalsh(matrix)
    assert values.min() > -1e-14 and values.max() < 1 + 1e-12
    assert values.max() > (0.999 if way[0] == "circular" else 0.05)


@pytest.mark.parametrize("method", ["fft", "separable"])
def test_a_circle_carries_momentum_to_the_far_side(method: str) -> None:
    impulse = torch.zeros(1, 1, 20, 20, dtype=F64)
    impulse[0, 0, 0, 10] = 1
    circular, zeros = (
        MultiGaussian([0.05], [1.0], padding, method)(impulse)[0, 0] for padding in ("circular", "zeros")
    )
    assert circular[19, 10] == pytest.approx(float(circular[1, 10]))
    assert zeros[19, 10].abs() < 1e-9 < zeros[1, 10]


def test_an_extent_makes_gaussians_round_in_space() -> None:
    impulse = torch.zeros(1, 1, 41, 21, dtype=F64)
    impulse[0, 0, 20, 10] = 1
    round_ = MultiGaussian([0.05], [1.0], extent=(1.0, 0.5))(impulse)[0, 0]
    flat = MultiGaussian([0.05], [1.0])(impulse)[0, 0]
    assert round_[23, 10] == pytest.approx(float(round_[20, 13]))
    assert flat[23, 10] > 3 * flat[20, 13]


@pytest.mark.parametrize(("shape", "padding"), product([(31, 24), (15, 22, 18)], ["circular", "zeros"]))
def test_both_methods_agree_in_single_precision(shape: tuple[int, ...], padding: str) -> None:
    momentum = draw(2, len(shape), *shape, dtype=torch.float32)
    exact = MultiGaussian(padding=padding, method="fft")(momentum.double())
    for method in ("fft", "separable", "auto"):
        smooth = MultiGaussian(padding=padding, method=method)(momentum)
        assert smooth.dtype == torch.float32
        torch.testing.assert_close(smooth.double(), exact, atol=2e-6, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_gradients(way: tuple[str, str]) -> None:
    kernel, momentum = MultiGaussian(padding=way[0], method=way[1]), draw(1, 2, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(kernel, (momentum,))
    assert torch.autograd.gradgradcheck(lambda m: (m * kernel(m)).sum(), (momentum,))


def test_energy_is_positive_and_its_gradient_is_twice_the_velocity() -> None:
    kernel, momentum = MultiGaussian(), draw(1, 3, 6, 5, 7).requires_grad_()
    energy = (momentum * kernel(momentum)).sum()
    (grad,) = torch.autograd.grad(energy, momentum)
    assert energy > 0
    torch.testing.assert_close(grad, 2 * kernel(momentum.detach()))


@pytest.mark.parametrize("method", ["fft", "separable"])
def test_half_precision_is_smoothed_in_single(method: str) -> None:
    kernel, momentum = MultiGaussian(method=method), draw(1, 2, 12, 9).half()
    expected = kernel(momentum.float())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(kernel(momentum.float()), expected, atol=0, rtol=0)
        assert torch.equal(kernel(momentum), expected.half())


def test_one_smoother_serves_grids_of_any_size_and_holds_no_weights() -> None:
    kernel = MultiGaussian()
    for shape in ((6, 7), (9, 5), (6, 7), (4, 5, 6)):
        momentum = draw(1, 1, *shape)
        assert torch.equal(kernel(momentum), MultiGaussian()(momentum))
    assert not kernel.state_dict() and not list(kernel.parameters())
    momentum = draw(1, 1, 6, 7)
    assert torch.equal(copy.deepcopy(kernel)(momentum), kernel(momentum))


def test_bad_arguments_are_refused() -> None:
    for wrong in ({"sigmas": [0.1]}, {"sigmas": [-0.1], "weights": [1]}, {"sigmas": [0.1], "weights": [0]}):
        with pytest.raises(ValueError, match="each Gaussian"):
            MultiGaussian(**wrong)
    for wrong in ({"padding": "reflect"}, {"method": "conv"}):
        with pytest.raises(ValueError, match="must be one of"):
            MultiGaussian(**wrong)
    with pytest.raises(ValueError, match="does not fit"):
        MultiGaussian(extent=(1, 1, 1))(torch.zeros(1, 2, 4, 4))


@pytest.mark.slow
@pytest.mark.parametrize("padding", ["circular", "zeros"])
def test_auto_takes_the_faster_method(padding: str) -> None:
    momentum = draw(1, 3, 40, 96, 96, dtype=torch.float32)
    best = dict.fromkeys(("fft", "separable"), float("inf"))
    kernels = {method: MultiGaussian(padding=padding, method=method) for method in best}
    for _ in range(10):
        for method, kernel in kernels.items():
            start = time.perf_counter()
            kernel(momentum)
            best[method] = min(best[method], time.perf_counter() - start)
    print(f"\nsmoothing 3x40x96x96, {padding}: fft {best['fft']:.4f} s, separable {best['separable']:.4f} s")
    assert best["separable"] < 1.1 * best["fft"], f"{torch.get_num_threads()} threads"
