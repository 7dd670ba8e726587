"""The report of a series: one HTML file with a film in it, below 5 MB, that loads nothing from anywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..images import atomic_path
from ..images.slices import SliceSeries
from ..report import LARGEST_BYTES
from ..report.assets import STYLE
from ..report.page import document, figure, section
from ..report.tables import facts_table, metrics_table
from . import figures
from .film import SCRIPT, film
from .film import STYLE as FILM_STYLE
from .screen import Screen

_LADDER = ((224, 82, 110), (192, 75, 100), (160, 65, 90), (128, 55, 80), (96, 40, 60))  # pixels, JPEG quality, dpi
_LINKS = (
    ("film", "Film"), ("metrics", "Metrics"), ("curves", "Over the frames"), ("strip", "Film strip"),
    ("line", "A line over time"), ("means", "Means"), ("run", "Run"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SeriesReport:
    """What a report is made from.

    Attributes:
        series: the frames as they came.
        fixed: number of the frame that stayed.
        moved: (N, X, Y) all frames on the fixed one.
        rows: curves over the frames, see ``numbers.plot_rows``.
        metrics: {name: {"before", "after", "unit"}}.
        facts: of the run.
        verdict: {"level", "reasons"} of the series.
    """

    series: SliceSeries
    fixed: int
    moved: Tensor
    rows: Mapping[str, Sequence[float]]
    metrics: Mapping[str, Any]
    facts: Mapping[str, Any]
    verdict: Mapping[str, Any] | None = None


def write_series_report(path: str | os.PathLike[str], data: SeriesReport) -> Path:
    """Write the report, in the finest pictures that keep it below 5 MB; the same input gives the same bytes.

    Raises:
        InputError: the file cannot be written.
    """
    path, screen = Path(path), Screen(data.series, data.fixed, data.moved)
    for longest, quality, dpi in _LADDER:
        content = _page(data, screen, longest, quality, dpi).encode("utf-8", "backslashreplace")
        if len(content) < LARGEST_BYTES:
            break
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def _page(data: SeriesReport, screen: Screen, longest: int, quality: int, dpi: int) -> str:
    motion = np.asarray(data.rows.get("displacement p95", np.zeros(len(data.moved))), dtype=np.float64)
    frames = screen.frames_of_strip(motion)
    words = (
        "Differences are shown 2.5 times as bright; they hold changes of brightness, too. What is black at the border "
        "of a moved frame lay outside that frame's field of view."
    )
    line = (
        "The grey values along one line of the picture, frame after frame. What breathes makes waves; where frames lie "
        "on the fixed one, the waves are gone."
    )
    curves = (
        "Correlation with the fixed frame in its foreground, before and after; length of the displacement there. "
        "The grey line is the fixed frame."
    )
    sections = [
        section("film", "Film", words, film(screen, longest, quality)),
        section("metrics", "Metrics", "", metrics_table(data.metrics)),
        figure("curves", "Over the frames", curves, figures.curves(data.rows, data.fixed, dpi)),
        figure("strip", "Film strip", "Frames around that of the largest motion.", figures.strip(screen, frames, dpi)),
        figure("line", "A line over time", line, figures.over_time(screen, dpi)),
        figure("means", "Means", "A mean is sharp where frames agree.", figures.means(screen, dpi)),
        section("run", "Run", "", facts_table(data.facts)),
    ]
    title = f"{data.series.path.name}: {len(data.moved)} frames onto frame {data.fixed}"
    return document(title, screen.orientation, (), sections, _LINKS, STYLE + FILM_STYLE, SCRIPT, data.verdict)
