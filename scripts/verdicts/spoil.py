"""Ways to spoil an image: each takes an image in memory and a generator, and returns another one.

What a mishap would do to a file is done to its voxels; headers stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from shared_components.geometry import Frame, canonical_axes
from shared_components.images import Image
from shared_components.synth import add_rician_noise
from shared_components.transform import affine_field


def with_values(image: Image, values: np.ndarray) -> Image:
    """Return the image with other voxels, (*spatial)."""
    return replace(image, array=torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None])


def flip(image: Image, axis: int) -> Image:
    """Mirror the voxels along the array axis closest to world axis 0 (left-right), 1 (front-back) or 2 (head-feet)."""
    array_axis = int(np.abs(canonical_axes(image.frame.affine)[:, axis]).argmax())
    return replace(image, array=image.array.flip(array_axis + 1))


def cut_half(image: Image, axis: int, upper: bool) -> Image:
    """Empty one half of the content along an array axis: nothing was acquired there."""
    values = image.array[0].numpy().copy()
    low = values.min()
    filled = np.flatnonzero((values > low).any(axis=tuple(a for a in range(values.ndim) if a != axis)))
    middle = int(filled[0] + filled[-1] + 1) // 2
    part = [slice(None)] * values.ndim
    part[axis] = slice(middle, None) if upper else slice(None, middle)
    values[tuple(part)] = low
    return with_values(image, values)


def saturate(image: Image, percentile: float) -> Image:
    """Clip all that is brighter than a percentile of the content: an amplifier or a conversion that overflowed."""
    values = image.array[0].numpy()
    top = np.percentile(values[values > values.min()], percentile)
    return with_values(image, np.minimum(values, top))


def drown(image: Image, strength: float, generator: torch.Generator) -> Image:
    """Add Rician noise everywhere, of so many times the 99th percentile of the content."""
    values = image.array[None]
    low = values.min()
    scale = float(np.percentile((values - low)[values > low].numpy(), 99))
    return replace(image, array=add_rician_noise(values - low, strength * scale, generator)[0])


def turn(image: Image, degrees: float, axis: Sequence[float]) -> Image:
    """Turn the content about the middle of the grid; a slice within its plane, whatever the axis."""
    frame: Frame = image.frame
    ndim = frame.ndim
    direction = np.asarray(axis if ndim == 3 else (0, 0, 1), dtype=np.float64)
    matrix = Rotation.from_rotvec(np.deg2rad(degrees) * direction / np.linalg.norm(direction)).as_matrix()[:ndim, :ndim]
    world = np.eye(ndim + 1)
    world[:ndim, :ndim] = matrix
    world[:ndim, ndim] = frame.center_mm - matrix @ frame.center_mm
    return replace(image, array=affine_field(world, frame).resample(image.array, frame))


def derangement(count: int, rng: np.random.Generator) -> list[int]:
    """Return a random permutation of range(count) that leaves nothing in its place."""
    order = rng.permutation(count)
    while (order == np.arange(count)).any():
        order = rng.permutation(count)
    return order.tolist()


def shuffle_parts(images: Sequence[Image], order: Sequence[int]) -> Image:
    """Put the eighths (of slices: quarters) of several subjects' images into one, each in another one's place.

    Args:
        images: eight (four) images on one grid; the k-th gives one part.
        order: a permutation of range(8) (4): where each part goes.
    """
    shape = images[0].array.shape[1:]
    half = [n // 2 for n in shape]
    out = np.full(shape, float(images[0].array.min()), dtype=np.float32)
    for source, (image, target) in enumerate(zip(images, order, strict=True)):
        parts = [
            tuple(slice(bit * h, (bit + 1) * h) for bit, h in zip(_bits(number, len(shape)), half, strict=True))
            for number in (source, target)
        ]
        out[parts[1]] = image.array[0].numpy()[parts[0]]
    return with_values(images[0], out)


def _bits(number: int, count: int) -> tuple[int, ...]:
    return tuple(number >> place & 1 for place in reversed(range(count)))


def swap_organs(image: Image, label: np.ndarray, other: Image, other_label: np.ndarray, order: Sequence[int]) -> Image:
    """Fill each structure with the voxels of another structure of another subject, cycled to fit.

    Args:
        image: receives; ``label`` (*spatial) its structures.
        other: gives; ``other_label`` (*spatial) its structures.
        order: label values in the order in which the structures change places.
    """
    values, source = image.array[0].numpy().copy(), other.array[0].numpy()
    for value, taken in zip(order, [*order[1:], order[0]], strict=True):
        here, there = label == value, source[other_label == taken]
        if there.size:
            values[here] = np.resize(there, int(here.sum()))
    return with_values(image, values)
