"""Deformations and intensities made to order: the properties they promise."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from shared_components.synth import (
    add_gaussian_noise,
    add_rician_noise,
    bias_field,
    bspline_field,
    change_contrast,
    change_gamma,
    diffeomorphism,
    random_affine,
    redraw_contrast,
    refine_inverse,
)
from shared_components.warp import invert, jacobian_determinant

SHAPES = [(40, 33), (24, 29, 21)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize("shape", SHAPES)
def test_bspline_field_is_seeded_bounded_and_varies_over_the_batch(shape):
    field = bspline_field(shape, seeded(3), batch=2)
    assert field.shape == (2, len(shape), *shape) and field.dtype == torch.float32
    assert field.equal(bspline_field(shape, seeded(3), batch=2))
    assert not field.equal(bspline_field(shape, seeded(4), batch=2))
    assert (field[0] - field[1]).abs().max() > 0.1
    for component, n in enumerate(shape):
        assert 0 < field[:, component].abs().max() <= 0.4 * n / 4


def test_bspline_field_scales_with_the_grid():
    small = bspline_field((16, 24), seeded(), dtype=torch.float64)
    large = bspline_field((32, 48), seeded(), dtype=torch.float64)
    torch.testing.assert_close(large[..., ::2, ::2], 2 * small)


def test_bspline_field_has_the_size_of_the_public_code():
    field = bspline_field((32, 32, 32), seeded(), batch=100) * 4  # what it would be at 128^3
    assert field.square().mean().sqrt() == pytest.approx(1.6, rel=0.05)
    largest = field.square().sum(1).sqrt().amax((1, 2, 3))
    assert largest.mean() == pytest.approx(6.5, rel=0.1)


def test_bspline_field_refuses_a_single_control_point():
    with pytest.raises(ValueError, match="at least 2"):
        bspline_field((8, 8), seeded(), control_points=1)


# -------------------------------------------------------------------------------------------------- diffeomorphisms


def roundtrip(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest |first(x) + second(x + first(x))| in voxels, by scipy instead of our own interpolation."""
    a, b = first[0].double().numpy(), second[0].double().numpy()
    position = np.stack(np.meshgrid(*[np.arange(n) for n in a.shape[1:]], indexing="ij")) + a
    moved = np.stack([map_coordinates(component, position, order=1, mode="nearest") for component in b])
    return float(np.linalg.norm(a + moved, axis=0).max())


@pytest.mark.parametrize(("shape", "seed"), [((64, 49), 0), ((64, 49), 1), ((48, 45, 52), 0), ((49, 64, 50), 2)])
def test_diffeomorphism_has_its_inverse_its_mean_and_no_folds(shape, seed):
    ddf, inverse = diffeomorphism(shape, seeded(seed), mean=1.5, largest=5.0, smoothness=24.0)
    length = ddf.square().sum(1).sqrt()
    assert ddf.shape == inverse.shape == (1, len(shape), *shape)
    assert length.mean() == pytest.approx(1.5, rel=4e-3)
    assert length.max() <= 5.0
    assert jacobian_determinant(ddf).min() > 0 and jacobian_determinant(inverse).min() > 0
    assert roundtrip(inverse, ddf) < 1e-3
    assert roundtrip(ddf, inverse) < 0.05  # v between its voxels is interpolated


def test_diffeomorphism_is_seeded():
    first, inverse = diffeomorphism((32, 32), seeded(5))
    again, inverse_again = diffeomorphism((32, 32), seeded(5))
    other, _ = diffeomorphism((32, 32), seeded(6))
    assert first.equal(again) and inverse.equal(inverse_again) and not first.equal(other)


@pytest.mark.parametrize("shape", SHAPES)
def test_diffeomorphism_takes_the_box_onto_itself(shape):
    for field in diffeomorphism(shape, seeded(), mean=1.5):
        for axis in range(len(shape)):
            faces = field[0, axis].movedim(axis, 0)[[0, -1]]
            assert faces.abs().max() < 1e-4
            assert field[0, axis].abs().max() > 0.5
            assert field[0, axis - 1].movedim(axis, 0)[[0, -1]].abs().max() > 0.1  # along the face it may slide


def test_diffeomorphism_in_mm_inside_a_mask():
    shape, spacing = (32, 24, 40), (1.5, 2.0, 1.0)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[8:24, 6:18, 10:30] = True
    ddf, _ = diffeomorphism(shape, seeded(1), 3.0, 8.0, 24.0, spacing, mask)
    length_mm = (ddf * torch.tensor(spacing).view(1, 3, 1, 1, 1)).square().sum(1).sqrt()[0]
    assert length_mm[mask].mean() == pytest.approx(3.0, rel=4e-3)
    assert length_mm[mask].max() <= 8.0
    assert length_mm.mean() != pytest.approx(3.0, rel=0.02)


def test_diffeomorphism_says_when_it_cannot_be_had():
    with pytest.raises(ValueError, match="smaller mean"):
        diffeomorphism((32, 32), seeded(), mean=4.0, largest=4.5, tries=5)
    with pytest.raises(ValueError, match="smaller mean"):  # folds
        diffeomorphism((24, 24), seeded(), mean=12.0, smoothness=4.0, tries=2)


def test_refine_inverse_agrees_with_the_fixed_point_and_reports_its_residual():
    ddf, inverse = diffeomorphism((48, 40), seeded(2), mean=2.0, dtype=torch.float64)
    rough = inverse + 0.2 * bspline_field((48, 40), seeded(), dtype=torch.float64)
    refined, residual = refine_inverse(ddf, rough, tolerance=1e-6)
    assert residual < 1e-6 and roundtrip(refined, ddf) == pytest.approx(residual, abs=1e-9)
    torch.testing.assert_close(refined, invert(ddf, 200, 1e-8)[0], atol=1e-4, rtol=0)
    kept, large = refine_inverse(ddf, rough, iterations=0)
    assert kept.equal(rough) and large == pytest.approx(roundtrip(rough, ddf))


# ------------------------------------------------------------------------------------------------------ affine maps


@pytest.mark.parametrize("ndim", [2, 3])
def test_random_affine_is_seeded_turns_about_its_centre_and_never_reflects(ndim):
    center = np.arange(5.0, 5.0 + ndim)
    matrices = [random_affine(seeded(s), ndim, 40, 0, 0.3, 0.2, center) for s in range(20)]
    for matrix in matrices:
        np.testing.assert_allclose(matrix[:-1, :-1] @ center + matrix[:-1, -1], center, atol=1e-12)
        assert np.linalg.det(matrix) > 0.3
        np.testing.assert_array_equal(matrix[-1], np.eye(ndim + 1)[-1])
    np.testing.assert_array_equal(matrices[3], random_affine(seeded(3), ndim, 40, 0, 0.3, 0.2, center))
    assert np.abs(matrices[0] - matrices[1]).max() > 0.01
    np.testing.assert_allclose(random_affine(seeded(), ndim, 0, 0, 0, 0, center), np.eye(ndim + 1), atol=1e-12)


def test_random_affine_parts():
    turn = random_affine(seeded(), 2, 30, 0, 0, 0)[:2, :2]
    np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-12)
    assert 0 < abs(np.rad2deg(np.arctan2(turn[1, 0], turn[0, 0]))) <= 30
    shift = random_affine(seeded(), 3, 0, 10, 0, 0)[:3, 3]
    assert 0 < np.abs(shift).max() <= 10
    stretch = np.log(np.diag(random_affine(seeded(), 3, 0, 0, 0.2, 0)))[:3]
    assert 0 < np.abs(stretch).max() <= 0.2
    slant = random_affine(seeded(), 3, 0, 0, 0, 0.2)[:3, :3]
    assert np.allclose(np.tril(slant), np.eye(3)) and 0 < np.abs(np.triu(slant, 1)).max() <= 0.2


# ------------------------------------------------------------------------------------------------------ intensities


def phantom(batch: int = 2) -> torch.Tensor:
    """A ramp of 1 ... 101 in a background of zeros."""
    image = torch.zeros(batch, 1, 20, 24, 18)
    image[..., 4:16, 5:19, 3:15] = torch.linspace(1, 101, 14).view(14, 1)
    return image


@pytest.mark.parametrize("shape", SHAPES)
def test_bias_field_is_smooth_positive_and_bounded(shape):
    factor = bias_field(shape, seeded(), batch=3, strength=0.3)
    assert factor.shape == (3, 1, *shape)
    assert np.exp(-0.3) <= factor.min() < 0.97 and 1.03 < factor.max() <= np.exp(0.3)
    for axis, n in enumerate(shape):  # the derivative of a cubic B-spline is at most (largest - smallest)/span
        assert factor.log().diff(dim=axis + 2).abs().max() <= 2 * 0.3 * 3 / (n - 1) + 1e-6
    assert not factor[0].equal(factor[1]) and factor.equal(bias_field(shape, seeded(), batch=3, strength=0.3))


def test_gaussian_and_rician_noise_have_their_moments():
    level = torch.full((1, 1, 60, 60, 60), 50.0)
    noise = add_gaussian_noise(level, 2.0, seeded()) - level
    assert noise.std() == pytest.approx(2.0, rel=0.02) and abs(noise.mean()) < 0.02
    rician = add_rician_noise(level, 2.0, seeded())
    assert rician.mean() == pytest.approx(50 + 2.0**2 / (2 * 50), abs=0.02)  # first-order bias of the magnitude
    air = add_rician_noise(torch.zeros_like(level), 2.0, seeded())
    assert air.min() >= 0
    assert air.mean() == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.01)
    assert air.std() == pytest.approx(2.0 * np.sqrt(2 - np.pi / 2), rel=0.02)


@pytest.mark.parametrize("change", [change_gamma, change_contrast])
def test_contrast_change_is_monotone_and_keeps_the_range(change):
    image = torch.linspace(-3, 7, 200, dtype=torch.float64).view(1, 1, 20, 10).repeat(4, 1, 1, 1)
    changed = change(image, seeded())
    torch.testing.assert_close(changed.amin((1, 2, 3)), image.amin((1, 2, 3)))
    torch.testing.assert_close(changed.amax((1, 2, 3)), image.amax((1, 2, 3)))
    assert changed.flatten(1).diff(dim=1).min() > 0
    assert (changed - image).abs().flatten(1).amax(1).min() > 1e-3
    assert not changed[0].equal(changed[1])
    constant = torch.full((1, 1, 5, 5), 3.0)
    torch.testing.assert_close(change(constant, seeded()), constant)


def test_change_contrast_of_no_strength_changes_nothing():
    image = torch.rand(2, 1, 9, 9, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(change_contrast(image, seeded(), strength=0.0), image)
    with pytest.raises(ValueError, match="increasing"):
        change_contrast(image, seeded(), strength=1.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda image, generator, keep: add_gaussian_noise(image, 5.0, generator, keep),
        lambda image, generator, keep: add_rician_noise(image, 5.0, generator, keep),
        lambda image, generator, keep: change_gamma(image - 2 * (image > 0), generator, keep_background=keep),
        lambda image, generator, keep: change_contrast(image - 2 * (image > 0), generator, keep_background=keep),
    ],
    ids=["gaussian", "rician", "gamma", "contrast"],
)
def test_background_is_kept_by_choice_and_the_seed_decides(change):
    image = phantom()
    kept, free = change(image, seeded(), True), change(image, seeded(), False)
    assert (kept[image == 0] == 0).all()
    assert (free[image == 0] != 0).any()
    assert kept[image > 0].equal(free[image > 0])
    assert kept.equal(change(image, seeded(), True)) and not kept.equal(change(image, seeded(9), True))


def test_redraw_contrast_gives_each_label_its_own_mean():
    labels = torch.zeros(2, 1, 30, 30, 30, dtype=torch.int16)
    labels[..., :10], labels[..., 10:20] = 3, 17
    image = redraw_contrast(labels, seeded(), means=(0.2, 0.9), stds=(0.01, 0.02))
    assert (image[labels == 0] == 0).all() and image.shape == labels.shape
    means = torch.stack([torch.stack([sample[labels[0] == v].mean() for v in (3, 17)]) for sample in image])
    assert means.min() > 0.19 and means.max() < 0.91 and len(set(means.flatten().tolist())) == 4
    spread = torch.stack([sample[labels[0] == v].std() for sample in image for v in (3, 17)])
    assert spread.min() > 0.009 and spread.max() < 0.021
    assert image.equal(redraw_contrast(labels, seeded(), (0.2, 0.9), (0.01, 0.02)))
    assert (redraw_contrast(labels, seeded(), keep_background=False)[labels == 0] != 0).all()
