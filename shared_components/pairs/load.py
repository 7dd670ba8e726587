"""From files to a checked pair and to what the network sees: the preprocessing of every bundle."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor

from ..errors import InputError
from ..geometry import Frame, apply_affine
from ..images import Image, read_image, read_labels
from ..images.files import stem_of
from ..itk_io import read_transform
from ..memory import MemoryBudget, Plan
from ..monai_label import asked_pair, is_request, tells_client
from ..names import pair_name
from ..points import check_points_inside, read_points
from ..transform import PhysicalField, affine_field, network_ddf
from .datasets import Item
from .frames import INITIAL, bring, initial_world, intensity_window, network_frame, overlap, scale

SIDES = ("fixed", "moving")


@dataclass
class Pair:
    """Two images in their native grids and all that came with them.

    Attributes:
        images: "fixed" and "moving".
        labels, masks: by the same keys, integer images on the grid of their image; absent where not given.
        points_mm: (N, D) RAS mm by the same keys.
        files: the paths of labels, masks and points by role, such as "fixed_label".
        target: the transform fixed mm -> moving mm to be learned, for supervised training; None otherwise.
        initial: (D+1, D+1) world map fixed mm -> moving mm applied before the network.
        network: the grid that the network saw.
        plan: how it is kept within a budget of memory.
        started: ``time.perf_counter`` when reading began.
    """

    images: dict[str, Image]
    labels: dict[str, Image] = field(default_factory=dict)
    masks: dict[str, Image] = field(default_factory=dict)
    points_mm: dict[str, np.ndarray] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    target: PhysicalField | None = None
    initial: np.ndarray | None = None
    network: Frame | None = None
    plan: Plan = field(default_factory=Plan)
    started: float = field(default_factory=time.perf_counter)

    @property
    def fixed(self) -> Image:
        """The fixed image."""
        return self.images["fixed"]

    @property
    def moving(self) -> Image:
        """The moving image."""
        return self.images["moving"]

    def forget(self) -> None:
        """Let go of all images: the pair is done."""
        for kept in (self.images, self.labels, self.masks):
            kept.clear()


class LoadPair:
    """Read and check what an item names: {"fixed", "moving", labels, masks, points, "ddf"} or {"image", "label"}.

    With "moving" beside it, "image" is another name for "fixed" and "label" for "fixed_label". A request of MONAI Label
    is the pair that it names, see ``asked_pair``, and a fault of it is told to the client.

    Args:
        ndim: spatial dimensions D that every file must have, 2 or 3.
        budget: of memory; None: there is none.

    Raises:
        InputError: one sentence with the file, the fault and the remedy.
    """

    def __init__(self, ndim: int = 3, budget: MemoryBudget | None = None) -> None:
        self.ndim, self.budget = ndim, budget or MemoryBudget()

    @tells_client
    def __call__(self, item: Item) -> Item:
        """Add "pair" (for pairs) or "subject_image" and "subject_label" (for single subjects) to the item."""
        item = asked_pair(item) if is_request(item) else item
        if item.get("fixed") is None and item.get("image") is not None:
            if item.get("moving") is None:
                return self._single(item)
            item = {**item, "fixed": item["image"], "fixed_label": item.get("fixed_label") or item.get("label")}
        for side in SIDES:
            if not item.get(side):
                raise InputError(f"the {side} image is missing; give its path with --{side}")
        if Path(item["fixed"]).resolve() == Path(item["moving"]).resolve():
            raise InputError(f"fixed and moving are the same file, {item['fixed']}; give two different images")
        started = time.perf_counter()
        plan = self.budget.plan(item)
        images = {side: read_image(item[side], f"{side} image", self.ndim) for side in SIDES}
        pair = Pair(images, plan=plan, started=started)
        for side in SIDES:
            self._extras(pair, item, side)
        if item.get("ddf"):
            pair.target = self._target(item["ddf"], pair)
        if len(pair.points_mm) == 2 and len(pair.points_mm["fixed"]) != len(pair.points_mm["moving"]):
            counts = [len(pair.points_mm[side]) for side in SIDES]
            raise InputError(
                f"{item['fixed_points']} has {counts[0]} points and {item['moving_points']} has {counts[1]}; "
                "landmarks must come in pairs, in the same order"
            )
        return {**item, "pair": pair, "name": pair_name(item)}

    def _extras(self, pair: Pair, item: Item, side: str) -> None:
        image = pair.images[side]
        for kind, found in (("label", pair.labels), ("mask", pair.masks)):
            path = item.get(f"{side}_{kind}")
            if path:
                found[side] = read_labels(path, f"{side} {kind}", self.ndim)
                same_grid(found[side], image, f"{side} {kind}")
                pair.files[f"{side}_{kind}"] = str(path)
        path = item.get(f"{side}_points")
        if path:
            what = f"{side} points"
            pair.points_mm[side] = read_points(path, what, self.ndim, frame=image.frame).points_mm
            check_points_inside(pair.points_mm[side], image.frame, path, what)
            pair.files[f"{side}_points"] = str(path)

    @staticmethod
    def _target(path: str, pair: Pair) -> PhysicalField:
        target = read_transform(path, "target field", pair.fixed.frame.ndim)
        return target if isinstance(target, PhysicalField) else affine_field(target, pair.fixed.frame)

    def _single(self, item: Item) -> Item:
        loaded = {**item, "subject_image": read_image(item["image"], "image", self.ndim)}
        if item.get("label"):
            loaded["subject_label"] = read_labels(item["label"], "label", self.ndim)
            same_grid(loaded["subject_label"], loaded["subject_image"], "label")
        loaded["name"] = str(item.get("subject") or stem_of(item["image"]))
        return loaded


def same_grid(label: Image, image: Image, what: str) -> None:
    """Refuse a label or mask that lies on another grid than its image.

    Raises:
        InputError: naming both files.
    """
    if not label.frame.same_grid(image.frame, tolerance_mm=0.01):
        raise InputError(
            f"{what} {label.path} (shape {label.frame.shape}) is not on the grid of its image {image.path} "
            f"(shape {image.frame.shape}); resample it there first"
        )


class FramePair:
    """Cut the network's view: {"image": (2, *size)} and, on the same grid, labels, masks and "*_points_vox" (N, D).

    "spacing_mm" (D,) tells the voxel size of that grid.

    Args:
        size: of the network grid in voxels.
        spacing: of the network grid in mm, or "fit": the longest side of the fixed image fills the grid.
        initial_transform: "centre_of_mass", "header", "meta_affine" (the learned affine search) or the path of an
            affine (ITK, fixed mm -> moving mm); None or "" mean the first.
        center: the network grid lies around the fixed image's centre of "mass" or "grid".
        window: intensities scaled to [0, 1]; None takes minimum and 99.5th percentile of each image.
        keep_native: hand on the ``Pair`` with the native images; training on listed pairs has no use for it.
        within: the grid of a pair is nowhere longer than its fixed image, for networks that take any size: what lies
            outside the field of view has an edge that is no anatomy.

    Where many pairs share their fixed image, its part of the work is done once: a pair that comes with its network grid
    keeps it, and "fixed_view" (1, *size) in the item is taken for what the network sees of the fixed image.
    """

    def __init__(
        self,
        size: Sequence[int],
        spacing: float | Sequence[float] | str,
        initial_transform: str | None = "centre_of_mass",
        center: str = "mass",
        window: tuple[float, float] | None = None,
        keep_native: bool = True,
        within: bool = False,
    ) -> None:
        self.size, self.spacing, self.center, self.window = size, spacing, center, window
        self.keep_native, self.within = keep_native, within
        self.initial = initial_transform or "centre_of_mass"

    @tells_client
    def __call__(self, item: Item) -> Item:
        """Return the item with "image" and labels as tensors on the network grid; a request keeps its other keys."""
        out = self._pair(item) if "pair" in item else self._single(item)
        return {**item, **out} if is_request(item) else out

    def _initial(self, pair: Pair) -> np.ndarray:
        initial: Any = self.initial
        if initial not in INITIAL:
            if not Path(initial).is_file():
                raise InputError(f"initial transform {initial} is neither a file nor one of {', '.join(INITIAL)}")
            initial = read_transform(initial, "initial transform", pair.fixed.frame.ndim)
            if not isinstance(initial, np.ndarray):
                raise InputError(
                    f"initial transform {self.initial} is a displacement field; give an affine (.tfm, .mat)"
                )
        return initial_world(pair.fixed.array, pair.fixed.frame, pair.moving.array, pair.moving.frame, initial)

    def _pair(self, item: Item) -> Item:
        pair: Pair = item["pair"]
        pair.initial = self._initial(pair)
        if pair.network is None:
            grid = self.size, self.spacing, self.center, self.within
            pair.network = network_frame(pair.fixed.array, pair.fixed.frame, *grid)
        common = overlap(pair.fixed.frame, pair.moving.frame, pair.initial, pair.network)
        if common < 0.02:
            raise InputError(
                f"{pair.fixed.path} and {pair.moving.path} do not overlap in space after the initial transform "
                f"'{self.initial}'; use --initial_transform centre_of_mass or give an affine file"
            )
        worlds = {"fixed": None, "moving": pair.initial}
        views = [
            item[f"{side}_view"] if f"{side}_view" in item else self._view(image, pair.network, worlds[side])
            for side, image in pair.images.items()
        ]
        out: Item = {"image": torch.cat(views), "name": item["name"], "spacing_mm": _spacing(pair.network)}
        if self.keep_native:
            out["pair"] = pair
        if pair.target is not None:
            out["ddf"] = network_ddf(pair.target, pair.network, pair.initial)[0]
        for kind, found in (("label", pair.labels), ("mask", pair.masks)):
            for side, image in found.items():
                out[f"{side}_{kind}"] = bring(image.array, image.frame, pair.network, worlds[side], "nearest")
        for side, points_mm in pair.points_mm.items():
            here_mm = points_mm if side == "fixed" else apply_affine(np.linalg.inv(pair.initial), points_mm)
            out[f"{side}_points_vox"] = torch.from_numpy(pair.network.to_vox(here_mm))
        return out

    def _view(self, image: Image, network: Frame, world: np.ndarray | None) -> Tensor:
        return scale(bring(image.array, image.frame, network, world), self.window or intensity_window(image.array))

    def _single(self, item: Item) -> Item:
        image: Image = item["subject_image"]
        network = network_frame(image.array, image.frame, self.size, self.spacing, self.center)
        view = self._view(image, network, None)
        out: Item = {"image": view, "name": item["name"], "spacing_mm": _spacing(network)}
        if "subject_label" in item:
            label: Image = item["subject_label"]
            out["label"] = bring(label.array, label.frame, network, None, "nearest")
        return out


def _spacing(frame: Frame) -> Tensor:
    return torch.from_numpy(frame.spacing)


def make_preprocessing(
    size: Sequence[int],
    spacing: float | Sequence[float] | str,
    memory: Mapping[str, Any] | None = None,
    **options: Any,
) -> Compose:
    """Return the transforms from an item with paths to the network's view.

    Args:
        size: of the network grid in voxels; two numbers make pairs of 2-D images, three make volumes.
        spacing: of the network grid in mm, or "fit".
        memory: arguments of ``MemoryBudget`` beside ``size``.
        options: further arguments of ``FramePair``.
    """
    budget = MemoryBudget(size=size, **(memory or {}))
    return Compose([LoadPair(len(size), budget), FramePair(size, spacing, **options)])
