"""The calibration plot: true error against expected error, and whether the one says anything of the other."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..images import atomic_path
from .calibration import reliability, spearman

_LINE, _BAND = "#0b6a88", "#bcd9e3"


def draw_calibration(
    path: str | os.PathLike, expected_mm: np.ndarray, errors_mm: np.ndarray, title: str = "", dpi: int = 110
) -> dict[str, float]:
    """Draw a calibration plot as PNG and return the numbers in it.

    Args:
        path: of the picture.
        expected_mm: (N,) expected error of each voxel.
        errors_mm: (N,) its true error.
        title: of the plot.
        dpi: of the picture.

    Returns:
        {"rho", Spearman's; "gap_mm", mean distance of expected and true error of the groups; "mean_error_mm"}.
    """
    groups = reliability(expected_mm, errors_mm)
    numbers = {
        "rho": spearman(expected_mm, errors_mm),
        "gap_mm": float(np.abs(groups["expected"] - groups["mean"]).mean()),
        "mean_error_mm": float(np.mean(errors_mm)),
    }
    figure = Figure(figsize=(4.6, 4.3), dpi=dpi, facecolor="white")
    axes = figure.add_axes((0.13, 0.12, 0.84, 0.74))
    most = 1.05 * float(max(groups["expected"].max(), groups["high"].max(), 1e-3))
    axes.plot([0, most], [0, most], color="#9aa5b1", lw=1, label="as expected")
    axes.fill_between(groups["expected"], groups["low"], groups["high"], color=_BAND, lw=0, label="80 % of voxels")
    axes.plot(groups["expected"], groups["mean"], "o-", color=_LINE, ms=4, lw=1.4, label="mean of a tenth of them")
    axes.set(xlim=(0, most), ylim=(0, most))
    axes.set_xlabel("expected error in mm", fontsize=9)
    axes.set_ylabel("true error in mm", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    words = f"Spearman's ρ {numbers['rho']:.2f}\nmean error {numbers['mean_error_mm']:.2f} mm"
    axes.text(0.97, 0.04, words, transform=axes.transAxes, fontsize=8.5, ha="right")
    axes.set_title(title, fontsize=9.5, loc="left")
    FigureCanvasAgg(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return numbers
