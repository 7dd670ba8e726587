"""Cases for bundles that register CT and MR of the abdomen."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from shared_components.errors import InputError
from shared_components.images import Image
from shared_components.synth import Patient, abdomen_patient
from shared_components.synth.known import Change, known_pair

from . import spoil
from .cases import SIDES, Case, CaseSet, Plan, common_plan, made_image

LAYOUT = "abdomen_totalsegmentator/ct_labels.nii.gz"
WRONG = (
    "brain_oasis_miccai2012_2mm/1000_t1.nii.gz",
    "cardiac_acdc_patient005/ed.nii.gz",
    "knee_dess_pykneer/dess_echo1.nii.gz",
    "knee_mr_fair/R.nii.gz",
    "lung_mr_proton3d/0004_h1.nii.gz",
    "brain_multimodal_rniftyreg/epi_t2.nii.gz",
    "hippocampus_msd04/hippocampus_001_t1.nii.gz",
    "brain_colin27_aal/colin27_t1_brain.nii.gz",
)
PEOPLE, TRAINED = 12, 8
_PEOPLE_SEED, _TRAINED_SEED = 700_000, 0  # two sets of patients, both drawn like those of training
MODALITIES = {"fixed": "mr", "moving": "ct"}
SAME = Change(((4.0, 10.0, 90.0), (1.0, 4.0, 40.0)), 6.0, 10.0, 0.05, 0.03, bias=0.0, gamma=0.0, noise=0.0)


def _eighths(image: Image, what: Plan, abdomens: Abdomens, rng: np.random.Generator, _: torch.Generator) -> Image:
    modality = MODALITIES[what["side"]]
    people = [int(number) for number in rng.permutation(PEOPLE)[:8]]
    return spoil.shuffle_parts([abdomens.view(number, modality) for number in people], spoil.derangement(8, rng))


def _organs(image: Image, what: Plan, abdomens: Abdomens, rng: np.random.Generator, _: torch.Generator) -> Image:
    modality, person = MODALITIES[what["side"]], what[what["side"]]
    other = (person + int(rng.integers(1, PEOPLE))) % PEOPLE
    labels = [abdomens.patient(number, modality).labels for number in (person, other)]
    order = rng.permutation(np.intersect1d(*map(np.unique, labels))[1:]).tolist()
    return spoil.swap_organs(image, labels[0], abdomens.view(other, modality), labels[1], order)


class Abdomens(CaseSet):
    """Pairs of an MR and a CT of synthetic patients.

    Raises:
        InputError: something is missing in the data.
    """

    GOOD = {"two patients": 60, "one patient, deformed": 40}
    BAD = {
        "eighths of eight patients shuffled": 8,
        "organs filled from other organs": 8,
        "flipped front to back": 8,
        "flipped head to feet": 8,
        "flipped left to right": 4,
        "wrong anatomy": 16,
        "one half empty": 12,
        "saturated": 12,
        "heavy noise": 12,
        "turned by 60 to 180 degrees": 12,
    }
    SPACING_MM = (0.5, 6.0)
    SPOILERS = {"eighths": _eighths, "organs": _organs}
    ABOUT = f"""\
Good: MR and CT of {PEOPLE} synthetic patients that no training drew, every second one with organs of a real label
map, two patients or one under a known deformation (4 to 10 mm, then 1 to 4 mm in the mean, and an affine map of up to
6° about each axis). *Organs filled from other organs* are liver, spleen, kidneys and psoas muscles."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        missing = [name for name in (LAYOUT, *WRONG) if not (self.data / name).is_file()]
        if missing:
            raise InputError(f"{self.data} lacks {missing[0]}, which cases are made of; give --data_dir")
        self.patient = lru_cache(maxsize=2 * PEOPLE)(self._patient)

    def _patient(self, number: int, modality: str, seed: int = _PEOPLE_SEED) -> Patient:
        return abdomen_patient(modality, seed + number, layout=self.data / LAYOUT if number % 2 else None)

    def view(self, number: int, modality: str) -> Image:
        """Return the picture of a patient."""
        patient = self.patient(number, modality)
        return made_image(patient.image, patient.frame)

    def training(self) -> Iterator[Image]:
        """Yield both pictures of patients drawn like those of training."""
        for number in range(TRAINED):
            for modality in MODALITIES.values():
                patient = self._patient(number, modality, _TRAINED_SEED)
                yield made_image(patient.image, patient.frame)

    def plans(self, kind: str, rng: np.random.Generator) -> Iterator[Plan]:
        """Yield what tells the cases of a kind apart."""
        for number in range(1000):
            fixed = int(rng.integers(PEOPLE))
            moving = fixed if kind.startswith("one patient") else (fixed + int(rng.integers(1, PEOPLE))) % PEOPLE
            plan: Plan = {"fixed": fixed, "moving": moving, "side": SIDES[number // 2 % 2]}
            if kind == "wrong anatomy":
                plan |= {"file": WRONG[number // 2 % len(WRONG)], "side": SIDES[number % 2 ^ number // 2 % 2]}
            yield plan | common_plan(kind, number, rng)

    def pair(self, case: Case, generator: torch.Generator) -> dict[str, Image]:
        """Return fixed and moving image of a case, before anything is spoilt."""
        pair = {side: self.view(case.what[side], modality) for side, modality in MODALITIES.items()}
        if case.what["fixed"] != case.what["moving"]:
            return pair
        made = known_pair(pair["fixed"], pair["moving"], generator, SAME)
        return {side: made_image(getattr(made, side), pair[side].frame) for side in pair}
