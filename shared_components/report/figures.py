"""The pictures of a report, one function a section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from contourpy import contour_generator
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from scipy.ndimage import gaussian_filter

from .data import ReportData
from .planes import Display, Plane, choose_planes, window
from .sheet import DARK, Drawing, Sheet

FIXED_COLOUR, MOVING_COLOUR, ERROR_COLOUR, FOLD_COLOUR = "#35d0e6", "#ffa62b", "#ff4d5e", "#e60000"
STATES = ("before", "after")
_LIMITS = (1.25, 1.5625, 2.25, 4.0, 9.0, 16.0)  # ends of the Jacobian's scale, their roots are ticks too
_LINES = 30  # grid lines along the longest side
MOST_ARROWS, MOST_LABELS = 24, 8  # per slice
_FINEST = 512  # pixels along a side that vector drawings are made from


@dataclass(frozen=True, eq=False)
class Views:
    """What all figures share: arrays in display order, planes and grey windows."""

    data: ReportData
    display: Display
    planes: Sequence[Plane]
    dpi: int
    fixed_window: tuple[float, float]
    moving_window: tuple[float, float]

    @classmethod
    def of(cls, data: ReportData, dpi: int) -> Views:
        """Choose slices and windows."""
        display = Display(data.frame)
        label = None if data.fixed_label is None else display(data.fixed_label)
        planes = choose_planes(display, display(data.fixed), label)
        moving_window = window(data.moved_before, data.moved)
        return cls(data, display, planes, dpi, window(data.fixed), moving_window)

    def cut(self, plane: Plane, array: np.ndarray) -> np.ndarray:
        """Slice an array of the fixed grid, (..., rows, columns)."""
        return plane.picture(self.display(array))

    def grey(self, plane: Plane, name: str) -> np.ndarray:
        """Slice of an image with black at 0 and white at 1."""
        low, high = self.fixed_window if name == "fixed" else self.moving_window
        values = self.cut(plane, getattr(self.data, name)).astype(np.float32)
        return np.nan_to_num(np.clip((values - low) / (high - low), 0, 1))

    def moving_state(self, state: str) -> str:
        """Name of the moving image in a state."""
        return "moved_before" if state == "before" else "moved"

    def landing(self, plane: Plane) -> np.ndarray:
        """Where each pixel of the slice goes beyond the initial transform, RAS mm, (rows, columns, D)."""
        ddf_mm = np.moveaxis(self.cut(plane, self.data.ddf_mm), 0, -1)
        return self.data.without_initial(plane.pixels_mm() + ddf_mm)


def _image(axes: Axes, plane: Plane, picture: np.ndarray, dim: float = 1.0) -> None:
    """Show grey values in [0, 1]; ``dim`` < 1 darkens them beneath coloured lines."""
    axes.imshow(picture * dim, cmap="gray", vmin=0, vmax=1, extent=plane.extent, interpolation="auto", aspect="auto")


def image_row(views: Views, name: str) -> Drawing:
    """Draw one image in all planes: ``fixed``, ``moved_before`` or ``moved``."""
    sheet = Sheet(views.planes, dpi=views.dpi)
    for _, plane, axes in sheet.panels:
        _image(axes, plane, views.grey(plane, name))
    return sheet.finish()


def checkerboard(views: Views) -> Drawing:
    """Draw tiles of the fixed and the moving image in turn, before and after."""
    sheet = Sheet(views.planes, STATES, views.dpi)
    tile = max(max(plane.size_mm) for plane in views.planes) / 9
    for state, plane, axes in sheet.panels:
        fixed, moving = views.grey(plane, "fixed"), views.grey(plane, views.moving_state(state))
        row, column = (
            np.floor(np.arange(n) * step / tile) for n, step in zip(fixed.shape, plane.step_mm[::-1], strict=True)
        )
        _image(axes, plane, np.where((row[:, None] + column) % 2 == 0, fixed, moving))
    return sheet.finish()


def difference(views: Views) -> Drawing:
    """Draw fixed minus moving, each scaled by its own grey window, before and after on one scale."""
    sheet = Sheet(views.planes, STATES, views.dpi, bar=True)
    slices = [views.grey(p, "fixed") - views.grey(p, views.moving_state(state)) for state, p, _ in sheet.panels]
    most = max(0.1, float(max(np.percentile(np.abs(values), 99.5) for values in slices)))
    norm = Normalize(-most, most)
    for (_, plane, axes), values in zip(sheet.panels, slices, strict=True):
        axes.imshow(values, cmap="RdBu_r", norm=norm, extent=plane.extent, interpolation="auto", aspect="auto")
    sheet.bar(colormaps["RdBu_r"], norm, "fixed − moving, parts of the grey window")
    return sheet.finish(DARK)


def deformed_grid(views: Views) -> Drawing:
    """Draw where the transform sends straight lines of the fixed image."""
    sheet = Sheet(views.planes, dpi=views.dpi)
    gap = max(max(plane.size_mm) for plane in views.planes) / _LINES
    for _, plane, axes in sheet.panels:
        _image(axes, plane, views.grey(plane, "fixed"), 0.75)
        landed, _ = plane.project(views.landing(plane))
        strides = [max(1, round(gap / step)) for step in plane.step_mm[::-1]]
        fine = [max(1, n // _FINEST) for n in landed.shape[:2]]
        starts = [(n - 1) % stride // 2 for n, stride in zip(landed.shape, strides, strict=False)]
        lines = list(landed[starts[0] :: strides[0], :: fine[1]])
        lines += list(landed[:: fine[0], starts[1] :: strides[1]].swapaxes(0, 1))
        axes.add_collection(LineCollection(lines, colors="#ffd75e", linewidths=0.7, alpha=0.9))
    return sheet.finish()


def displacement(views: Views) -> tuple[Drawing, float]:
    """Draw the length of the displacement beyond the initial transform; also return its largest value drawn, mm."""
    sheet = Sheet(views.planes, dpi=views.dpi, bar=True)
    slices = [np.linalg.norm(views.landing(plane) - plane.pixels_mm(), axis=-1) for plane in views.planes]
    lengths = np.concatenate([values[np.isfinite(values)] for values in slices] + [np.zeros(1)])
    largest, usual = float(lengths.max()), 1.25 * float(np.percentile(lengths, 99.5))
    most = max(min(largest, usual), 1e-3)  # a few voxels gone astray must not take the whole scale
    norm = Normalize(0, most)
    for (_, plane, axes), values in zip(sheet.panels, slices, strict=True):
        axes.imshow(values, cmap="viridis", norm=norm, extent=plane.extent, interpolation="auto", aspect="auto")
        _shape_lines(axes, plane, views, "white")
    sheet.bar(colormaps["viridis"], norm, "displacement in mm", extend="max" if largest > most else "neither")
    return sheet.finish(), largest


def expected_error(views: Views) -> Drawing:
    """Draw how far the field may be wrong, in mm."""
    sheet = Sheet(views.planes, dpi=views.dpi, bar=True)
    slices = [views.cut(plane, views.data.expected_error_mm) for plane in views.planes]
    norm = Normalize(0, max(float(max(np.percentile(values, 99.5) for values in slices)), 1e-3))
    for (_, plane, axes), values in zip(sheet.panels, slices, strict=True):
        axes.imshow(values, cmap="magma", norm=norm, extent=plane.extent, interpolation="auto", aspect="auto")
        _shape_lines(axes, plane, views, "white")
    sheet.bar(colormaps["magma"], norm, "expected error in mm", extend="max")
    return sheet.finish()


def _shape_lines(axes: Axes, plane: Plane, views: Views, colour: str) -> None:
    """Draw a faint line around what is bright in the fixed image, to know where one is."""
    picture = gaussian_filter(views.grey(plane, "fixed"), 1.0)
    thin = tuple(slice(None, None, max(1, n // _FINEST)) for n in picture.shape)
    x, y = (np.arange(n) * step for n, step in zip(picture.shape[::-1], plane.step_mm, strict=True))
    if min(picture[thin].shape) > 1 and picture.max() > 0.25 > picture.min():
        axes.contour(x[thin[1]], y[thin[0]], picture[thin], [0.25], colors=colour, linewidths=0.5, alpha=0.7)


def jacobian(views: Views) -> tuple[Drawing, int]:
    """Draw the Jacobian determinant on a log scale, folds in red; also return the number of folds drawn."""
    sheet = Sheet(views.planes, dpi=views.dpi, bar=True)
    given = views.data.jacobian
    ddf_mm = views.display(views.data.ddf_mm)
    slices = [plane.jacobian(ddf_mm) if given is None else views.cut(plane, given) for plane in views.planes]
    positive = np.concatenate([values[(values > 0) & np.isfinite(values)] for values in slices])
    spread = np.exp(np.percentile(np.abs(np.log(positive)), 99.5)) if positive.size else 2.0
    limit = next((limit for limit in _LIMITS if limit >= spread), _LIMITS[-1])
    norm = LogNorm(1 / limit, limit)
    folds = 0
    for (_, plane, axes), values in zip(sheet.panels, slices, strict=True):
        folded = ~(values > 0)  # not-a-number is a fault of the field too
        folds += int(folded.sum())
        shown = np.clip(np.where(folded, 1, values), norm.vmin, norm.vmax)
        axes.imshow(shown, cmap="PRGn", norm=norm, extent=plane.extent, interpolation="auto", aspect="auto")
        _shape_lines(axes, plane, views, "#555555")
        _fold_marks(axes, plane, folded)
    ticks = [limit**part for part in (-1, -0.5, 0, 0.5, 1)]
    beyond = bool(positive.size and (positive.min() < norm.vmin or positive.max() > norm.vmax))
    sheet.bar(colormaps["PRGn"], norm, "Jacobian determinant", ticks, "both" if beyond else "neither")
    return sheet.finish(DARK), folds


def _fold_marks(axes: Axes, plane: Plane, folded: np.ndarray) -> None:
    """Paint folded pixels red, at least 1.5 points wide: a single one must be seen on the largest slice too."""
    marks = np.ma.masked_where(~folded, folded)
    red = ListedColormap([FOLD_COLOUR])
    axes.imshow(marks, cmap=red, interpolation="nearest", extent=plane.extent, aspect="auto")
    row, column = np.nonzero(folded)
    axes.plot(column * plane.step_mm[0], row * plane.step_mm[1], "s", ms=1.5, mew=0, color=FOLD_COLOUR)


def _largest_labels(picture: np.ndarray) -> np.ndarray:
    """Labels of most pixels in a slice, without background; so many that outlines can still be told apart."""
    values, counts = np.unique(picture[picture != 0], return_counts=True)
    return values[np.argsort(-counts, kind="stable")[:MOST_LABELS]]


def _outline(plane: Plane, labels: np.ndarray, value: int) -> list[np.ndarray]:
    """Border of a label, half way between the pixels inside and outside, as lines in picture coordinates."""
    mask = labels == value
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return []
    region = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1).astype(np.float32)
    corner = np.array([columns[0] - 1, rows[0] - 1])
    return [(line + corner) * plane.step_mm for line in contour_generator(z=region).lines(0.5)]


def label_outlines(views: Views) -> Drawing:
    """Draw the largest labels of both images over the fixed one, before (where given) and after."""
    names = {"before": views.data.moved_label_before, "after": views.data.moved_label}
    sheet = Sheet(views.planes, [state for state in STATES if names[state] is not None], views.dpi)
    for state, plane, axes in sheet.panels:
        _image(axes, plane, views.grey(plane, "fixed"), 0.75)
        fixed, moving = views.cut(plane, views.data.fixed_label), views.cut(plane, names[state])
        shown = _largest_labels(fixed)
        for labels, colour, width in ((fixed, FIXED_COLOUR, 1.7), (moving, MOVING_COLOUR, 0.9)):  # both stay in sight
            lines = [line for value in shown for line in _outline(plane, labels, value)]
            axes.add_collection(LineCollection(lines, colors=colour, linewidths=width))
    return sheet.finish()


def landmarks(views: Views) -> Drawing:
    """Draw arrows from the landmarks of the fixed image to where they were mapped, and crosses where they belong."""
    data = views.data
    sheet = Sheet(views.planes, dpi=views.dpi)
    for _, plane, axes in sheet.panels:
        _image(axes, plane, views.grey(plane, "moved_before"), 0.75)
        start, away = plane.project(data.fixed_points_mm)
        near = np.sort(np.argsort(np.abs(away), kind="stable")[:MOST_ARROWS])
        true = None if data.moving_points_mm is None else plane.project(data.without_initial(data.moving_points_mm))[0]
        end = true
        if data.mapped_points_mm is not None:
            end, _ = plane.project(data.without_initial(data.mapped_points_mm))
        step = (end - start)[near]
        axes.plot(*start[near].T, "o", ms=3, mfc="none", mec="white", mew=0.8)
        axes.quiver(
            *start[near].T,
            *step.T,
            color=FIXED_COLOUR,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.005,
            headwidth=4,
        )
        if true is not None:
            axes.plot(*true[near].T, "+", ms=5, mec=MOVING_COLOUR, mew=1.1)
            lines = list(np.stack([end[near], true[near]], 1))
            axes.add_collection(LineCollection(lines, colors=ERROR_COLOUR, linewidths=1.4, zorder=4))
    return sheet.finish()
