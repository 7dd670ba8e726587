"""The learned optimiser as a network: two images in, the displacement of an affine map out (Kanter & Lellmann 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared_components.affine_search import AffineSearch, MetaOptimiser, best_of, matrix_vox, rotation_starts
from shared_components.engines import AutocastInferer
from shared_components.warp import affine_coords, coords_grid


class MetaAffine(MetaOptimiser):
    """``network(image) -> ddf``: K learned steps, from one start or from several, of which the best is kept.

    Defaults build the paper's network for 2-D images (24,000 weights). The number of weights does not depend on the
    size of the images.

    Args:
        size: grid of the input; its length is D.
        strides, linear, output, expansion, detach_grad: see ``MetaOptimiser``.
        starts: rotations to start from, see ``rotation_starts``; 1 is the paper's.
    """

    def __init__(
        self,
        size: Sequence[int] = (128, 128),
        strides: Sequence[int] = (1, 1, 1, 1, 1),
        linear: str = "frozen",
        output: str = "cell",
        expansion: int = 4,
        detach_grad: bool = False,
        starts: int = 1,
    ) -> None:
        broken = [n for n in size for stride in strides if n % stride]
        if broken:
            raise ValueError(f"size {list(size)} must be divisible by all strides {list(strides)}")
        super().__init__(len(size), strides, linear, output, expansion, detach_grad)
        self.size, self.starts = tuple(size), starts
        start = rotation_starts(self.ndim, starts) if starts > 1 else None
        self.register_buffer("start", start, persistent=False)  # a constant: ONNX has no matrix exponential
        self.active = len(self.strides)  # steps that training has reached, see ``SuccessiveLayers``

    def forward(self, image: Tensor, return_stages: bool = False) -> Any:
        """Return the ddf that pulls moving onto fixed.

        Args:
            image: (B, 2, *size), channel 0 fixed, 1 moving.
            return_stages: for training. A dict instead: "x", the iterates x_0, x_1, ... from the one start at the
                identity, up to the step that training has reached.

        Returns:
            (B, D, *size) voxels, pull-back; or the dict.
        """
        if not return_stages:
            return field(self.parameters_of(image), image.shape[2:])
        return {"x": super().forward(image[:, :1], image[:, 1:2], steps=self.active)}

    def candidates(self, image: Tensor) -> Tensor:
        """Return what the learned steps make of each start, (B * starts, D (D + 1))."""
        start = None if self.start is None else self.start.to(image).repeat(image.shape[0], 1)
        return super().forward(image[:, :1], image[:, 1:2], start)[-1]

    def parameters_of(self, image: Tensor) -> Tensor:
        """Return the affine parameters, (B, D (D + 1))."""
        return best_of(image[:, :1], image[:, 1:2], self.candidates(image), self.strides[-1])

    def affine_matrix(self, image: Tensor) -> Tensor:
        """Return the map as (B, D+1, D+1), voxel to voxel."""
        return matrix_vox(self.parameters_of(image), image.shape[2:])


class Polished(nn.Module):
    """The learned steps and after them the classical optimiser: the paper's *comb*.

    Args:
        network: a ``MetaAffine``.
        search: the optimiser; None leaves the learned result as it is.
    """

    affine_only = True  # the ddf is nothing but the affine map: results are written from that

    def __init__(self, network: MetaAffine, search: AffineSearch | None = None) -> None:
        super().__init__()
        self.network, self.search = network, search

    def forward(self, image: Tensor, return_stages: bool = False) -> Any:
        """Return the ddf, (B, D, *size) voxels; or the stages of the learned steps, as ``MetaAffine`` does."""
        if return_stages:
            return self.network(image, return_stages=True)
        return field(self.parameters_of(image), image.shape[2:])

    def affine_matrix(self, image: Tensor) -> Tensor:
        """Return the map as (B, D+1, D+1), voxel to voxel."""
        return matrix_vox(self.parameters_of(image), image.shape[2:])

    def parameters_of(self, image: Tensor) -> Tensor:
        """Return the affine parameters, (B, D (D + 1))."""
        if self.search is None:
            return self.network.parameters_of(image)
        with torch.no_grad():
            return self.search(image[:, :1], image[:, 1:2], self.network.candidates(image)).x


class PolishedInferer(AutocastInferer):
    """Run the learned steps and the classical optimiser, also where only the former are handed in, as by MONAI Label.

    Args:
        search: for a ``MetaAffine``, see ``Polished``, which brings its own.
    """

    def __init__(self, search: AffineSearch | None = None) -> None:
        super().__init__()
        self.search = search

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return the ddf, (B, D, *size) voxels."""
        whole = network if hasattr(network, "affine_only") else Polished(network, self.search)
        return super().__call__(inputs, whole, *args, **kwargs)


def field(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return phi_x as ddf (B, D, *shape) in voxels."""
    return affine_coords(matrix_vox(x, shape), shape) - coords_grid(shape, x.device, x.dtype)
