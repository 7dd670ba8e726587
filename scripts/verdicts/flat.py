"""Cases for bundles that find the affine map between slices or X-rays of different people."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from shared_components.errors import InputError
from shared_components.images import Image
from shared_components.pairs import find_subjects
from shared_components.synth.known import Change, known_pair

from . import spoil
from .cases import SIDES, Case, CaseSet, Plan, common_plan, made_image

HANDS, BRAINS, OTHERS = "hands_mednist64", "brain2d_mindboggle_trt20", "brain2d_oasis100"
PATTERNS = {HANDS: "*.jpeg", BRAINS: "*_t1.nii.gz", OTHERS: "*.png"}
WRONG = (
    "lung_mr_cine2d/cine_MR_1.png",
    "headneck_ctmr_slice2d/ct_slice_int8.png",
    "fair_2d_pairs/PET-CT-CT.png",
    "lung_mr_cine2d/lung_MRI_slice.png",
)


def _quarters(image: Image, what: Plan, flat: FlatImages, rng: np.random.Generator, _: torch.Generator) -> Image:
    names = flat.trained[HANDS if what["fixed"].startswith(HANDS) else OTHERS]
    return spoil.shuffle_parts(
        [flat.image(str(name)) for name in rng.permutation(names)[:4]], spoil.derangement(4, rng)
    )


def _negative(image: Image, *_: object) -> Image:
    values = image.array[0].numpy()
    return spoil.with_values(image, values.max() + values.min() - values)


class FlatImages(CaseSet):
    """Pairs of hands, and of slices of brains.

    Raises:
        InputError: something is missing in the data.
    """

    GOOD = {
        "two held-out hands": 30,
        "a held-out brain slice and another": 15,
        "two held-out slices of aligned brains": 15,
        "a hand, turned by up to 60 degrees and bent": 25,
        "a brain slice, turned by up to 60 degrees and bent": 15,
    }
    BAD = {
        "quarters of four images shuffled": 12,
        "flipped left to right": 6,
        "wrong anatomy": 24,
        "one half empty": 16,
        "saturated": 14,
        "heavy noise": 14,
        "negative": 14,
    }
    NDIM = 2
    SPACING_MM = (0.1, 10.0)  # the network stretches every image over its grid
    SPOILERS = {"quarters": _quarters, "negative": _negative}
    ABOUT = """\
Good: held-out hands (X-rays) in pairs, slices of brains, of which one at least is held out, and one image of such a
pair under a known map (affine, up to 60° and 5 % of its longest side, then bent by 0.3 to 1.5 % of that; bias,
contrast and noise changed). Spoilt: pairs of hands and of slices in turn, mirrored are hands only. *Wrong anatomy*: a
hand for a slice, a slice for a hand, or another part of the body; *negative*: dark is bright. Turned images are no
spoilt ones here: to turn them back is what the method is for."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self.trained, self.held_out = {}, {}
        for folder, pattern in PATTERNS.items():
            split = find_subjects(self.data / folder, pattern, None)
            for found, section in ((self.trained, "training"), (self.held_out, "validation")):
                found[folder] = [str(Path(item["image"]).relative_to(self.data)) for item in split[section]]
        if any(len(names) < 3 for names in self.held_out.values()):
            raise InputError(f"{self.data} holds too few hands or slices to make the cases of; give --data_dir")

    def training(self) -> Iterator[Image]:
        """Yield training images of all three kinds, twenty of each at most."""
        for names in self.trained.values():
            yield from map(self.image, names[:: math.ceil(len(names) / 20)])

    def plans(self, kind: str, rng: np.random.Generator) -> Iterator[Plan]:
        """Yield what tells the cases of a kind apart."""
        held, trained = self.held_out, self.trained
        pools = {"brain": list(held[BRAINS]), "hand": list(held[HANDS]), "aligned": list(held[OTHERS])}
        for number in range(1000):
            of = next((name for name in ("aligned", "hand", "brain") if name in kind), ("hand", "aligned")[number % 2])
            of = "hand" if kind.startswith("flipped") else of
            first = str(rng.choice(pools[of]))
            partners = trained[BRAINS] if of == "brain" else [name for name in pools[of] if name != first]
            pair = [first, str(rng.choice(partners))]
            plan: Plan = {"side": SIDES[number // 2 % 2]}
            plan |= dict(zip(("fixed", "moving"), pair[:: 1 - 2 * (number // 2 % 2)], strict=True))
            if kind == "wrong anatomy":
                other = pools["aligned" if of == "hand" else "hand"]
                plan["file"] = str(rng.choice(other)) if number % 4 < 2 else WRONG[number // 4 % len(WRONG)]
            yield plan | common_plan(kind, number, rng, 2)

    def pair(self, case: Case, generator: torch.Generator) -> dict[str, Image]:
        """Return fixed and moving image of a case, before anything is spoilt."""
        pair = {side: self.image(case.what[side]) for side in ("fixed", "moving")}
        if "turned" not in case.kind:
            return pair
        image = pair["fixed"]
        longest = float((image.frame.spacing * image.frame.shape).max())
        bends = ((0.003 * longest, 0.015 * longest, longest / 4),)
        change = Change(bends, 60.0, 0.05 * longest, 0.06, 0.05, bias=0.1, gamma=0.1, noise=0.2)
        made = known_pair(image, image, generator, change)
        return {side: made_image(getattr(made, side), image.frame) for side in pair}
