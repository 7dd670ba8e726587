r"""Deformations made to order: B-spline augmentation, diffeomorphisms with their inverse, affine maps.

Fields are ddf, (B, D, *spatial), voxels, pull-back, as everywhere. Smooth functions are uniform cubic B-splines
(``splines``).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import expm
from torch import Tensor

from ..splines import evaluate_spline, spline_weights
from ..warp import compose, jacobian_determinant


def _uniform(shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device) * 2 - 1


def bspline_field(
    shape: Sequence[int],
    generator: torch.Generator,
    batch: int = 1,
    control_points: int = 5,
    strength: float = 0.4,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the random augmentation field of VTN, (batch, D, *shape) in voxels, on the generator's device.

    As in the authors' code: ``control_points`` per axis, i.e. spans of n / (control_points - 1) voxels, zero control
    points around them, displacements strength * span * sign(u) |u|^3 with u uniform in (-1, 1). At 128^3 that is at
    most 12.8 voxels at a control point, a dense field of 1.6 voxels rms per component and about 6.5 at most.
    Everything scales with the grid.

    Args:
        shape: voxels per axis, 2-D or 3-D.
        generator: the only source of randomness.
        batch: number of fields, independent of each other.
        control_points: per axis, at least 2.
        strength: largest control displacement in spans.
        dtype: of the field.

    Raises:
        ValueError: fewer than two control points.
    """
    if control_points < 2:
        raise ValueError(f"a B-spline field needs at least 2 control points per axis, got {control_points}")
    spans = control_points - 1
    u = _uniform((batch, len(shape), *(control_points,) * len(shape)), generator, dtype)
    span = torch.tensor([n / spans for n in shape], dtype=dtype, device=u.device).view(1, -1, *(1,) * len(shape))
    control = strength * span * u.sign() * u.abs() ** 3
    padded = torch.nn.functional.pad(control, (1, 1) * len(shape))
    return evaluate_spline(padded, [spline_weights(n, spans, spans * (n - 1) / n, dtype) for n in shape])


def _velocity(shape: Sequence[int], spans: Sequence[int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Random smooth velocity (1, D, *shape), unit control points; component k vanishes on the two faces across axis k.

    So its flow takes the box onto itself and has its inverse on the same grid. Control points mirrored at the face do
    it: with changed sign the spline is zero there (component k, axis k), with the same sign it is even.
    """
    components = []
    for k in range(len(shape)):
        weights, sizes = [], []
        for axis, (n, s) in enumerate(zip(shape, spans, strict=True)):
            full = spline_weights(n, s, dtype=dtype)
            inner = full[:, 1:-1].clone()
            sign = -1.0 if axis == k else 1.0
            inner[:, 1] += sign * full[:, 0]
            inner[:, -2] += sign * full[:, -1]
            weights.append(inner[:, 1:-1] if axis == k else inner)
            sizes.append(weights[-1].shape[1])
        control = torch.randn((1, 1, *sizes), generator=generator, dtype=dtype, device=generator.device)
        components.append(evaluate_spline(control, weights))
    return torch.cat(components, 1)


def _length(field: Tensor) -> Tensor:
    """Length of every vector, (B, 1, *spatial); ``norm`` over a strided axis is over ten times slower on CPU."""
    return field.square().sum(1, keepdim=True).sqrt()


def _exponential(dvf: Tensor) -> Tensor:
    """Scaling and squaring: the ddf of the flow of ``dvf`` after unit time, first steps below a quarter voxel."""
    speed = float(_length(dvf).max())
    squarings = max(0, int(np.ceil(np.log2(max(speed, 1e-12) / 0.25))))
    ddf = dvf / 2**squarings
    for _ in range(squarings):
        ddf = compose(ddf, ddf)
    return ddf


def refine_inverse(ddf: Tensor, inverse: Tensor, iterations: int = 20, tolerance: float = 1e-4) -> tuple[Tensor, float]:
    """Improve an approximate inverse: where phi(psi(x)) = x + r(x), take psi(x - r(x)) instead of psi(x).

    The error falls from |r| to about |r| |grad r| in a step, where v <- -u(x + v) gains a factor |grad u|.

    Args:
        ddf: (B, D, *spatial) voxels, a field u that takes the grid onto itself.
        inverse: (B, D, *spatial), the field v to begin with, good to a fraction of a voxel.
        iterations: at most so many.
        tolerance: stop when the largest residual falls below so many voxels.

    Returns:
        the best inverse met and its residual: the LARGEST |v + u(x + v)| over all voxels, in voxels.
    """
    best, least = inverse, float("inf")
    for _ in range(iterations + 1):
        residual = compose(ddf, inverse)
        error = float(_length(residual).max())
        if not error < least:
            break
        best, least = inverse, error
        if error < tolerance:
            break
        inverse = compose(inverse, -residual)
    return best, least


def _lengths(ddf: Tensor, spacing: Tensor, mask: Tensor | None) -> Tensor:
    length = _length(ddf * spacing)
    return length.flatten() if mask is None else length[0, 0][mask]


def _amplitude(
    dvf: Tensor, mean: float, spacing: Tensor, mask: Tensor | None, start: float | None = None
) -> tuple[float, Tensor]:
    """Solve for the factor of ``dvf`` whose flow moves by ``mean``; return it and that flow's ddf."""
    amplitude = (
        mean / float(_lengths(dvf, spacing, mask).mean(dtype=torch.float64).clamp_min(1e-12))
        if start is None
        else start
    )
    for _ in range(12):  # the mean is almost proportional to the amplitude, so this contracts fast
        ddf = _exponential(dvf * amplitude)
        ratio = mean / float(_lengths(ddf, spacing, mask).mean(dtype=torch.float64).clamp_min(1e-12))
        if abs(ratio - 1) < 3e-3:
            break
        amplitude *= ratio
    return amplitude, ddf


def _draw(
    dvf: Tensor, mean: float, largest: float, spacing: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return the flow of a multiple of ``dvf`` that moves by ``mean`` and its inverse, or None where it will not do."""
    every = (..., *(slice(None, None, 2 if min(dvf.shape[2:]) >= 32 else 1),) * (dvf.ndim - 2))
    step = every[-1].step
    coarse = None if mask is None else mask[every]
    # a grid of half the resolution finds the amplitude and most rejections at an eighth of the price
    amplitude, ddf = _amplitude(dvf[every] / step, mean, spacing * step, coarse)
    if float(_lengths(ddf, spacing * step, coarse).max()) > 1.01 * largest:
        return None
    amplitude, ddf = _amplitude(dvf, mean, spacing, mask, amplitude)
    if float(_lengths(ddf, spacing, mask).max()) > largest or _folds(ddf):
        return None
    inverse, residual = refine_inverse(ddf, _exponential(-dvf * amplitude))
    return (ddf, inverse) if residual < 1e-3 else None


def _folds(ddf: Tensor) -> bool:
    return any(bool((jacobian_determinant(ddf, kind) <= 0).any()) for kind in ("central", "forward"))


def diffeomorphism(
    shape: Sequence[int],
    generator: torch.Generator,
    mean: float = 3.0,
    largest: float | None = None,
    smoothness: float = 16.0,
    spacing: float | Sequence[float] = 1.0,
    mask: Tensor | None = None,
    tries: int = 50,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return a random smooth diffeomorphism of the grid and its inverse, both (1, D, *shape) in voxels.

    The flow of a stationary B-spline velocity (scaling and squaring) that takes the box onto itself, its amplitude
    solved for the wanted mean displacement. The inverse starts as the flow of the negative velocity and is refined
    until |v + u(x + v)| under linear interpolation is below 1e-3 voxel (1e-4 as a rule) at every voxel. The other
    order, u + v(x + u), keeps the interpolation error of v between its voxels: at most 0.03 voxel for a mean of 3 at
    smoothness 24, 0.05 for a mean of 2 at smoothness 16.

    Args:
        shape: voxels per axis, 2-D or 3-D.
        generator: the only source of randomness.
        mean: mean displacement length inside ``mask``, hit to 0.3 %. Lengths are in voxels, or in mm if ``spacing`` is.
        largest: bound on the displacement length inside ``mask``; fields beyond it are drawn anew.
        smoothness: distance of the velocity's control points; at least half the box is taken where it exceeds that.
        spacing: voxel size per axis.
        mask: (*shape) bool, where ``mean`` and ``largest`` count; default everywhere.
        tries: how many fields to draw before giving up.
        dtype: of the fields.

    Raises:
        ValueError: no draw without folds, within ``largest`` and invertible to 1e-3 voxel was found.
    """
    size = np.broadcast_to(np.asarray(spacing, dtype=np.float64), (len(shape),))
    spans = [max(2, round((n - 1) * float(h) / smoothness)) for n, h in zip(shape, size, strict=True)]
    scale = torch.tensor(size.copy(), dtype=dtype, device=generator.device).view(1, -1, *(1,) * len(shape))
    for _ in range(tries):
        dvf = _velocity(shape, spans, generator, dtype) / scale
        found = _draw(dvf, mean, np.inf if largest is None else largest, scale, mask)
        if found is not None:
            return found
    raise ValueError(
        f"no diffeomorphism with mean {mean}, largest {largest} and smoothness {smoothness} in {tries} draws: "
        "ask for a smaller mean, a larger bound or a smoother field"
    )


def random_affine(
    generator: torch.Generator,
    ndim: int = 3,
    rotation_deg: float = 10.0,
    translation_mm: float = 10.0,
    scale: float = 0.1,
    shear: float = 0.05,
    center_mm: Sequence[float] | None = None,
) -> np.ndarray:
    """Return a random affine map of the world about a centre, (ndim+1, ndim+1) float64, RAS mm -> RAS mm.

    x -> R H S (x - c) + c + t: R turns, H shears (unit upper triangular), S stretches. Always invertible and never a
    reflection.

    Args:
        generator: the only source of randomness.
        ndim: 2 or 3.
        rotation_deg: turn about each axis plane, uniform in (-rotation_deg, rotation_deg), as one rotation vector.
        translation_mm: shift per axis, uniform.
        scale: logarithm of the stretch per axis, uniform.
        shear: entries above the diagonal, uniform.
        center_mm: fixed point when there is no translation; default the origin.
    """
    pairs = list(itertools.combinations(range(ndim), 2))
    u = _uniform((2 * len(pairs) + 2 * ndim,), generator, torch.float64).cpu().numpy()
    turn, slant, stretch, shift = np.split(u, np.cumsum([len(pairs), len(pairs), ndim]))
    skew, sheared = np.zeros((ndim, ndim)), np.eye(ndim)
    for (i, j), angle, entry in zip(pairs, np.deg2rad(rotation_deg) * turn, shear * slant, strict=True):
        skew[i, j], skew[j, i] = -angle, angle
        sheared[i, j] = entry
    center = np.zeros(ndim) if center_mm is None else np.asarray(center_mm, dtype=np.float64)
    matrix = np.eye(ndim + 1)
    matrix[:-1, :-1] = expm(skew) @ sheared @ np.diag(np.exp(scale * stretch))
    matrix[:-1, -1] = center - matrix[:-1, :-1] @ center + translation_mm * shift
    return matrix
