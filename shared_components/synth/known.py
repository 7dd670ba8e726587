"""A pair of images whose true transform is known, made from one anatomy that is shown once or in two contrasts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..geometry import Frame
from ..images import Image, write_image
from ..itk_io import write_field
from ..transform import PhysicalField, affine_field, compose_chain
from ..warp import resize
from .deformations import diffeomorphism, random_affine
from .intensities import add_gaussian_noise, bias_field, change_gamma


@dataclass(frozen=True)
class Change:
    """How far the two images of a known pair differ.

    Attributes:
        bends_mm: of each of several bends in a row: mean displacement, drawn from a range, and smoothness.
        rotation_deg, translation_mm, scale, shear: bounds of the affine map, see ``random_affine``.
        bias: bound on the logarithm of the moving image's bias field.
        gamma: of its change of contrast, see ``change_gamma``.
        noise: standard deviation, in standard deviations of each image; exact zeros stay.
    """

    bends_mm: tuple[tuple[float, float, float], ...] = ((2.0, 5.0, 40.0), (0.5, 1.5, 20.0))
    rotation_deg: float = 8.0
    translation_mm: float = 8.0
    scale: float = 0.06
    shear: float = 0.03
    bias: float = 0.2
    gamma: float = 0.2
    noise: float = 0.05


@dataclass(frozen=True, eq=False)
class KnownPair:
    """Two images on one grid.

    Attributes:
        fixed, moving: (*frame.shape) float32.
        truth: fixed mm -> moving mm, on the grid of both.
    """

    fixed: np.ndarray
    moving: np.ndarray
    truth: PhysicalField

    def write(self, folder: str | os.PathLike, name: str) -> dict[str, Any]:
        """Write NAME_fixed, NAME_moving and NAME_ddf.nii.gz and return the item of a datalist, with file names."""
        item = {role: f"{name}_{role}.nii.gz" for role in ("fixed", "moving", "ddf")}
        write_image(Path(folder) / item["fixed"], self.fixed, self.truth.frame)
        write_image(Path(folder) / item["moving"], self.moving, self.truth.frame)
        write_field(Path(folder) / item["ddf"], self.truth)
        return {**item, "name": name}


def known_pair(fixed: Image, moving: Image, generator: torch.Generator, change: Change | None = None) -> KnownPair:
    """Return a pair with its exact transform, from two images of one anatomy on one grid (or twice the same).

    The fixed image is bent by a diffeomorphism B, the moving one turned by an affine map A, each interpolated once:
    fixed'(x) = fixed(B x), moving'(y) = moving(A y), so that x belongs to y = A^-1 B x. Then the intensities change.

    Args:
        fixed, moving: on the same grid.
        generator: the only source of randomness.
        change: how far they come to differ.
    """
    change, frame = change or Change(), fixed.frame
    bends = [_bend(frame, generator, *numbers) for numbers in change.bends_mm]
    turn = random_affine(
        generator, frame.ndim, change.rotation_deg, change.translation_mm, change.scale, change.shear, frame.center_mm
    )
    bent = compose_chain(bends, frame).resample(fixed.array, frame)[None]
    turned = affine_field(turn, frame).resample(moving.array, frame)[None]
    low = turned.min()
    turned = change_gamma(
        (turned - low) * bias_field(frame.shape, generator, strength=change.bias), generator, change.gamma
    )
    views = [_noisy(values, generator, change.noise) for values in (bent, turned + low)]
    return KnownPair(*views, compose_chain([*bends, np.linalg.inv(turn)], frame))


def _bend(frame: Frame, generator: torch.Generator, least: float, most: float, smoothness: float) -> PhysicalField:
    """A diffeomorphism of that smoothness, in mm, made on a grid that is just fine enough for it."""
    mean = least + (most - least) * float(torch.rand((), generator=generator))
    step = max(1, int(smoothness / 5 / frame.spacing.min()))
    coarse = [max(8, n // step) for n in frame.shape]
    spacing = frame.spacing * (np.asarray(frame.shape) - 1) / (np.asarray(coarse) - 1)
    ddf, _ = diffeomorphism(coarse, generator, mean, 4 * mean, smoothness, spacing)
    return PhysicalField(
        frame, np.einsum("ij,j...->i...", frame.matrix, resize(ddf, frame.shape)[0].numpy()).astype("float32")
    )


def _noisy(values: torch.Tensor, generator: torch.Generator, noise: float) -> np.ndarray:
    """Add noise, none below the darkest value: else what was empty is no longer dark."""
    noisy = add_gaussian_noise(values, noise * float(values.std()), generator, keep_background=True)
    return noisy.clamp_min(float(values.min()))[0, 0].numpy()
