"""Pairs of two subjects, mixed with pairs of a subject and itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Item = dict[str, Any]
Augment = Callable[[Item, torch.Generator], Item]


class MixPairs:
    """Augmentation that now and then takes the fixed image for the moving one too, for longitudinal use.

    What makes the two images differ then is ``within`` alone: a small deformation, contrast, noise.

    Args:
        across: ``augment(item, generator) -> item`` for pairs of two subjects, such as ``AugmentPair``, or None.
        within: likewise for pairs of one subject.
        share: of pairs that become pairs of one subject.
    """

    def __init__(self, across: Augment | None = None, within: Augment | None = None, share: float = 0.2) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie in [0, 1], got {share}")
        self.across, self.within, self.share = across, within, share

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        """Return the pair, changed; "image" is (2, *spatial), labels (1, *spatial)."""
        same = float(torch.rand((), generator=generator)) < self.share
        if same:
            item = item | {"image": item["image"][:1].expand(2, *item["image"].shape[1:]).clone()}
            item |= {"moving_label": item["fixed_label"]} if "fixed_label" in item else {}
            item |= {"name": f"{str(item.get('name')).partition('<-')[0]}<-itself"}
        augment = self.within if same else self.across
        return item if augment is None else augment(item, generator)
