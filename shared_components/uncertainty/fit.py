"""Signs and true errors side by side, from pairs and series whose truth is known (``synth``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor

from ..errors import InputError
from ..pairs.datasets import Item, read_datalist
from ..series.frames import SeriesFrames
from ..synth.thorax import read_breathing
from ..transform import network_ddf

CONTENT = 0.1  # of the fixed image's brightness: below is air, of whose motion nothing can be known


@dataclass(frozen=True, eq=False)
class Measured:
    """What was found of one pair, at voxels of the fixed image's content on the network's grid.

    Attributes:
        name: of the pair.
        signs: (N,) each, mm.
        errors_mm: (N,) distance from where the voxel was sent to where it belongs.
        before_mm: their mean without the method, after the initial transform alone.
    """

    name: str
    signs: dict[str, np.ndarray]
    errors_mm: np.ndarray
    before_mm: float


def known_items(datalist: str | Path, section: str) -> list[Item]:
    """Return the items of a section whose truth is known: pairs with a "ddf", or breathing "series".

    Raises:
        InputError: there is none.
    """
    found = [item for item in read_datalist(datalist, section) if "series" in item or item.get("ddf")]
    if not found:
        raise InputError(
            f"datalist {datalist} names no pair with 'ddf' and no breathing series under '{section}'; "
            "give pairs whose true field is known"
        )
    return found


def known_pairs(items: Sequence[Item], preprocessing: Compose, every: int = 3) -> Iterator[Item]:
    """Yield what the network sees of each pair, with the true "ddf" (D, *network) in voxels.

    Args:
        items: from ``known_items``.
        preprocessing: of the bundle.
        every: of a series, so many frames on from one pair to the next.
    """
    for item in items:
        if "series" not in item:
            yield preprocessing(item)
            continue
        known = read_breathing(item["series"])
        frames = SeriesFrames(item["series"], preprocessing, known.fixed)
        for number in range(0, len(frames), every):
            if number != known.fixed:
                data = frames[number]
                pair, truth = data["pair"], known.truth(known.fixed, number)
                name = f"{Path(item['series']).name} {number}"
                yield {**data, "name": name, "ddf": network_ddf(truth, pair.network, pair.initial)[0]}


@torch.no_grad()
def signs_and_errors(
    pairs: Iterator[Item],
    register: Callable[[Item], Item],
    signs: Callable[[Item], dict[str, Tensor]],
    voxels: int = 20_000,
) -> list[Measured]:
    """Return the signs and true errors of pairs.

    Args:
        pairs: from ``known_pairs``.
        register: adds "pred" to the data of a pair, all that is to be judged done.
        signs: of such data, see ``PredictUncertainty.signs``.
        voxels: to keep of a pair, evenly spread over the content.
    """
    found = []
    for data in pairs:
        data = register(data)
        image, pair = data["image"], data["pair"]
        step = torch.from_numpy(pair.network.spacing).float().view(-1, *(1,) * pair.network.ndim)
        pred = data["pred"].float().cpu().reshape(data["ddf"].shape)
        away, before = (((field - data["ddf"]) * step).norm(dim=0).flatten() for field in (pred, 0 * pred))
        inside = (image[0] > CONTENT).flatten().nonzero().flatten()
        chosen = inside[:: max(1, len(inside) // voxels)]
        values = {name: sign.flatten()[chosen].numpy() for name, sign in signs(data).items()}
        found.append(Measured(data["name"], values, away[chosen].numpy(), float(before[chosen].mean())))
    return found


def pooled(found: Sequence[Measured]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the signs and errors of several pairs one after the other, (N,) each."""
    signs = {name: np.concatenate([one.signs[name] for one in found]) for name in found[0].signs}
    return signs, np.concatenate([one.errors_mm for one in found])
