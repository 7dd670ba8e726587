"""Fields in the world: a network's ddf carried to any grid in mm, and images and points taken through it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .geometry import Frame, apply_affine, vox_to_vox
from .warp import affine_coords, sample


def _tensor(matrix: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix)).float()


@dataclass(frozen=True, eq=False)
class PhysicalField:
    """A displacement in the world: a point p of ``frame`` (RAS mm) goes to p + ddf_mm(p).

    As the transform of an image pair it lives on the fixed grid and points into the moving image (pull-back). Outside
    its frame the displacement is zero, as in ITK.

    Attributes:
        frame: the grid on which the field is sampled.
        ddf_mm: (D, *frame.shape) float32, RAS mm.
    """

    frame: Frame
    ddf_mm: np.ndarray

    def __post_init__(self) -> None:
        expected = (self.frame.ndim, *self.frame.shape)
        if tuple(self.ddf_mm.shape) != expected:
            raise ValueError(
                f"a field on {self.frame.shape} must have shape {expected}, got {tuple(self.ddf_mm.shape)}"
            )

    def displacement_at(self, points_mm: np.ndarray) -> np.ndarray:
        """Interpolate the displacement (N, D) in RAS mm at points (N, D) in RAS mm; zero outside the frame."""
        ndim = self.frame.ndim
        points_vox = self.frame.to_vox(points_mm)
        coords = torch.from_numpy(points_vox.T.copy()).view(1, ndim, -1, *(1,) * (ndim - 1))
        values = sample(torch.from_numpy(self.ddf_mm)[None].double(), coords).flatten(2)[0].T.numpy()
        inside = ((points_vox >= -0.5) & (points_vox <= np.asarray(self.frame.shape) - 0.5)).all(-1)
        return values * inside[:, None]

    def map_points(self, points_mm: np.ndarray) -> np.ndarray:
        """Carry (N, D) points in RAS mm from the frame's image to the other one."""
        points_mm = np.asarray(points_mm, dtype=np.float64).reshape(-1, self.frame.ndim)
        return points_mm + self.displacement_at(points_mm)

    def coords_in(self, target: Frame) -> Tensor:
        """Return where each voxel of the frame lands, (1, D, *frame.shape) voxels of ``target``."""
        linear = _tensor(np.linalg.inv(target.matrix))
        offset = torch.einsum("ij,j...->i...", linear, torch.from_numpy(self.ddf_mm))
        return affine_coords(_tensor(vox_to_vox(self.frame, target)), self.frame.shape) + offset[None]

    def resample(self, image: Tensor, source: Frame, mode: str = "linear") -> Tensor:
        """Pull an image (C, *source.shape) onto the frame, interpolated once; outside its grid its minimum."""
        return pull(image, self.coords_in(source), mode)

    def voxel_ddf(self) -> Tensor:
        """Return the field as ddf (1, D, *shape) in voxels of its own frame."""
        linear = _tensor(np.linalg.inv(self.frame.matrix))
        return torch.einsum("ij,j...->i...", linear, torch.from_numpy(self.ddf_mm))[None]


def pull(image: Tensor, coords: Tensor, mode: str = "linear") -> Tensor:
    """Sample (C, *in) at (1, D, *out) voxel positions; the dtype is kept.

    What lies outside gets the image's minimum, or 0 where integers (labels, masks) are sampled by nearest neighbour.
    """
    work = image.to(torch.float64 if mode == "nearest" and image.dtype != torch.float32 else torch.float32)
    low = work.new_zeros(()) if mode == "nearest" and not image.is_floating_point() else work.amin()
    moved = sample((work - low)[None], coords, mode, "zeros")[0] + low
    return (moved if image.is_floating_point() else moved.round()).to(image.dtype)


def carry(
    ddf: Tensor, network: Frame, target: Frame, before: np.ndarray | None = None, after: np.ndarray | None = None
) -> PhysicalField:
    """Bring a field of the network frame to another grid: p -> after(A_n(n + ddf(n))), n = A_n^-1 before(p).

    Forward field of a pair on the fixed grid: ``before`` None, ``after`` the initial world map (fixed mm -> moving mm).
    Inverse field on the moving grid: ``before`` the inverse of the initial map, ``after`` None.

    Args:
        ddf: (1, D, *network.shape) in voxels of ``network``; continued by its border values outside.
        network: the grid that the network saw.
        target: the grid to sample on.
        before: (D+1, D+1) RAS mm -> RAS mm, or None for the identity.
        after: likewise.
    """
    eye = np.eye(target.ndim + 1)
    before = eye if before is None else before
    after = eye if after is None else after
    coords = affine_coords(_tensor(np.linalg.inv(network.affine) @ before @ target.affine), target.shape)
    step = sample(ddf.float(), coords)[0]
    linear = _tensor(after[:-1, :-1] @ network.matrix)
    initial = affine_coords(_tensor((after @ before - eye) @ target.affine), target.shape)[0]
    ddf_mm = initial + torch.einsum("ij,j...->i...", linear, step)
    return PhysicalField(target, ddf_mm.contiguous().numpy())


def carry_values(values: Tensor, network: Frame, target: Frame) -> Tensor:
    """Bring values (C, *network.shape) to another grid in the same world; beyond the network's, border values go on."""
    coords = affine_coords(_tensor(vox_to_vox(target, network)), target.shape)
    return sample(values[None].float(), coords)[0]


def network_ddf(field: PhysicalField, network: Frame, initial: np.ndarray) -> Tensor:
    """Return what a network should predict for ``field``, (1, D, *network.shape) voxels: the reverse of ``carry``.

    Args:
        field: fixed mm -> moving mm, on any grid around the fixed image.
        network: the grid of the network.
        initial: (D+1, D+1) fixed mm -> moving mm, the initial transform that the network's input went through.
    """
    start_mm = network.to_mm(_indices(network))
    target_vox = network.to_vox(apply_affine(np.linalg.inv(initial), field.map_points(start_mm)))
    step = (target_vox - _indices(network)).T.reshape(1, network.ndim, *network.shape)
    return torch.from_numpy(np.ascontiguousarray(step)).float()


def _indices(frame: Frame) -> np.ndarray:
    return np.stack(np.meshgrid(*[np.arange(n) for n in frame.shape], indexing="ij"), -1).reshape(-1, frame.ndim)


def affine_field(world: np.ndarray, frame: Frame) -> PhysicalField:
    """Sample a world map (D+1, D+1), RAS mm -> RAS mm, as a field on ``frame``."""
    shift = affine_coords(_tensor((world - np.eye(frame.ndim + 1)) @ frame.affine), frame.shape)[0]
    return PhysicalField(frame, shift.contiguous().numpy())


Step = PhysicalField | np.ndarray


def map_points(points_mm: np.ndarray, chain: Sequence[Step]) -> np.ndarray:
    """Carry (N, D) RAS mm points through fields and (D+1, D+1) world matrices, first element first."""
    for step in chain:
        points_mm = step.map_points(points_mm) if isinstance(step, PhysicalField) else apply_affine(step, points_mm)
    return points_mm


def compose_chain(chain: Sequence[Step], frame: Frame) -> PhysicalField:
    """Collapse a chain (first element first, seen from ``frame``) into one field: images are interpolated once."""
    start = frame.to_mm(_indices(frame))
    end = map_points(start, chain)
    return PhysicalField(
        frame, np.ascontiguousarray((end - start).T.reshape(frame.ndim, *frame.shape).astype(np.float32))
    )
