"""A figure of pictures: one column per plane, one row per state, all in one scale of mm, drawn without global state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from PIL import Image

from .planes import Plane

WIDTH = 10.8  # inches of the page
_TALLEST = 4.4  # inches of a picture
_GAP, _TITLE, _BAR = 0.12, 0.27, 0.85  # inches
DARK = "#262626"  # no hue, so that grey pictures stay grey files


def halo(ink: str) -> list[AbstractPathEffect]:
    """Outline of letters that keeps them readable on any picture."""
    return [withStroke(linewidth=2.0, foreground="#000000b0" if ink == "white" else "#ffffffc0")]


@dataclass(frozen=True)
class Drawing:
    """A finished figure.

    Attributes:
        png: the file.
        width, height: size in CSS pixels.
        spans: left and right edge of each picture as parts of the width.
    """

    png: bytes
    width: int
    height: int
    spans: tuple[tuple[float, float], ...]


class Sheet:
    """Lay out ``rows`` x ``planes`` pictures in true proportion. A single plane has its rows side by side.

    Attributes:
        panels: list of (row, plane, axes).
    """

    def __init__(self, planes: Sequence[Plane], rows: Sequence[str] = ("",), dpi: int = 120, bar: bool = False) -> None:
        one = len(planes) == 1
        grid = [[(row, planes[0]) for row in rows]] if one else [[(row, plane) for plane in planes] for row in rows]
        sizes = [cell[1].size_mm for cell in grid[0]]
        room = WIDTH - (_BAR if bar else 0) - _GAP * (len(sizes) - 1)
        scale = min(room / sum(w for w, _ in sizes), _TALLEST / max(h for _, h in sizes))
        tall = scale * max(h for _, h in sizes)
        head = self._head = 0.03 if one and not any(rows) else _TITLE
        self._width = scale * sum(w for w, _ in sizes) + WIDTH - room
        self._height = len(grid) * (tall + head) + _GAP * (len(grid) - 1)
        self.figure = Figure(figsize=(self._width, self._height), dpi=dpi, facecolor="white")
        self._shaded = False
        self.panels: list[tuple[str, Plane, Axes]] = []
        for line, cells in enumerate(grid):
            left = 0.0
            for row, plane in cells:
                width, height = (scale * side for side in plane.size_mm)
                top = line * (tall + head + _GAP) + head
                self.panels.append((row, plane, self._panel(left, top, width, height)))
                title = " · ".join(
                    part for part in (row.capitalize(), "" if one else plane.name, plane.position) if part
                )
                self._title(left, top, width, title)
                left += width + _GAP

    def _panel(self, left: float, top: float, width: float, height: float) -> Axes:
        place = (
            left / self._width,
            1 - (top + height) / self._height,
            width / self._width,
            height / self._height,
        )
        axes = self.figure.add_axes(place)
        axes.set_axis_off()
        return axes

    def _title(self, left: float, top: float, width: float, text: str) -> None:
        x, y = left / self._width, 1 - (top - 0.08) / self._height
        size = min(9.0, 9.0 * width * 12.5 / max(1, len(text)))  # narrow pictures get smaller titles
        self.figure.text(x, y, text, fontsize=max(5.0, size), color=DARK, va="bottom", ha="left")

    def bar(
        self,
        colours: Colormap,
        norm: Normalize,
        label: str,
        ticks: Sequence[float] | None = None,
        extend: str = "neither",
    ) -> None:
        """Add a colour bar on the right; ``extend="max"`` says that some values lie above it."""
        self._shaded = True
        left, tall = self._width - _BAR + 0.1, min(self._height - self._head - 0.2, 3.2)  # room for the end ticks
        bottom = (self._height - self._head - tall) / 2
        place = (left / self._width, bottom / self._height, 0.13 / self._width, tall / self._height)
        cax = self.figure.add_axes(place)
        bar = self.figure.colorbar(ScalarMappable(norm, colours), cax=cax, ticks=ticks, extend=extend)
        bar.minorticks_off()
        if ticks is not None:
            bar.ax.set_yticklabels([f"{tick:.3g}" for tick in ticks])
        bar.ax.tick_params(labelsize=8, color=DARK, labelcolor=DARK, length=3, width=0.6)
        bar.set_label(label, fontsize=8.5, color=DARK)
        bar.outline.set_linewidth(0.5)

    def finish(self, ink: str = "white") -> Drawing:
        """Add orientation letters and scale bars in ``ink``, draw, and return the picture."""
        for _, plane, axes in self.panels:
            left, right, bottom, top = plane.extent
            axes.set_xlim(left, right)
            axes.set_ylim(bottom, top)
            _letters(axes, plane, ink)
            _scale_bar(axes, plane, ink)
        canvas = FigureCanvasAgg(self.figure)
        canvas.draw()
        png = encode_png(np.asarray(canvas.buffer_rgba()), self._shaded)
        boxes = [axes.get_position() for *_, axes in self.panels]
        spans = tuple((round(float(box.x0), 4), round(float(box.x1), 4)) for box in boxes)
        return Drawing(png, round(self._width * 100), round(self._height * 100), spans)


def _letters(axes: Axes, plane: Plane, ink: str) -> None:
    places = {"left": (0, 0.5, 4, 0), "right": (1, 0.5, -4, 0), "top": (0.5, 1, 0, -3), "bottom": (0.5, 0, 0, 3)}
    for side, (x, y, dx, dy) in places.items():
        axes.annotate(
            plane.letters[side], (x, y), (dx, dy), xycoords="axes fraction", textcoords="offset points",
            ha=side if dx else "center", va=side if dy else "center",
            fontsize=8.5, fontweight="bold", color=ink, path_effects=halo(ink), annotation_clip=False,
        )  # fmt: skip


def nice_length(width_mm: float) -> float:
    """Return the largest of 1, 2, 5 x 10^k mm that is at most 30 % of ``width_mm``."""
    goal = 0.3 * width_mm
    power = 10.0 ** np.floor(np.log10(goal))
    return float(max(step * power for step in (1, 2, 5) if step * power <= goal * (1 + 1e-9)))


def _scale_bar(axes: Axes, plane: Plane, ink: str) -> None:
    left, right, bottom, top = plane.extent
    width, height = right - left, bottom - top
    length = nice_length(width)
    x, y = left + 0.05 * width, bottom - max(0.018 * width, min(0.035 * height, 0.05 * width))
    line = {"solid_capstyle": "butt", "clip_on": True}
    axes.plot([x, x + length], [y, y], color=ink, lw=2.0, path_effects=halo(ink), **line)
    axes.annotate(
        f"{length:g} mm", (x, y), (0, 3), textcoords="offset points", fontsize=7.5, color=ink, path_effects=halo(ink)
    )


def encode_png(rgba: np.ndarray, shaded: bool) -> bytes:
    """Encode as PNG without metadata, the same bytes for the same picture: grey, true colour (shaded) or a palette."""
    rgb = rgba[..., :3]
    grey = bool((rgb[..., :1] == rgb).all())
    picture = Image.fromarray(np.ascontiguousarray(rgb[..., 0] if grey else rgb))
    if not grey and not shaded:  # colour maps need more than 256 colours to be smooth; grey with lines does not
        picture = picture.quantize(256, Image.Quantize.MEDIANCUT, dither=0)
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=6)
    return stream.getvalue()
