"""Every frame of a series as a pair with the fixed one; what the fixed frame needs is done once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..geometry import Frame
from ..images import Image
from ..images.slices import SliceSeries
from ..images.volumes import mean_frame
from ..pairs.datasets import Item
from ..pairs.load import Pair
from ..pairs.series import read_series


class SeriesFrames(Dataset):
    """Item k: what the network sees of the fixed frame and of frame k, with their ``Pair``; k may be the fixed one.

    Args:
        path: of the series, see ``pairs.read_series``.
        transform: ``pairs.make_preprocessing`` of a bundle for 2-D images.
        fixed_frame: number of the frame that stays, from 0 on, from the end if negative; None takes the one whose mean
            intensity is nearest that of the series, in free breathing one near the middle of the cycle.

    Raises:
        InputError: no series, a bundle for volumes, no such frame, or a frame without contrast.
    """

    def __init__(self, path: str | Path | None, transform: Compose, fixed_frame: int | None = None) -> None:
        ndim = transform.transforms[0].ndim
        if ndim != 2:
            raise InputError(
                f"--series is for bundles of 2-D images, this one registers volumes (size has {ndim} numbers); "
                "choose another, such as r2n2"
            )
        if not path:
            raise InputError("the series is missing; give a 2-D+t file or a folder of frames with --series")
        self.series: SliceSeries = read_series(path, ndim)
        self.transform = transform
        self.fixed = _number(fixed_frame, self.series)
        self._check_contrast()
        self._shared: tuple[Frame, Tensor] | None = None

    def __len__(self) -> int:
        """Frames of the series."""
        return len(self.series.array)

    def __getitem__(self, number: int) -> Item:
        """Return {"image": (2, *size), "pair", "name", "number", "spacing_mm"}."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        pair = Pair({"fixed": self.image(self.fixed), "moving": self.image(number)})
        item: dict[str, Any] = {"pair": pair, "name": f"frame {number}", "number": number}
        if self._shared is not None:
            pair.network, item["fixed_view"] = self._shared
        found = self.transform(item, start=1)
        if self._shared is None:
            self._shared = pair.network, found["image"][:1].clone()
        return {**found, "number": number}

    def image(self, number: int) -> Image:
        """Return a frame in the coordinates of its plane."""
        found = self.series
        return Image(found.array[number][None], found.frame, found.path, np.dtype(found.dtype))

    def _check_contrast(self) -> None:
        values = self.series.array.flatten(1)
        flat = (values.amin(1) == values.amax(1)).nonzero().flatten().tolist()
        if flat:
            more = f" and {len(flat) - 1} more" if len(flat) > 1 else ""
            raise InputError(
                f"frame {flat[0]}{more} of series {self.series.path} is constant; cut such frames out of the series"
            )


def _number(asked: int | None, series: SliceSeries) -> int:
    count = len(series.array)
    if asked is None:
        return mean_frame(series.array)
    if isinstance(asked, bool) or not isinstance(asked, int) or not -count <= asked < count:
        raise InputError(f"there is no frame {asked} in series {series.path}; give a number from 0 to {count - 1}")
    return asked % count
