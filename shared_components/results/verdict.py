"""The verdict on a registration among its results, and what is offered beside one that failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..images import write_image
from ..itk_io import write_affine
from ..transform import affine_field
from ..verdict import Limits, add_numbers, judge
from .records import bundle_metadata
from .registration import Registration

FALLBACK = ("fallback.tfm", "moved_fallback.nii.gz")


class AddVerdict:
    """Adds the numbers that a verdict needs, and the verdict, to the metrics of a registration.

    Args:
        bundle: folder of the bundle; its metadata.json may hold "verdict", limits of its own, see ``Limits``, and
            "trained_on", see ``judge``.
        configuration: where another configuration than the bundle's own is used: both come from the entry of that name
            below "configurations" of metadata.json, without one the limits are the default ones.

    Raises:
        InputError: limits that there are not.
    """

    def __init__(self, bundle: str = "", configuration: str = "") -> None:
        metadata = bundle_metadata(bundle)
        metadata = metadata.get("configurations", {}).get(configuration, {}) if configuration else metadata
        self.limits, self.trained_on = Limits.of(metadata.get("verdict")), metadata.get("trained_on")

    def __call__(self, metrics: dict[str, Any], result: Registration, image: Tensor | None) -> dict[str, Any]:
        """Return the metrics with "agreement", "coverage", "volume", "input" and "verdict".

        Args:
            metrics: of ``measure``.
            result: the registration.
            image: what the network saw, see ``add_numbers``; without it the verdict is on the field alone.
        """
        metrics = metrics if image is None else add_numbers(metrics, result, image)
        verdict = judge(metrics, self.limits, self.trained_on)
        if verdict["level"] == "failed":
            words, _ = self.fallback(result)
            verdict["fallback"] = (
                f"the result stands as it is; beside it, {' and '.join(FALLBACK)} hold what the {words} alone gives"
            )
        return {**metrics, "verdict": verdict}

    def fallback(self, result: Registration) -> tuple[str, np.ndarray]:
        """Return what is offered beside a result that failed: its name in words, and its map fixed mm -> moving mm.

        That is the affine stage where there is one and it is not at fault itself, else the initial transform.
        """
        world, most = result.affine_world, self.limits.affine_factor[1] or np.inf
        if world is not None and not result.affine_only and np.isfinite(world).all():
            if 1 / most <= np.linalg.det(world[:-1, :-1]) <= most:
                return "affine stage", world
        return "initial transform", result.pair.initial

    def write_fallback(self, result: Registration, place: Path) -> None:
        """Write ``FALLBACK`` into a folder."""
        pair = result.pair
        _, world = self.fallback(result)
        write_affine(place / FALLBACK[0], world)
        moved = affine_field(world, pair.fixed.frame).resample(pair.moving.array, pair.moving.frame)
        write_image(place / FALLBACK[1], moved[0].numpy(), pair.fixed.frame, "float32")
