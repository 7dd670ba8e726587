"""Cases for bundles that register T1 brains."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import torch

from shared_components.errors import InputError
from shared_components.images import Image, read_labels
from shared_components.pairs import find_subjects
from shared_components.synth import (
    add_rician_noise,
    bias_field,
    build_demo_pair,
    change_gamma,
    diffeomorphism,
    random_affine,
)
from shared_components.transform import PhysicalField, affine_field, compose_chain
from shared_components.warp import resize

from . import spoil
from .cases import SIDES, Case, CaseSet, Plan, common_plan, made_image

FOLDER, NATIVE = "brain_oasis_miccai2012_2mm", "brain_oasis_miccai2012"
OTHERS = ("brain_colin27_aal/colin27_t1_brain", "brain_multimodal_rniftyreg/mni_brain")
WRONG = (
    "abdomen_totalsegmentator/ct",
    "abdomen_totalsegmentator/ct_thorax_crop",
    "abdomen_totalsegmentator/mr_slab",
    "cardiac_acdc_patient005/ed",
    "hippocampus_msd04/hippocampus_001_t1",
    "knee_dess_pykneer/dess_echo1",
    "knee_mr_fair/R",
    "lung_mr_proton3d/0004_h1",
)


def _eighths(image: Image, what: Plan, brains: Brains, rng: np.random.Generator, _: torch.Generator) -> Image:
    subjects = rng.permutation(brains.trained + brains.held_out)[:8]
    return spoil.shuffle_parts([brains.brain(str(name)) for name in subjects], spoil.derangement(8, rng))


def _organs(image: Image, what: Plan, brains: Brains, rng: np.random.Generator, _: torch.Generator) -> Image:
    subject = what[what["side"]]
    other = str(rng.choice([name for name in brains.trained if name != subject]))
    label, other_label = brains.label(subject), brains.label(other)
    shared = np.intersect1d(np.unique(label), np.unique(other_label))
    order = rng.permutation(shared[shared > 0]).tolist()
    return spoil.swap_organs(image, label, brains.brain(other), other_label, order)


class Brains(CaseSet):
    """Pairs of T1 brains.

    Raises:
        InputError: something is missing in the data.
    """

    GOOD = {
        "two held-out brains": 20,
        "a held-out brain and another": 24,
        "brains of other scanners": 14,
        "the demo brain, known deformation": 2,
        "synthetic deformation of a brain": 40,
    }
    BAD = {
        "eighths of eight brains shuffled": 8,
        "organs filled from other organs": 8,
        "flipped front to back": 5,
        "flipped head to feet": 5,
        "flipped left to right": 4,
        "wrong anatomy": 16,
        "one half empty": 14,
        "saturated": 13,
        "heavy noise": 13,
        "turned by 60 to 180 degrees": 14,
    }
    SPACING_MM = (0.5, 3.0)  # the network sees them at 2 mm, blurred or interpolated
    SPOILERS = {"eighths": _eighths, "organs": _organs}
    ABOUT = """\
Good: both orders of the 5 held-out brains; a held-out and a training brain; brains at 1 mm and two templates
(Colin27, MNI), every two of them; the quickstart's brain and a training or held-out brain under a known deformation
(affine map of up to 8° about each axis, 8 mm and 6 %, then a diffeomorphism of 2 to 5 mm in the mean, at most four
times that; bias, contrast and noise changed)."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        split = find_subjects(self.data / FOLDER, "*_t1.nii.gz")
        self.trained, self.held_out = (
            [str(subject["subject"]) for subject in split[name]] for name in ("training", "validation")
        )
        if len(self.held_out) < 5 or len(self.trained) < 8:
            raise InputError(f"{self.data / FOLDER} holds too few brains to make the cases of; give --data_dir")

    def _image(self, name: str) -> Image:
        return super()._image(f"{name}.nii.gz")

    def brain(self, subject: str) -> Image:
        """Return a brain at 2 mm."""
        return self.image(f"{FOLDER}/{subject}_t1")

    def label(self, subject: str) -> np.ndarray:
        """Return its structures, (*spatial)."""
        return read_labels(self.data / FOLDER / f"{subject}_labels.nii.gz", subject).array[0].numpy()

    def native(self) -> list[str]:
        """Return the names of brains at 1 mm and of other scanners."""
        oasis = sorted(path.name.removesuffix(".nii.gz") for path in (self.data / NATIVE).glob("*_t1.nii.gz"))
        return [*(f"{NATIVE}/{name}" for name in oasis), *OTHERS]

    def training(self) -> Iterator[Image]:
        """Yield the training brains."""
        yield from map(self.brain, self.trained)

    def plans(self, kind: str, rng: np.random.Generator) -> Iterator[Plan]:
        """Yield what tells the cases of a kind apart."""
        held, trained = self.held_out, self.trained
        if kind == "two held-out brains":
            yield from ({"fixed": a, "moving": b} for a, b in rng.permutation(list(permutations(held, 2))).tolist())
        number = 0
        pool = self.native()
        across = rng.permutation([(a, b) for a, b in permutations(pool, 2)]).tolist()
        while True:
            pair = [str(rng.choice(held)), str(rng.choice(trained))]
            a, b = pair if number % 2 else pair[::-1]
            plan: Plan = {"fixed": a, "moving": b, "side": SIDES[number // 2 % 2]}
            if kind == "brains of other scanners":
                plan |= {"files": across[number % len(across)]}
            elif kind.startswith("synthetic"):
                plan |= {"moved_by_mm": float(rng.uniform(2, 5))}
            elif kind == "wrong anatomy":
                plan |= {"file": WRONG[number // 2 % len(WRONG)], "side": SIDES[number % 2 ^ number // 2 % 2]}
            yield plan | common_plan(kind, number, rng)
            number += 1

    def pair(self, case: Case, generator: torch.Generator) -> dict[str, Image]:
        """Return fixed and moving image of a case, before anything is spoilt."""
        what = case.what
        if "files" in what:
            return {side: self.image(name) for side, name in zip(("fixed", "moving"), what["files"], strict=True)}
        if case.kind.startswith("the demo brain"):
            demo = build_demo_pair(case.seed % 1000)
            return {
                "fixed": made_image(demo.fixed, demo.fixed_frame),
                "moving": made_image(demo.moving, demo.moving_frame),
            }
        pair = {side: self.brain(what[side]) for side in ("fixed", "moving")}
        if case.kind.startswith("synthetic"):
            pair["moving"] = deformed(pair["fixed"], what["moved_by_mm"], generator)
        return pair


def deformed(image: Image, mean_mm: float, generator: torch.Generator) -> Image:
    """Return a brain pushed through a random affine map and a diffeomorphism, with bias, contrast and noise changed."""
    frame = image.frame
    coarse = [n // 2 for n in frame.shape]  # as smooth as it is, the field loses nothing on every second voxel
    ddf, _ = diffeomorphism(coarse, generator, mean_mm, 4 * mean_mm, smoothness=40.0, spacing=2 * frame.spacing)
    ddf = resize(ddf, frame.shape)
    bend = PhysicalField(frame, np.einsum("ij,j...->i...", frame.matrix, ddf[0].numpy()).astype(np.float32))
    world = random_affine(generator, 3, 8.0, 8.0, scale=0.06, shear=0.03, center_mm=frame.center_mm)
    values = compose_chain([affine_field(world, frame), bend], frame).resample(image.array, frame)[None]
    values = (values * bias_field(frame.shape, generator, strength=0.2)).float()
    values = change_gamma(values, generator, 0.2, keep_background=True)
    noise = 0.04 * float(values[values > 0].mean())
    return spoil.with_values(image, add_rician_noise(values, noise, generator, keep_background=True)[0, 0].numpy())
