"""From a network's ddf to the finished registration of the native images, and its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..geometry import Frame, apply_affine
from ..images import Image
from ..metrics import field_statistics, inverse_consistency_error, label_summary, plain, tre_mm
from ..pairs.load import Pair
from ..similarity import correlation_of_parts
from ..transform import PhysicalField, affine_field, carry, carry_values
from ..unfold import unfold_field
from ..warp import invert

STAGES = ("header", "initial", "after")


@dataclass(eq=False)
class Registration:
    """Everything that one registered pair gives, in native grids and RAS mm; images are interpolated once, on demand.

    Attributes:
        pair: the images and what came with them.
        ddf: (1, D, *network) voxels of the network frame.
        affine_world: (D+1, D+1) fixed mm -> moving mm of the method's affine stage, initial transform included; None
            where the method has none.
        affine_only: that is the whole result, and ``ddf`` samples it: fields are then exactly affine also where the
            network frame ends.
        diffeomorphic: both fields are kept free of folds on the grids on which they are written.
        hold: False: the fields are made anew wherever they are looked at, unless they are ``diffeomorphic``; the same
            bits, less memory, more time.
    """

    pair: Pair
    ddf: Tensor
    affine_world: np.ndarray | None = None
    affine_only: bool = False
    diffeomorphic: bool = False
    hold: bool = True
    _inverse: tuple[Tensor, float] | None = field(default=None, repr=False)

    @property
    def field(self) -> PhysicalField:
        """On the fixed grid, fixed mm -> moving mm: initial transform after network field."""
        return self._forth[0]

    @property
    def inverse_field(self) -> PhysicalField:
        """On the moving grid, moving mm -> fixed mm."""
        return self._back[0]

    @property
    def unfolding(self) -> dict[str, dict[str, float]]:
        """What it took to keep both fields free of folds, see ``unfold_field``; empty if that was not wanted."""
        return {"fixed_grid": self._forth[1], "moving_grid": self._back[1]} if self.diffeomorphic else {}

    @cached_property
    def _forth(self) -> tuple[PhysicalField, dict[str, float]]:
        pair, base = self.pair, self.affine_world if self.affine_only else self.pair.initial
        if self.affine_only:
            found = affine_field(base, pair.fixed.frame, self._held)
        else:
            found = carry(self.ddf, pair.network, pair.fixed.frame, after=base, hold=self._held)
        return unfold_field(found, base) if self.diffeomorphic else (found, {})

    @cached_property
    def _back(self) -> tuple[PhysicalField, dict[str, float]]:
        pair, base = self.pair, np.linalg.inv(self.affine_world if self.affine_only else self.pair.initial)
        if self.affine_only:
            found = affine_field(base, pair.moving.frame, self._held)
        else:
            found = carry(self._inverted()[0], pair.network, pair.moving.frame, before=base, hold=self._held)
        return unfold_field(found, base) if self.diffeomorphic else (found, {})

    @property
    def _held(self) -> bool:
        return self.hold or self.diffeomorphic

    @property
    def inverse_residual_vox(self) -> float:
        """95th percentile of |v + u(x + v)| in voxels of the network frame; large where the field folds."""
        return self._inverted()[1]

    def _inverted(self) -> tuple[Tensor, float]:
        if self._inverse is None:
            self._inverse = invert(self.ddf)
        return self._inverse

    def at(self, stage: str) -> PhysicalField:
        """The transform at a stage: "header" (images as they lie in the world), "initial" or "after"."""
        frame = self.pair.fixed.frame
        if stage == "after":
            return self.field
        return affine_field(np.eye(frame.ndim + 1) if stage == "header" else self.pair.initial, frame, hold=False)

    def moved(self, stage: str = "after") -> Tensor:
        """The moving image on the fixed grid, (1, *fixed)."""
        return self.at(stage).resample(self.pair.moving.array, self.pair.moving.frame)

    def moved_label(self, stage: str = "after") -> Tensor | None:
        """The moving label on the fixed grid, nearest neighbour, (1, *fixed)."""
        label = self.pair.labels.get("moving")
        return None if label is None else self.at(stage).resample(label.array, label.frame, "nearest")

    def mapped_points(self, stage: str = "after") -> np.ndarray | None:
        """The fixed landmarks carried into the moving image, (N, D) RAS mm."""
        points = self.pair.points_mm.get("fixed")
        if points is None or stage == "header":
            return points
        return apply_affine(self.pair.initial, points) if stage == "initial" else self.field.map_points(points)


def measure(result: Registration) -> dict[str, Any]:
    """Return the metrics of a registration: each with its value by header, after the initial transform, and after.

    "similarity" is the correlation of the images over the fixed foreground, "labels" and "points" appear where both
    images have them, "field" describes the whole transform on the fixed grid, in world terms.
    """
    pair, spacing = result.pair, result.pair.fixed.frame.spacing
    fixed = pair.fixed.array
    inside = fixed > fixed.min()
    metrics: dict[str, Any] = {"similarity": {"correlation": {}}}
    for stage in STAGES:
        parts = result.at(stage).resampled_parts(pair.moving.array, pair.moving.frame)
        correlation = correlation_of_parts((fixed[:, at], part, inside[:, at]) for at, part in parts)
        metrics["similarity"]["correlation"][stage] = round(correlation, 6)
    if len(pair.labels) == 2:
        metrics["labels"] = {}
        for stage in STAGES:
            moved = result.moved_label(stage)[0].numpy()
            summary = label_summary(pair.labels["fixed"].array[0].numpy(), moved, spacing)
            metrics["labels"][stage] = summary if stage == "after" else {"mean": summary["mean"]}
    if len(pair.points_mm) == 2:
        both = pair.points_mm["fixed"], pair.points_mm["moving"]
        metrics["points"] = {stage: plain(tre_mm(*both, result.mapped_points(stage))) for stage in STAGES}
    metrics["field"] = describe_field(result)
    return metrics


def describe_field(result: Registration) -> dict[str, Any]:
    """Return displacement, Jacobian and folds where the fixed image has content, and how well the inverse inverts.

    The displacement is what the registration adds to the initial transform; the folds are those of the whole map.
    """
    pair = result.pair
    frame = pair.fixed.frame
    mask = pair.fixed.array[0] > pair.fixed.array.min()
    initial, linear = result.at("initial"), torch.from_numpy(np.linalg.inv(frame.matrix)).float()
    lengths = []

    def voxels() -> Iterator[Tensor]:
        for where, part in result.field.parts():
            lengths.append(np.linalg.norm(part - initial.part(where), axis=0)[mask[where].numpy()])
            yield torch.einsum("ij,j...->i...", linear, torch.from_numpy(part))

    summary = field_statistics(voxels(), mask)
    length = np.concatenate(lengths)
    summary["displacement_mm"] = {
        "mean": float(length.mean()),
        "p95": float(np.percentile(length, 95, overwrite_input=True)),
        "max": float(length.max()),
    }
    inverse, residual = result._inverted()
    network: Frame = pair.network
    summary["inverse_consistency_mm"] = inverse_consistency_error(result.ddf, inverse, network.spacing)
    summary["inverse_residual_vox"] = residual
    return plain(summary)


def thinned(result: Registration, step: int) -> Registration:
    """Return the same registration on every ``step``-th voxel of the fixed grid along each axis, for pictures."""
    pair = result.pair
    every = (slice(None), *(slice(None, None, step),) * pair.fixed.frame.ndim)

    def thin(image: Image) -> Image:
        array, affine = image.array[every], image.frame.affine.copy()
        affine[:-1, :-1] *= step
        return replace(image, array=array, frame=Frame(tuple(array.shape[1:]), affine))

    images, labels = ({**kept, "fixed": thin(kept["fixed"])} if "fixed" in kept else kept
                      for kept in (pair.images, pair.labels))  # fmt: skip
    return replace(result, pair=replace(pair, images=images, labels=labels), hold=True)


def expected_error(result: Registration, error_mm: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return an expected error of the network's grid on the fixed one, (*fixed) mm, and its mean, p95 and max there.

    The numbers are over the fixed image's content.
    """
    pair = result.pair
    on_network = error_mm.detach().to("cpu", torch.float32).reshape(1, *pair.network.shape)
    native = carry_values(on_network, pair.network, pair.fixed.frame)[0]
    values = native[pair.fixed.array[0] > pair.fixed.array.min()].numpy()
    numbers = {"mean": values.mean(), "p95": np.percentile(values, 95), "max": values.max()}
    return native, plain({name: float(value) for name, value in numbers.items()})


def affine_world(pair: Pair, matrix_vox: Tensor | None) -> np.ndarray | None:
    """Return the world map of an affine in voxels of the network frame (1, D+1, D+1), initial transform included."""
    if matrix_vox is None:
        return None
    matrix = matrix_vox[0].detach().double().cpu().numpy()
    return pair.initial @ pair.network.affine @ matrix @ np.linalg.inv(pair.network.affine)


def as_batch(ddf: Tensor, ndim: int) -> Tensor:
    """Return the prediction as float32 (1, D, *spatial) on the CPU, whether it came with a batch axis or without."""
    ddf = ddf.detach().to("cpu", torch.float32)
    ddf = getattr(ddf, "as_tensor", lambda: ddf)()
    return ddf if ddf.ndim == ndim + 2 else ddf[None]
