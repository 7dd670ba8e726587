"""Figures 3, 4 and 6 of Kanter & Lellmann (2022): box plots of the cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from .meta_affine_sets import SETS  # noqa: E402

METHODS = {  # name in the results -> below its box
    "plain": "plain",
    "learn@{}/single": "learn",
    "comb@{}/single": "comb",
    "comb@{}/levels": "comb, levels",
    "elastix": "elastix",
    "simpleitk": "SimpleITK",
    "ants_initialiser": "ANTs init.",
    "multistart": "multistart",
    "ours": "ours",
}
Results = Mapping[str, Mapping[str, Mapping[str, Any]]]
Boxes = dict[str, Sequence[float]]


def draw(results: Results, folder: Path) -> list[Path]:
    """Write the figures as PNG; return their paths.

    Figure 3: MSE without the outliers (above) and with them (below, a logarithmic axis). Figure 4: distance of A
    (above) and of b (below). Figure 6: MSE of *comb* trained on one set and tested on another.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in SETS if name in results]
    both = (("mse", False, "MSE"), ("mse", True, "MSE, all cases"))
    parameters = (("epsilon_a", False, "ε_A"), ("epsilon_b", False, "ε_b"))
    return [
        _panels({name: results[name] for name in names}, both, folder / "figure_3.png"),
        _panels({name: results[name] for name in names}, parameters, folder / "figure_4.png"),
        _transfer({name: results[name] for name in names}, folder / "figure_6.png"),
    ]


def _panels(results: Results, rows: Sequence[tuple[str, bool, str]], path: Path) -> Path:
    figure, axes = plt.subplots(len(rows), len(results), figsize=(3.2 * len(results), 5.2), squeeze=False)
    for row, (metric, everything, label) in enumerate(rows):
        for column, (name, found) in enumerate(results.items()):
            keys = {key.format(name): title for key, title in METHODS.items()}
            boxes = {title: found[key][metric] for key, title in keys.items() if key in found}
            _boxes(axes[row, column], boxes, everything)
            axes[row, column].set_title(SETS[name].title if row == 0 else "")
        axes[row, 0].set_ylabel(label)
    return _save(figure, path)


def _transfer(results: Results, path: Path) -> Path:
    """Pairs are named as in the paper: H-B was trained on Brain and tested on Hands."""
    letters = {"hands": "H", "brain": "B", "oasis": "O", "unseen": "U"}
    boxes: Boxes = {}
    for test, found in results.items():
        boxes[f"{letters[test]} plain"] = found["plain"]["mse"]
        for train in SETS:
            if f"comb@{train}/single" in found:
                boxes[f"{letters[test]}-{letters[train]}"] = found[f"comb@{train}/single"]["mse"]
    figure, axis = plt.subplots(figsize=(max(4.0, 0.55 * len(boxes)), 3.2))
    _boxes(axis, boxes, True)
    axis.set_ylabel("MSE")
    axis.set_title("tested on - trained on: " + ", ".join(f"{letters[n]} {SETS[n].title}" for n in results), fontsize=8)
    return _save(figure, path)


def _boxes(axis: Any, boxes: Boxes, everything: bool) -> None:
    lines = {"medianprops": {"color": "tab:orange"}, "flierprops": {"marker": "+", "markersize": 4}}
    axis.boxplot(list(boxes.values()), showfliers=everything, **lines)
    axis.set_xticks(range(1, len(boxes) + 1), list(boxes), rotation=60, ha="right", fontsize=8)
    if everything:
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.set_ylim(bottom=0)


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path
