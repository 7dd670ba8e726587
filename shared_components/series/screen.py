"""Frames as a reader expects to see them: turned like the slices of a pair's report, black and white alike for all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from ..images.slices import SliceSeries
from ..report.planes import Display, Plane, choose_planes, window

_WINDOW_FRAMES = 24  # that decide about black and white
_BODY = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}


@dataclass(frozen=True, eq=False)
class Screen:
    """A series and what became of it, as pictures (rows, columns) in uint8.

    Attributes:
        series: the frames as they came.
        fixed_number: of the frame that stayed.
        moved_frames: (N, X, Y).
    """

    series: SliceSeries
    fixed_number: int
    moved_frames: Tensor

    @cached_property
    def _plane(self) -> tuple[Display, Plane]:
        display = Display(self.series.frame)
        return display, choose_planes(display, np.zeros(display.frame.shape))[0]

    @cached_property
    def _window(self) -> tuple[float, float]:
        array = self.series.array
        return window(*(frame.numpy() for frame in array[:: max(1, len(array) // _WINDOW_FRAMES)]))

    def _grey(self, array: Tensor) -> np.ndarray:
        display, plane = self._plane
        low, high = self._window
        turned = plane.picture(display(array.numpy()))
        return (np.clip((turned - low) / (high - low), 0, 1) * 255).astype(np.uint8)

    @cached_property
    def moving(self) -> np.ndarray:
        """(N, rows, columns) as the series came."""
        return self._grey(self.series.array)

    @cached_property
    def moved(self) -> np.ndarray:
        """(N, rows, columns) on the fixed frame."""
        return self._grey(self.moved_frames)

    @property
    def fixed(self) -> np.ndarray:
        """(rows, columns) of the frame that stayed."""
        return self.moving[self.fixed_number]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height of a picture."""
        return self._plane[1].size_mm

    @cached_property
    def letters(self) -> dict[str, str]:
        """What is at the left, right, top and bottom of a picture."""
        if self.series.plane.flat:
            return self._plane[1].letters
        (right, left), (bottom, top) = self.series.plane.letters
        return {"left": left, "right": right, "top": top, "bottom": bottom}

    @property
    def orientation(self) -> str:
        """How the pictures are turned, in a sentence."""
        left, top = self.letters["left"], self.letters["top"]
        if self.series.plane.flat:
            return (
                f"Letters name the axes of the images' world: {left} is on the left and {top} on top. A picture file "
                "so stands as in any viewer."
            )
        return f"The patient's {_BODY[left]} is on the left, {_BODY[top]} on top."

    def frames_of_strip(self, motion: np.ndarray, count: int = 8, span: int = 22) -> list[int]:
        """Return ``count`` frames in their order, from ``span`` around that of the largest motion."""
        total = len(self.moving)
        middle = int(np.nan_to_num(motion).argmax())
        first = int(np.clip(middle - span // 2, 0, max(total - span, 0)))
        last = min(first + span, total) - 1
        return sorted({round(k) for k in np.linspace(first, last, min(count, last - first + 1))})

    def busiest_column(self) -> int:
        """Return the column in which most changes from frame to frame as the series came."""
        change = self.moving[:: max(1, len(self.moving) // 64)].std(0).sum(0)
        return int(np.convolve(change, np.ones(5), "same").argmax())
