"""Refinement as a step of a MONAI pipeline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..warp import warp_image
from .bspline import BsplineSettings, bspline_opt
from .core import default_mask, refine
from .level import RefineSettings
from .vsvf import VsvfSettings, vsvf_opt

METHODS = ("field", "vsvf", "bspline")


class RefineField:
    """Post transform: refine "pred" on "image" (0 fixed, 1 moving), within "fixed_mask" and "moving_mask" if given.

    Args:
        steps: 0 leaves the data alone. Data with "refine_steps", such as a request of MONAI Label, have their own.
        method: "field" (``refine``), "vsvf" (a stationary velocity in front of the field, see ``vsvf_opt``), or
            "bspline" (a cubic B-spline added to the field, see ``bspline_opt``).
        settings: the other numbers of ``RefineSettings``, for all methods; see their ``polishing``.

    Raises:
        InputError: for another method.
    """

    def __init__(self, steps: int = 0, method: str = "field", **settings: Any) -> None:
        if method not in METHODS:
            raise InputError(f"refine must be one of {', '.join(METHODS)}, not '{method}'")
        self.method = method
        self.settings = RefineSettings(steps=int(steps), **settings)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data with the refined "pred" and "refine", the numbers; with or without a batch axis."""
        asked = data.get("refine_steps")
        settings = self.settings if asked is None else replace(self.settings, steps=int(asked))
        if settings.steps == 0:
            return dict(data)
        begin = time.perf_counter()
        pred: Tensor = data["pred"]
        ndim = pred.shape[0 if pred.ndim == data["image"].ndim and data["image"].shape[0] == 2 else 1]
        batched = pred.ndim == ndim + 2
        image, ddf = (x if x.ndim == ndim + 2 else x[None] for x in (data["image"], pred))
        image = image.to(ddf.device)
        mask = self._mask(data, image[:, :1], ddf)
        refined, numbers = self._refined(image[:, :1], image[:, 1:2], ddf, mask, settings)
        numbers["seconds"] = round(time.perf_counter() - begin, 2)
        return {**data, "pred": refined if batched else refined[0], "refine": numbers}

    def _refined(
        self, fixed: Tensor, moving: Tensor, ddf: Tensor, mask: Tensor, settings: RefineSettings
    ) -> tuple[Tensor, dict[str, float]]:
        if self.method == "field":
            return refine(fixed, moving, ddf, settings, mask)
        optimise, how = {"vsvf": (vsvf_opt, VsvfSettings), "bspline": (bspline_opt, BsplineSettings)}[self.method]
        found = optimise(fixed, moving, ddf, how.polishing(settings, ddf.shape[2:]), mask)
        return found.ddf, {key: sum(one[key] for one in found.numbers) / len(ddf) for key in found.numbers[0]}

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
