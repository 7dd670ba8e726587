"""Take the folds out of a field, for certain: smooth where it folds, and damp it where that does not do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from .errors import InputError
from .metrics.jacobian import Field, as_field, folded_cells
from .transform import PhysicalField
from .warp import affine_coords, coords_grid

LEAST = 0.01  # of a simplex's volume; what is written to a file in mm as float32 must not fold by rounding
_GROWTH, _DAMPING = 1.3, 0.8
_STRICTER = (0.05, 0.2)  # where that does not do after all


def unfold(ddf: Field, least: float = LEAST, rounds: int = 24) -> tuple[Tensor, dict[str, float]]:
    """Return a field without a folded cell, and what that took.

    Wherever the digital criterion of ``metrics.folded_cells`` finds a fold, the field is blended into a smooth version
    of itself, in a neighbourhood that grows from round to round; elsewhere it stays as it is, bit for bit. What is left
    after the last round goes by damping: the whole field is drawn towards the affine map nearest to it, which has no
    folds, so that this ends.

    Args:
        ddf: (D, *spatial) or (1, D, *spatial) voxels, 2-D or 3-D.
        least: volume, relative to a voxel's, that all simplices of the grid shall have.
        rounds: of smoothing; 0 damps at once.

    Returns:
        The field, of the same shape and at least float32; {"folded_voxels": corners of folded cells before,
        "changed_voxels": where it moved, "largest_change_vox": by how much, "rounds": of smoothing, "damping": factor
        on the distance to the affine map, 1 if it was not needed}.

    Raises:
        ValueError: the field is no field, or not finite.
    """
    before = as_field(ddf)
    if not bool(torch.isfinite(before).all()):
        raise ValueError("the field has values that are not finite; there is nothing to unfold")
    field, folded, done = before, folded_cells(before, least), 0
    first = int(folded.sum())
    while bool(folded.any()) and done < rounds:
        field = _smoothed(field, folded, 0.7 * _GROWTH**done)
        done, folded = done + 1, folded_cells(field, least)
    field, factor = _damped(field, least) if bool(folded.any()) else (field, 1.0)
    change = (field - before).norm(dim=1)
    facts = {"folded_voxels": first, "changed_voxels": int((change > 0).sum()), "rounds": done, "damping": factor}
    facts["largest_change_vox"] = float(change.max())
    return field.reshape(ddf.shape), facts


def _smoothed(field: Tensor, folded: Tensor, sigma: float) -> Tensor:
    """Return the field, smoothed with a Gaussian of ``sigma`` voxels around folded cells."""
    field, reach = field.clone(), max(1, round(2 * sigma))
    for box in _boxes(folded, reach, 3 * reach):
        here = (slice(None), slice(None), *box)
        near = ndimage.binary_dilation(folded[box].cpu().numpy(), iterations=reach)
        weight = _blurred(torch.from_numpy(near).to(field)[None, None], reach / 2)
        field[here] = torch.lerp(field[here], _blurred(field[here], sigma), weight)
    return field


def _boxes(folded: Tensor, reach: int, margin: int) -> Iterator[tuple[slice, ...]]:
    """Yield boxes with all folded cells, those nearer to one another than ``reach`` together, and a margin around."""
    near = ndimage.binary_dilation(folded.cpu().numpy(), np.ones((3,) * folded.ndim), iterations=reach)
    for found in ndimage.find_objects(ndimage.label(near)[0]):
        yield tuple(
            slice(max(0, one.start - margin), min(n, one.stop + margin))
            for one, n in zip(found, folded.shape, strict=True)
        )


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Return (1, C, *spatial) behind a Gaussian that leaves straight lines alone, also at the border of the grid."""
    radius = max(1, round(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype) / sigma).square())
    kernel = kernel / kernel.sum()
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        steps = torch.arange(1, radius + 1, device=x.device)
        low, high = x.narrow(axis, 0, 1), x.narrow(axis, n - 1, 1)
        before = 2 * low - x.index_select(axis, steps.clamp(max=n - 1).flip(0))
        after = 2 * high - x.index_select(axis, (n - 1 - steps).clamp(min=0))
        line = torch.cat([before, x, after], axis).movedim(axis, -1)
        out = F.conv1d(line.reshape(-1, 1, line.shape[-1]), kernel[None, None])
        x = out.view(*line.shape[:-1], n).movedim(-1, axis)
    return x


def _damped(field: Tensor, least: float) -> tuple[Tensor, float]:
    """Return the field, drawn towards an affine map until nothing folds, and the factor on its distance from it."""
    base, factor = _affine_part(field), 1.0
    if bool(folded_cells(base, least).any()):
        base = torch.zeros_like(field)
    while factor > 1e-3:
        factor *= _DAMPING
        damped = torch.lerp(base, field, factor)
        if not bool(folded_cells(damped, least).any()):
            return damped, factor
    return base, 0.0


def _affine_part(field: Tensor) -> Tensor:
    """Return the displacement of the affine map that is nearest to the field, least squares."""
    ndim, shape = field.shape[1], field.shape[2:]
    index = coords_grid(shape, field.device, torch.float64)
    centre = torch.tensor([(n - 1) / 2 for n in shape], device=field.device, dtype=torch.float64)
    offset = (index[0].flatten(1) - centre[:, None]).T  # on a grid its columns are orthogonal
    u = field[0].double().flatten(1).T
    gradient = (offset.T @ (u - u.mean(0))) / offset.square().sum(0).clamp_min(1e-12)[:, None]
    matrix = torch.zeros(1, ndim + 1, ndim + 1, dtype=torch.float64, device=field.device)
    matrix[0, :ndim, :ndim], matrix[0, ndim, ndim] = gradient.T, 1.0
    matrix[0, :ndim, ndim] = u.mean(0) - gradient.T @ centre
    return affine_coords(matrix, shape).to(field)


def unfold_field(field: PhysicalField, base: np.ndarray) -> tuple[PhysicalField, dict[str, float]]:
    """Return a field in the world without a folded cell on its grid, and what that took.

    A field that has no fold where it was predicted may have some on another grid: this looks at what is written.
    The field is ``base`` after a deformation; it is the deformation that is unfolded, so that ``base`` stays whole.

    Args:
        field: on the native grid, RAS mm.
        base: (D+1, D+1) world map, such as the initial transform.

    Returns:
        The field itself where nothing folds; facts of ``unfold``, and "largest_change_mm".

    Raises:
        InputError: ``base`` mirrors, so that every cell is turned over.
    """
    if not np.linalg.det(base[:-1, :-1]) > 0:
        raise InputError(
            "the affine map that the registration starts from mirrors the image, so no field is free of folds; "
            "give another --initial_transform or leave --diffeomorphic out"
        )
    before = _deformation(field, base)
    for least in (LEAST, *_STRICTER):
        after, facts = unfold(before, least)
        if not facts["changed_voxels"] and not bool(folded_cells(field.voxel_ddf()).any()):
            return field, {**facts, "largest_change_mm": 0.0}
        linear = torch.from_numpy(base[:-1, :-1] @ field.frame.matrix).to(before)
        change = torch.einsum("ij,j...->i...", linear, (after - before)[0])
        found = PhysicalField(field.frame, field.ddf_mm + change.numpy())
        # what counts is the file, in whose digits a large initial translation may drown a thin cell
        if not bool((folded_cells(_deformation(found, base), least / 2) | folded_cells(found.voxel_ddf())).any()):
            return found, {**facts, "largest_change_mm": float(change.norm(dim=0).max())}
    raise InputError(
        "the field cannot be written without folds, its displacements are too large for float32; register images whose "
        "headers lie nearer to one another, or leave --diffeomorphic out"
    )


def _deformation(field: PhysicalField, base: np.ndarray) -> Tensor:
    """Return (1, D, *shape) voxels of the grid: where a voxel goes before ``base`` takes it on."""
    affine = field.frame.affine
    back = np.linalg.inv(base @ affine)
    still = affine_coords(torch.from_numpy(back @ affine - np.eye(len(affine)))[None], field.frame.shape)[0]
    moved = torch.einsum("ij,j...->i...", torch.from_numpy(back[:-1, :-1]), torch.from_numpy(field.ddf_mm).double())
    return (still + moved).float()[None]


class UnfoldField:
    """Post transform: take the folds out of "pred", see ``unfold``, and have those of the written fields taken out.

    Args:
        active: False leaves the data alone.
    """

    def __init__(self, active: bool = False) -> None:
        self.active = active

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data of one pair with the new "pred" and "unfolded", the facts; with or without a batch axis."""
        if not self.active:
            return dict(data)
        pred: Tensor = data["pred"].detach()
        after, facts = unfold(pred.float())
        linear = torch.from_numpy(data["pair"].network.matrix).to(after)
        change_mm = torch.einsum("ij,bj...->bi...", linear, (after - pred.float()).reshape(1, len(linear), -1))
        return {**data, "pred": after, "unfolded": {**facts, "largest_change_mm": float(change_mm.norm(dim=1).max())}}
