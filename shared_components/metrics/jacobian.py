r"""Is the field a plausible deformation: folds, volume change and consistency with its inverse. Computed in torch.

Fields are ddf (D, *spatial) or (1, D, *spatial) in voxels, numpy or torch; masks (*spatial), nonzero where to look.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..warp import compose, coords_of, jacobian_determinant, jacobian_matrix
from .points import distance_statistics

Field = np.ndarray | Tensor
_SLAB, _CELLS = 16, 2**17  # planes, or at least so many cells, that simplices look at once: bounds the memory


def as_field(ddf: Field) -> Tensor:
    """Return a field as (1, D, *spatial), float32 at least.

    Raises:
        ValueError: if it is not one 2-D or 3-D field with two voxels or more along each axis.
    """
    field = torch.as_tensor(np.ascontiguousarray(ddf) if isinstance(ddf, np.ndarray) else ddf).detach()
    field = field.as_subclass(Tensor)  # a MetaTensor would carry its affine through every difference
    field = field.unsqueeze(0) if field.ndim == field.shape[0] + 1 else field
    ndim = field.ndim - 2
    if ndim not in (2, 3) or field.shape[:2] != (1, ndim) or min(field.shape[2:]) < 2:
        raise ValueError(f"a field must be (D, *spatial) with D = 2 or 3 and axes of 2 voxels or more, got {ddf.shape}")
    return field.to(torch.promote_types(field.dtype, torch.float32))


def _as_mask(mask: Field | None, field: Tensor) -> Tensor:
    shape = field.shape[2:]
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=field.device)
    chosen = (torch.as_tensor(mask).to(field.device) != 0).as_subclass(Tensor)
    if chosen.numel() != math.prod(shape) or chosen.shape[-len(shape) :] != shape:
        raise ValueError(f"mask {tuple(chosen.shape)} does not fit a field on {tuple(shape)}")
    return chosen.reshape(shape)


def _std(values: Tensor) -> float:
    return float(values.double().std(correction=0)) if values.numel() else float("nan")


def folds_percent(ddf: Field, mask: Field | None = None) -> float:
    """Return the percentage of voxels with det J <= 0.

    Central differences inside, one-sided at the border, so border voxels count. Blind to folds that alternate from
    voxel to voxel: report ``ndv_percent`` beside it.
    """
    return _folds_percent(*_determinant_and_mask(ddf, mask))


def sdlogj(ddf: Field, mask: Field | None = None) -> tuple[float, int]:
    """Return the standard deviation of log det J, and how many folded voxels (det J <= 0) had to be left out.

    Central differences inside, one-sided at the border; population standard deviation.
    """
    return _sdlogj(*_determinant_and_mask(ddf, mask))


def sdlogj_l2r(ddf: Field, mask: Field | None = None) -> float:
    """Return Learn2Reg's "SDlogJ", std of log(clip(det J + 3, 1e-9, 1e9)), central differences, two border voxels cut.

    The + 3 makes it about a quarter of ``sdlogj`` near det J = 1 and hides folds down to det J = -3. For comparison
    with published numbers only. NaN where an axis has four voxels or less.

    Reference: MDL-UzL/L2R, evaluation/evaluation.py and utils.py.
    """
    return _sdlogj_l2r(*_determinant_and_mask(ddf, mask))


def _determinant_and_mask(ddf: Field, mask: Field | None) -> tuple[Tensor, Tensor]:
    field = as_field(ddf)
    return jacobian_determinant(field)[0], _as_mask(mask, field)


def _folds_percent(det: Tensor, chosen: Tensor) -> float:
    folded = det[chosen] <= 0
    return float(100.0 * folded.double().mean()) if folded.numel() else float("nan")


def _sdlogj(det: Tensor, chosen: Tensor) -> tuple[float, int]:
    det = det[chosen]
    good = det > 0
    return _std(det[good].log()), int(good.numel() - good.sum())


def _sdlogj_l2r(det: Tensor, chosen: Tensor) -> float:
    inner = (slice(2, -2),) * det.ndim
    return _std((det[inner][chosen[inner]] + 3).clamp(1e-9, 1e9).log())


def std_jacobian(ddf: Field) -> float:
    """Return the standard deviation of det J itself, forward differences where they exist (VTN's "Std. Jacobian")."""
    field = as_field(ddf)
    inner = (slice(None, -1),) * (field.ndim - 2)
    return _std(jacobian_determinant(field, "forward")[0][inner])


def diagonal_folds_percent(ddf: Field) -> float:
    """Return the percentage of voxels in which the product of the Jacobian's diagonal is below 0, and no more.

    The public code of AVSM counts these as folds. Turns do not show in it: compare with published numbers only.
    """
    diagonal = jacobian_matrix(as_field(ddf))[0].diagonal(dim1=0, dim2=1).prod(-1)
    return 100.0 * float((diagonal < 0).double().mean())


def log_asymmetry(ddf: Field, back: Field, margin: int = 10) -> float:
    """Return ln of the mean of |forth o back - id|^2 in voxels, of the interior; NaN if nothing moves (AVSM, Fig. 7).

    Args:
        ddf: (D, *spatial) voxels.
        back: of the pair in the other order, on the same grid.
        margin: voxels from the border that do not count (a quarter of an axis at most).
    """
    field = as_field(ddf)
    inside = tuple(slice(m, -m or None) for m in (min(margin, n // 4) for n in field.shape[2:]))
    residual = float(compose(field, as_field(back).to(field)).square().sum(1)[0][inside].double().mean())
    return math.log(residual) if residual > 0 else float("nan")


def _determinant(edges: Sequence[Tensor]) -> Tensor:
    if len(edges) == 2:
        (a, b), (c, d) = edges[0], edges[1]
        return a * d - b * c
    return (edges[0] * torch.linalg.cross(edges[1], edges[2], dim=0)).sum(0)


def _vertex(ddf: Tensor, corner: Sequence[int]) -> Tensor:
    """Return the displacement at one corner of every cell, (D, *cells)."""
    for axis, step in enumerate(corner, start=1):
        ddf = ddf.narrow(axis, step, ddf.shape[axis] - 1)
    return ddf


def _simplices(ddf: Tensor) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """Yield D! times the signed volumes of the mapped simplices of every cell, and the corner they are booked on.

    At each of the 2^D corners of a cell lies the simplex of that corner and its D neighbours along the edges. In 3-D
    each of the two alternating sets of four leaves a tetrahedron in the middle, spanned by the other four corners;
    booked, as in the paper, on the corner 000 or 111 that belongs to it.
    """
    ndim = ddf.shape[0]
    unit = torch.eye(ndim, dtype=ddf.dtype, device=ddf.device).view(ndim, ndim, *(1,) * ndim)
    at = {corner: _vertex(ddf, corner) for corner in itertools.product((0, 1), repeat=ndim)}
    for corner in at:
        edges = []
        for axis in range(ndim):
            low, high = (tuple(v if a == axis else c for a, c in enumerate(corner)) for v in (0, 1))
            edges.append(at[high] - at[low] + unit[axis])
        yield _determinant(edges), corner
    if ndim == 3:
        for origin, ends, sign in (
            ((0, 0, 0), ((1, 1, 0), (0, 1, 1), (1, 0, 1)), 1.0),
            ((1, 1, 1), ((0, 0, 1), (0, 1, 0), (1, 0, 0)), -1.0),
        ):
            straight = [sum(unit[axis] for axis in range(3) if end[axis] != origin[axis]) for end in ends]
            yield _determinant([at[e] - at[origin] + sign * s for e, s in zip(ends, straight, strict=True)]), origin


def non_diffeomorphic_volume(ddf: Field, mask: Field | None = None) -> float:
    """Return the volume (area in 2-D), in voxels, that the field turns inside out.

    The grid is read as piecewise linear on simplices, each cell divided in its two ways, averaged: per cell half the
    sum of -min(V, 0) over eight corner tetrahedra and two middle ones (four triangles in 2-D). It is zero only if no
    simplex is turned over, which no single finite difference can tell.

    Args:
        ddf: field in voxels.
        mask: (*spatial), counts the simplices booked on its voxels: on their right-angled corner, the middle ones on
            the first or last voxel of their cell. Without a mask every simplex of the grid counts; nothing is assumed
            beyond the border.

    Reference: Liu et al., On finite difference Jacobian computation in deformable image registration, IJCV 2024.
    """
    field = as_field(ddf)
    return turned_volume(field[0], _as_mask(mask, field))


def turned_volume(ddf: Tensor, chosen: Tensor) -> float:
    """Return ``non_diffeomorphic_volume`` of (D, *spatial) for a mask of bool (*spatial)."""
    ndim, total, slab = ddf.shape[0], 0.0, _slab(ddf)
    for start in range(0, ddf.shape[1] - 1, slab):
        planes = min(slab + 1, ddf.shape[1] - start)
        inside = chosen.narrow(0, start, planes)[None]
        for det, corner in _simplices(ddf.narrow(1, start, planes)):
            total += float((det.clamp(max=0) * _vertex(inside, corner)[0]).sum(dtype=torch.float64))
    return abs(total) / (2 * math.factorial(ndim))


def _slab(field: Tensor) -> int:
    return max(_SLAB, _CELLS // math.prod(field.shape[2:]))


def folded_cells(ddf: Field, least: float = 0.0) -> Tensor:
    """Return where the grid is turned over: bool (*spatial), True on all corners of cells with a simplex <= ``least``.

    ``least`` is a volume, 1 where nothing moves; 0 is the criterion, more is on the safe side of it. No folded cell
    implies a positive central-difference determinant everywhere inside: that one is the mean of the one-sided
    determinants around a voxel.
    """
    field = as_field(ddf)[0]
    folded = torch.zeros(field.shape[1:], dtype=torch.bool, device=field.device)
    slab = _slab(field)
    for start in range(0, field.shape[1] - 1, slab):
        planes = min(slab + 1, field.shape[1] - start)
        cells = torch.stack([det <= least for det, _ in _simplices(field.narrow(1, start, planes))]).any(0)
        for corner in itertools.product((0, 1), repeat=cells.ndim):
            place = folded.narrow(0, start, planes)
            for axis, step in enumerate(corner):
                place = place.narrow(axis, step, cells.shape[axis])
            place |= cells
    return folded


def ndv_percent(ddf: Field, mask: Field | None = None) -> float:
    """Return ``non_diffeomorphic_volume`` in percent of the voxels of the grid or mask; it can exceed 100."""
    field = as_field(ddf)
    voxels = int(_as_mask(mask, field).sum())
    return 100.0 * non_diffeomorphic_volume(field, mask) / voxels if voxels else float("nan")


def inverse_consistency_error(
    ddf: Field, inverse_ddf: Field, spacing_mm: Sequence[float], mask: Field | None = None
) -> dict[str, float]:
    """Return mean, p95 and max over voxels of |phi_inv(phi(x)) - x| in mm.

    Only voxels count that ``ddf`` keeps inside the grid: beyond it the inverse is unknown. NaN if none is left.

    Args:
        ddf: (D, *spatial) voxels.
        inverse_ddf: likewise, on the same grid.
        spacing_mm: (D,) voxel size in mm.
        mask: (*spatial), further limits the voxels x.
    """
    field = as_field(ddf)
    inverse = as_field(inverse_ddf).to(field)
    size = torch.tensor(field.shape[2:], device=field.device).view(-1, *(1,) * (field.ndim - 2))
    coords = coords_of(field)[0]
    inside = ((coords >= 0) & (coords <= size - 1)).all(0) & _as_mask(mask, field)
    step = torch.tensor([float(s) for s in spacing_mm], dtype=field.dtype, device=field.device).view(size.shape)
    error = (compose(inverse, field)[0] * step).norm(dim=0)[inside]
    return distance_statistics(error.double().cpu().numpy())
