"""The image sets of the SUITS reproduction: the synthetic abdomen, and real brains of which half change contrast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import atomic_path, read_image, read_labels, write_image
from shared_components.pairs import find_subjects
from shared_components.synth import add_rician_noise, bias_field
from shared_components.synth.abdomen import write_abdomen

ABDOMEN_LAYOUT = "abdomen_totalsegmentator/ct_labels.nii.gz"
BRAINS = "brain_oasis_miccai2012_2mm"
LEAST_SUBJECTS = 12
BRAIN_LABELS = {
    1: "cortex",
    2: "cerebral white matter",
    3: "lateral ventricles",
    4: "thalamus and basal ganglia",
    5: "cerebellum",
    6: "brainstem",
    7: "hippocampus and amygdala",
}
_COARSE: dict[int, tuple[int, ...]] = {  # numbers of the BrainCOLOR protocol, as in the MICCAI 2012 challenge
    1: tuple(range(100, 208)),
    2: (44, 45),
    3: (49, 50, 51, 52),
    4: (23, 30, 36, 37, 55, 56, 57, 58, 59, 60),
    5: (38, 39, 40, 41, 71, 72, 73),
    6: (35,),
    7: (31, 32, 47, 48),
}
_T2_MEANS = {  # relative signal of regions: the tissues, with what differs inside them
    "fluid": 1.0,
    "grey": 0.60,
    "white": 0.37,
    "deep": 0.50,
    "pallidum": 0.36,
    "cerebellum": 0.58,
    "arbor": 0.40,
    "stem": 0.43,
    "hippocampus": 0.66,
}
_REGIONS: dict[str, tuple[int, ...]] = {
    "fluid": (4, 11, 15, 46, 49, 50, 51, 52),
    "grey": tuple(range(100, 208)),
    "white": (44, 45),
    "deep": (23, 30, 36, 37, 57, 58, 59, 60),
    "pallidum": (55, 56),
    "cerebellum": (38, 39, 71, 72, 73),
    "arbor": (40, 41),
    "stem": (35, 61, 62),
    "hippocampus": (31, 32, 47, 48),
}
_SCALE = 1000.0


def coarse_labels(labels: np.ndarray) -> np.ndarray:
    """Merge BrainCOLOR numbers to ``BRAIN_LABELS`` (uint8); what belongs to none of them is 0."""
    table = np.zeros(max(256, int(labels.max()) + 1), np.uint8)
    for coarse, fine in _COARSE.items():
        table[list(fine)] = coarse
    return table[labels]


def regions(labels: np.ndarray, tissues: np.ndarray) -> np.ndarray:
    """Return the regions of one contrast (uint8, 0 outside, then in the order of ``_T2_MEANS``).

    Args:
        labels: BrainCOLOR numbers.
        tissues: 1 fluid, 2 grey, 3 white; they decide where the labels name no region.
    """
    names = list(_T2_MEANS)
    table = np.zeros(max(256, int(labels.max()) + 1), np.uint8)
    for name, fine in _REGIONS.items():
        table[list(fine)] = names.index(name) + 1
    rest = np.array([0, *(names.index(name) + 1 for name in ("fluid", "grey", "white"))], np.uint8)[tissues]
    return np.where((tissues > 0) & (table[labels] == 0), rest, table[labels] * (tissues > 0)).astype(np.uint8)


def redraw_t2(t1: np.ndarray, region: np.ndarray, seed: int) -> np.ndarray:
    """Return a T2-like image (float32, >= 0, 0 outside the brain) of a T1 image.

    Every region has a mean of its own, blurred by half a voxel at its outline (partial volume); what the T1 image has
    of texture inside a region comes back with its sign reversed. Bias field and Rician noise follow.

    Args:
        t1: (*spatial), 0 outside.
        region: (*spatial) from ``regions``.
        seed: of means, bias field and noise.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    means = np.zeros(len(_T2_MEANS) + 1)
    means[1:] = np.array(list(_T2_MEANS.values())) * np.exp(0.08 * rng.standard_normal(len(_T2_MEANS)).clip(-2, 2))
    mask = (t1 > 0) & (region > 0)
    texture = np.zeros(t1.shape)
    for value in range(1, len(means)):
        inside = mask & (region == value)
        if inside.sum() > 1:
            values = t1[inside].astype(np.float64)
            texture[inside] = np.clip((values - values.mean()) / max(values.std(), 1e-6), -2, 2)
    weight = gaussian_filter(mask.astype(np.float64), 0.5)
    smooth = gaussian_filter(means[region] * mask, 0.5) / np.maximum(weight, 1e-6)
    image = torch.from_numpy(_SCALE * smooth * (1 - 0.12 * texture) * mask).float()[None, None]
    image = image * bias_field(t1.shape, generator, strength=float(rng.uniform(0.1, 0.3)))
    image = add_rician_noise(image, float(rng.uniform(0.01, 0.03)) * _SCALE, generator, keep_background=True)
    return image[0, 0].numpy()


def write_brains(source_dir: str | Path, folder: str | Path, seed: int = 0) -> str:
    """Write real brains in two contrasts, half of the subjects in each, with coarse labels; return the datalist.

    Of n subjects of a contrast n // 3 are for tests and n // 6 for validation: with 25 subjects 6 + 7 train, 2 + 2
    validate, and 4 x 4 pairs test. No subject is in two sections or in both contrasts.

    Args:
        source_dir: with ``*_t1.nii.gz``, ``*_labels.nii.gz`` (BrainCOLOR numbers) and ``*_tissues.nii.gz``.
        folder: made if absent; files are replaced.
        seed: of the division and of the drawn contrasts.

    Returns:
        the path of ``datalist.json``: "training", "validation" and "test" of single subjects {"image", "label",
        "subject", "modality"}, modality "t1" (the real image) or "t2" (drawn).

    Raises:
        InputError: too few subjects, or a file is missing or unreadable.
    """
    sections: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for section, modality, subject, own in divide_brains(source_dir, seed):
        sections[section].append(_write_brain(Path(source_dir), Path(folder), subject, modality, own))
    path = Path(folder) / "datalist.json"
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(sections, indent=1) + "\n")
    return str(path)


def divide_brains(source_dir: str | Path, seed: int = 0) -> list[tuple[str, str, str, int]]:
    """Return section, modality, subject and the seed of its drawn contrast of every brain, see ``write_brains``.

    Raises:
        InputError: too few subjects.
    """
    found = find_subjects(source_dir, "*_t1.nii.gz", "*_labels.nii.gz")
    names = sorted(item["subject"] for items in found.values() for item in items)
    if len(names) < LEAST_SUBJECTS:
        raise InputError(f"{source_dir} has {len(names)} images *_t1.nii.gz, {LEAST_SUBJECTS} are needed; check it")
    order = [names[k] for k in np.random.default_rng(seed).permutation(len(names))]
    half, plan = len(order) // 2, []
    for modality, subjects in (("t1", order[:half]), ("t2", order[half:])):
        tests, choosing = len(subjects) // 3, len(subjects) // 6
        for index, subject in enumerate(subjects):
            section = "test" if index < tests else "validation" if index < tests + choosing else "training"
            own = int(np.random.SeedSequence([seed, names.index(subject)]).generate_state(1)[0])
            plan.append((section, modality, subject, own))
    return plan


def _write_brain(source: Path, folder: Path, subject: str, modality: str, seed: int) -> dict[str, str]:
    t1 = read_image(source / f"{subject}_t1.nii.gz")
    labels, tissues = (read_labels(source / f"{subject}_{kind}.nii.gz") for kind in ("labels", "tissues"))
    frame: Frame = t1.frame
    if not (frame.same_grid(labels.frame) and frame.same_grid(tissues.frame)):
        raise InputError(f"image, labels and tissues of subject {subject} in {source} differ in their grid")
    values, fine, parts = (item.array[0].numpy() for item in (t1, labels, tissues))
    image = values if modality == "t1" else redraw_t2(values, regions(fine, parts), seed)
    item = {"image": f"{subject}_{modality}.nii.gz", "label": f"{subject}_labels.nii.gz"}
    write_image(folder / item["image"], image, frame, np.int16)
    write_image(folder / item["label"], coarse_labels(fine), frame)
    return {**item, "subject": subject, "modality": modality}


def write_sets(data_dir: str | Path, folder: str | Path, seed: int = 0) -> dict[str, str]:
    """Write both sets to ``folder``/abdomen and ``folder``/brains and return their datalists by these names.

    Where the data folder lacks the real organ shapes, all abdomens are procedural; where it lacks the brains, there is
    no set of them.
    """
    data, folder = Path(data_dir).expanduser(), Path(folder)
    layout = data / ABDOMEN_LAYOUT
    lists = {"abdomen": write_abdomen(folder / "abdomen", seed=seed, layout=layout if layout.is_file() else None)}
    if (data / BRAINS).is_dir():
        lists["brains"] = write_brains(data / BRAINS, folder / "brains", seed)
    return lists
