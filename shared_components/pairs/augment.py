"""Random changes to a finished pair, drawn from the pair's own generator so that training can be repeated exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..affine import affine_ddf, compose_affine
from ..errors import InputError
from ..synth.deformations import bspline_field
from ..synth.intensities import add_gaussian_noise, bias_field, change_contrast
from ..warp import warp_image, warp_labels
from .datasets import Item


class AugmentPair:
    """Pose the pair anew, deform the moving image, change intensities, mirror. All off by default but the B-splines.

    Args:
        bspline: strength of the B-spline field of VTN on the moving image (0.4 is the paper's; see
            ``synth.bspline_field``); 0 for none.
        control_points: of that field, per axis.
        rotation: largest extra rotation of the moving image about each axis, in degrees.
        scaling: largest extra relative change of its size along each axis.
        translation: largest extra shift along each axis, as a fraction of its length.
        pose_rotation, pose_scaling: likewise, but common to both images: heads are held and cut in many ways.
        contrast: strength of an increasing random intensity curve, drawn for each image; below 1.
        bias: bound on |log| of a smooth intensity factor, drawn for each image.
        noise: standard deviation of Gaussian noise, in units of the scaled intensities; background stays 0.
        flip: probability of mirroring both images along the first (left-right) axis. Labels are mirrored with the
            images but not renamed.
        probability: of changing a pair at all, mirroring apart: below 1 some pairs stay as acquired.
    """

    def __init__(
        self,
        bspline: float = 0.4,
        control_points: int = 5,
        rotation: float = 0.0,
        scaling: float = 0.0,
        translation: float = 0.0,
        pose_rotation: float = 0.0,
        pose_scaling: float = 0.0,
        contrast: float = 0.0,
        bias: float = 0.0,
        noise: float = 0.0,
        flip: float = 0.0,
        probability: float = 1.0,
    ) -> None:
        self.bspline, self.control_points, self.flip, self.probability = bspline, control_points, flip, probability
        self.relative = (math.radians(rotation), scaling, translation)
        self.pose = (math.radians(pose_rotation), pose_scaling, 0.0)
        self.contrast, self.bias, self.noise = contrast, bias, noise

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        """Return the changed pair; "image" is (2, *spatial), labels (1, *spatial), a field to be learned (D, *spatial).

        Raises:
            InputError: the pair has a field to be learned, which would no longer be true.
        """
        if "ddf" in item and (self.bspline or any(self.relative) or any(self.pose)):
            raise InputError(f"pair {item.get('name')} has a target field; train on it with --augment None")
        item = dict(item)
        if self.probability >= 1 or float(torch.rand((), generator=generator)) < self.probability:
            self._change(item, generator)
        if self.flip and float(torch.rand((), generator=generator)) < self.flip:
            for key in ("image", "fixed_label", "moving_label"):
                if key in item:
                    item[key] = item[key].flip(1)
            if "ddf" in item:
                item["ddf"] = torch.cat([-item["ddf"][:1], item["ddf"][1:]]).flip(1)
        return item

    def _change(self, item: dict[str, Any], generator: torch.Generator) -> None:
        for index, (side, ddf) in enumerate(self._fields(item["image"].shape[1:], generator).items()):
            image, label = item["image"], f"{side}_label"
            if ddf is None:
                continue
            moved = warp_image(image[None, index : index + 1], ddf)[0]
            item["image"] = torch.cat([moved, image[1:]] if index == 0 else [image[:1], moved])
            if label in item:
                item[label] = warp_labels(item[label][None], ddf)[0]
        item["image"] = self._intensities(item["image"], generator)

    def _fields(self, shape: torch.Size, generator: torch.Generator) -> dict[str, Tensor | None]:
        """Fixed: the common pose. Moving: the common pose after the extra affine map after the B-spline field."""
        dense = None
        if self.bspline:
            dense = bspline_field(shape, generator, control_points=self.control_points, strength=self.bspline)
        if any(self.relative):
            dense = _apply(_draw_affine(shape, self.relative, generator), dense, shape)
        if not any(self.pose):
            return {"fixed": None, "moving": dense}
        pose = _draw_affine(shape, self.pose, generator)
        return {"fixed": affine_ddf(*pose, shape), "moving": _apply(pose, dense, shape)}

    def _intensities(self, image: Tensor, generator: torch.Generator) -> Tensor:
        pair = image[:, None]  # two images of one channel, each with its own draws
        if self.contrast:
            pair = change_contrast(pair, generator, knots=4, strength=self.contrast, keep_background=True)
        if self.bias:
            pair = pair * bias_field(pair.shape[2:], generator, batch=2, strength=self.bias)
        if self.noise:
            pair = add_gaussian_noise(pair, self.noise, generator, keep_background=True)
        return pair[:, 0]


def _apply(affine: tuple[Tensor, Tensor], dense: Tensor | None, shape: torch.Size) -> Tensor:
    return affine_ddf(*affine, shape) if dense is None else compose_affine(*affine, dense)


def _draw_affine(
    shape: torch.Size, limits: tuple[float, float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return random (A, b), batch of one, within +-(rotation in radians, scaling, translation as a fraction)."""
    rotation, scaling, translation = limits
    ndim = len(shape)

    def draw(n: int) -> Tensor:
        return torch.rand(n, generator=generator) * 2 - 1

    turn = torch.zeros(ndim, ndim)
    angles = draw(ndim * (ndim - 1) // 2) * rotation
    rows, columns = torch.triu_indices(ndim, ndim, 1)
    turn[rows, columns], turn[columns, rows] = angles, -angles
    matrix = torch.matrix_exp(turn) @ torch.diag(1 + draw(ndim) * scaling)
    shift = draw(ndim) * translation * torch.tensor(tuple(shape), dtype=torch.float32)
    return (matrix - torch.eye(ndim))[None], shift[None]


class DrawSeed:
    """Augmentation of a pair that adds "noise_seed", from the pair's own generator: a killed run goes on to the bit.

    Args:
        augment: ``augment(item, generator) -> item`` before it, such as ``AugmentPair``, or None.
    """

    def __init__(self, augment: Callable[[Item, torch.Generator], Item] | None = None) -> None:
        self.augment = augment

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        """Return the pair with its seed."""
        item = item if self.augment is None else self.augment(item, generator)
        return {**item, "noise_seed": torch.randint(2**31, (), generator=generator)}
