"""A registration kept as its numbers: the bumps go into transform.json, and the field is made from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shared_components.engines import StageInferer

from .deformation import field_of, parameter_names
from .polish import Polished, PolishSettings

UNITS = (
    "centre, width and weight: half the network frame, (n - 1) / 2 voxels a unit along each array axis; turns: radians"
)


class BumpInferer(StageInferer):
    """Predict bumps instead of a field, (B, T, P + levels): the P numbers of each and how certain its place is.

    Args:
        stage: "final", "identity" (no bump at all), or the number of the last step, 0 for the first; these bumps are as
            the network proposes them.
        polish: iterations for an ``R2N2``, also where it alone is handed in, as by MONAI Label; a ``Polished`` brings
            its own.
        leash: likewise.
    """

    def __init__(
        self, stage: str | int = "final", polish: int = 0, leash: float = PolishSettings.leash, **options: Any
    ) -> None:
        super().__init__(stage, **options)
        self.polish, self.leash = polish if stage == "final" else 0, leash

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return what the network puts where."""
        steps = {"final": None, "identity": 0}[self.stage] if isinstance(self.stage, str) else self.stage + 1
        whole = network if hasattr(network, "how") else Polished(network, self.polish, self.leash).eval()
        stages = whole(inputs, *args, return_stages=True, steps=steps, **kwargs)
        return torch.cat([stages["parameters"], stages["certainty"]], -1)


class FieldOfBumps:
    """Post transform: the field of the predicted bumps as "pred", and what transform.json shall keep as "record".

    The field is made on the CPU, whatever the network ran on, so that the kept numbers give the same bits again.

    Args:
        network: whose bumps they are.
    """

    def __init__(self, network: nn.Module) -> None:
        self.variance, self.composition = network.variance, network.composition

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the data with field and record, of a batch of one or of a pair without batch axis."""
        found = data["pred"].detach().to("cpu", torch.float32)
        shape = data["image"].shape[found.ndim - 1 :]
        names = parameter_names(len(shape))
        parameters, certainty = found.flatten(0, -2).tensor_split([len(names)], -1)
        record = {
            "composition": self.composition,
            "width_is_variance": self.variance,
            "units": UNITS,
            "names": names,
            "shape": list(shape),
            "parameters": parameters.tolist(),
            "certainty": certainty.tolist(),
        }
        ddf = rebuild(record)
        return {**data, "pred": ddf if found.ndim == 3 else ddf[0], "record": {"bumps": record}}


def rebuild(record: dict[str, Any]) -> Tensor:
    """Return the field (1, D, *shape), voxels of the network frame, of the entry "bumps" of a transform.json."""
    numbers = torch.tensor(record["parameters"], dtype=torch.float32).reshape(1, -1, len(record["names"]))
    return field_of(numbers, record["shape"], record["width_is_variance"], record["composition"])
