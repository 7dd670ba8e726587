"""From a tissue map to a picture: CT in Hounsfield units, MR as the magnitude of a T1- or T2-weighted signal."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..intensities import bias_field
from .tissues import APPEARANCE, PHASES, WEIGHTINGS, Tissue

HU_RANGE = (-1024.0, 3071.0)
MR_SCALE = 800.0


def render_ct(
    tissue: np.ndarray, texture: np.ndarray, spacing_mm: float, rng: np.random.Generator, phase: str | None = None
) -> np.ndarray:
    """Return a CT (float32, HU, within -1024 and 3071) of a tissue map.

    Args:
        tissue: (*spatial) ``Tissue`` numbers.
        texture: (*spatial) fine random texture of unit variance.
        spacing_mm: of the grid, for the blur of partial volume.
        rng: draws the scatter of the tissues, kernel and noise.
        phase: one of ``PHASES``; drawn if None.
    """
    column = PHASES.index(phase) if phase else int(rng.choice(3, p=[0.2, 0.2, 0.6]))
    mean, gain = np.zeros(len(Tissue), np.float32), np.zeros(len(Tissue), np.float32)
    scatter = rng.standard_normal(len(Tissue)).clip(-2, 2)
    for kind, (values, _, gains) in APPEARANCE.items():
        spread = 3 + 0.07 * abs(values[column]) if values[column] > -300 else 10
        mean[kind] = values[column] + (spread * scatter[kind] if kind != Tissue.AIR else 0)
        gain[kind] = gains[0]
    enhanced = Tissue.HEPATIC_VEIN  # in an unenhanced or arterial liver its veins are darker, whatever the scatter
    if column < 2:
        mean[enhanced] = min(mean[enhanced], mean[Tissue.LIVER] - 12)
    image = mean[tissue] + gain[tissue] * texture
    image = gaussian_filter(image, rng.uniform(0.8, 1.4) / spacing_mm)
    noise = gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), rng.uniform(0.3, 0.7))
    noise *= rng.uniform(7, 18) / noise.std()
    sharpening = rng.uniform(0, 0.7)  # soft to sharp reconstruction kernel: acts on image and noise
    image = image + noise
    image += sharpening * (image - gaussian_filter(image, 1.0))
    return image.clip(*HU_RANGE).astype(np.float32)


def render_mr(
    tissue: np.ndarray,
    texture: np.ndarray,
    spacing_mm: float,
    rng: np.random.Generator,
    generator: torch.Generator,
    weighting: str | None = None,
) -> np.ndarray:
    """Return an MR magnitude image (float32, >= 0, about 0 to 1000) of a tissue map: bias field and Rician noise.

    Args:
        tissue: (*spatial) ``Tissue`` numbers.
        texture: (*spatial) fine random texture of unit variance.
        spacing_mm: of the grid, for the blur of partial volume.
        rng: draws the contrast, blur and noise.
        generator: draws the bias field.
        weighting: one of ``WEIGHTINGS``; drawn if None.
    """
    column = WEIGHTINGS.index(weighting) if weighting else int(rng.integers(2))
    mean, gain = np.zeros(len(Tissue), np.float32), np.zeros(len(Tissue), np.float32)
    scatter = np.exp(0.1 * rng.standard_normal(len(Tissue)).clip(-2, 2))
    power = rng.uniform(0.85, 1.2)
    for kind, (_, values, gains) in APPEARANCE.items():
        mean[kind] = MR_SCALE * values[column] ** power * scatter[kind]
        gain[kind] = gains[1]
    image = mean[tissue] * (1 + gain[tissue] * texture)
    image = gaussian_filter(image, rng.uniform(1.0, 1.8) / spacing_mm)
    image *= bias_field(tissue.shape, generator, strength=float(rng.uniform(0.15, 0.4)))[0, 0].numpy()
    std = rng.uniform(0.012, 0.035) * MR_SCALE
    real, imaginary = (std * rng.standard_normal(image.shape, dtype=np.float32) for _ in range(2))
    return np.hypot(image + real, imaginary).astype(np.float32)
