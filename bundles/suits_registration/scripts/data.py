"""Patients of two modalities."""

from __future__ import annotations

from shared_components.pairs import find_subjects


def find_patients(
    dataset_dir: str,
    fixed_modality: str,
    moving_modality: str,
    image_pattern: str = "*_{modality}.nii.gz",
    label_pattern: str | None = "*_labels.nii.gz",
    every: int = 5,
    datalist: str | None = None,
) -> dict[str, list[dict]]:
    """Split a folder of patients, of each modality by itself: every ``every``-th is validation, the rest training.

    Args:
        dataset_dir: folder with one image a patient.
        fixed_modality: word that stands for {modality} in the names of the fixed images, such as mr.
        moving_modality: likewise.
        image_pattern: glob with one ``*``, which stands for the patient, and {modality}.
        label_pattern: glob with one ``*``, or None.
        every: 5 makes patients 5, 10, 15, ... validation.
        datalist: path of a datalist that is used instead; its patients name their "modality".

    Returns:
        {"training": [...], "validation": [...]} of {"image", "label", "subject", "modality"}.
    """
    if datalist:
        return find_subjects(dataset_dir, datalist=datalist)
    found: dict[str, list[dict]] = {"training": [], "validation": []}
    for modality in (fixed_modality, moving_modality):
        subjects = find_subjects(dataset_dir, image_pattern.format(modality=modality), label_pattern, every)
        for section, items in subjects.items():
            found[section] += [item | {"modality": modality} for item in items]
    return found
