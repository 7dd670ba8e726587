"""Intensities made to order: bias fields, noise, contrast. All on images (B, C, *spatial), seeded by a generator.

Nothing here moves a voxel. ``keep_background`` leaves exactly zero what was exactly zero, as in skull-stripped scans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..splines import evaluate_spline, spline_weights


def _normal_like(image: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(image.shape, generator=generator, dtype=image.dtype, device=generator.device)
    return noise.to(image.device)


def _background_kept(changed: Tensor, image: Tensor, keep_background: bool) -> Tensor:
    return torch.where(image == 0, torch.zeros_like(changed), changed) if keep_background else changed


def _extent(image: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest value and range of each sample and channel, shaped to broadcast; the range of a constant is 1."""
    flat = image.flatten(2)
    view = (*image.shape[:2], *(1,) * (image.ndim - 2))
    low = flat.amin(2).view(view)
    width = flat.amax(2).view(view) - low
    return low, torch.where(width > 0, width, torch.ones_like(width))


def bias_field(
    shape: Sequence[int],
    generator: torch.Generator,
    batch: int = 1,
    strength: float = 0.3,
    control_points: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return a smooth positive factor (batch, 1, *shape): exp of a random cubic B-spline.

    Args:
        shape: voxels per axis.
        generator: the only source of randomness.
        batch: number of fields.
        strength: bound on |log factor|; 0.3 keeps the factor within 0.74 and 1.35.
        control_points: per axis and at least 2; fewer is smoother.
        dtype: of the factor.
    """
    size = (batch, 1, *(control_points + 2,) * len(shape))
    control = torch.rand(size, generator=generator, dtype=dtype, device=generator.device) * 2 - 1
    return evaluate_spline(
        strength * control, [spline_weights(n, control_points - 1, dtype=dtype) for n in shape]
    ).exp()


def add_gaussian_noise(image: Tensor, std: float, generator: torch.Generator, keep_background: bool = False) -> Tensor:
    """Return image + N(0, std^2); ``std`` in the image's own units."""
    return _background_kept(image + std * _normal_like(image, generator), image, keep_background)


def add_rician_noise(image: Tensor, std: float, generator: torch.Generator, keep_background: bool = False) -> Tensor:
    """Return the magnitude |image + n1 + i n2| with n1, n2 ~ N(0, std^2): the noise of a magnitude MR image.

    Where the signal is zero this is Rayleigh noise of mean std * sqrt(pi / 2), unless ``keep_background``.
    """
    real = image + std * _normal_like(image, generator)
    imaginary = std * _normal_like(image, generator)
    return _background_kept(torch.hypot(real, imaginary), image, keep_background)


def change_gamma(
    image: Tensor, generator: torch.Generator, log_gamma: float = 0.3, keep_background: bool = False
) -> Tensor:
    """Return the image with its range raised to a random power per sample, log power uniform within +-``log_gamma``.

    Smallest and largest value of each channel stay what they were.
    """
    low, width = _extent(image)
    u = torch.rand(image.shape[0], generator=generator, dtype=image.dtype, device=generator.device) * 2 - 1
    gamma = (log_gamma * u).exp().to(image.device).view(-1, *(1,) * (image.ndim - 1))
    changed = ((image - low) / width).clamp(0, 1) ** gamma * width + low
    return _background_kept(changed, image, keep_background)


def change_contrast(
    image: Tensor, generator: torch.Generator, knots: int = 6, strength: float = 0.5, keep_background: bool = False
) -> Tensor:
    """Return the image through a random increasing, piecewise linear curve per sample; its ends stay where they are.

    Args:
        image: (B, C, *spatial).
        generator: the only source of randomness.
        knots: pieces of the curve.
        strength: in [0, 1). Slopes before scaling are uniform in (1 - strength, 1 + strength); 0 changes nothing.
        keep_background: keep exact zeros.
    """
    if not 0 <= strength < 1:
        raise ValueError(f"strength must lie in [0, 1) for an increasing curve, got {strength}")
    low, width = _extent(image)
    u = torch.rand((image.shape[0], knots), generator=generator, dtype=image.dtype, device=generator.device) * 2 - 1
    rise = (1 + strength * u).to(image.device)
    rise = rise / rise.sum(1, keepdim=True)
    start = torch.cumsum(rise, 1) - rise
    position = ((image - low) / width).clamp(0, 1) * knots
    piece = position.long().clamp_max(knots - 1)
    flat = piece.flatten(1)
    value = start.gather(1, flat) + rise.gather(1, flat) * (position - piece).flatten(1)
    return _background_kept(value.view_as(image) * width + low, image, keep_background)


def redraw_contrast(
    labels: Tensor,
    generator: torch.Generator,
    means: tuple[float, float] = (0.1, 1.0),
    stds: tuple[float, float] = (0.0, 0.05),
    keep_background: bool = True,
) -> Tensor:
    """Return an image with a new contrast: every label of every sample draws its own mean and spread.

    Args:
        labels: (B, 1, *spatial) integers >= 0; 0 is background.
        generator: the only source of randomness.
        means: range of the uniform mean.
        stds: range of the uniform standard deviation.
        keep_background: background is exactly 0; otherwise it draws like the others.

    Returns:
        (B, 1, *spatial) float32.
    """
    classes, index = torch.unique(labels, return_inverse=True)
    draw = torch.rand((2, labels.shape[0], len(classes)), generator=generator, device=generator.device)
    draw = draw.to(labels.device)
    mean = means[0] + (means[1] - means[0]) * draw[0]
    std = stds[0] + (stds[1] - stds[0]) * draw[1]
    flat = index.flatten(1)
    base = mean.gather(1, flat).view(labels.shape)
    image = base + std.gather(1, flat).view(labels.shape) * _normal_like(base, generator)
    return torch.where(labels == 0, torch.zeros_like(image), image) if keep_background else image
