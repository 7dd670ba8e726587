"""Real images through ``register.py suits``.

CT and MR of two patients' abdomens (Dice of organs labelled by a network), T2-EPI and T1-FLASH of a head (by eye), and
one slice of a head in CT and MR, registered already, to which a known deformation is given (landmarks on a grid).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from shared_components.images import read_image, read_labels, write_image
from shared_components.itk_io import write_affine
from shared_components.warp import warp_image

from .real_cases import BEFORE, Case, deformed_landmarks, show_cases

COMMON = range(1, 8)  # labels that mean the same in both images of the abdomen
KIDNEYS = (2, 3)
MOVED_BY_MM, CONTROL_MM, GRID = 6.0, 48.0, 16  # of the slice: mean displacement, control points, landmarks' spacing
HAND_MADE = {"before": BEFORE, "after": ()}
LEARNED = HAND_MADE | {"hand-made": ("--config", "inference_mind")}  # by the shipped network, and without it


def show_real(data_dir: str, folder: Path, figures: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Register the cases whose images are there, draw each into ``figures``; return {case: numbers before and after}.

    Args:
        data_dir: folder of the image sets.
        folder: for what is made and for the results.
        figures: for the pictures.
        threads: of the CPU.
    """
    cases = []
    for name, make in {"abdomen_ct_mr": _abdomen, "head_epi_t1": _heads, "head_slice": _slice}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        cases.append(make(Path(data_dir).expanduser(), folder / name))
    return show_cases("suits", filter(None, cases), folder, figures, threads)


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
    title = "abdomen, CT to MR of two patients"
    return Case(place.name, title, (*options, *labels), LEARNED, (2, 0.45), (-160.0, 240.0))


def _heads(data: Path, place: Path) -> Case | None:
    """A distorted T2-EPI onto a T1-FLASH, by the weights for brains."""
    source = data / "brain_multimodal_rniftyreg"
    fixed, moving = source / "flash_t1.nii.gz", source / "epi_t2.nii.gz"
    if not fixed.is_file():
        return None
    options = ("--config", "inference_brain", "--fixed", str(fixed), "--moving", str(moving))
    return Case(place.name, "head, T2-EPI to T1-FLASH", options, LEARNED, (2, 0.55))


def _slice(data: Path, place: Path) -> Case | None:
    """A CT slice of a head onto its MR slice, deformed by a known field; hand-made MIND: nothing is trained in 2-D."""
    source = data / "headneck_ctmr_slice2d"
    if not (source / "ct_slice_int16.png").is_file():
        return None
    images = {side: read_image(source / f"{side}_slice_int16.png", f"{side} slice", 2) for side in ("ct", "mr")}
    frame = images["mr"].frame
    mr = images["mr"].array
    inside = (mr[0] > 0.1 * mr.max()).numpy()
    ddf = deformed_landmarks(frame, inside, GRID, place, mean=MOVED_BY_MM, smoothness=CONTROL_MM)
    write_image(place / "moving.nii.gz", warp_image(images["ct"].array[None], ddf)[0], frame)
    write_image(place / "fixed.nii.gz", mr, frame)
    size = json.dumps(list(frame.shape))
    options = ["--config", "inference_mind", "--set", f"size={size}", "--set", "spacing_mm=1.0"]
    options += ["--initial_transform", "header"]
    for side in ("fixed", "moving"):
        options += [f"--{side}", str(place / f"{side}.nii.gz"), f"--{side}_points", str(place / f"{side}.csv")]
    return Case(place.name, "head, a slice of CT to MR, deformed on purpose", tuple(options), HAND_MADE)
