"""Which images meet which: datalists, folders of single subjects, random and listed pairs, resumable epochs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..errors import InputError, find_input_error
from ..names import check_unique, fault_of_name, pair_name
from .spare import SHARE, Spare

Item = dict[str, Any]
_PATH_KEYS = {"image", "label", "fixed", "moving", "ddf", "series"} | {
    f"{side}_{kind}" for side in ("fixed", "moving") for kind in ("image", "label", "mask", "points", "keypoints")
}
_RENAMED = {
    f"{side}_{old}": f"{side}{new}"
    for side in ("fixed", "moving")
    for old, new in (("image", ""), ("keypoints", "_points"))
}


def read_datalist(path: str | Path, section: str = "validation") -> list[Item]:
    """Read one section of a datalist: {"training": [...], "validation": [...], "test": [...]}.

    Items are pairs {"fixed", "moving", "fixed_label", ...}, single subjects {"image", "label"} or {"series"} over time
    (see ``SeriesPairs``). Learn2Reg files work as they are: ``numTraining``-style headers are ignored,
    ``registration_val`` / ``registration_test`` are read for validation and test, and ``fixed_image`` /
    ``fixed_keypoints`` are other names for ``fixed`` / ``fixed_points``. Relative paths are taken from the datalist's
    folder.

    Raises:
        InputError: missing, unreadable or empty file or section.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"datalist {path} does not exist; give the path of a JSON file with pairs") from None
    except (OSError, ValueError) as error:
        raise InputError(f"datalist {path} is not readable JSON ({error}); correct the file") from None
    content = {section: content} if isinstance(content, list) else content
    learn2reg = {"validation": "registration_val", "test": "registration_test"}.get(section, section)
    items = content.get(learn2reg) or content.get(section) if isinstance(content, dict) else None
    if not isinstance(items, list) or not items:
        raise InputError(f"datalist {path} has no pairs under '{section}'; add a list of them")
    return [_resolve(item, path) for item in items]


def _resolve(item: Any, path: Path) -> Item:
    if isinstance(item, str):
        item = {"image": item}
    if not isinstance(item, dict):
        raise InputError(
            f"datalist {path} holds {item!r} where an object such as {{'fixed': ..., 'moving': ...}} belongs"
        )
    resolved = {}
    for key, value in item.items():
        name = _RENAMED.get(key, key)
        is_path = key in _PATH_KEYS and isinstance(value, str)
        resolved[name] = str((path.parent / value).resolve()) if is_path else value
    return resolved


def find_subjects(
    dataset_dir: str | Path,
    image_pattern: str = "*_t1.nii.gz",
    label_pattern: str | None = "*_labels.nii.gz",
    every: int = 5,
    datalist: str | None = None,
) -> dict[str, list[Item]]:
    """Split a folder of single subjects: every ``every``-th of the sorted ones is validation, the rest training.

    Args:
        dataset_dir: folder with one image a subject, and labels where they exist.
        image_pattern: glob with one ``*``, which stands for the subject.
        label_pattern: likewise, or None.
        every: 5 makes subjects 5, 10, 15, ... validation.
        datalist: path of a datalist that is used instead of all this.

    Returns:
        {"training": [...], "validation": [...]} of {"image", "label", "subject"}; empty lists if the folder is missing,
        so that a configuration can be read where its data are not.
    """
    if datalist:
        return {name: read_datalist(datalist, name) for name in ("training", "validation")}
    before, after = image_pattern.split("*", 1)
    subjects = []
    for image in sorted(Path(dataset_dir).glob(image_pattern)):
        name = image.name[len(before) : len(image.name) - len(after)]
        item = {"image": str(image), "subject": name}
        label = image.with_name(label_pattern.replace("*", name)) if label_pattern else None
        if label is not None and label.exists():
            item["label"] = str(label)
        subjects.append(item)
    chosen = [(index + 1) % every == 0 for index in range(len(subjects))]
    return {
        "training": [s for s, c in zip(subjects, chosen, strict=True) if not c],
        "validation": [s for s, c in zip(subjects, chosen, strict=True) if c],
    }


class PairDataset(Dataset):
    """Pairs on a network grid, from listed pairs or from single subjects.

    An item depends only on its index and the seed: index ``epoch * len(self) + i`` is the i-th pair of an epoch, so
    training can be resumed exactly and the number of workers does not matter. ``PairSampler`` hands out such indices.

    Where pairs are drawn at random, a file that cannot be used is told once and left out, and another pair drawn, as
    long as there are no more such than ``spare`` of all, see ``Spare``.

    Args:
        data: pairs {"fixed", "moving", ...} or single subjects {"image", "label"}; MONAI Label hands in the latter.
        transform: preprocessing of one item, see ``make_preprocessing``.
        length: pairs an epoch drawn at random; None takes every ordered pair of subjects, or the list, once.
        augment: ``augment(item, generator) -> item`` for a finished pair, or None.
        seed: of the drawing and of the augmentation.
        cache: keep preprocessed items in memory.
        modalities: (fixed, moving): single subjects that name another "modality" do not take that side.
        spare: share of the data that may be unusable.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Callable[[Item], Item],
        length: int | None = None,
        augment: Callable[[Item, torch.Generator], Item] | None = None,
        seed: int = 0,
        cache: bool = True,
        modalities: Sequence[str] | None = None,
        spare: float = SHARE,
    ) -> None:
        self.data, self.transform, self.augment, self.seed = list(data), transform, augment, seed
        self.single = bool(self.data) and "moving" not in self.data[0]
        if self.single and len(self.data) == 1:
            raise InputError("one subject alone makes no pair; add images (in MONAI Label, or raise val_split)")
        self.pairs = self._orders(modalities) if self.single else range(len(self.data))
        self.random = length is not None
        self.length = length if length is not None else len(self.pairs)
        self._cache: dict[int, Item] | None = {} if cache else None
        self._faults: dict[int, str] = {}
        self._spare = Spare(len(self.data), spare)

    def _orders(self, modalities: Sequence[str] | None) -> list[tuple[int, int]]:
        orders = itertools.permutations(range(len(self.data)), 2)
        if modalities is None:
            return list(orders)
        known = [item.get("modality") for item in self.data]
        fits = [[k in (None, modality) for k in known] for modality in modalities]
        found = [(i, j) for i, j in orders if fits[0][i] and fits[1][j]]
        if not found:
            raise InputError(
                f"no pair of a fixed '{modalities[0]}' and a moving '{modalities[1]}' image; the data name {set(known)}"
            )
        return found

    def __len__(self) -> int:
        """Pairs in an epoch."""
        return self.length if self.data else 0

    def __iter__(self) -> Iterator[Item]:
        """Yield one epoch in order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Item:
        """Return pair ``index`` (see the class): {"image": (2, *size), labels (1, *size), "name"}."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(index))
        item = self._drawn(generator) if self.random else self._pair(self.pairs[int(index) % self.length])
        return self.augment(item, generator) if self.augment is not None else item

    def _drawn(self, generator: torch.Generator) -> Item:
        """Return a pair drawn at random; one with an unusable file gives way to the next."""
        while True:
            chosen = self.pairs[int(torch.randint(len(self.pairs), (), generator=generator))]
            try:
                return self._pair(chosen)
            except Exception as error:
                self._spare.bear(error)

    def _pair(self, chosen: Any) -> Item:
        return self._join(*chosen) if self.single else dict(self._load(chosen))

    def _load(self, index: int) -> Item:
        if index in self._faults:
            raise InputError(self._faults[index])
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        try:
            item = self.transform(dict(self.data[index]))
        except Exception as error:
            found = find_input_error(error)
            if found is not None:
                self._faults[index] = str(found)
            raise
        if self._cache is not None:
            self._cache[index] = item
        return item

    def _join(self, fixed: int, moving: int) -> Item:
        a, b = self._load(fixed), self._load(moving)
        item: Item = {"image": torch.cat([a["image"], b["image"]]), "name": f"{a['name']}<-{b['name']}"}
        item |= {"spacing_mm": a["spacing_mm"]} if "spacing_mm" in a else {}
        if "label" in a and "label" in b:
            item |= {"fixed_label": a["label"], "moving_label": b["label"]}
        return item


def pair_collate(items: list[Item]) -> Item:
    """Stack tensors of equal shape; keep everything else (names, ``Pair``s) as a list.

    What not every item has, such as labels where only some subjects are labelled, is left out.
    """
    batch: Item = {}
    for key in items[0]:
        if not all(key in item for item in items):
            continue
        values = [item[key] for item in items]
        stackable = all(isinstance(v, torch.Tensor) and v.shape == values[0].shape for v in values)
        batch[key] = torch.stack(values) if stackable else values
    return batch


def single_collate(items: list[Item]) -> Item:
    """Batch of one pair: tensors gain a batch axis, the ``Pair`` and the name stay themselves."""
    (item,) = items
    return {key: value[None] if isinstance(value, torch.Tensor) else value for key, value in item.items()}


def requested_pairs(datalist: str | None = None, section: str = "test", **paths: str | None) -> list[Item]:
    """Return what the user asked for: the pairs of a datalist's section, or the one pair named by ``paths``.

    Raises:
        InputError: the datalist is at fault, or its pairs cannot each have a folder of results of their own.
    """
    if datalist:
        return _with_folders(read_datalist(datalist, section), datalist, section)
    return [{key: value for key, value in paths.items() if value}]


def _with_folders(items: list[Item], datalist: str, section: str) -> list[Item]:
    """Refuse names that are no folder's, and two for the same folder; a pair that lacks an image is told of later."""
    named = []
    for number, item in enumerate(items, 1):
        where = f"datalist {datalist}, pair {number} of '{section}',"
        if item.get("name") is None and not all(
            isinstance(path, str) for path in (item.get("fixed") or item.get("image"), item.get("moving"))
        ):
            continue
        name = pair_name(item)
        fault = fault_of_name(name)
        if fault:
            raise InputError(f"{where} has {fault}{'' if ';' in fault else '; give another'}")
        named.append((name, where))
    check_unique(named)
    return items
