"""Cases for the verdict: what a set of them is, and what every set shares. Everything is drawn from one seed."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from shared_components.geometry import Frame
from shared_components.images import Image, read_image

from . import spoil

Pair = tuple[Image, Image]
Plan = dict[str, Any]
SIDES = ("moving", "fixed")


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
    what: Plan = field(default_factory=dict)


class CaseSet(ABC):
    """Pairs that a bundle is meant for, and ways to spoil them.

    Args:
        data: folder of the shared data.

    Attributes:
        GOOD, BAD: number of cases of each kind.
        NDIM: 2 or 3.
        SPACING_MM: least and most voxel size of images that the bundle is meant for.
        SPOILERS: how kinds of ``BAD`` are made that are not among ``COMMON``, by their first word.
        ABOUT: what the cases are, for the page.
    """

    GOOD: ClassVar[Mapping[str, int]]
    BAD: ClassVar[Mapping[str, int]]
    NDIM: ClassVar[int] = 3
    SPACING_MM: ClassVar[tuple[float, float]]
    SPOILERS: ClassVar[Mapping[str, Callable[..., Image]]] = {}
    ABOUT: ClassVar[str]

    def __init__(self, data: Path) -> None:
        self.data = Path(data)
        self.image = lru_cache(maxsize=12)(self._image)

    def _image(self, name: str) -> Image:
        return read_image(self.data / name, name, self.NDIM)

    @abstractmethod
    def plans(self, kind: str, rng: np.random.Generator) -> Iterator[Plan]:
        """Yield what tells the cases of a kind apart; of spoilt ones also "side", which image is spoilt."""

    @abstractmethod
    def pair(self, case: Case, generator: torch.Generator) -> dict[str, Image]:
        """Return fixed and moving image of a case, before anything is spoilt."""

    @abstractmethod
    def training(self) -> Iterator[Image]:
        """Yield images that the bundle was trained on."""

    def stranger(self, what: Plan, image: Image) -> Image:
        """Return the wrong anatomy of a case, where ``image`` was."""
        return self.image(what["file"])


def made_image(values: np.ndarray, frame: Frame) -> Image:
    """Return an image that no file holds, (*spatial)."""
    return Image(torch.from_numpy(values.astype(np.float32))[None], frame, Path("made"), np.dtype("float32"))


def list_cases(images: CaseSet, seed: int = 0) -> list[Case]:
    """Return all cases; each kind is divided between the two halves.

    By whether a number has an odd count of ones, so that neither every second nor every fourth case of a kind, which
    differ in what is spoilt, are all in one half.
    """
    cases, surplus = [], 0  # of the first half over the second, kept small by kinds that take turns
    for spoilt, kinds in ((False, images.GOOD), (True, images.BAD)):
        for kind, count in kinds.items():
            short = kind.replace(",", "").replace(" ", "_")
            rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
            halves = [number.bit_count() % 2 for number in range(count)]
            gain = count - 2 * sum(halves)
            first = int(abs(surplus - gain) < abs(surplus + gain))
            surplus += -gain if first else gain
            for number, what in zip(range(count), images.plans(kind, rng), strict=False):
                name = f"{'bad' if spoilt else 'good'}-{short}-{number:02d}"
                cases.append(Case(name, kind, spoilt, halves[number] ^ first, int(rng.integers(1 << 31)), what))
    return cases


_AXES = {"left": 0, "sideways": 0, "front": 1, "upside": 1, "head": 2}  # second words of kinds: axis of the world


def common_plan(kind: str, number: int, rng: np.random.Generator, ndim: int = 3) -> Plan:
    """Return what the number-th case of a common way to spoil needs beside its pair; empty for other kinds."""
    if kind.startswith("flipped"):
        return {"axis": _AXES[kind.split()[1]]}
    if kind == "one half empty":
        return {"axis": number // 2 % ndim, "upper": bool(rng.integers(2))}
    if kind == "saturated":
        return {"percentile": float(rng.uniform(5, 40))}
    if kind == "heavy noise":
        return {"strength": float(rng.uniform(0.4, 1.0))}
    if kind == "turned by 60 to 180 degrees":
        return {"degrees": float(rng.uniform(60, 180)), "axis": rng.normal(size=3).tolist()}
    return {}


def make(case: Case, images: CaseSet) -> Pair:
    """Return fixed and moving image of a case."""
    generator, rng = torch.Generator().manual_seed(case.seed), np.random.default_rng(case.seed)
    pair = images.pair(case, generator)
    if case.spoilt:
        side, way = case.what["side"], case.kind.split(" ")[0]
        spoiler = images.SPOILERS.get(way) or COMMON[way]
        pair[side] = spoiler(pair[side], case.what, images, rng, generator)
    return pair["fixed"], pair["moving"]


COMMON: dict[str, Callable[..., Image]] = {
    "wrong": lambda image, what, images, *_: images.stranger(what, image),
    "one": lambda image, what, *_: spoil.cut_half(image, what["axis"], what["upper"]),
    "saturated": lambda image, what, *_: spoil.saturate(image, what["percentile"]),
    "flipped": lambda image, what, *_: spoil.flip(image, what["axis"]),
    "heavy": lambda image, what, images, rng, generator: spoil.drown(image, what["strength"], generator),
    "turned": lambda image, what, *_: spoil.turn(image, what["degrees"], what["axis"]),
}
