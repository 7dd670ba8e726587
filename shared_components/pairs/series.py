"""Series of images over time (2-D+t, 3-D+t): read from one file or a folder of frames, and paired for training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from ..images import Image, read_image
from ..images.files import sha256_of, suffix_of
from ..images.formats import ITK_SUFFIXES, NIBABEL_SUFFIXES
from ..images.pictures import SUFFIXES as PICTURE_SUFFIXES
from ..images.slices import SliceSeries, read_slice_series
from ..images.volumes import Volumes, mean_frame, read_volumes
from ..transform import PhysicalField, network_ddf
from .datasets import Item, read_datalist
from .frames import network_frame
from .spare import Spare

MODES = ("mean", "random")
_KNOWN = NIBABEL_SUFFIXES + ITK_SUFFIXES + PICTURE_SUFFIXES
_SEED_STEP = 1_000_003


def read_series(path: str | Path, ndim: int = 2) -> Volumes:
    """Read all frames of a series.

    Args:
        path: a file with more than one frame, such as a 2-D+t NIfTI, or a folder with one file a frame, taken in the
            order of the numbers in their names (2 before 10).
        ndim: spatial dimensions D of a frame.

    Returns:
        The frames, "array" (N, *spatial). For D = 2 a ``SliceSeries``: the slice may lie in space as it likes, axial,
        coronal, sagittal or oblique, and ``frame`` is its grid in the coordinates of its plane.

    Raises:
        InputError: fewer than two frames, frames on different grids, or what ``read_slice_series`` and ``read_volumes``
            refuse.
    """
    path = Path(path)
    if path.is_dir():
        found = _read_folder(path, ndim)
    else:
        found = read_slice_series(path, "series") if ndim == 2 else read_volumes(path, "series", ndim)
    if len(found.array) < 2:
        raise InputError(f"series {path} has {len(found.array)} frame; give a file or a folder with two or more")
    return found


def frame_files(path: Path) -> list[Path]:
    """Return the image files of a folder in the order of the numbers in their names: the frames of a series."""
    return sorted((file for file in path.iterdir() if suffix_of(file) in _KNOWN), key=_natural)


def identify_series(path: Path) -> dict[str, str]:
    """Return name and sha256 of a series for a record; that of a folder is the one of its frames' names and sha256s.

    Raises:
        InputError: a file cannot be read.
    """
    if not path.is_dir():
        return {"file": path.name, "sha256": sha256_of(path)}
    lines = [f"{sha256_of(file)}  {file.name}\n" for file in frame_files(path)]
    return {"folder": path.name, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}


def _read_folder(path: Path, ndim: int) -> Volumes:
    files = frame_files(path)
    if len(files) < 2:
        raise InputError(f"series {path} has {len(files)} frames; give a folder with two image files or more")
    frames = [_read_slice(file) if ndim == 2 else read_image(file, "frame", ndim) for file in files]
    first = frames[0]
    for frame in frames[1:]:
        same = frame.frame.same_grid(first.frame, tolerance_mm=0.01)
        if same and ndim == 2:
            same = bool(np.abs(frame.corners_ras() - first.corners_ras()).max() <= 0.01)
        if not same:
            raise InputError(f"frame {frame.path} lies on another grid than {files[0]}; all frames must share one grid")
    array = torch.cat([frame.array for frame in frames])
    if ndim == 2:
        return SliceSeries(array, first.frame, path, first.dtype, (len(files),), plane=first.plane)
    return Volumes(array, first.frame, path, first.dtype, (len(files),))


def _read_slice(path: Path) -> SliceSeries:
    found = read_slice_series(path, "frame")
    if len(found.array) > 1:
        raise InputError(f"frame {path} holds {len(found.array)} images; give a folder with one image a file")
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Digits as numbers, so that 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def find_series(
    dataset_dir: str | Path, pattern: str = "*", every: int = 5, datalist: str | None = None
) -> dict[str, list[Item]]:
    """Split a folder of series by subject: every ``every``-th subject is validation, the rest training.

    Args:
        dataset_dir: folder with a file or a folder of frames a series. What their names have before the first "_" is
            the subject, so that slices of one subject stay together.
        pattern: glob of the series' names.
        every: 5 makes subjects 5, 10, 15, ... validation.
        datalist: path of a datalist that is used instead; its items name a "series", single images or pairs.

    Returns:
        {"training": [...], "validation": [...]} of {"series", "subject"}; empty lists if the folder is missing.
    """
    if datalist:
        return {name: read_datalist(datalist, name) for name in ("training", "validation")}
    paths = [path for path in Path(dataset_dir).glob(pattern) if path.is_dir() or suffix_of(path) in _KNOWN]
    items = [{"series": str(path), "subject": _subject(path)} for path in sorted(paths, key=_natural)]
    subjects = list(dict.fromkeys(item["subject"] for item in items))
    held = {subject for index, subject in enumerate(subjects, 1) if index % every == 0}
    return {
        "training": [item for item in items if item["subject"] not in held],
        "validation": [item for item in items if item["subject"] in held],
    }


def _subject(path: Path) -> str:
    stem = path.name if path.is_dir() else path.name[: -len(suffix_of(path))]
    return stem.split("_", 1)[0]


class SeriesPairs(Dataset):
    """Pairs of frames of one series on a network grid, and pairs that are listed as such.

    A sample depends only on its index and the seed, as in ``PairDataset``, so that training can be resumed exactly.
    Frames are read when first needed and kept in memory. Where pairs are drawn at random, a few unusable files are left
    out, see ``Spare``.

    Args:
        data: {"series": path} (see ``read_series``); pairs {"fixed", "moving", ...}, taken as they are; or single
            images {"image", "label"}, of which those with the same "group" make up a series.
        transform: ``make_preprocessing``: files go through all of it, frames, which are in memory, through its second
            part alone.
        length: pairs an epoch drawn at random, each series equally often; None takes every frame onto the fixed frame
            of its series once.
        mode: "mean": fixed is ``mean_frame`` of the series; "random": any other frame.
        augment: ``augment(item, generator) -> item`` for a finished pair, or None.
        seed: of all drawing.
        truth: ``truth(item of a series) -> (fixed, moving) -> PhysicalField``: the true map from frame to frame, if it
            is known; pairs then have "ddf" (D, *size), voxels of the network grid.

    Raises:
        ValueError: for another mode.
        InputError: a single image that is alone in its group.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Callable[..., Item],
        length: int | None = None,
        mode: str = "mean",
        augment: Callable[[Item, torch.Generator], Item] | None = None,
        seed: int = 0,
        truth: Callable[[Item], Callable[[int, int], PhysicalField]] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, not '{mode}'")
        self.data, self.transform, self.length, self.mode = list(data), transform, length, mode
        self.augment, self.seed, self.truth = augment, seed, truth
        self._true: dict[int, Callable[[int, int], PhysicalField]] = {}
        self._cache: dict[int, tuple[list[Item], int]] = {}
        self._order: list[tuple[int, int, int]] | None = None
        self._spare = Spare(len(self.data) if length is not None else 0)

    @property
    def groups(self) -> list[list[Item]]:
        """What belongs together: a series, a listed pair, or the single images of a group."""
        found: dict[object, list[Item]] = {}
        for index, item in enumerate(self.data):
            alone = "series" in item or "moving" in item
            found.setdefault(index if alone else ("group", item.get("group")), []).append(item)
        return list(found.values())

    def __len__(self) -> int:
        """Pairs in an epoch."""
        if not self.data or self.length is not None:
            return self.length if self.data else 0
        return len(self._listed())

    def __getitem__(self, index: int) -> Item:
        """Return pair ``index``: {"image": (2, *size), "name", and labels and points where the images have them}."""
        generator = torch.Generator().manual_seed(self.seed * _SEED_STEP + int(index))
        if self.length is None:
            item = self._pair(*self._listed()[int(index) % len(self._listed())])
        else:
            item = self._drawn(generator)
        return self.augment(item, generator) if self.augment is not None else item

    def _drawn(self, generator: torch.Generator) -> Item:
        """Return a pair drawn at random; a series that cannot be used gives way to the next."""
        while True:
            group = _draw(len(self.groups), generator)
            try:
                return self._pair(*self._frames(group, generator))
            except Exception as error:
                self._spare.bear(error)

    def _frames(self, group: int, generator: torch.Generator) -> tuple[int, int, int]:
        views, fixed = self._views(group)
        if len(views) == 1:
            return group, 0, 0
        fixed = fixed if self.mode == "mean" else _draw(len(views), generator)
        return group, fixed, (fixed + 1 + _draw(len(views) - 1, generator)) % len(views)

    def _listed(self) -> list[tuple[int, int, int]]:
        if self._order is None:
            loaded = [self._views(group) for group in range(len(self.groups))]
            self._order = [
                (group, fixed, moving)
                for group, (views, fixed) in enumerate(loaded)
                for moving in range(len(views))
                if moving != fixed or len(views) == 1
            ]
        return self._order

    def _pair(self, group: int, fixed: int, moving: int) -> Item:
        views, _ = self._views(group)
        if len(views) == 1:
            return dict(views[0])
        a, b = views[fixed], views[moving]
        item: Item = {"image": torch.cat([a["image"], b["image"]]), "name": f"{a['name']}<-{b['name']}"}
        item |= {"spacing_mm": a["spacing_mm"]} if "spacing_mm" in a else {}
        if "label" in a and "label" in b:
            item |= {"fixed_label": a["label"], "moving_label": b["label"]}
        if self.truth is not None:
            item["ddf"] = self._true_ddf(group, fixed, moving)
        return item

    def _true_ddf(self, group: int, fixed: int, moving: int) -> Tensor:
        if group not in self._true:
            self._true[group] = self.truth(self.groups[group][0])
        field, cut = self._true[group](fixed, moving), self.transform.transforms[1]
        nothing = torch.zeros(1, *field.frame.shape)  # only a grid about the image's mass needs the image
        network = network_frame(nothing, field.frame, cut.size, cut.spacing, "grid", cut.within)
        return network_ddf(field, network, np.eye(network.ndim + 1))[0]

    def _views(self, group: int) -> tuple[list[Item], int]:
        """The frames of a group on the network grid and the number of the fixed one; a listed pair is one frame."""
        if group not in self._cache:
            self._cache[group] = self._load(self.groups[group])
        return self._cache[group]

    def _load(self, items: list[Item]) -> tuple[list[Item], int]:
        if "series" in items[0]:
            return self._load_series(items[0])
        if "moving" in items[0]:
            return [self.transform(dict(items[0]))], 0
        views = [view for item in items if (view := self._single(item)) is not None]
        if len(views) < 2:
            raise InputError(f"{items[0]['image']} is alone; add images of its group, or name a series or a pair")
        return views, mean_frame(torch.stack([view["image"] for view in views]))

    def _single(self, item: Item) -> Item | None:
        """Return an image on the network grid, or None if it cannot be used and need not."""
        try:
            return self.transform(dict(item))
        except Exception as error:
            self._spare.bear(error)
            return None

    def _load_series(self, item: Item) -> tuple[list[Item], int]:
        found = read_series(item["series"], self.transform.transforms[0].ndim)
        name = str(item.get("name") or Path(item["series"]).name.split(".")[0])
        views = []
        for number, array in enumerate(found.array):
            frame = Image(array[None], found.frame, found.path, np.dtype(found.dtype))
            views.append(self.transform({"subject_image": frame, "name": f"{name}#{number}"}, start=1))
        return views, mean_frame(found.array)


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
