"""The still pictures of a series' report: a strip of frames, one column over time, means, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..report.sheet import DARK, WIDTH, Drawing, encode_png, halo
from .screen import Screen

BEFORE, AFTER, THIRD = "#b8660a", "#0b6a88", "#7a3b8f"
_GAP, _HEAD, _SIDE = 0.06, 0.22, 0.62  # inches
_GAIN = 2.5  # of differences, as in the film


def _new(height: float, dpi: int) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=dpi, facecolor="white")


def _drawn(figure: Figure) -> Drawing:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = figure.get_size_inches()
    return Drawing(encode_png(np.asarray(canvas.buffer_rgba()), False), round(width * 100), round(height * 100), ())


def _show(figure: Figure, place: Sequence[float], picture: np.ndarray) -> Axes:
    """Show grey values in a box (left, top, width, height), inches from the upper left corner."""
    width, height = figure.get_size_inches()
    left, top, w, h = place
    axes = figure.add_axes((left / width, 1 - (top + h) / height, w / width, h / height))
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="auto")
    axes.set_axis_off()
    return axes


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    difference = np.abs(one.astype(np.int16) - other.astype(np.int16))
    return np.clip(difference * _GAIN, 0, 255).astype(np.uint8)


def strip(screen: Screen, frames: Sequence[int], dpi: int) -> Drawing:
    """Draw chosen frames from left to right: as they came, as they were moved, and what differs from the fixed one."""
    rows = {
        "moving": [screen.moving[k] for k in frames],
        "moved": [screen.moved[k] for k in frames],
        "difference\nbefore": [_apart(screen.fixed, screen.moving[k]) for k in frames],
        "difference\nafter": [_apart(screen.fixed, screen.moved[k]) for k in frames],
    }
    w_mm, h_mm = screen.size_mm
    wide = min((WIDTH - _SIDE) / len(frames) - _GAP, 1.9 * w_mm / h_mm)
    tall = wide * h_mm / w_mm
    figure = _new(_HEAD + len(rows) * (tall + _GAP), dpi)
    height = figure.get_size_inches()[1]
    for line, (name, pictures) in enumerate(rows.items()):
        top = _HEAD + line * (tall + _GAP)
        figure.text(0, 1 - (top + tall / 2) / height, name, fontsize=8, color=DARK, va="center")
        for column, picture in enumerate(pictures):
            left = _SIDE + column * (wide + _GAP)
            _show(figure, (left, top, wide, tall), picture)
            if line == 0:
                title = f"frame {frames[column]}" + (" (fixed)" if frames[column] == screen.fixed_number else "")
                figure.text(left / WIDTH, 1 - 0.16 / height, title, fontsize=8, color=DARK)
    return _drawn(figure)


def over_time(screen: Screen, dpi: int) -> Drawing:
    """Draw one column of the pictures in all frames side by side, before and after; a still line is a still place."""
    column = screen.busiest_column()
    w_mm, h_mm = screen.size_mm
    tall = 2.9
    wide = min(tall * w_mm / h_mm, 3.4)
    room = (WIDTH - wide - 2 * 0.15) / 2
    figure = _new(tall + 2 * _HEAD, dpi)
    height = figure.get_size_inches()[1]
    axes = _show(figure, (0, _HEAD, wide, tall), screen.fixed)
    axes.axvline(column, color="#ffd75e", lw=1.2)
    for side, (x, y, across, up) in {
        "left": (0.02, 0.5, "left", "center"),
        "right": (0.98, 0.5, "right", "center"),
        "top": (0.5, 0.98, "center", "top"),
        "bottom": (0.5, 0.02, "center", "bottom"),
    }.items():
        place = {"ha": across, "va": up, "transform": axes.transAxes, "path_effects": halo("white")}
        axes.text(x, y, screen.letters[side], color="white", fontsize=8.5, fontweight="bold", **place)
    boxes = [("fixed frame and the line", 0.0)]
    for index, (name, stack) in enumerate((("line over time, before", screen.moving), ("after", screen.moved))):
        left = wide + 0.15 + index * (room + 0.15)
        _show(figure, (left, _HEAD, room, tall), stack[:, :, column].T)
        boxes.append((name, left))
        figure.text(left / WIDTH, 0.02, f"frame 0 to {len(stack) - 1} →", fontsize=7.5, color=DARK)
    for name, left in boxes:
        figure.text(left / WIDTH, 1 - 0.16 / height, name, fontsize=8.5, color=DARK)
    return _drawn(figure)


def means(screen: Screen, dpi: int) -> Drawing:
    """Draw mean and standard deviation over time of every pixel, before and after."""
    spread = [stack.std(0, dtype=np.float32) for stack in (screen.moving, screen.moved)]
    most = max(float(np.percentile(spread[0], 99.5)), 1.0)
    pictures = {
        "mean, before": screen.moving.mean(0),
        "mean, after": screen.moved.mean(0),
        "spread over time, before": np.clip(spread[0] / most * 255, 0, 255),
        "spread over time, after": np.clip(spread[1] / most * 255, 0, 255),
    }
    w_mm, h_mm = screen.size_mm
    wide = WIDTH / 4 - _GAP
    tall = min(wide * h_mm / w_mm, 3.6)
    wide = tall * w_mm / h_mm
    figure = _new(tall + _HEAD, dpi)
    for column, (name, picture) in enumerate(pictures.items()):
        left = column * (wide + _GAP)
        _show(figure, (left, _HEAD, wide, tall), picture)
        figure.text(left / WIDTH, 1 - 0.16 / (tall + _HEAD), name, fontsize=8.5, color=DARK)
    return _drawn(figure)


def curves(rows: Mapping[str, Sequence[float]], fixed: int, dpi: int) -> Drawing:
    """Draw correlation with the fixed frame and displacement over the frames."""
    figure = _new(4.2, dpi)
    upper, lower = figure.subplots(2, 1, sharex=True)
    styles = {
        "correlation before": (upper, BEFORE, "-"),
        "correlation after": (upper, AFTER, "-"),
        "displacement max": (lower, BEFORE, ":"),
        "displacement p95": (lower, BEFORE, "-"),
        "displacement mean": (lower, AFTER, "-"),
        "expected error": (lower, THIRD, "--"),
    }
    for name, (axes, colour, line) in styles.items():
        if name in rows:
            words = name.removeprefix("correlation ").removeprefix("displacement ")
            axes.plot(rows[name], line, color=colour, lw=1.3, label=words)
    upper.set_ylabel("correlation", fontsize=8.5)
    lower.set_ylabel("displacement in mm", fontsize=8.5)
    lower.set_xlabel("frame", fontsize=8.5)
    for axes in (upper, lower):
        axes.axvline(fixed, color="#9aa5b1", lw=0.8)
        axes.margins(x=0.01)
        axes.tick_params(labelsize=8)
        axes.grid(color="#e6eaee", lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, ncols=4, loc="lower right" if axes is upper else "upper right")
    lower.set_ylim(bottom=0)
    figure.subplots_adjust(left=0.07, right=0.995, top=0.98, bottom=0.11, hspace=0.12)
    return _drawn(figure)
