"""The two hundred cases: which pairs, made how, in which half. Everything is drawn from one seed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared_components.errors import InputError
from shared_components.images import Image, read_image, read_labels
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

BRAINS, NATIVE = "brain_oasis_miccai2012_2mm", "brain_oasis_miccai2012"
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
Pair = tuple[Image, Image]


@dataclass(frozen=True)
class Case:
    """One pair to be registered and judged.

    Attributes:
        name: of its record.
        kind: row of the table.
        spoilt: whether it ought to be flagged.
        half: 0, limits are chosen on it; 1, they are reported on it.
        seed: of all that is drawn.
        what: names of files and numbers that ``make`` takes.
    """

    name: str
    kind: str
    spoilt: bool
    half: int
    seed: int
    what: dict[str, Any] = field(default_factory=dict)


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


class Library:
    """The images that cases are made of.

    Args:
        data: folder of the shared data.

    Raises:
        InputError: something is missing there.
    """

    def __init__(self, data: Path) -> None:
        self.data = Path(data)
        split = find_subjects(self.data / BRAINS, "*_t1.nii.gz")
        self.trained, self.held_out = (
            [str(subject["subject"]) for subject in split[name]] for name in ("training", "validation")
        )
        if len(self.held_out) < 5 or len(self.trained) < 8:
            raise InputError(f"{self.data / BRAINS} holds too few brains to make the cases of; give --data_dir")
        self.image = lru_cache(maxsize=12)(self._image)

    def _image(self, name: str) -> Image:
        return read_image(self.data / f"{name}.nii.gz", name)

    def brain(self, subject: str) -> Image:
        """Return a brain at 2 mm."""
        return self.image(f"{BRAINS}/{subject}_t1")

    def label(self, subject: str) -> np.ndarray:
        """Return its structures, (*spatial)."""
        return read_labels(self.data / BRAINS / f"{subject}_labels.nii.gz", subject).array[0].numpy()

    def native(self) -> list[str]:
        """Return the names of brains at 1 mm and of other scanners."""
        oasis = sorted(path.name.removesuffix(".nii.gz") for path in (self.data / NATIVE).glob("*_t1.nii.gz"))
        return [*(f"{NATIVE}/{name}" for name in oasis), *OTHERS]


def list_cases(library: Library, seed: int = 0) -> list[Case]:
    """Return all cases; each kind is divided between the two halves, one and one."""
    cases, first = [], 0  # the half of a kind's first case: kinds of odd number take turns
    for spoilt, kinds in ((False, GOOD), (True, BAD)):
        for kind, count in kinds.items():
            short = kind.replace(",", "").replace(" ", "_")
            rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
            for number, what in zip(range(count), _plans(kind, library, rng), strict=False):
                name = f"{'bad' if spoilt else 'good'}-{short}-{number:02d}"
                cases.append(Case(name, kind, spoilt, (number + first) % 2, int(rng.integers(1 << 31)), what))
            first = (first + count) % 2
    return cases


def _plans(kind: str, library: Library, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Yield what tells the cases of a kind apart."""
    held, trained = library.held_out, library.trained
    if kind == "two held-out brains":
        yield from ({"fixed": a, "moving": b} for a, b in rng.permutation(list(permutations(held, 2))).tolist())
    number = 0
    pool = library.native()
    across = rng.permutation([(a, b) for a, b in permutations(pool, 2)]).tolist()
    while True:
        pair = [str(rng.choice(held)), str(rng.choice(trained))]
        a, b = pair if number % 2 else pair[::-1]
        plan: dict[str, Any] = {"fixed": a, "moving": b, "side": ("moving", "fixed")[number // 2 % 2]}
        if kind == "brains of other scanners":
            plan |= {"files": across[number % len(across)]}
        elif kind.startswith("synthetic"):
            plan |= {"moved_by_mm": float(rng.uniform(2, 5))}
        elif kind == "wrong anatomy":
            plan |= {"file": WRONG[number // 2 % len(WRONG)], "side": ("moving", "fixed")[number % 2 ^ number // 2 % 2]}
        elif kind.startswith("flipped"):
            plan |= {"axis": ("left", "front", "head").index(kind.split()[1])}
        elif kind == "one half empty":
            plan |= {"axis": number // 2 % 3, "upper": bool(rng.integers(2))}
        elif kind == "saturated":
            plan |= {"percentile": float(rng.uniform(5, 40))}
        elif kind == "heavy noise":
            plan |= {"strength": float(rng.uniform(0.4, 1.0))}
        elif kind.startswith("turned"):
            plan |= {"degrees": float(rng.uniform(60, 180)), "axis": rng.normal(size=3).tolist()}
        yield plan
        number += 1


def make(case: Case, library: Library) -> Pair:
    """Return fixed and moving image of a case."""
    what, generator = case.what, torch.Generator().manual_seed(case.seed)
    rng = np.random.default_rng(case.seed)
    if "files" in what:
        return tuple(library.image(name) for name in what["files"])
    if case.kind.startswith("the demo brain"):
        demo = build_demo_pair(case.seed % 1000)
        return _image(demo.fixed, demo.fixed_frame), _image(demo.moving, demo.moving_frame)
    pair = {side: library.brain(what[side]) for side in ("fixed", "moving")}
    if case.kind.startswith("synthetic"):
        return pair["fixed"], deformed(pair["fixed"], what["moved_by_mm"], generator)
    if case.spoilt:
        side = what["side"]
        pair[side] = _SPOILERS[case.kind.split(" ")[0]](pair[side], what, library, rng, generator)
    return pair["fixed"], pair["moving"]


def _image(values: np.ndarray, frame: Any) -> Image:
    return Image(torch.from_numpy(values.astype(np.float32))[None], frame, Path("made"), np.dtype("float32"))


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


def _eighths(
    image: Image, what: dict[str, Any], library: Library, rng: np.random.Generator, _: torch.Generator
) -> Image:
    subjects = rng.permutation(library.trained + library.held_out)[:8]
    order = rng.permutation(8)
    while (order == np.arange(8)).any():
        order = rng.permutation(8)
    return spoil.shuffle_octants([library.brain(str(name)) for name in subjects], order.tolist())


def _organs(
    image: Image, what: dict[str, Any], library: Library, rng: np.random.Generator, _: torch.Generator
) -> Image:
    subject = what[what["side"]]
    other = str(rng.choice([name for name in library.trained if name != subject]))
    label, other_label = library.label(subject), library.label(other)
    shared = np.intersect1d(np.unique(label), np.unique(other_label))
    order = rng.permutation(shared[shared > 0]).tolist()
    return spoil.swap_organs(image, label, library.brain(other), other_label, order)


_SPOILERS: dict[str, Callable[..., Image]] = {
    "eighths": _eighths,
    "organs": _organs,
    "wrong": lambda image, what, library, *_: library.image(what["file"]),
    "one": lambda image, what, *_: spoil.cut_half(image, what["axis"], what["upper"]),
    "saturated": lambda image, what, *_: spoil.saturate(image, what["percentile"]),
    "flipped": lambda image, what, *_: spoil.flip(image, what["axis"]),
    "heavy": lambda image, what, library, rng, generator: spoil.drown(image, what["strength"], generator),
    "turned": lambda image, what, *_: spoil.turn(image, what["degrees"], what["axis"]),
}
