"""Images in memory for the tests of the constructed cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from script_tools import blob
from verdicts.cases import made_image

from shared_components.geometry import Frame
from shared_components.images import Image

AFFINE = np.array([[0.0, 0, 2, 0], [-2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])  # array axes run along -A, S and R


def image(values: np.ndarray | None = None) -> Image:
    values = blob((12, 14, 16)) if values is None else values
    tensor = torch.from_numpy(values.astype(np.float32))[None]
    return Image(tensor, Frame(tensor.shape[1:], AFFINE), Path("made"), np.dtype("float32"))


def flat_image(values: np.ndarray) -> Image:
    return made_image(values, Frame(values.shape, np.diag([2.0, 2.0, 1.0])))


def values(found: Image) -> np.ndarray:
    return found.array[0].numpy()
