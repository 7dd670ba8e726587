"""The squared difference under an affine map: its value against scipy's, its gradient against autograd's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from affine_search_case import phantom, poses
from scipy.ndimage import map_coordinates
from torch import Tensor

from shared_components.affine_search import (
    AffineSSD,
    halved,
    initial_guess,
    inverse,
    join,
    matrix_vox,
    normalise,
    pixel,
    ssd,
)

MakeImage = Callable[..., Tensor]
SHAPES = pytest.mark.parametrize("shape", [(16, 16), (12, 19), (9, 9, 9), (7, 11, 8)], ids=str)


def points(shape: tuple[int, ...], batch: int, spread: float = 0.3, seed: int = 0) -> Tensor:
    """Maps near and far from the initial guess, some of which look outside."""
    generator = torch.Generator().manual_seed(seed)
    x = initial_guess(shape, batch).double()
    return x + spread * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1)


def through_scipy(moving: Tensor, x: Tensor) -> np.ndarray:
    """T(phi_x) by scipy: linear, with a ground of min T that the border blends into."""
    shape = moving.shape[2:]
    out = []
    for image, matrix in zip(moving[:, 0].numpy(), matrix_vox(x, shape).numpy(), strict=True):
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).reshape(len(shape), -1)
        where = matrix[:-1, :-1] @ index + matrix[:-1, -1:]
        ground = np.pad(image, 3, constant_values=image.min())
        out.append(map_coordinates(ground, where + 3, order=1, cval=image.min()).reshape(shape))
    return np.stack(out)[:, None]


@SHAPES
def test_moved_image_is_scipys(shape: tuple[int, ...], smooth_image: MakeImage) -> None:
    moving, x = smooth_image(shape, 1, batch=4), points(shape, 4)
    found = AffineSSD(moving, moving).moved(x)
    np.testing.assert_allclose(found.numpy(), through_scipy(moving, x), atol=1e-12)


@SHAPES
def test_value_is_half_the_integral_of_the_squared_difference(shape: tuple[int, ...], smooth_image: MakeImage) -> None:
    fixed, moving, x = smooth_image(shape, 1, batch=4), smooth_image(shape, 2, batch=4), points(shape, 4)
    value, gradient = AffineSSD(fixed, moving)(x)
    squares = (torch.from_numpy(through_scipy(moving, x)) - fixed).square().flatten(1).sum(1)
    torch.testing.assert_close(value, 0.5 * pixel(shape) ** len(shape) * squares)
    assert gradient.shape == x.shape and gradient.dtype == torch.float64


@SHAPES
def test_gradient_is_autograds(shape: tuple[int, ...], smooth_image: MakeImage) -> None:
    """At random maps no sample lies on a grid point, where the slope of linear interpolation jumps."""
    fixed, moving = smooth_image(shape, 1, batch=3), smooth_image(shape, 2, batch=3)
    objective, x = AffineSSD(fixed, moving), points(shape, 3).requires_grad_()
    value, gradient = objective(x)
    (wanted,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient.detach(), wanted, rtol=1e-9, atol=1e-10)
    assert float(wanted.norm(dim=1).min()) > 1e-2


@pytest.mark.parametrize("shape", [(16, 16), (9, 9, 9)], ids=str)
def test_value_and_gradient_pass_gradcheck(shape: tuple[int, ...], smooth_image: MakeImage) -> None:
    objective = AffineSSD(smooth_image(shape, 1), smooth_image(shape, 2))
    x = points(shape, 1, 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(x)[0], x, eps=1e-7, atol=1e-5)


def test_gradient_is_the_slope_by_central_differences(smooth_image: MakeImage) -> None:
    """Across a fine, smooth image, over steps that pass many grid points."""
    shape = (96, 96)
    objective, x = AffineSSD(smooth_image(shape, 1), smooth_image(shape, 2)), points(shape, 1, 0.1)
    steps = 1e-3 * torch.eye(6).double()
    slope = torch.cat([(objective(x + step)[0] - objective(x - step)[0]) / 2e-3 for step in steps])
    torch.testing.assert_close(objective(x)[1][0], slope, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("shape", [(16, 16), (9, 9, 9)], ids=str)
def test_second_order_path_is_the_hessian(shape: tuple[int, ...], smooth_image: MakeImage) -> None:
    """Autograd through the explicit gradient = autograd twice through the value = differences of gradients."""
    objective, x = AffineSSD(smooth_image(shape, 1), smooth_image(shape, 2)), points(shape, 1, 0.2)
    v = torch.linspace(-1, 1, x.shape[1]).double()
    x.requires_grad_()
    (product,) = torch.autograd.grad((objective(x)[1] * v).sum(), x)
    (first,) = torch.autograd.grad(objective(x)[0].sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad((first * v).sum(), x)
    torch.testing.assert_close(product, twice, rtol=1e-8, atol=1e-9)
    with torch.no_grad():
        eps = 1e-7
        difference = (objective(x + eps * v)[1] - objective(x - eps * v)[1]) / (2 * eps)
    torch.testing.assert_close(product, difference, rtol=1e-4, atol=1e-4)
    assert float(product.norm()) > 0.1


@SHAPES
def test_images_that_agree_have_no_gradient(shape: tuple[int, ...], smooth_image: MakeImage) -> None:
    moving, truth = smooth_image(shape, 1, batch=2), points(shape, 2)
    value, gradient = AffineSSD(AffineSSD(moving, moving).moved(truth), moving)(truth)
    assert float(value.abs().max()) < 1e-28 and float(gradient.abs().max()) < 1e-13


def test_moved_through_a_map_and_back_is_the_image(smooth_image: MakeImage) -> None:
    image = smooth_image((96, 96), 3)
    x = points((96, 96), 1, 0.15)
    back = AffineSSD(image, AffineSSD(image, image).moved(x)).moved(inverse(x))
    inner = (..., slice(30, 66), slice(30, 66))
    assert float((back - image)[inner].abs().max()) < 5e-3 < float(image[inner].std())


@pytest.mark.parametrize("shape", [(8, 8), (6, 7, 5)], ids=str)
def test_outside_is_the_minimum(shape: tuple[int, ...]) -> None:
    moving = 5 + torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    away = initial_guess(shape).double()
    away[:, -1] += 3
    moved = AffineSSD(moving, moving).moved(away)
    assert torch.equal(moved, moving.min().expand_as(moved))
    half = join(torch.eye(len(shape)), torch.zeros(len(shape)))[None].double()
    half[:, -1] = (shape[-1] - 0.5) * pixel(shape)  # the first column lies half a pixel outside
    border = AffineSSD(moving, moving).moved(half)[..., 0]
    torch.testing.assert_close(border, (moving[..., -1] + moving.min()) / 2)
    _, gradient = AffineSSD(moving, moving)(away)
    assert not gradient.any()


def test_several_points_a_pair_are_pairs_of_their_own(smooth_image: MakeImage) -> None:
    fixed, moving = smooth_image((12, 14), 1, batch=2), smooth_image((12, 14), 2, batch=2)
    x = points((12, 14), 6)
    copied = AffineSSD(fixed.repeat_interleave(3, 0), moving.repeat_interleave(3, 0))
    many = AffineSSD(fixed, moving, 3)
    assert all(torch.equal(a, b) for a, b in zip(many(x), copied(x), strict=True))
    assert torch.equal(many.moved(x), copied.moved(x))
    which = torch.tensor([5, 0, 2])
    chosen = many(x[which], which)
    assert all(torch.equal(part, whole[which]) for part, whole in zip(chosen, copied(x), strict=True))


@pytest.mark.parametrize("starts", [1, 3])
def test_in_pieces_it_is_the_same(starts: int, smooth_image: MakeImage, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, sizes, whole = (12, 12), [], ssd.AffineSSD._evaluate

    def watched(self: AffineSSD, x: Tensor, which: Tensor | None) -> tuple[Tensor, Tensor]:
        sizes.append(len(x))
        return whole(self, x, which)

    monkeypatch.setattr(ssd.AffineSSD, "_evaluate", watched)
    objective = AffineSSD(smooth_image(shape, 1, batch=6), smooth_image(shape, 2, batch=6), starts)
    x = points(shape, 6 * starts)
    with torch.no_grad():
        at_once = objective(x)
        monkeypatch.setattr(ssd, "_AT_ONCE", 4 * 144)
        in_pieces = objective(x)
    assert sizes[0] == 6 * starts and sizes[1:3] == [4, 4 if starts > 1 else 2]
    for a, b in zip(at_once, in_pieces, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    assert objective(x.requires_grad_())[0].requires_grad and sizes[-1] == 6 * starts  # not where gradients are kept


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1e30])
@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (5, 5, 5)], ids=str)
def test_what_is_no_map_has_no_value_and_disturbs_nobody(shape: tuple[int, ...], bad: float) -> None:
    moving = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    count = len(shape) * (len(shape) + 1)
    x = initial_guess(shape, count + 1)
    x[range(count), range(count)] = bad
    value, gradient = AffineSSD(moving, moving, count + 1)(x)
    assert bool(value[:-1].isnan().all()) and bool(gradient[:-1].isnan().all())
    alone = AffineSSD(moving, moving)(x[-1:])
    assert torch.equal(value[-1:], alone[0]) and bool(gradient[-1].isfinite().all())


def test_single_precision_agrees_with_double(smooth_image: MakeImage) -> None:
    fixed, moving, x = smooth_image((24, 24), 1), smooth_image((24, 24), 2), points((24, 24), 1)
    double, single = AffineSSD(fixed, moving)(x), AffineSSD(fixed.float(), moving.float())(x)  # x in double: taken
    for a, b in zip(double, single, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a.float(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normalised_images_have_mean_zero_and_deviation_one(dtype: torch.dtype) -> None:
    image = torch.rand(3, 1, 9, 10, generator=torch.Generator().manual_seed(0), dtype=dtype)
    found = normalise(7 + 3 * image)
    assert found.shape == image.shape and found.dtype == dtype
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.zeros(3, dtype=dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.square().mean((1, 2, 3)), torch.ones(3, dtype=dtype), atol=1e-5, rtol=0)
    for contrast in (1e-12, 1e-3, 1e6):
        torch.testing.assert_close(normalise(contrast * image), normalise(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1, -3e7])
def test_constant_images_become_zero(value: float) -> None:
    assert not normalise(torch.full((1, 1, 33, 37), value)).any()


@pytest.mark.parametrize("shape", [(16, 24), (8, 12, 16)], ids=str)
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_halved_keeps_positions(shape: tuple[int, ...], factor: int) -> None:
    """A ramp of the position in Omega is the same ramp on the coarse grid."""

    def ramp(shape: tuple[int, ...]) -> Tensor:
        axes = [pixel(shape) * (torch.arange(n).double() - (n - 1) / 2) for n in shape]
        return sum((k + 1) * axis for k, axis in enumerate(torch.meshgrid(*axes, indexing="ij")))[None, None]

    coarse = tuple(n // factor for n in shape)
    torch.testing.assert_close(halved(ramp(shape), factor), ramp(coarse))


def test_levels_have_nearly_the_same_value_at_the_same_map() -> None:
    fixed, x = phantom((64, 64)), points((64, 64), 1, 0.02)
    moving = AffineSSD(fixed, fixed).moved(poses(2, 1, 30, 0.2))
    fine, coarse = AffineSSD(fixed, moving)(x), AffineSSD(halved(fixed, 4), halved(moving, 4))(x)
    torch.testing.assert_close(coarse[0], fine[0], rtol=0.25, atol=0)  # a mean blurs
    assert float(torch.cosine_similarity(coarse[1], fine[1])) > 0.99
