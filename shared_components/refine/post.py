"""Refinement as a step of a MONAI pipeline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..warp import warp_image
from .core import default_mask, refine
from .level import RefineSettings


class RefineField:
    """Post transform: refine "pred" on "image" (0 fixed, 1 moving), within "fixed_mask" and "moving_mask" if given.

    Args:
        steps: 0 leaves the data alone.
        settings: the other numbers of ``RefineSettings``.
    """

    def __init__(self, steps: int = 0, **settings: Any) -> None:
        self.settings = RefineSettings(steps=int(steps), **settings)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data with the refined "pred" and "refine", the numbers; with or without a batch axis."""
        if self.settings.steps == 0:
            return dict(data)
        begin = time.perf_counter()
        pred: Tensor = data["pred"]
        ndim = pred.shape[0 if pred.ndim == data["image"].ndim and data["image"].shape[0] == 2 else 1]
        batched = pred.ndim == ndim + 2
        image, ddf = (x if x.ndim == ndim + 2 else x[None] for x in (data["image"], pred))
        image = image.to(ddf.device)
        mask = self._mask(data, image[:, :1], ddf)
        refined, numbers = refine(image[:, :1], image[:, 1:2], ddf, self.settings, mask)
        numbers["seconds"] = round(time.perf_counter() - begin, 2)
        return {**data, "pred": refined if batched else refined[0], "refine": numbers}

    def _mask(self, data: Mapping[str, Any], fixed: Tensor, ddf: Tensor) -> Tensor:
        """Return the fixed mask or foreground, less what the moving mask leaves out as seen through the given field."""
        given = {side: data.get(f"{side}_mask") for side in ("fixed", "moving")}
        masks = {
            side: (mask if mask.ndim == fixed.ndim else mask[None]).to(fixed.device).float().clamp(0, 1)
            for side, mask in given.items()
            if mask is not None
        }
        mask = masks.get("fixed", default_mask(fixed, self.settings.radius))
        if "moving" in masks:
            mask = mask * (warp_image(masks["moving"], ddf.float()) > 0.5)
        return mask
