"""The image sets of the reproduction: which files they are, how they are split, and their fixed test cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_components.errors import InputError
from shared_components.images.files import atomic_path
from shared_components.pairs import find_subjects

from .runs import Recipe, same_settings

SHEAR = 0.15  # of the full affine maps of Table 5
TEST_SEED = 2  # training draws with 0, validation with 1


@dataclass(frozen=True)
class ImageSet:
    """A folder of images.

    Attributes:
        title: in the tables.
        folder: below the data's.
        pattern: glob with one ``*``.
        paper: the paper's set that it stands for, or None.
        split: every fifth image is left to validation and tests; otherwise all images serve all three.
    """

    title: str
    folder: str
    pattern: str
    paper: str | None = None
    split: bool = True


SETS = {
    "hands": ImageSet("Hands", "hands_xray", "*.png", "Hands", split=False),
    "brain": ImageSet("Brain", "brain2d_mindboggle_trt20", "*_t1.nii.gz", "Brain"),
    "oasis": ImageSet("Oasis", "brain2d_oasis100", "*.png", "fastMRI"),
    "unseen": ImageSet("Hands, unseen", "hands_mednist64", "*.jpeg"),
}


@dataclass(frozen=True)
class Cases:
    """Fixed test cases of a set.

    Attributes:
        folder: their ``cases.npz`` and what has been measured on them.
        image: (N, 2, *size), fixed and moving.
        truth: (N, D (D + 1)).
    """

    folder: Path
    image: Tensor
    truth: Tensor


def find_split(data_dir: str | Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """Return {"training": [...], "validation": [...]} of a set; tests use the validation images.

    Raises:
        InputError: the folder has too few images.
    """
    one = SETS[name]
    folder = Path(data_dir).expanduser() / one.folder
    found = find_subjects(folder, one.pattern, None)
    if not one.split:
        found = {section: found["training"] + found["validation"] for section in found}
    if not found["validation"]:
        least = 5 if one.split else 1
        raise InputError(f"{folder} has fewer than {least} images {one.pattern}; set --data_dir, or leave out {name}")
    return {section: [{"image": str(Path(i["image"]).resolve())} for i in items] for section, items in found.items()}


def present(data_dir: str | Path) -> list[str]:
    """Return the names of the sets whose folder is there.

    Raises:
        InputError: none is.
    """
    found = [name for name, one in SETS.items() if (Path(data_dir).expanduser() / one.folder).is_dir()]
    if not found:
        folders = ", ".join(one.folder for one in SETS.values())
        raise InputError(f"{data_dir} has none of the folders {folders}; set --data_dir to where they are")
    return found


def file_names(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the images, without folders."""
    return [Path(item["image"]).name for item in items]


def test_cases(recipe: Recipe, items: Sequence[Mapping[str, Any]], count: int, shear: float, folder: Path) -> Cases:
    """Return the test cases of a set: drawn once, then read from ``cases.npz``. Needs the bundle's code at hand.

    Raises:
        InputError: the folder has cases of other images or settings.
    """
    from scripts.data import AffineSamples  # the bundle's

    parser = recipe.parser()
    size, rotation, translation = (parser.get_parsed_content(key) for key in ("size", "rotation", "translation"))
    settings = {"images": file_names(items), "size": size, "rotation": rotation, "translation": translation}
    folder.mkdir(parents=True, exist_ok=True)
    same_settings(folder / "cases.json", {**settings, "shear": shear, "seed": TEST_SEED, "count": count})
    path = folder / "cases.npz"
    if not path.is_file():
        preprocessing = parser.get_parsed_content("preprocessing")
        maps = {"rotation": rotation, "translation": translation, "shear": shear}
        samples = AffineSamples(items, preprocessing, length=count, **maps, seed=TEST_SEED)
        drawn = [sample for part in torch.arange(count).split(50) for sample in samples.__getitems__(part.tolist())]
        arrays = {key: torch.stack([sample[key] for sample in drawn]).numpy() for key in ("image", "truth")}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    with np.load(path) as arrays:
        return Cases(folder, *(torch.from_numpy(arrays[key]) for key in ("image", "truth")))


def drawn_maps(recipe: Recipe, item: Mapping[str, Any], count: int) -> Tensor:
    """Return ``count`` true maps as they are drawn for tests, (count, D (D + 1)); on tiny images, which do not matter.

    Needs the bundle's code at hand.
    """
    from scripts.data import AffineSamples  # the bundle's

    parser = recipe.parser()
    size = [8] * len(parser.get_parsed_content("size"))
    preprocessing = recipe.parser(size=size).get_parsed_content("preprocessing")
    rotation, translation = (parser.get_parsed_content(key) for key in ("rotation", "translation"))
    maps = {"rotation": rotation, "translation": translation, "noise": 0.0}
    samples = AffineSamples([item], preprocessing, length=count, **maps, seed=TEST_SEED)
    parts = torch.arange(count).split(500)
    return torch.stack([sample["truth"] for part in parts for sample in samples.__getitems__(part.tolist())])
