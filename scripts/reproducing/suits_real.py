"""Real images through ``register.py suits``: what comes out, as pictures with the numbers that there are.

CT and MR of two patients' abdomens (Dice of organs labelled by a network), T2-EPI and T1-FLASH of a head (by eye), and
one slice of a head in CT and MR, registered already, to which a known deformation is given (landmarks on a grid).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from register import main as register

from shared_components.errors import InputError
from shared_components.images import Image, read_image, read_labels, write_image
from shared_components.itk_io import write_affine
from shared_components.points import write_points
from shared_components.synth import diffeomorphism
from shared_components.warp import warp_image

from .runs import write_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

COMMON = range(1, 8)  # labels that mean the same in both images of the abdomen
KIDNEYS = (2, 3)
MOVED_BY_MM, CONTROL_MM, GRID = 6.0, 48.0, 16  # of the slice: mean displacement, control points, landmarks' spacing


@dataclass(frozen=True)
class Case:
    """A registration of real images.

    Attributes:
        title: in the picture.
        options: of ``register.py suits``.
        plane: axis across the picture and where along it (part of its length); None for 2-D.
        window: grey values of the moving image from black to white; default: most of what there is.
    """

    title: str
    options: tuple[str, ...]
    plane: tuple[int, float] | None = None
    window: tuple[float, float] | None = None


def show_real(data_dir: str, folder: Path, figures: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Register the cases whose images are there, draw each into ``figures``; return {case: numbers before and after}.

    Args:
        data_dir: folder of the image sets.
        folder: for what is made and for the results.
        figures: for the pictures.
        threads: of the CPU.
    """
    found = {}
    makers: dict[str, Callable[[Path, Path], Case | None]] = {
        "abdomen_ct_mr": _abdomen,
        "head_epi_t1": _heads,
        "head_slice": _slice,
    }
    for name, make in makers.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        case = make(Path(data_dir).expanduser(), place)
        if case is None:
            continue
        numbers = {}
        states: dict[str, tuple[str, ...]] = {"before": ("--set", "stage=identity"), "after": ()}
        if "--config" not in case.options:  # by the shipped network: by hand-made features too
            states["hand-made"] = ("--config", "inference_mind")
        for state, more in states.items():
            out = ("--output_dir", str(place / state), "--threads", str(threads), "--device", "cpu")
            if register(["suits", *case.options, *out, *more]):
                raise InputError(f"register.py suits could not register {name}; its last line says why")
            numbers[state] = json.loads((place / state / "metrics.json").read_text())
        _draw(case, place, figures / f"real_{name}.png")
        found[name] = numbers
    write_json(folder / "real.json", found)
    return found


def _abdomen(data: Path, place: Path) -> Case | None:
    """CT onto MR of another patient; the kidneys' centroids say where to begin, the organs common to both count."""
    source = data / "abdomen_totalsegmentator"
    fixed, moving = source / "mr_slab.nii.gz", source / "ct.nii.gz"
    if not fixed.is_file() or not moving.is_file():
        return None
    centres = []
    for side, file in (("fixed", "mr_slab_labels.nii.gz"), ("moving", "ct_labels.nii.gz")):
        labels = read_labels(source / file)
        values = labels.array[0].numpy()
        write_image(place / f"{side}_labels.nii.gz", np.where(np.isin(values, COMMON), values, 0), labels.frame)
        middle = np.mean([np.argwhere(values == kidney).mean(0) for kidney in KIDNEYS], axis=0)
        centres.append(labels.frame.to_mm(middle))
    shift = np.eye(4)
    shift[:3, 3] = centres[1] - centres[0]
    start = place / "kidneys.tfm"
    write_affine(start, shift)
    options = ("--fixed", str(fixed), "--moving", str(moving), "--initial_transform", str(start))
    labels = [
        word for side in ("fixed", "moving") for word in (f"--{side}_label", str(place / f"{side}_labels.nii.gz"))
    ]
    return Case("abdomen, CT to MR of two patients", (*options, *labels), (2, 0.45), (-160.0, 240.0))


def _heads(data: Path, place: Path) -> Case | None:
    """A distorted T2-EPI onto a T1-FLASH, by the weights for brains."""
    source = data / "brain_multimodal_rniftyreg"
    fixed, moving = source / "flash_t1.nii.gz", source / "epi_t2.nii.gz"
    if not fixed.is_file():
        return None
    options = ("--config", "inference_brain", "--fixed", str(fixed), "--moving", str(moving))
    return Case("head, T2-EPI to T1-FLASH", options, (2, 0.55))


def _slice(data: Path, place: Path) -> Case | None:
    """A CT slice of a head onto its MR slice, deformed by a known field; hand-made MIND: nothing is trained in 2-D."""
    source = data / "headneck_ctmr_slice2d"
    if not (source / "ct_slice_int16.png").is_file():
        return None
    images = {side: read_image(source / f"{side}_slice_int16.png", f"{side} slice", 2) for side in ("ct", "mr")}
    frame = images["mr"].frame
    random = torch.Generator().manual_seed(0)
    ddf, inverse = diffeomorphism(frame.shape, random, mean=MOVED_BY_MM, smoothness=CONTROL_MM)
    moving = warp_image(images["ct"].array[None], ddf)[0]
    write_image(place / "moving.nii.gz", moving, frame)
    mr = images["mr"].array
    write_image(place / "fixed.nii.gz", mr, frame)
    inside = mr[0] > 0.1 * mr.max()
    at = [p for p in np.ndindex(*frame.shape) if all(k % GRID == GRID // 2 for k in p) and inside[p]]
    points = np.array(at, dtype=float)
    landed = points + np.array([inverse[0, :, i, j].numpy() for i, j in at])
    for side, where in (("fixed", points), ("moving", landed)):
        write_points(place / f"{side}.csv", frame.to_mm(where))
    size = json.dumps(list(frame.shape))
    options = ["--config", "inference_mind", "--set", f"size={size}", "--set", "spacing_mm=1.0"]
    options += ["--initial_transform", "header"]
    for side in ("fixed", "moving"):
        options += [f"--{side}", str(place / f"{side}.nii.gz"), f"--{side}_points", str(place / f"{side}.csv")]
    return Case("head, a slice of CT to MR, deformed on purpose", tuple(options))


def _draw(case: Case, place: Path, path: Path) -> None:
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
