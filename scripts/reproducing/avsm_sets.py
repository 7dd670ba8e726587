"""The pairs of AVSM's tables, of brains: two subjects, and a subject and itself at a later time, made to order.

Both orders of a pair are registered: that is what symmetry is measured by. A pair is {"image": (2, *size) in [0, 1],
"fixed_label", "moving_label": (1, *size), "name"}, a longitudinal one has also "truth": (ddf, ddf of the other order).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from shared_components.affine import affine_ddf, compose_affine, invert_params
from shared_components.synth import add_gaussian_noise, bias_field, change_contrast, diffeomorphism, random_affine
from shared_components.warp import compose, warp_image, warp_labels

Item = dict[str, Any]
MEAN_MM, SMOOTHNESS_MM = 1.5, 24.0  # of the deformation between two times; distance of its control points
POSE = {"rotation_deg": 5.0, "translation_mm": 4.0, "scale": 0.01, "shear": 0.0}  # how a head lies the second time
CONTRAST, BIAS, NOISE = 0.4, 0.3, 0.02


class CrossPairs(Sequence):
    """Every two of the brains, in one order.

    Args:
        brains: {"image": (1, *size), "label": (1, *size), "name"}.
    """

    def __init__(self, brains: Sequence[Item]) -> None:
        self.brains = list(brains)
        self.pairs = list(itertools.combinations(range(len(self.brains)), 2))

    def __len__(self) -> int:
        """Pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        """Return a pair."""
        fixed, moving = (self.brains[i] for i in self.pairs[index])
        return {
            "image": torch.cat([fixed["image"], moving["image"]]),
            "fixed_label": fixed["label"],
            "moving_label": moving["label"],
            "name": f"{fixed['name']}<-{moving['name']}",
        }


class LongitudinalPairs(Sequence):
    """Each brain and itself, deformed a little, held differently, in another contrast.

    Args:
        brains: see ``CrossPairs``.
        spacing_mm: of the grid, (3,).
        repeats: pairs of a brain.
        seed: of all that is drawn; a pair depends on it and on its index alone.
    """

    def __init__(self, brains: Sequence[Item], spacing_mm: Sequence[float], repeats: int = 2, seed: int = 0) -> None:
        self.brains, self.spacing_mm, self.repeats, self.seed = list(brains), tuple(spacing_mm), repeats, seed

    @property
    def plan(self) -> str:
        """What the pairs are drawn by."""
        return f"{self.seed} {MEAN_MM} {SMOOTHNESS_MM} {list(POSE.values())} {CONTRAST} {BIAS} {NOISE}"

    def __len__(self) -> int:
        """Pairs."""
        return self.repeats * len(self.brains)

    def __getitem__(self, index: int) -> Item:
        """Return a pair; fixed is the brain as it is."""
        brain, time = self.brains[index // self.repeats], index % self.repeats + 1
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + index)
        image = brain["image"][None]
        forth, back = later(image[0, 0] > 0, self.spacing_mm, generator)
        moved = changed(warp_image(image, back, padding="zeros"), generator)
        return {
            "image": torch.cat([image, moved])[:, 0],
            "fixed_label": brain["label"],
            "moving_label": warp_labels(brain["label"][None], back)[0],
            "name": f"{brain['name']}<-time{time}",
            "truth": (forth, back),
        }


def later(mask: Tensor, spacing_mm: Sequence[float], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return where the voxels of a brain lie at the later time, and the inverse, both (1, 3, *size) in voxels.

    Args:
        mask: (*size) of the brain; the deformation has its mean length there.
        spacing_mm: of the grid.
        generator: the only source of randomness.
    """
    forth, back = diffeomorphism(
        mask.shape, generator, MEAN_MM, smoothness=SMOOTHNESS_MM, spacing=list(spacing_mm), mask=mask
    )
    matrix = torch.from_numpy(random_affine(generator, **POSE)).float()
    step = torch.tensor(spacing_mm)
    pose = (matrix[:3, :3] * step / step[:, None] - torch.eye(3))[None], (matrix[:3, 3] / step)[None]
    return compose_affine(*pose, forth), compose(back, affine_ddf(*invert_params(*pose), mask.shape))


def changed(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return an image (1, 1, *size) as another scanner might see it, in [0, 1] again; background stays 0."""
    image = change_contrast(image, generator, knots=4, strength=CONTRAST, keep_background=True)
    image = image * bias_field(image.shape[2:], generator, strength=BIAS)
    image = add_gaussian_noise(image, NOISE, generator, keep_background=True).clamp_min(0)
    return image / image.max()


def swapped(item: Item) -> Item:
    """Return the pair in the other order."""
    fixed, moving = item["name"].split("<-")
    labels = {"fixed_label": item["moving_label"], "moving_label": item["fixed_label"]}
    truth = {"truth": item["truth"][::-1]} if "truth" in item else {}
    return {**item, "image": item["image"].flip(0), **labels, "name": f"{moving}<-{fixed}", **truth}


def both_orders(item: Item) -> Iterator[Item]:
    """Yield the pair in its two orders."""
    yield item
    yield swapped(item)
