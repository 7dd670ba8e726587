"""The hippocampus subjects (Medical Segmentation Decathlon, task 4), as one folder or as the Decathlon ships them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared_components.errors import InputError
from shared_components.images.files import atomic_path
from shared_components.pairs import find_subjects

TASK = "Task04_Hippocampus"
Split = dict[str, list[dict[str, Any]]]


def find_hippocampi(dataset_dir: str | Path) -> Split:
    """Split the subjects of a folder by sorted name: every fifth is validation.

    Args:
        dataset_dir: holds ``*_t1.nii.gz`` and ``*_label.nii.gz``, or ``imagesTr`` and ``labelsTr`` of the Decathlon, or
            its folder ``Task04_Hippocampus``.

    Returns:
        {"training": [...], "validation": [...]} of {"image", "label", "subject"}, absolute paths.

    Raises:
        InputError: no such folder, too few subjects, or labels that are missing.
    """
    folder = Path(dataset_dir).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(
            f"there is no folder {dataset_dir} with the hippocampus images; give it with --dataset_dir, "
            "or add --download to get it there with MONAI's DecathlonDataset (28 MB)"
        )
    split = find_subjects(folder, "*_t1.nii.gz", "*_label.nii.gz")
    for task in (folder / TASK, folder):
        if not split["training"] and (task / "imagesTr").is_dir():
            split = _decathlon(task)
    if len(split["validation"]) < 2:
        raise InputError(
            f"{dataset_dir} has {sum(map(len, split.values()))} subjects, ten are the least; it must hold *_t1.nii.gz "
            f"and *_label.nii.gz, or the folders imagesTr and labelsTr of {TASK}"
        )
    for subject in (*split["training"], *split["validation"]):
        if "label" not in subject:
            raise InputError(f"subject {subject['subject']} in {dataset_dir} has no label file; add it or move it away")
    return split


def _decathlon(task: Path) -> Split:
    """Images and labels have the same names in two folders; "._" files of a foreign file system are passed over."""
    split = find_subjects(task / "imagesTr", "hippocampus_*.nii.gz", None)
    for subject in (*split["training"], *split["validation"]):
        label = task / "labelsTr" / Path(subject["image"]).name
        subject["subject"] = f"hippocampus_{subject['subject']}"
        if label.is_file():
            subject["label"] = str(label)
    return split


def download(dataset_dir: str | Path) -> None:
    """Download and unpack the Decathlon's task 4 into ``dataset_dir``, unless it is there."""
    from monai.apps import DecathlonDataset

    root = Path(dataset_dir).expanduser()
    if (root / TASK / "imagesTr").is_dir() or any(root.glob("*_t1.nii.gz")):
        return
    root.mkdir(parents=True, exist_ok=True)
    DecathlonDataset(str(root), TASK, "training", download=True, cache_num=0)


def write_datalist(split: Split, path: Path) -> str:
    """Write the split as a datalist for the configuration; return its absolute path."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(split, indent=1))
    return str(path.resolve())
