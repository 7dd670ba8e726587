"""The expected error as a step of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..pairs.datasets import Item
from .calibration import Calibration
from .signs import find_signs


class PredictUncertainty:
    """Post transform: add "uncertainty_mm", the expected error of the network's field on its grid, (1, *spatial).

    It judges what the network says, before any refinement, and costs two passes more and one for each of ``flips``.

    Args:
        network: ``network(image) -> ddf``.
        active: False leaves the data alone.
        flips: axes of the network's grid to mirror both images along, see ``find_signs``.
        sequence: whether the network gives its field after each stage.
        calibration: numbers of a ``Calibration``; None for signs as they are.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        active: bool = True,
        flips: Sequence[Sequence[int]] = ((0,),),
        sequence: bool = False,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        self.network, self.active, self.sequence = network, active, sequence
        self.flips, self.calibration = [tuple(axes) for axes in flips], Calibration.of(calibration)

    def signs(self, image: Tensor, spacing_mm: Tensor | Sequence[float]) -> dict[str, Tensor]:
        """Return the signs of (B, 2, *spatial), (B, *spatial) in mm, on the CPU."""
        found = find_signs(self.network, self._there(image), spacing_mm, self.flips, self.sequence)
        return {name: values.cpu() for name, values in found.items()}

    def field(self, image: Tensor) -> Tensor:
        """Return the ddf (B, D, *spatial) that is judged, on the CPU."""
        return self.network(self._there(image)).float().cpu()

    def _there(self, image: Tensor) -> Tensor:
        return image.to(next(self.network.parameters(), image).device)

    def __call__(self, data: Item) -> Item:
        """Return the data, of one pair with or without a batch axis, with "uncertainty_mm"."""
        if not self.active:
            return data
        ndim = data["pair"].network.ndim
        image = data["image"] if data["image"].ndim == ndim + 2 else data["image"][None]
        return {**data, "uncertainty_mm": self.calibration(self.signs(image, data["pair"].network.spacing))}
