"""The frame a network sees: initial alignment, the cut, anti-aliasing and intensity scaling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..geometry import Frame, apply_affine, cut_frame, vox_to_vox
from ..slabs import slabs
from ..transform import pull
from ..warp import affine_coords

INITIAL = ("centre_of_mass", "header", "meta_affine")


def center_of_mass_mm(image: Tensor, frame: Frame) -> np.ndarray:
    """Return the (D,) RAS mm centre of mass of (1, *spatial) intensities above the image's minimum."""
    low, shape = image.min().double(), image.shape[1:]
    along = [torch.zeros(n, dtype=torch.float64) for n in shape]
    for where in slabs(shape):
        weight = (image[0, where].double() - low).clamp_min_(0)
        along[0][where] = weight.sum([axis for axis in range(weight.ndim) if axis])
        for axis in range(1, weight.ndim):
            along[axis] += weight.sum([other for other in range(weight.ndim) if other != axis])
    total = along[0].sum()
    if total <= 0:
        return frame.center_mm
    return frame.to_mm(np.asarray([float((one * torch.arange(len(one)).double()).sum() / total) for one in along]))


def initial_world(
    fixed: Tensor, fixed_frame: Frame, moving: Tensor, moving_frame: Frame, initial: str | np.ndarray
) -> np.ndarray:
    """Return the (D+1, D+1) map fixed mm -> moving mm that starts a registration.

    Args:
        fixed: (1, *spatial) intensities, ``moving`` likewise.
        initial: "centre_of_mass" (translation), "header" (identity), "meta_affine" (see ``learned_world``) or a matrix,
            which is passed through.

    Raises:
        InputError: for another word.
    """
    if not isinstance(initial, str):
        return np.asarray(initial, dtype=np.float64)
    world = np.eye(fixed_frame.ndim + 1)
    if initial == "centre_of_mass":
        world[:-1, -1] = center_of_mass_mm(moving, moving_frame) - center_of_mass_mm(fixed, fixed_frame)
    elif initial == "meta_affine":
        from .affine_start import learned_world  # it needs this module, and few registrations need it

        return learned_world(fixed, fixed_frame, moving, moving_frame)
    elif initial != "header":
        raise InputError(f"initial_transform must be a file or one of {', '.join(INITIAL)}, not '{initial}'")
    return world


def network_frame(
    fixed: Tensor,
    fixed_frame: Frame,
    size: Sequence[int],
    spacing: float | Sequence[float] | str,
    center: str = "mass",
    within: bool = False,
) -> Frame:
    """Return the grid of ``size`` voxels and ``spacing`` mm around the fixed image's mass or grid centre.

    Spacing "fit" takes the voxel with which the longest side of the fixed image fills the shortest of ``size``.
    ``within``: along axes where the fixed image is shorter than that, the grid is as long as the image and lies on it.

    Raises:
        InputError: for another word.
    """
    if isinstance(spacing, str):
        if spacing != "fit":
            raise InputError(f"spacing_mm must be a number, one a dimension, or 'fit', not '{spacing}'")
        spacing = float((np.asarray(fixed_frame.shape) * fixed_frame.spacing).max() / min(size))
    middle = center_of_mass_mm(fixed, fixed_frame) if center == "mass" else fixed_frame.center_mm
    grid = cut_frame(fixed_frame, size, spacing, middle)
    if not within:
        return grid
    along = np.abs(np.linalg.inv(grid.matrix / grid.spacing) @ fixed_frame.matrix)  # mm a voxel step of the fixed image
    room = np.ceil(np.round(along @ np.asarray(fixed_frame.shape) / grid.spacing, 3)).astype(int)
    short = room < np.asarray(grid.shape)
    away = np.linalg.solve(grid.matrix, fixed_frame.center_mm - middle)
    return cut_frame(
        fixed_frame, np.minimum(grid.shape, room), spacing, middle + grid.matrix @ np.where(short, away, 0.0)
    )


def smooth_for(image: Tensor, source: Frame, target_spacing: np.ndarray) -> Tensor:
    """Blur (1, *spatial) along axes that will be sampled more coarsely: sigma^2 = (target^2 - source^2) / (8 ln 2).

    The Gaussian's full width at half maximum makes up the difference between the voxel sizes, in mm.
    """
    out = image
    for axis, step in enumerate(source.spacing):
        widen = target_spacing[axis] ** 2 - step**2
        if widen <= 0.1 * step**2 or image.shape[axis + 1] < 2:
            continue
        sigma = float(np.sqrt(widen / (8 * np.log(2))) / step)
        radius = min(int(np.ceil(3 * sigma)), image.shape[axis + 1] - 1)
        x = torch.arange(-radius, radius + 1, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (x / sigma) ** 2)
        kernel = kernel / kernel.sum()
        out = _convolved(out, axis, kernel, radius)
    return out


def _convolved(image: Tensor, axis: int, kernel: Tensor, radius: int) -> Tensor:
    """Convolve (1, *spatial) along an axis, border values repeated, a slab of another axis at a time."""
    across = 1 if axis else image.ndim - 1
    out = torch.empty_like(image)
    source, target = (x.movedim(across, 0) for x in (image, out))
    for where in slabs(source.shape):
        lines = source[where].movedim(0, across).movedim(axis + 1, -1)
        flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
        found = F.conv1d(flat, kernel.view(1, 1, -1)).view(lines.shape)
        target[where] = found.movedim(-1, axis + 1).movedim(across, 0)
    return out


def spacing_along(source: Frame, network: Frame) -> np.ndarray:
    """Return the network's voxel size in mm along each array axis of ``source``, whichever way that is turned."""
    directions = np.linalg.inv(network.matrix / network.spacing) @ (source.matrix / source.spacing)
    return np.abs(directions).T @ network.spacing / np.abs(directions).sum(0)


def bring(
    image: Tensor, source: Frame, network: Frame, world: np.ndarray | None = None, mode: str = "linear"
) -> Tensor:
    """Resample (1, *spatial) on the network grid through ``world`` (network mm -> source mm), anti-aliased."""
    if mode == "linear":
        image = smooth_for(image.float(), source, spacing_along(source, network))
    matrix = torch.from_numpy(vox_to_vox(network, source, world)).float()
    return pull(image, affine_coords(matrix, network.shape), mode)


def intensity_window(image: Tensor, percentile: float = 99.5) -> tuple[float, float]:
    """Return (minimum, ``percentile`` of what lies above the minimum): the range that is scaled to [0, 1]."""
    values = image.flatten()
    low = float(values.min())
    values = values[values > low].numpy()
    if values.size == 0:
        return low, low + 1.0
    rank = max(1, round(percentile / 100 * values.size))
    values.partition(rank - 1)  # in place: kthvalue would take four times the memory
    high = float(values[rank - 1])
    return low, high if high > low else float(values.max())


def scale(image: Tensor, window: tuple[float, float]) -> Tensor:
    """Scale ``window`` to [0, 1] and clip."""
    low, high = window
    return ((image - low) / (high - low)).clamp(0, 1)


def overlap(fixed: Frame, moving: Frame, world: np.ndarray, network: Frame) -> float:
    """Return which fraction of one image's field of view lies in the other's, the larger of both ways round.

    What is outside the network grid does not count. Both ways, because a few slices are a small part of a head and
    still lie wholly inside it, and because a sparse lattice over one image may miss a thin other one.
    """
    here_mm = np.concatenate([_lattice_mm(fixed), _lattice_mm(network)])
    here_mm = here_mm[_inside(here_mm, fixed) & _inside(here_mm, network)]
    back_mm = apply_affine(np.linalg.inv(world), _lattice_mm(moving))
    forth = _inside(apply_affine(world, here_mm), moving)
    back = _inside(back_mm, fixed) & _inside(back_mm, network)
    return float(max(forth.mean() if forth.size else 0.0, back.mean()))


def _lattice_mm(frame: Frame, count: int = 12) -> np.ndarray:
    """``count`` points an axis from border to border, (count**D, D) RAS mm."""
    steps = [np.linspace(0, n - 1, count) for n in frame.shape]
    return frame.to_mm(np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, frame.ndim))


def _inside(points_mm: np.ndarray, frame: Frame) -> np.ndarray:
    points_vox = frame.to_vox(points_mm)
    return ((points_vox >= -0.5) & (points_vox <= np.asarray(frame.shape) - 0.5)).all(-1)
