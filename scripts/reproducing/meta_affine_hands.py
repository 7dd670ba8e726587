"""The paper's own pair of hands from file to file: landmarks before and after, and a picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from register import main as register

from shared_components.cli import DONE
from shared_components.errors import InputError
from shared_components.images import read_image

FOLDER = "hands_xray"
SIDES = {"fixed": "R", "moving": "T"}
Hands = dict[str, Any]


def landmarks(folder: Path) -> dict[str, np.ndarray]:
    """Return {"fixed": (7, 2), "moving": (7, 2)} in pixels, column and row."""
    with (folder / "landmarks.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        side: np.array([[float(row[f"{letter}_{axis}_px"]) for axis in ("col", "row")] for row in rows])
        for side, letter in SIDES.items()
    }


def best_affine(fixed: np.ndarray, moving: np.ndarray) -> float:
    """Return the mean distance that the affine map fitted to the landmarks themselves leaves: what can be reached."""
    lever = np.c_[fixed, np.ones(len(fixed))]
    fitted = lever @ np.linalg.lstsq(lever, moving, rcond=None)[0]
    return float(np.linalg.norm(fitted - moving, axis=1).mean())


def hands_pair(data_dir: str | Path, picture: Path | None = None) -> Hands | None:
    """Register the pair with the bundle as it is shipped; None where the pair is not among the data.

    Args:
        data_dir: folder of the image sets.
        picture: file for fixed, moving, moved and their difference.

    Returns:
        mean and largest landmark distance in pixels, "before" and "after"; "best_affine"; correlation.

    Raises:
        InputError: the registration failed.
    """
    folder = Path(data_dir) / FOLDER
    if not (folder / "landmarks.csv").is_file():
        return None
    points = landmarks(folder)
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        arguments = ["meta_affine", "--output_dir", str(place / "out"), "--no_report"]
        for side, letter in SIDES.items():
            lines = ["# space: VOX", "x,y", *(f"{x},{y}" for x, y in points[side])]
            (place / f"{side}.csv").write_text("\n".join(lines) + "\n")
            arguments += [f"--{side}", str(folder / f"hands_{letter}.png"), f"--{side}_points", f"{place}/{side}.csv"]
        if register(arguments) not in DONE:
            raise InputError("the pair of hands could not be registered; run scripts/register.py on it to see why")
        metrics = json.loads((place / "out" / "metrics.json").read_text())
        if picture is not None:
            draw(folder, np.asarray(nib.load(place / "out" / "moved.nii.gz").dataobj), points["fixed"], picture)
    found = metrics["points"]
    return {
        "before": {key: found["header"][key] for key in ("mean", "max")},
        "after": {key: found["after"][key] for key in ("mean", "max")},
        "best_affine": best_affine(points["fixed"], points["moving"]),
        "correlation": {key: metrics["similarity"]["correlation"][key] for key in ("header", "after")},
    }


def draw(folder: Path, moved: np.ndarray, points: np.ndarray, picture: Path) -> None:
    """Write fixed, moving, moved and their difference side by side, the fixed landmarks as crosses."""
    images = {side: read_image(folder / f"hands_{letter}.png", ndim=2).array[0] for side, letter in SIDES.items()}
    fixed, moving = (images[side].numpy() for side in SIDES)
    moved = moved.reshape(fixed.shape)
    figure = Figure(figsize=(10, 2.8), layout="constrained")
    panels = {"fixed": fixed, "moving": moving, "moved": moved, "difference": np.abs(moved - fixed)}
    for axes, (title, image) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        axes.imshow(image.T, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title)
        axes.axis("off")
        if title in ("fixed", "moved"):
            axes.plot(*points.T, "+", color="tab:orange", markersize=7)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=80)
