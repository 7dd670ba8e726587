"""Real images through ``register.py r2n2``, out of domain but for the first.

Frames 1 and 2 of a cine MR of the thorax in both orders, two frames of an abdomen whose flip angle changes too, and a
slice of a heart from end-systole to end-diastole (Dice of the right ventricle, the muscle and the left ventricle).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shared_components.geometry import Frame
from shared_components.images import read_image, read_labels, write_image
from shared_components.images.volumes import read_volumes

from .real_cases import BEFORE, Case, show_cases

STATES = {"before": BEFORE, "after": (), "refined by B-splines": ("--refine", "bspline")}
ABDOMEN_FRAMES, ABDOMEN_AT, HEART_AT = (0, 1), 0.5, 0.5  # frames, and parts of the third axis


def show_real(data_dir: str, folder: Path, figures: Path, threads: int) -> dict[str, dict[str, Any]]:
    """Register the cases whose images are there, draw each into ``figures``; return {case: numbers before and after}.

    Args:
        data_dir: folder of the image sets.
        folder: for what is made and for the results.
        figures: for the pictures.
        threads: of the CPU.
    """
    data, cases = Path(data_dir).expanduser(), []
    for name, fixed, moving in (("cine_1_2", 1, 2), ("cine_2_1", 2, 1)):
        cases.append(_cine(data, name, fixed, moving))
    for name, make in (("abdomen", _abdomen), ("heart", _heart)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        cases.append(make(data, folder / name))
    return show_cases("r2n2", filter(None, cases), folder, figures, threads)


def _case(name: str, title: str, fixed: Path, moving: Path, *more: str) -> Case:
    return Case(name, title, ("--fixed", str(fixed), "--moving", str(moving), *more), STATES)


def _cine(data: Path, name: str, fixed: int, moving: int) -> Case | None:
    files = [data / "lung_mr_cine2d" / f"cine_MR_{k}.png" for k in (fixed, moving)]
    if not all(file.is_file() for file in files):
        return None
    return _case(name, f"thorax, cine frame {moving} to frame {fixed}", *files)


def _abdomen(data: Path, place: Path) -> Case | None:
    """Two frames of one slice; the file does not say which way is up."""
    source = data / "abdomen_mr_vfa4d" / "vfa_4d.nii.gz"
    if not source.is_file():
        return None
    frames, files = read_volumes(source, "series"), []
    for side, number in zip(("fixed", "moving"), ABDOMEN_FRAMES, strict=True):
        files.append(place / f"{side}.nii.gz")
        write_image(files[-1], *_slice(frames.array[number].numpy(), frames.frame, ABDOMEN_AT))
    return _case(place.name, "abdomen, two frames, another flip angle", *files)


def _heart(data: Path, place: Path) -> Case | None:
    source, files = data / "cardiac_acdc_patient005", []
    if not (source / "ed.nii.gz").is_file():
        return None
    for side, phase in (("fixed", "ed"), ("moving", "es")):
        image, labels = read_image(source / f"{phase}.nii.gz"), read_labels(source / f"{phase}_gt.nii.gz")
        for kind, one in (("", image), ("_label", labels)):
            files.append(place / f"{side}{kind}.nii.gz")
            write_image(files[-1], *_slice(one.array[0].numpy(), one.frame, HEART_AT))
    fixed, fixed_label, moving, moving_label = files
    more = ("--fixed_label", str(fixed_label), "--moving_label", str(moving_label))
    return _case(place.name, "heart, end-systole to end-diastole", fixed, moving, *more)


def _slice(values: np.ndarray, frame: Frame, at: float) -> tuple[np.ndarray, Frame]:
    """Return a slice across the third axis and its grid; what way the volume lies in the world is left behind."""
    step = [float(size) for size in frame.spacing[:2]]
    return values[:, :, int(at * values.shape[2])], Frame(values.shape[:2], np.diag([*step, 1.0]))
