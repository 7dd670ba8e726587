"""Batches for training: the image, and a seed of its own for the noise, so that a killed run goes on to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from shared_components.engines import PrepareTraining


class DrawSeed:
    """Augmentation of a pair that adds "noise_seed", drawn from the pair's own generator.

    Args:
        augment: ``augment(item, generator) -> item`` before it, such as ``AugmentPair``, or None.
    """

    def __init__(self, augment: Callable[[dict, torch.Generator], dict] | None = None) -> None:
        self.augment = augment

    def __call__(self, item: dict, generator: torch.Generator) -> dict:
        """Return the pair with its seed."""
        item = item if self.augment is None else self.augment(item, generator)
        return {**item, "noise_seed": torch.randint(2**31, (), generator=generator)}


class PrepareSeeded(PrepareTraining):
    """Batch -> (image, targets, (), {"return_stages": True, "noise_seed": that of its first pair})."""

    def __call__(
        self, batch: dict, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple:
        """Return inputs, targets, args and kwargs of the network call."""
        image, targets, args, options = super().__call__(batch, device, non_blocking, **kwargs)
        return image, targets, args, {**options, "noise_seed": int(batch["noise_seed"][0])}
