"""The expected error as a step of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..pairs.datasets import Item
from .calibration import Calibration
from .signs import find_signs


class PredictUncertainty:
    """Post transform: add "uncertainty_mm", the expected error of the network's field on its grid, (1, *spatial).

    It judges "pred" as it is by then, and costs two passes of the network and one for each of ``flips`` and ``shifts``.

    Args:
        network: ``network(image) -> ddf``; None takes the ``inferer``'s, which is the one that made "pred".
        active: False leaves the data alone.
        flips: axes of the network's grid to mirror both images along, see ``find_signs``.
        shifts: voxels to move both images by, likewise.
        sequence: whether the network gives its field after each stage.
        calibration: numbers of a ``Calibration``; None for signs as they are.
        inferer: see ``network``.
        modalities: 2 where the images differ in kind.
    """

    def __init__(
        self,
        network: torch.nn.Module | None = None,
        active: bool = True,
        flips: Sequence[Sequence[int]] = ((0,),),
        shifts: Sequence[Sequence[int]] = (),
        sequence: bool = False,
        calibration: Mapping[str, Any] | None = None,
        inferer: Any = None,
        modalities: int = 1,
    ) -> None:
        self.network, self.inferer, self.active, self.sequence = network, inferer, active, sequence
        self.modalities = modalities
        self.flips, self.shifts = [tuple(axes) for axes in flips], [tuple(shift) for shift in shifts]
        self.calibration = Calibration.of(calibration)

    def signs(self, data: Item) -> dict[str, Tensor]:
        """Return the signs of the data of one pair, (1, *spatial) in mm, on the CPU.

        Raises:
            InputError: there is no network behind the field.
        """
        ndim = data["pair"].network.ndim
        network = self.inferer.network if self.network is None else self.network
        if network is None:
            raise InputError("--uncertainty judges what a network says; without one (stage=identity) leave it out")
        image, ddf = (_batch(data[key], ndim) for key in ("image", "pred"))
        image = image.to(next(network.parameters(), image).device)
        ways: dict[str, Any] = {
            "flips": self.flips,
            "shifts": self.shifts,
            "sequence": self.sequence,
            "modalities": self.modalities,
        }
        ways["other_way"] = partial(_swapped, network) if hasattr(network, "swap") else None
        found = find_signs(network, image, data["pair"].network.spacing, ddf=ddf, **ways)
        return {name: values.cpu() for name, values in found.items()}

    def __call__(self, data: Item) -> Item:
        """Return the data, of one pair with or without a batch axis, with "uncertainty_mm"."""
        return {**data, "uncertainty_mm": self.calibration(self.signs(data))} if self.active else data


def _batch(values: Tensor, ndim: int) -> Tensor:
    """A plain tensor with a batch axis."""
    values = getattr(values, "as_tensor", lambda: values)()
    return values if values.ndim == ndim + 2 else values[None]


def _swapped(network: Any, image: Tensor) -> Tensor:
    """Register a pair in the other order by a network whose ``swap`` says which image is of which kind."""
    network.swap = not network.swap
    try:
        return network(image)
    finally:
        network.swap = not network.swap
