"""Scaling and squaring: known exponentials, the inverse, gradients and what they hold in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from memory_tools import saved_bytes
from torch import Tensor

from shared_components.affine import affine_ddf
from shared_components.flows import exponential
from shared_components.warp import compose, jacobian_determinant

F64 = torch.float64
SmoothDdf = Callable[..., Tensor]


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)])
def test_nothing_and_a_constant_are_their_own_exponentials(shape: tuple[int, ...]) -> None:
    zero = torch.zeros(2, len(shape), *shape)
    assert torch.equal(exponential(zero), zero)
    constant = torch.linspace(-2, 3, len(shape), dtype=F64).view(1, -1, *(1,) * len(shape)).expand(1, -1, *shape)
    torch.testing.assert_close(exponential(constant), constant, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(33, 33), (17, 17, 17)])
def test_an_affine_velocity_reaches_the_matrix_exponential(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    generator = torch.tensor([[0.1, -0.5, 0.1], [0.4, -0.2, 0.2], [0.1, 0.1, 0.1]], dtype=F64)[None, :ndim, :ndim]
    b = torch.zeros(1, ndim, dtype=F64)
    reached = exponential(affine_ddf(generator, b, shape), squarings=16)
    expected = affine_ddf(torch.matrix_exp(generator) - torch.eye(ndim, dtype=F64), b, shape)
    middle = (..., *(slice(n // 4, -(n // 4)) for n in shape))  # nothing of it comes from beyond the border
    torch.testing.assert_close(reached[middle], expected[middle], atol=1e-3, rtol=0)
    coarse = exponential(affine_ddf(generator, b, shape), squarings=4)
    ratio = (coarse - expected)[middle].abs().max() / (
        exponential(affine_ddf(generator, b, shape), squarings=5) - expected
    )[middle].abs().max()
    assert 1.7 < ratio < 2.3, "the error falls by half with each squaring"


def test_the_negative_velocity_gives_the_inverse(smooth_ddf: SmoothDdf) -> None:
    dvf = smooth_ddf((48, 48), 3.0, vanish=True)
    forth, back = exponential(dvf), exponential(-dvf)
    assert forth.abs().max() > 2 and jacobian_determinant(forth).min() > 0
    assert compose(forth, back).abs().max() < 0.02 and compose(back, forth).abs().max() < 0.02
    assert compose(forth, forth).abs().max() > 4


def test_recomputing_changes_no_gradient_and_holds_less(smooth_ddf: SmoothDdf) -> None:
    dvf = smooth_ddf((16, 15, 14), 2.0).requires_grad_()
    frugal, plain = exponential(dvf), exponential(dvf, recompute=False)
    assert torch.equal(frugal, plain)
    weight = smooth_ddf((16, 15, 14), seed=1)
    gradients = [torch.autograd.grad((x * weight).sum(), dvf)[0] for x in (frugal, plain)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)
    field = dvf.numel() * dvf.element_size()
    held = [saved_bytes(lambda keep=keep: exponential(dvf, 7, recompute=keep)) for keep in (True, False)]
    assert held[0] <= 8 * field < held[1] / 1.4


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 3)])
def test_gradients(shape: tuple[int, ...], recompute: bool, smooth_ddf: SmoothDdf) -> None:
    dvf = smooth_ddf(shape, 0.8).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: exponential(v, 3, recompute), (dvf,))


def test_precision_and_arguments(smooth_ddf: SmoothDdf) -> None:
    dvf = smooth_ddf((9, 8), 2.0, dtype=torch.float32)
    expected = exponential(dvf)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exponential(dvf), expected)
        assert exponential(dvf.half()).dtype == torch.float16
    torch.testing.assert_close(exponential(dvf.half()).float(), exponential(dvf), atol=3e-3, rtol=0)
    with pytest.raises(ValueError, match="must not be negative"):
        exponential(dvf, -1)
