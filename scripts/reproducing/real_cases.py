"""Real images through ``register.py``: cases, what comes out, as pictures with the numbers that there are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from register import main as register

from shared_components.cli import DONE
from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import Image, read_image
from shared_components.points import write_points
from shared_components.synth import diffeomorphism

from .runs import write_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

BEFORE = ("--set", "stage=identity")
States = Mapping[str, Sequence[str]]  # name -> further options; "before" and "after" are drawn


@dataclass(frozen=True)
class Case:
    """A registration of real images.

    Attributes:
        name: of its folder and picture.
        title: in the picture.
        options: of ``register.py BUNDLE``.
        states: what is run with which further options.
        plane: axis across the picture and where along it (part of its length); None for 2-D.
        window: grey values of the moving image from black to white; default: most of what there is.
    """

    name: str
    title: str
    options: tuple[str, ...]
    states: States
    plane: tuple[int, float] | None = None
    window: tuple[float, float] | None = None


def show_cases(
    bundle: str, cases: Iterable[Case], folder: Path, figures: Path, threads: int
) -> dict[str, dict[str, Any]]:
    """Register each case in all its states, draw it into ``figures``; return {case: {state: metrics.json}}.

    Raises:
        InputError: where ``register.py`` did not succeed.
    """
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        numbers = {}
        for state, more in case.states.items():
            out = ("--output_dir", str(folder / case.name / state), "--threads", str(threads), "--device", "cpu")
            if register([bundle, *case.options, *out, *more]) not in DONE:
                raise InputError(f"register.py {bundle} could not register {case.name}; its last line says why")
            numbers[state] = json.loads((folder / case.name / state / "metrics.json").read_text())
        draw(case, folder / case.name, figures / f"real_{case.name}.png")
        found[case.name] = numbers
    write_json(folder / "real.json", found)
    return found


def deformed_landmarks(
    frame: Frame, inside: np.ndarray, spacing_vox: int, place: Path, **deformation: float
) -> torch.Tensor:
    """Write landmarks on a grid and where a known deformation takes them; return the ddf that makes the moving image.

    Args:
        frame: of the image; its landmarks are written to ``place``/fixed.csv, those of the deformed one to moving.csv.
        inside: where landmarks lie, of the frame's shape.
        spacing_vox: of the grid.
        place: folder.
        deformation: further arguments of ``diffeomorphism``, such as ``mean`` and ``smoothness``.
    """
    ddf, inverse = diffeomorphism(frame.shape, torch.Generator().manual_seed(0), **deformation)
    at = [p for p in np.ndindex(*frame.shape) if all(k % spacing_vox == spacing_vox // 2 for k in p) and inside[p]]
    points = np.array(at, dtype=float)
    landed = points + np.array([inverse[(0, slice(None), *p)].numpy() for p in at])
    for side, where in (("fixed", points), ("moving", landed)):
        write_points(place / f"{side}.csv", frame.to_mm(where))
    return ddf


def draw(case: Case, place: Path, path: Path) -> None:
    """Fixed, moving as it starts, moved, and tiles of fixed and moving in turn, before and after."""
    options = dict(zip(case.options[::2], case.options[1::2], strict=True))
    files = {"fixed": options["--fixed"], "before": place / "before" / "moved.nii.gz"}
    files["after"] = place / "after" / "moved.nii.gz"
    shown, step = {}, (1.0, 1.0)
    for name, file in files.items():
        image = read_image(file, name, 3 if case.plane else 2)
        shown[name], step = _cut(image, case.plane, None if name == "fixed" else case.window)
    tall, wide = (n * h for n, h in zip(shown["fixed"].shape, step, strict=True))
    figure, axes = plt.subplots(1, 5, figsize=(15, 0.4 + 15 / 5 * tall / wide))
    tile = max(1, round(min(shown["fixed"].shape) / 8))
    squares = np.add.outer(*(np.arange(n) // tile for n in shown["fixed"].shape)) % 2 == 0
    pictures = {"fixed": shown["fixed"], "moving, as it starts": shown["before"], "moved": shown["after"]}
    pictures |= {f"tiles {name}": np.where(squares, shown["fixed"], shown[name]) for name in ("before", "after")}
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=step[0] / step[1])
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel(case.title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _cut(
    image: Image, plane: tuple[int, float] | None, window: tuple[float, float] | None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Return a slice as a picture in [0, 1], front upward, patient's left on the right; steps of both, mm."""
    values, step = image.array[0].numpy(), [float(h) for h in image.frame.spacing]
    if plane is not None:
        matrix = image.frame.matrix
        order = [int(np.abs(row).argmax()) for row in matrix]  # the array axis along each world axis
        flips = tuple(k for k, axis in enumerate(order) if matrix[k, axis] < 0)
        values, step = np.flip(np.transpose(values, order), flips), [step[axis] for axis in order]
        values = np.take(values, math.floor(plane[1] * values.shape[plane[0]]), plane[0])
        step.pop(plane[0])
        values = values[::-1, ::-1]
    low, high = window or np.percentile(values, (1, 99.5))
    picture = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    return picture.T, (step[1], step[0])
