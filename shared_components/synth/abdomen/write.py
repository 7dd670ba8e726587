"""A data set of unpaired CT and MR patients on disk, with its datalist."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...images import atomic_path, sha256_of, write_image
from ..settings import keep_settings
from .patient import MODALITIES, SIZE, SPACING_MM, abdomen_patient
from .real import Layout, read_layout


def write_abdomen(
    folder: str | os.PathLike[str],
    count: int = 20,
    seed: int = 0,
    spacing_mm: float = SPACING_MM,
    size: tuple[int, int, int] = SIZE,
    layout: str | os.PathLike[str] | None = None,
) -> str:
    """Write patients ``ct_01_ct.nii.gz``, ``ct_01_labels.nii.gz``, ..., ``mr_01_mr.nii.gz``, ... and their datalist.

    No two images show the same patient. Of ``count`` patients a modality the last quarter is for tests, as in the
    paper (15 and 5: 225 training and 25 test pairs); for validation a quarter more is drawn besides. Where a layout is
    given, every second patient has its organ shapes. Files that are there already are kept, so that a stopped run can
    be continued with the same settings.

    Args:
        folder: made if absent.
        count: patients a modality for training and test, at least 4.
        seed: of the data set.
        spacing_mm: of the cubic voxels.
        size: voxels along R, A, S.
        layout: path of a real label map, see ``read_layout``.

    Returns:
        the path of ``datalist.json`` with the sections "training", "validation" and "test" of single subjects
        {"image", "label", "subject", "modality"}, paths relative to it.

    Raises:
        InputError: fewer than 4 patients are wanted, the layout cannot be read, or the folder holds patients of other
            settings.
    """
    if count < 4:
        raise InputError(f"a data set of the abdomen needs at least 4 patients a modality, not {count}; raise --count")
    shapes = None if layout is None else read_layout(layout)
    path = Path(folder)
    digest = None if layout is None else sha256_of(layout)
    settings = {"count": count, "seed": seed, "spacing_mm": spacing_mm, "size": list(size), "layout": digest}
    keep_settings(path, settings, "patients")
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    tests = count // 4
    for kind, modality in enumerate(MODALITIES):
        for index in range(count + tests):
            section = "training" if index < count - tests else "test" if index < count else "validation"
            own = int(np.random.SeedSequence([seed, kind, index]).generate_state(1)[0])
            shape = shapes if index % 2 else None
            sections[section].append(_write_patient(path, modality, index, own, tuple(size), spacing_mm, shape))
    datalist = path / "datalist.json"
    with atomic_path(datalist) as temporary:
        temporary.write_text(json.dumps(sections, indent=1) + "\n")
    return str(datalist)


def _write_patient(
    folder: Path, modality: str, index: int, seed: int, size: tuple[int, ...], spacing_mm: float, layout: Layout | None
) -> dict[str, str]:
    """Write one patient where it is not there yet, and return its item of the datalist."""
    name = f"{modality}_{index + 1:02d}"
    item = {"image": f"{name}_{modality}.nii.gz", "label": f"{name}_labels.nii.gz"}
    if not all((folder / file).is_file() for file in item.values()):
        patient = abdomen_patient(modality, seed, size, spacing_mm, layout)
        write_image(folder / item["label"], patient.labels, patient.frame)
        write_image(folder / item["image"], patient.image, patient.frame, np.int16)
    return {**item, "subject": name, "modality": modality}
