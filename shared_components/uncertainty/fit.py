"""Signs and true errors side by side, from series whose motion is known (``synth.thorax``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose

from ..errors import InputError
from ..pairs.datasets import read_datalist
from ..series.frames import SeriesFrames
from ..synth.thorax import read_breathing
from ..transform import network_ddf
from .post import PredictUncertainty

CONTENT = 0.1  # of the fixed image's brightness: below is air, of whose motion nothing can be known
_PER_FRAME = 2000  # pixels kept of a frame


def known_series(datalist: str | Path, section: str) -> list[str]:
    """Return the paths of the series of a section of a breathing set's datalist.

    Raises:
        InputError: there is none.
    """
    found = [item["series"] for item in read_datalist(datalist, section) if "series" in item]
    if not found:
        raise InputError(f"datalist {datalist} names no series under '{section}'; make a set with synth.thorax")
    return found


@torch.no_grad()
def signs_and_errors(
    predict: PredictUncertainty, preprocessing: Compose, series: Sequence[str | Path], every: int = 3
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the signs, (N,) each, and the true errors (N,), mm, of pixels of the fixed frame's content.

    Args:
        predict: whose network and signs.
        preprocessing: of the bundle.
        series: paths, see ``synth.thorax.read_breathing``.
        every: so many frames on from one frame to the next.
    """
    signs: dict[str, list[np.ndarray]] = {}
    errors: list[np.ndarray] = []
    for path in series:
        known = read_breathing(path)
        frames = SeriesFrames(path, preprocessing, known.fixed)
        for number in range(0, len(frames), every):
            if number == known.fixed:
                continue
            item = frames[number]
            pair, image = item["pair"], item["image"][None]
            truth = network_ddf(known.truth(known.fixed, number), pair.network, pair.initial)
            step = torch.from_numpy(pair.network.spacing).float().view(1, -1, 1, 1)
            error = ((predict.field(image) - truth) * step).norm(dim=1)
            inside = (image[:, 0] > CONTENT).flatten().nonzero().flatten()
            chosen = inside[:: max(1, len(inside) // _PER_FRAME)]
            for name, values in predict.signs(image, pair.network.spacing).items():
                signs.setdefault(name, []).append(values.flatten()[chosen].numpy())
            errors.append(error.flatten()[chosen].numpy())
    return {name: np.concatenate(values) for name, values in signs.items()}, np.concatenate(errors)
