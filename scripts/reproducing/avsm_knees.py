"""Knees, the paper's anatomy, through ``register.py avsm``: by weights that know brains, and by optimisation alone.

A DESS image of one knee and the same under a known deformation with another contrast (landmarks on a grid), and one
knee at two angles of flexion (by eye). There is no knee data here to train on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from scipy import ndimage

from shared_components.images import read_image, write_image
from shared_components.synth import add_gaussian_noise, bias_field, change_contrast
from shared_components.warp import warp_image

from .avsm_sets import BIAS, CONTRAST, NOISE
from .real_cases import BEFORE, Case, deformed_landmarks, show_cases

MEAN_MM, CONTROL_MM, GRID = 3.0, 30.0, 12  # of the deformation; voxels between landmarks
POLISH = ("--refine", "vsvf", "--refine_steps", "90")
STATES = {
    "before": BEFORE,
    "by brain weights": (),
    "by vSVF alone": (*BEFORE, *POLISH),
    "after": POLISH,
}


def show_knees(data_dir: str, folder: Path, figures: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Register the knees that are there, draw each into ``figures``; return {case: {state: metrics.json}}.

    Args:
        data_dir: folder of the image sets.
        folder: for what is made and for the results.
        figures: for the pictures.
        threads: of the CPU.
    """
    data, cases = Path(data_dir).expanduser(), []
    for name, make in {"knee_deformed": _deformed, "knee_flexed": _flexed}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        cases.append(make(data, folder / name))
    return show_cases("avsm", filter(None, cases), folder, figures, threads)


def _deformed(data: Path, place: Path) -> Case | None:
    """One knee and itself, deformed on purpose, in another contrast."""
    source = data / "knee_dess_pykneer" / "dess_echo1.nii.gz"
    if not source.is_file():
        return None
    image = read_image(source, "knee")
    frame, random = image.frame, torch.Generator().manual_seed(0)
    values = image.array[None].float() / image.array.max()
    inside = ndimage.binary_fill_holes((values[0, 0] > 0.05).numpy())
    inside = ndimage.binary_erosion(inside, iterations=4)
    spacing = [float(step) for step in frame.spacing]
    ddf = deformed_landmarks(frame, inside, GRID, place, mean=MEAN_MM, smoothness=CONTROL_MM, spacing=spacing)
    moving = change_contrast(warp_image(values, ddf), random, knots=4, strength=CONTRAST, keep_background=True)
    moving = moving * bias_field(frame.shape, random, strength=BIAS)
    moving = add_gaussian_noise(moving, NOISE, random, keep_background=True).clamp_min(0)
    write_image(place / "moving.nii.gz", moving[0], frame)
    options = ["--fixed", str(source), "--moving", str(place / "moving.nii.gz"), "--initial_transform", "header"]
    for side in ("fixed", "moving"):
        options += [f"--{side}_points", str(place / f"{side}.csv")]
    return Case(place.name, "knee, deformed on purpose", tuple(options), STATES, (0, 0.5))


def _flexed(data: Path, place: Path) -> Case | None:
    """One knee at two angles of flexion."""
    files = [data / "knee_mr_fair" / name for name in ("R.nii.gz", "T.nii.gz")]
    if not files[0].is_file():
        return None
    options = ("--fixed", str(files[0]), "--moving", str(files[1]), "--initial_transform", "header")
    return Case(place.name, "knee, flexed", options, STATES, (0, 0.5))
