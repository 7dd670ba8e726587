"""Cases for bundles that register slices of one breathing or beating body."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import permutations
from pathlib import Path

import numpy as np
import torch

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import Image, read_image
from shared_components.images.volumes import read_volumes
from shared_components.synth import breathing_series, procedural_thorax
from shared_components.synth.thorax import draw_breath

from . import spoil
from .cases import SIDES, Case, CaseSet, Plan, common_plan, made_image

CINE = ("lung_mr_cine2d/cine_MR_1.png", "lung_mr_cine2d/cine_MR_2.png")
HEART, ABDOMEN = "cardiac_acdc_patient005", "abdomen_mr_vfa4d/vfa_4d.nii.gz"
WRONG = (
    "hands_xray/hands_R.png",
    "brain2d_oasis100/oasis2d_0000.png",
    "hands_xray/hands_T.png",
    "headneck_ctmr_slice2d/ct_slice_int8.png",
    "fair_2d_pairs/MRIhead-R.png",
    "brain2d_oasis100/oasis2d_0010.png",
)
PEOPLE, FRAMES, ROWS, TRAINED = 12, 8, 128, 40
_PEOPLE_SEED, _TRAINED_SEED = 900_000, 0  # two sets of people, both drawn like those of training


def _quarters(image: Image, what: Plan, thoraces: Thoraces, rng: np.random.Generator, _: torch.Generator) -> Image:
    people = rng.permutation(PEOPLE)[:4]
    frames = [thoraces.breathing(int(number))[0] for number in people]
    return spoil.shuffle_parts(frames, spoil.derangement(4, rng))


def _another(image: Image, what: Plan, thoraces: Thoraces, *_: object) -> Image:
    return thoraces.breathing(what["other"])[what["frames"][0]]


class Thoraces(CaseSet):
    """Pairs of frames of one body.

    Raises:
        InputError: something is missing in the data.
    """

    GOOD = {
        "two frames of a synthetic chest": 70,
        "frames of a real cine": 2,
        "slices of a heart, end-diastole and end-systole": 16,
        "frames of an abdomen, another flip angle": 12,
    }
    BAD = {
        "quarters of four chests shuffled": 12,
        "another person's frame": 12,
        "wrong anatomy": 18,
        "flipped upside down": 5,
        "flipped sideways": 5,
        "one half empty": 12,
        "saturated": 12,
        "heavy noise": 12,
        "turned by 60 to 180 degrees": 12,
    }
    NDIM = 2
    SPACING_MM = (0.7, 5.0)
    SPOILERS = {"quarters": _quarters, "another": _another}
    ABOUT = f"""\
Good: two of {FRAMES} frames of {PEOPLE} synthetic chests that no training drew (front or side, 384 mm, 128 × 128); two
real cine frames in both orders; eight slices of a heart, end-diastole and end-systole, in both orders; two slices of an
abdomen under two of three flip angles. Spoilt: three synthetic pairs and a heart in turn, of the first two kinds
synthetic ones only. Wrong anatomy (hands, heads) fills the place of the image."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        needed = (*CINE, *(f"{HEART}/{phase}.nii.gz" for phase in ("ed", "es")), ABDOMEN, *WRONG)
        if missing := [name for name in needed if not (self.data / name).is_file()]:
            raise InputError(f"{self.data} lacks {missing[0]}, which cases are made of; give --data_dir")
        self.breathing = lru_cache(maxsize=PEOPLE)(self._breathing)

    def _breathing(self, number: int, seed: int = _PEOPLE_SEED) -> list[Image]:
        """Return the frames of a synthetic person, as a scanner would write them."""
        generator = torch.Generator().manual_seed(seed + number)
        thorax = procedural_thorax(generator, (ROWS, ROWS), ("coronal", "sagittal")[number % 2])
        frames = breathing_series(thorax, FRAMES, generator, breath=draw_breath(generator)).frames
        frame = Frame((ROWS, ROWS), np.diag([-thorax.spacing_mm, -thorax.spacing_mm, 1.0]))
        return [made_image(one[0].numpy().T, frame) for one in frames]

    def training(self) -> Iterator[Image]:
        """Yield frames of synthetic chests drawn like those of training."""
        for number in range(TRAINED):
            yield self._breathing(number, _TRAINED_SEED)[number % FRAMES]

    def heart(self, phase: str, k: int) -> Image:
        """Return a slice of the heart."""
        volume = read_image(self.data / HEART / f"{phase}.nii.gz")
        return _slice(volume.array[0].numpy(), volume.frame, k)

    def plans(self, kind: str, rng: np.random.Generator) -> Iterator[Plan]:
        """Yield what tells the cases of a kind apart."""
        of_hearts = kind in self.BAD and kind.split(" ")[0] not in self.SPOILERS
        for number in range(1000):
            frames = [int(k) for k in rng.permutation(FRAMES)[:2]]
            side = SIDES[number // 2 % 2]
            plan: Plan = {"person": int(rng.integers(PEOPLE)), "frames": frames, "side": side}
            if kind == "frames of a real cine":
                plan["files"] = CINE[:: 1 - 2 * (number % 2)]
            elif kind.startswith("slices of a heart"):
                plan["slice"], plan["phases"] = 1 + number // 2 % 8, ["ed", "es"][:: 1 - 2 * (number % 2)]
            elif of_hearts and number % 4 == 3:
                plan["slice"], plan["phases"] = 1 + number // 4 % 8, ["ed", "es"][:: 1 - 2 * (number // 8 % 2)]
                plan["side"] = SIDES[number // 4 % 2]
            elif kind.startswith("frames of an abdomen"):
                flips = list(permutations((1, 2, 3), 2))
                plan["abdomen"], plan["flips"] = 8 + 2 * (number // 6), flips[number % 6]
            if kind.startswith("another"):
                plan["other"] = (plan["person"] + int(rng.integers(1, PEOPLE))) % PEOPLE
            elif kind == "wrong anatomy":
                plan["file"] = WRONG[number % len(WRONG)]
            yield plan | common_plan(kind, number, rng, 2)

    def pair(self, case: Case, generator: torch.Generator) -> dict[str, Image]:
        """Return fixed and moving image of a case, before anything is spoilt."""
        what = case.what
        if "files" in what:
            found = [self.image(name) for name in what["files"]]
        elif "slice" in what:
            found = [self.heart(phase, what["slice"]) for phase in what["phases"]]
        elif "abdomen" in what:
            volumes = read_volumes(self.data / ABDOMEN, "series")
            found = [_slice(volumes.array[k].numpy(), volumes.frame, what["abdomen"]) for k in what["flips"]]
        else:
            found = [self.breathing(what["person"])[k] for k in what["frames"]]
        return dict(zip(("fixed", "moving"), found, strict=True))

    def stranger(self, what: Plan, image: Image) -> Image:
        """Return the wrong anatomy of a case, spread over the field of view of ``image``."""
        wrong, step = self.image(what["file"]), np.linalg.norm(image.frame.matrix, axis=0)
        scale = float((step * image.frame.shape).max()) / max(wrong.frame.shape)
        matrix = image.frame.matrix / step * scale
        corner = image.frame.center_mm - matrix @ ((np.asarray(wrong.frame.shape) - 1) / 2)
        affine = np.eye(3)
        affine[:2, :2], affine[:2, 2] = matrix, corner
        return replace(wrong, frame=Frame(tuple(wrong.frame.shape), affine))


def _slice(values: np.ndarray, frame: Frame, k: int) -> Image:
    """Return a slice across the third axis; what way the volume lies in the world is left behind."""
    step = [float(size) for size in frame.spacing[:2]]
    return made_image(values[:, :, k], Frame(values.shape[:2], np.diag([*step, 1.0])))
