"""Figures of SUITS: Dice over the iterations, features of both modalities side by side, one result a set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from shared_components.warp import coords_of, warp_image, warp_labels

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from .suits_runs import SETS  # noqa: E402

CURVES = {  # method -> title and colour
    "mind": ("hand-made MIND", "tab:gray"),
    "mind_cnn": ("MIND-CNN", "tab:blue"),
    "suits_first": ("SUITS, k_back = 1", "tab:green"),
    "suits": ("SUITS", "tab:red"),
    "suits_shipped": ("SUITS, softer, as shipped", "tab:purple"),
}
CHANNELS = (0, 2, 4, 7, 9, 11)  # of 12
LINES = 24  # of the deformed grid, along the longer side


def draw_iterations(results: Mapping[str, Mapping[str, Mapping[str, Any]]], folder: Path) -> Path:
    """Draw mean Dice after each iteration and, as a band, half a standard deviation over pairs, a panel a set."""
    names = [name for name in SETS if name in results]
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 3.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for method, (title, colour) in CURVES.items():
            if "iterations" not in results[name].get(method, {}):
                continue
            dice = np.array(results[name][method]["iterations"], dtype=float)
            steps = np.arange(dice.shape[1] + 1)
            start = np.array(results[name]["initial"]["dice"], dtype=float)[: len(dice), None]
            dice = np.hstack([start, dice])
            mean, half = np.nanmean(dice, 0), 0.5 * np.nanstd(dice, 0)
            axis.plot(steps, mean, color=colour, label=title, marker=".")
            axis.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.12, linewidth=0)
        axis.set(title=SETS[name].title, xlabel="iteration", ylabel="Dice, mean over pairs ± ½ std")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return _save(figure, folder / "iterations.png")


def coronal(labels: Tensor) -> int:
    """Return the slice along the second axis of labels (1, *spatial) in which most organs are, and most of them."""
    planes = labels[0].movedim(1, 0).flatten(1)
    scores = [(len(plane.unique()), int((plane > 0).sum())) for plane in planes]
    return max(range(len(scores)), key=scores.__getitem__)


def draw_features(network: torch.nn.Module, item: Mapping[str, Any], ddf: Tensor, path: Path) -> Path:
    """Draw channels of the features of the fixed, the moving and the moved image, a row each.

    Args:
        network: a ``SUITS``.
        item: a pair, with labels.
        ddf: (1, 3, *spatial) voxels, its result.
        path: of the PNG.
    """
    image, index = item["image"][None], coronal(item["fixed_label"])
    moved = warp_image(image[:, 1:], ddf)
    rows = {"fixed": (image[:, :1], 0), "moving": (image[:, 1:], 1), "moved": (moved, 1)}
    figure, axes = plt.subplots(3, 1 + len(CHANNELS), figsize=(1.9 * (1 + len(CHANNELS)), 5.0), squeeze=False)
    for (title, (grey, side)), line in zip(rows.items(), axes, strict=True):
        features = network.describe(standard(grey), side)[0]
        line[0].set_ylabel(title)
        _show(line[0], grey[0, 0, :, index])
        cell = min(index // network.factor, features.shape[2] - 1)
        for axis, channel in zip(line[1:], CHANNELS, strict=True):
            _show(axis, features[channel % len(features), :, cell], (0.0, 1.0))
            axis.set_title(f"channel {channel + 1}" if title == "fixed" else "", fontsize=8)
    return _save(figure, path)


def standard(image: Tensor) -> Tensor:
    """Return a single image with mean 0 and standard deviation 1, as the network sees it."""
    return (image - image.mean()) / image.std(correction=0).clamp_min(1e-6)


def draw_result(item: Mapping[str, Any], ddf: Tensor, title: str, path: Path) -> Path:
    """Draw fixed, moving and moved image, outlines of the organs before and after on the fixed one, and the grid."""
    image, index = item["image"][None], coronal(item["fixed_label"])
    fixed, moving = image[0, 0, :, index], image[0, 1, :, index]
    moved = warp_image(image[:, 1:], ddf)[0, 0, :, index]
    before, after = item["moving_label"][0], warp_labels(item["moving_label"][None], ddf)[0, 0]
    figure, axes = plt.subplots(1, 6, figsize=(16, 3.1))
    names = ("fixed", "moving", "moved", "organs before", "organs after", "deformed grid")
    for axis, picture, name in zip(axes, (fixed, moving, moved, fixed, fixed, fixed), names, strict=True):
        _show(axis, picture)
        axis.set_title(name, fontsize=9)
    for axis, labels in ((axes[3], before), (axes[4], after)):
        _outlines(axis, item["fixed_label"][0, :, index], "#40c4ff")
        _outlines(axis, labels[:, index], "#ffb74d")
    _grid(axes[5], ddf, index)
    axes[0].set_ylabel(title)
    return _save(figure, path)


def _show(axis: Any, picture: Tensor, limits: tuple[float, float] | None = None) -> None:
    """Show a slice (x, z) upright, patient's left on the right."""
    low, high = limits or (float(picture.min()), float(picture.max()))
    axis.imshow(picture.numpy().T[:, ::-1], cmap="gray", origin="lower", vmin=low, vmax=max(high, low + 1e-6))
    axis.set_xticks([])
    axis.set_yticks([])


def _outlines(axis: Any, labels: Tensor, colour: str) -> None:
    flipped = labels.numpy().T[:, ::-1]
    for value in np.unique(flipped[flipped > 0]):
        axis.contour(flipped == value, [0.5], colors=colour, linewidths=1.0)


def _grid(axis: Any, ddf: Tensor, index: int) -> None:
    """Where the field sends straight lines of the slice, seen along the second axis."""
    x, z = (coords_of(ddf)[0, k, :, index].numpy() for k in (0, 2))
    x = x.shape[0] - 1 - x
    step = max(1, max(x.shape) // LINES)
    for row in range(0, x.shape[0], step):
        axis.plot(x[row], z[row], color="#ffd75e", linewidth=0.6)
    for column in range(0, x.shape[1], step):
        axis.plot(x[:, column], z[:, column], color="#ffd75e", linewidth=0.6)
    axis.set(xlim=(-0.5, x.shape[0] - 0.5), ylim=(-0.5, x.shape[1] - 0.5))


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path
