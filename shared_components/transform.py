"""Fields in the world: a network's ddf carried to any grid in mm, and images and points taken through it once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .geometry import Frame, apply_affine, vox_to_vox
from .slabs import slabs
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

    def part(self, where: slice) -> np.ndarray:
        """Return ``ddf_mm`` on a slab of the first axis, (D, n, ...)."""
        return self.ddf_mm[:, where]

    def parts(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the slabs that make up the field, and where they lie."""
        for where in slabs(self.frame.shape):
            yield where, self.part(where)

    def components(self) -> Iterator[np.ndarray]:
        """Yield the displacement along each axis, (*shape); one at a time is in memory."""
        yield from self.ddf_mm

    def displacement_at(self, points_mm: np.ndarray) -> np.ndarray:
        """Interpolate the displacement (N, D) in RAS mm at points (N, D) in RAS mm; zero outside the frame."""
        points_vox, shape = self.frame.to_vox(points_mm), self.frame.shape
        first = np.clip(points_vox[:, 0], 0, shape[0] - 1)
        values, before = np.zeros_like(points_vox), None
        for where, here in self.parts():  # a slab with the plane before it holds all cells that end in the slab
            begin = where.start - (before is not None)
            chosen = (first >= begin) & ((first < where.stop - 1) | (where.stop == shape[0]))
            if chosen.any():
                planes = here if before is None else np.concatenate([before, here], 1)
                coords = np.column_stack([first - begin, points_vox[:, 1:]])[chosen]
                values[chosen] = _sampled_at(planes, coords)
            before = here[:, -1:]
        inside = ((points_vox >= -0.5) & (points_vox <= np.asarray(shape) - 0.5)).all(-1)
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
        pulled = image.new_empty((len(image), *self.frame.shape))
        for where, part in self.resampled_parts(image, source, mode):
            pulled[:, where] = part
        return pulled

    def resampled_parts(self, image: Tensor, source: Frame, mode: str = "linear") -> Iterator[tuple[slice, Tensor]]:
        """Yield ``resample`` slab by slab, (C, n, ...), and where each lies."""
        linear, whole = _tensor(np.linalg.inv(source.matrix)), _tensor(vox_to_vox(self.frame, source))
        ready = _Pull(image, mode)
        for where, part in self.parts():
            offset = torch.einsum("ij,j...->i...", linear, torch.from_numpy(part))
            yield where, ready(affine_coords(whole, part.shape[1:], where.start) + offset[None])

    def voxel_ddf(self) -> Tensor:
        """Return the field as ddf (1, D, *shape) in voxels of its own frame."""
        linear = _tensor(np.linalg.inv(self.frame.matrix))
        return torch.einsum("ij,j...->i...", linear, torch.from_numpy(self.ddf_mm))[None]


class MadeField(PhysicalField):
    """A field that is not held: each slab is made when it is asked for, and ``ddf_mm`` from all of them, every time.

    Args:
        frame: the grid on which the field is sampled.
        make: returns the displacement on a slab of the first axis, (D, n, ...) float32, RAS mm.
    """

    def __init__(self, frame: Frame, make: Callable[[slice], np.ndarray]) -> None:
        object.__setattr__(self, "frame", frame)
        object.__setattr__(self, "part", make)

    @property
    def ddf_mm(self) -> np.ndarray:
        """The whole field, made anew."""
        found = np.empty((self.frame.ndim, *self.frame.shape), np.float32)
        for where, part in self.parts():
            found[:, where] = part
        return found

    def components(self) -> Iterator[np.ndarray]:
        """Yield the displacement along each axis, (*shape); one at a time is in memory."""
        for axis in range(self.frame.ndim):
            found = np.empty(self.frame.shape, np.float32)
            for where, part in self.parts():
                found[where] = part[axis]
            yield found

    def held(self) -> PhysicalField:
        """Return the same field in memory."""
        return PhysicalField(self.frame, self.ddf_mm)


def _sampled_at(planes: np.ndarray, coords: np.ndarray) -> np.ndarray:
    """Interpolate a field (D, *grid) at voxel positions (N, D) in double precision, (N, D)."""
    ndim = len(planes)
    at = torch.from_numpy(coords.T.copy()).view(1, ndim, -1, *(1,) * (ndim - 1))
    return sample(torch.from_numpy(planes)[None].double(), at).flatten(2)[0].T.numpy()


def _sample_rows(image: Tensor, coords: Tensor, mode: str = "linear", padding: str = "border") -> Tensor:
    """``sample`` of one image, (C, *out), with planes laid end to end: a thin slab has work for all threads as well."""
    flat = coords.flatten(2, 3).unsqueeze(3) if coords.ndim == 5 else coords
    return sample(image, flat, mode, padding)[0].reshape(-1, *coords.shape[2:])


class _Pull:
    """``pull`` of one image at positions that come slab by slab."""

    def __init__(self, image: Tensor, mode: str) -> None:
        self.image, self.mode, whole = image, mode, not image.is_floating_point()
        exact = torch.float32
        if mode == "nearest" and image.dtype != torch.float32 and image.numel():
            small = whole and -(2**24) < int(image.min()) and int(image.max()) < 2**24
            exact = torch.float32 if small else torch.float64
        work = image.to(exact)
        self.low = work.new_zeros(()) if mode == "nearest" and whole else work.amin()
        self.work = (work if self.low == 0 else work - self.low)[None]

    def __call__(self, coords: Tensor) -> Tensor:
        moved = _sample_rows(self.work, coords, self.mode, "zeros") + self.low
        return (moved if self.image.is_floating_point() else moved.round()).to(self.image.dtype)


def pull(image: Tensor, coords: Tensor, mode: str = "linear") -> Tensor:
    """Sample (C, *in) at (1, D, *out) voxel positions; the dtype is kept.

    What lies outside gets the image's minimum, or 0 where integers (labels, masks) are sampled by nearest neighbour.
    """
    return _Pull(image, mode)(coords)


def carry(
    ddf: Tensor,
    network: Frame,
    target: Frame,
    before: np.ndarray | None = None,
    after: np.ndarray | None = None,
    hold: bool = True,
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
        hold: False: the field is made wherever it is looked at, see ``MadeField``.
    """
    eye = np.eye(target.ndim + 1)
    before = eye if before is None else before
    after = eye if after is None else after
    values = ddf.float()
    there = _tensor(np.linalg.inv(network.affine) @ before @ target.affine)
    linear = _tensor(after[:-1, :-1] @ network.matrix)
    still = _tensor((after @ before - eye) @ target.affine)

    def make(where: slice) -> np.ndarray:
        shape = (where.stop - where.start, *target.shape[1:])
        coords = affine_coords(there, shape, where.start)
        step = _sample_rows(values, coords)
        initial = affine_coords(still, shape, where.start)[0]
        return (initial + torch.einsum("ij,j...->i...", linear, step)).numpy()

    field = MadeField(target, make)
    return field.held() if hold else field


def carry_values(values: Tensor, network: Frame, target: Frame) -> Tensor:
    """Bring values (C, *network.shape) to another grid in the same world; beyond the network's, border values go on."""
    matrix, values = _tensor(vox_to_vox(target, network)), values[None].float()
    found = values.new_empty((values.shape[1], *target.shape))
    for where in slabs(target.shape):
        found[:, where] = _sample_rows(values, affine_coords(matrix, found[:, where].shape[1:], where.start))
    return found


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


def affine_field(world: np.ndarray, frame: Frame, hold: bool = True) -> PhysicalField:
    """Sample a world map (D+1, D+1), RAS mm -> RAS mm, as a field on ``frame``; ``hold`` as for ``carry``."""
    matrix = _tensor((world - np.eye(frame.ndim + 1)) @ frame.affine)

    def make(where: slice) -> np.ndarray:
        return affine_coords(matrix, (where.stop - where.start, *frame.shape[1:]), where.start)[0].numpy()

    field = MadeField(frame, make)
    return field.held() if hold else field


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
