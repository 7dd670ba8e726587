"""Sets of pairs whose true transform is known, one for each kind of bundle: fitted on one part, told of the other.

No subject is in both parts, and none of the second was seen in training. Everything is drawn from one seed.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reproducing.suits_sets import ABDOMEN_LAYOUT, BRAINS, divide_brains, redraw_t2, regions

from shared_components.errors import InputError
from shared_components.images import Image, read_image, read_labels
from shared_components.images.files import atomic_path
from shared_components.pairs import find_subjects
from shared_components.synth import abdomen_patient, make_breathing_set
from shared_components.synth.known import Change, known_pair

PARTS = ("validation", "test")
DRAW = 1  # the signs were chosen with another number: these pairs had no part in it
HANDS, SLICES = "hands_mednist64", "brain2d_mindboggle_trt20"
BETWEEN = Change()  # brains of two people after the centre of mass
ABDOMENS = Change(((4.0, 10.0, 90.0), (1.0, 4.0, 40.0)), 6.0, 10.0, 0.05, 0.03, bias=0.0, gamma=0.0, noise=0.0)
TURNED = replace(BETWEEN, rotation_deg=60.0, translation_mm=15.0, shear=0.05)
Made = Iterator[tuple[str, Image, Image, Change]]


@dataclass(frozen=True)
class Kind:
    """A kind of set.

    Attributes:
        title: for the page.
        make: (folder of the data, part, number of pairs) -> name, fixed, moving and change of each pair.
        needs: folder of the data without which there is no such set, or None.
    """

    title: str
    make: Callable[[Path, str, int], Made]
    needs: str | None = None


def brains(data: Path, part: str, count: int, change: Change = BETWEEN) -> Made:
    """T1 brains: training subjects to fit on, held-out ones in the other part."""
    found = find_subjects(data / BRAINS, "*_t1.nii.gz")
    subjects = found["training"][::2] if part == "validation" else found["validation"]
    for number in range(count):
        item = subjects[number % len(subjects)]
        image = read_image(item["image"])
        yield f"{number}-{item['subject']}", image, image, change


def turned_brains(data: Path, part: str, count: int) -> Made:
    """The same, turned by up to 60 degrees about each axis, which together make 104 at most."""
    return brains(data, part, count, TURNED)


def two_contrasts(data: Path, part: str, count: int) -> Made:
    """T1 brains and T2-like ones drawn from their labels: subjects that ``reproduce.py suits`` keeps for each part."""
    subjects = [(subject, own) for section, _, subject, own in divide_brains(data / BRAINS) if section == part]
    for number in range(count):
        subject, own = subjects[number % len(subjects)]
        t1 = read_image(data / BRAINS / f"{subject}_t1.nii.gz")
        fine, tissues = (
            read_labels(data / BRAINS / f"{subject}_{kind}.nii.gz").array[0].numpy() for kind in ("labels", "tissues")
        )
        drawn = redraw_t2(t1.array[0].numpy(), regions(fine, tissues), own)
        yield f"{number}-{subject}", t1, _in_memory(drawn, t1), replace(BETWEEN, bias=0.0, gamma=0.0)


def abdomens(data: Path, part: str, count: int) -> Made:
    """MR and CT of one synthetic patient each, no patient of the training sets."""
    layout = data / ABDOMEN_LAYOUT
    for number in range(count):
        seed = _seed("abdomens", part, number)
        shapes = layout if number % 2 and layout.is_file() else None
        mr, ct = (abdomen_patient(modality, seed, layout=shapes) for modality in ("mr", "ct"))
        fixed = Image(torch.from_numpy(mr.image)[None], mr.frame, Path("made"), np.dtype("float32"))
        yield f"{number}-patient", fixed, _in_memory(ct.image, fixed), ABDOMENS


def flat_images(data: Path, part: str, count: int) -> Made:
    """Two hands, then a slice of a brain, and so on: as for ``brains``."""
    section = "training" if part == "validation" else "validation"
    hands = find_subjects(data / HANDS, "*.jpeg", None)[section]
    slices = find_subjects(data / SLICES, "*_t1.nii.gz", None)[section]
    hand, piece = itertools.cycle(hands[:: max(1, len(hands) // 10)]), itertools.cycle(slices)
    for number in range(count):
        item = next(piece if number % 3 == 2 else hand)
        image = read_image(item["image"], ndim=2)
        longest = float((image.frame.spacing * image.frame.shape).max())
        bends = ((0.003 * longest, 0.015 * longest, longest / 4),)
        change = Change(bends, 60.0, 0.05 * longest, 0.06, 0.05, bias=0.1, gamma=0.1, noise=0.2)
        yield f"{number}-{item['subject']}", image, image, change


KINDS = {
    "brains": Kind("T1 brains and themselves, deformed", brains, BRAINS),
    "turned_brains": Kind("T1 brains, turned by up to 60° about each axis and deformed", turned_brains, BRAINS),
    "two_contrasts": Kind("T1 brains and their T2-like images, deformed", two_contrasts, BRAINS),
    "abdomens": Kind("MR and CT of synthetic patients, deformed", abdomens),
    "flat_images": Kind("hands and slices of brains, turned by up to 60° and bent a little", flat_images, HANDS),
}
THORAX = "thorax"
TITLES = {name: kind.title for name, kind in KINDS.items()} | {THORAX: "synthetic breathing thoraces"}


def write_set(kind: str, data: str | Path, folder: str | Path, count: int = 8) -> str:
    """Write a set and return its datalist, with the sections "validation", to fit on, and "test".

    A set that is there already is kept.

    Args:
        kind: one of ``TITLES``.
        data: folder of the real images.
        folder: made if absent.
        count: pairs of each part; of breathing series there are 4 subjects with 4 slices each, whatever ``count``.

    Raises:
        InputError: another kind, or its images are missing.
    """
    data, folder = Path(data).expanduser(), Path(folder).expanduser()
    if kind == THORAX:  # the patients that r2n2's training leaves out: reproducing/r2n2_sets.py
        return make_breathing_set(folder, subjects=42, slices=4, frames=21, sections=PARTS)
    if kind not in KINDS:
        raise InputError(f"there is no set '{kind}'; give one of {', '.join(TITLES)}")
    needs = KINDS[kind].needs
    if needs and not (data / needs).is_dir():
        raise InputError(f"{data / needs} is missing, of which the set '{kind}' is made; set --data_dir")
    settings = {"kind": kind, "count": count}
    if _finished(folder / "datalist.json", settings):
        return str(folder / "datalist.json")
    listed: dict[str, Any] = {"settings": settings}
    for part in PARTS:
        listed[part] = []
        for name, fixed, moving, change in KINDS[kind].make(data, part, count):
            generator = torch.Generator().manual_seed(_seed(kind, part, name))
            listed[part].append(known_pair(fixed, moving, generator, change).write(folder, f"{part}-{name}"))
    with atomic_path(folder / "datalist.json") as temporary:
        temporary.write_text(json.dumps(listed, indent=1) + "\n")
    return str(folder / "datalist.json")


def _finished(datalist: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The datalist of a set that was made with these settings; it is written last."""
    found = json.loads(datalist.read_text()) if datalist.is_file() else {}
    return found if found.get("settings") == settings else {}


def _seed(*what: Any) -> int:
    return zlib.crc32(" ".join(map(str, (DRAW, *what))).encode())


def _in_memory(values: np.ndarray, like: Image) -> Image:
    return Image(torch.from_numpy(values.astype(np.float32))[None], like.frame, like.path, np.dtype("float32"))
