"""Figures 7, 8 and 10 of AVSM: symmetry of the methods, Dice and folds over test-time steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

from .avsm_methods import AFFINE_STEPS, METHODS, STEPS  # noqa: E402
from .avsm_relations import TITLES  # noqa: E402

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
COLOURS = {"longitudinal": "tab:green", "cross": "tab:orange"}
TRAINED = {"affine_net": 5, "avsm": 2}  # steps in training


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what the results of Table 1 have numbers for; return the files."""
    drawn = []
    if any("symmetry" in one for found in results.values() for one in found.values()):
        drawn.append(draw_symmetry(results, folder / "symmetry.png"))
    if any("avsm_1" in found for found in results.values()):
        drawn.append(draw_steps(results, "avsm", STEPS, ("dice", "folds"), folder / "velocity_steps.png"))
        drawn.append(draw_steps(results, "affine_net", AFFINE_STEPS, ("dice",), folder / "affine_steps.png"))
    return drawn


def draw_symmetry(results: Results, path: Path) -> Path:
    """Draw a box a method and set, lower is better (Figure 7)."""
    known = {name: {m: _known(found[m]["symmetry"]) for m in METHODS if m in found} for name, found in results.items()}
    shown = [method for method in METHODS if any(found.get(method) for found in known.values())]
    figure, axis = plt.subplots(figsize=(2.0 + 0.65 * max(len(shown), 4), 4.2))
    for shift, (name, found) in zip((-0.18, 0.18), known.items(), strict=False):
        there = [index for index, method in enumerate(shown) if found.get(method)]
        boxes = axis.boxplot(
            [found[shown[index]] for index in there],
            positions=[index + shift for index in there],
            widths=0.3,
            patch_artist=True,
            medianprops={"color": "black"},
            flierprops={"markersize": 3},
        )
        for box in boxes["boxes"]:
            box.set(facecolor=COLOURS[name], alpha=0.6)
    axis.set_xticks(range(len(shown)), [METHODS[method] for method in shown], rotation=40, ha="right", fontsize=8)
    axis.set(ylabel="ln of mean squared residual", xlim=(-0.6, len(shown) - 0.4))
    axis.legend(handles=[Patch(color=COLOURS[name], alpha=0.6, label=TITLES[name]) for name in known], fontsize=8)
    axis.grid(axis="y", alpha=0.3)
    return _save(figure, path)


def draw_steps(results: Results, part: str, count: int, metrics: Sequence[str], path: Path) -> Path:
    """Draw means over the steps of a part, a panel a metric (Figures 8 and 10)."""
    figure, axes = plt.subplots(1, len(metrics), figsize=(4.4 * len(metrics), 3.4), squeeze=False)
    words = {"dice": "Dice", "folds": "folded voxels"}
    for axis, metric in zip(axes[0], metrics, strict=True):
        for name, found in results.items():
            points = {n: _known(found[f"{part}_{n}"][metric]) for n in range(1, count + 1) if f"{part}_{n}" in found}
            means = {n: fmean(values) for n, values in points.items() if values}
            axis.plot(list(means), list(means.values()), marker="o", color=COLOURS[name], label=TITLES[name])
        axis.axvline(TRAINED[part], color="gray", linewidth=0.8, linestyle=":", label="steps in training")
        axis.set(xlabel="steps of the affine network" if part == "affine_net" else "vSVF steps", ylabel=words[metric])
        axis.set_xticks(range(1, count + 1))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return _save(figure, path)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path
