"""Random changes to a finished pair, drawn from the pair's own generator so that training can be repeated exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..affine import affine_ddf, compose_affine
from ..synth.deformations import bspline_field
from ..warp import warp_image, warp_labels
from .datasets import Item


class AugmentPair:
    """Deform the moving image and mirror the pair.

    Args:
        bspline: strength of the B-spline field of VTN (0.4 is the paper's; see ``synth.bspline_field``); 0 for none.
        control_points: of that field, per axis.
        rotation: largest rotation of the moving image about each axis, in degrees.
        scaling: largest relative change of size along each axis.
        translation: largest shift along each axis, as a fraction of its length.
        flip: probability of mirroring both images along the first (left-right) axis. Labels are mirrored with the
            images but not renamed.
    """

    def __init__(
        self,
        bspline: float = 0.4,
        control_points: int = 5,
        rotation: float = 0.0,
        scaling: float = 0.0,
        translation: float = 0.0,
        flip: float = 0.0,
    ) -> None:
        self.bspline, self.control_points, self.flip = bspline, control_points, flip
        self.rotation, self.scaling, self.translation = math.radians(rotation), scaling, translation

    def __call__(self, item: Item, generator: torch.Generator) -> Item:
        """Return the changed pair; "image" is (2, *spatial), labels (1, *spatial)."""
        item = dict(item)
        ddf = self._field(item["image"].shape[1:], generator)
        if ddf is not None:
            image = item["image"]
            item["image"] = torch.cat([image[:1], warp_image(image[None, 1:], ddf)[0]])
            if "moving_label" in item:
                item["moving_label"] = warp_labels(item["moving_label"][None], ddf)[0]
        if self.flip and float(torch.rand((), generator=generator)) < self.flip:
            for key in ("image", "fixed_label", "moving_label"):
                if key in item:
                    item[key] = item[key].flip(1)
        return item

    def _field(self, shape: torch.Size, generator: torch.Generator) -> Tensor | None:
        dense = None
        if self.bspline:
            dense = bspline_field(shape, generator, control_points=self.control_points, strength=self.bspline)
        if not (self.rotation or self.scaling or self.translation):
            return dense
        A, b = self._affine(shape, generator)
        return affine_ddf(A, b, shape) if dense is None else compose_affine(A, b, dense)

    def _affine(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        ndim = len(shape)

        def draw(n: int) -> Tensor:
            return torch.rand(n, generator=generator) * 2 - 1

        turn = torch.zeros(ndim, ndim)
        angles = draw(ndim * (ndim - 1) // 2) * self.rotation
        rows, columns = torch.triu_indices(ndim, ndim, 1)
        turn[rows, columns], turn[columns, rows] = angles, -angles
        matrix = torch.matrix_exp(turn) @ torch.diag(1 + draw(ndim) * self.scaling)
        shift = draw(ndim) * self.translation * torch.tensor(tuple(shape), dtype=torch.float32)
        return (matrix - torch.eye(ndim))[None], shift[None]
