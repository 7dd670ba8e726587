"""Figures of R2N2: one registration as a film strip (the paper's figure 7), error and bumps over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from shared_components.pairs import FramePair

from .pair_rows import TestPairs
from .r2n2_methods import BEYOND
from .r2n2_runs import ABLATION

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import Ellipse  # noqa: E402

LOOKED_AT = 64  # pairs, of which the one with the largest motion is drawn, for each plane
RADII = 2.0  # widths at which an ellipse is drawn, as by the authors
ARROW = 3.0  # times the displacement


def draw_strip(network: torch.nn.Module, size: Sequence[int], pairs: TestPairs, folder: Path) -> list[Path]:
    """Draw a pair of either plane with large motion, step by step.

    Above the moved image with the bump that is added next, an ellipse and its displacement; below the difference to
    the fixed image.
    """
    chosen: dict[str, tuple[float, Mapping[str, Any]]] = {}
    for index in range(min(LOOKED_AT, len(pairs.dataset))):
        number = pairs.dataset.order[index][0]
        plane, item = pairs.dataset.items[number]["plane"], pairs.dataset[index]
        motion = float(item["truth"].max())
        if motion > chosen.get(plane, (0.0, {}))[0]:
            chosen[plane] = (motion, item)
    return [_strip(network, size, item, folder / f"strip_{plane}.png") for plane, (_, item) in sorted(chosen.items())]


def _strip(network: torch.nn.Module, size: Sequence[int], item: Mapping[str, Any], path: Path) -> Path:
    image = FramePair(size, "fit", "header", "grid")({"pair": item["pair"], "name": item["name"]})["image"][None]
    with torch.no_grad():
        stages = network(image, return_stages=True)
    steps = len(stages["moved"])
    fixed, moving = stages["fixed"][0, 0], network.standardised(image)[0, 1]
    pictures = [moving, *(moved[0, 0] for moved in stages["moved"])]
    shown = sorted({0, 1, 2, 3, *np.linspace(0, steps, 8).round().astype(int).tolist()})
    figure, axes = plt.subplots(2, len(shown) + 1, figsize=(1.9 * (len(shown) + 1), 4.2))
    _show(axes[0, 0], fixed, "fixed")
    axes[1, 0].axis("off")
    for (above, below), t in zip(axes.T[1:], shown, strict=True):
        _show(above, pictures[t], "moving" if t == 0 else f"after {t}")
        if t < steps:
            draw_bump(above, stages["parameters"][0, t], fixed.shape)
        left = float((pictures[t] - fixed).square().mean())
        _show(below, pictures[t] - fixed, f"MSE {left:.3f}", 2.0)
    return _save(figure, path)


def draw_bump(axis: Any, numbers: Tensor, shape: Sequence[int]) -> None:
    """Draw a bump's ellipse of ``RADII`` widths and, longer than it is, the displacement of tissue at its centre.

    Args:
        axis: shows an image, see ``_show``.
        numbers: (7,).
        shape: of the network's grid.
    """
    values = numbers.double().numpy()
    unit = (np.asarray(shape) - 1) / 2
    centre, width, weight = (values[:2] + 1) * unit, 2 * RADII * values[2:4] * unit, values[5:] * unit
    ellipse = Ellipse(centre, *width, angle=np.degrees(values[4]), fill=False, color="#ffb74d", linewidth=1.2)
    axis.add_patch(ellipse)
    axis.annotate("", centre + ARROW * weight, centre, arrowprops={"arrowstyle": "->", "color": "#40c4ff"})


def draw_course(table1: Mapping[str, Any], ablation: Mapping[str, Any], path: Path) -> Path:
    """Draw the error after each step, beyond the last one too, and size and place of the bumps, means over pairs."""
    numbers = table1["r2n2"]
    errors = np.array(numbers["steps_mm"])
    steps = (errors.shape[1] - 1) // BEYOND
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 3.6))
    left.plot(errors.mean(0), color="tab:red", marker=".", label="R2N2, not polished")
    for method, style in (("identity", ":"), ("bspline", "--")):
        if method in table1:
            left.axhline(np.mean(table1[method]["tre_mm"]), color="tab:gray", linestyle=style, label=method)
    for (name, one), colour in zip(ablation.items(), ("blue", "orange", "green", "purple"), strict=False):
        course = np.array(one["steps_mm"]).mean(0)
        left.plot(course, linewidth=0.9, color=f"tab:{colour}", label=f"small, {ABLATION[name]}")
    left.set(xlabel="steps", ylabel="landmarks [mm]", ylim=(0, None))
    for axis, keys in ((middle, ("widths_mm", "lengths_mm")), (right, ("motions",))):
        for key, colour in zip(keys, ("tab:blue", "tab:orange"), strict=False):
            values = np.array(numbers[key])
            mean, half = values.mean(0), 0.5 * values.std(0)
            at = np.arange(1, len(mean) + 1)
            axis.plot(at, mean, color=colour, marker=".", label=key.removesuffix("_mm"))
            axis.fill_between(at, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
        axis.set(xlabel="step", ylim=(0, None))
    middle.set_ylabel("bump [mm], mean ± ½ std")
    right.set_ylabel("motion there / largest motion")
    for axis in (left, middle, right):
        axis.axvline(steps, color="black", linewidth=0.6)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return _save(figure, path)


def _show(axis: Any, picture: Tensor, title: str, limit: float | None = None) -> None:
    """Show an image of the network's grid (to the patient's right, up), head up; a difference within +- limit."""
    bound = limit or 2.0
    axis.imshow(picture.numpy().T, cmap="RdBu" if limit else "gray", vmin=-bound, vmax=bound, origin="lower")
    axis.invert_xaxis()
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path
