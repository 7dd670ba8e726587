r"""The numbers that a verdict needs beside the metrics: agreement, coverage, change of volume, and what came in.

Agreement and inputs are looked at as the network sees them: on its grid, scaled to [0, 1]. There they cost little and
mean the same for images of any size and unit.

| number | range | what it is |
|---|---|---|
| correlation | [-1, 1] | of the intensities; for images of one kind |
| nmi | [0, 1] | 2 I(F, M) / (H(F) + H(M)), 32 bins; for images of two kinds, knows nothing of places |
| edges | [0, 1] | normalised gradients that are parallel, whichever way they point; for images of two kinds |
| local | [0, 1] | mean squared correlation in windows of 7 voxels |
| overlap | [0, 1] | Dice of the two foregrounds |

All but overlap are over the union of the two foregrounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import Frame
from ..metrics import plain
from ..similarity import box_sum, correlation_loss
from ..transform import PhysicalField
from ..warp import jacobian_determinant, warp_image

if TYPE_CHECKING:  # results need this package
    from ..results import Registration

BINS, RADIUS, POINTS = 32, 3, 50_000
_SMALL = 1e-12


def foreground(values: Tensor) -> Tensor:
    """Return where an image has content, a bool tensor of its shape: above half of Otsu's threshold.

    Half, because dark parts of an organ are content as well, and noise around it is not.
    """
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return torch.zeros_like(values, dtype=torch.bool)
    scaled = (values.float() - low) / (high - low)
    counts = torch.histc(scaled, 128, 0, 1).double()
    level = (torch.arange(128, dtype=torch.float64) + 0.5) / 128
    below, mass = counts.cumsum(0), (counts * level).cumsum(0)
    above = below[-1] - below
    gap = mass / below.clamp_min(1) - (mass[-1] - mass) / above.clamp_min(1)
    between = below * above * gap.square()
    best = level[between >= between.max() * (1 - 1e-9)].mean()  # in the middle of a gap, not at its lower end
    return scaled > 0.5 * float(best)


def agreement(image: Tensor, ddf: Tensor) -> dict[str, dict[str, float]]:
    """Return {name: {"initial", "after"}} of the numbers in this module's table.

    Args:
        image: (1, 2, *spatial) in [0, 1], fixed and moving as the network sees them.
        ddf: (1, D, *spatial) voxels.
    """
    image = image.float()
    fixed, moving = image[:, :1], image[:, 1:2]
    found: dict[str, dict[str, float]] = {}
    for stage, other in (("initial", moving), ("after", warp_image(moving, ddf.float(), padding="zeros"))):
        for name, value in compare(fixed, other).items():
            found.setdefault(name, {})[stage] = value
    return plain(found)


def compare(fixed: Tensor, moved: Tensor) -> dict[str, float]:
    """Return the numbers of this module's table for two images (1, 1, *spatial) in [0, 1]."""
    here, there = foreground(fixed), foreground(moved)
    union = here | there
    weight = union.float()
    both = float(here.sum() + there.sum())
    return {
        "correlation": 1 - float(correlation_loss(fixed, moved, weight)),
        "nmi": mutual_information(fixed[union], moved[union]),
        "edges": edge_agreement(fixed, moved, union),
        "local": float((squared_local(fixed, moved) * weight).sum() / weight.sum().clamp_min(1)),
        "overlap": 2 * float((here & there).sum()) / both if both else 0.0,
    }


def mutual_information(a: Tensor, b: Tensor, bins: int = BINS) -> float:
    """Return 2 I(a, b) / (H(a) + H(b)) of two lists of values in [0, 1]: 0 independent, 1 each tells the other."""
    if a.numel() == 0:
        return 0.0
    index = [(x.clamp(0, 1) * bins).long().clamp_max(bins - 1) for x in (a, b)]
    joint = torch.bincount(index[0] * bins + index[1], minlength=bins * bins).double().view(bins, bins) / a.numel()

    def entropy(p: Tensor) -> float:
        return float(-(p * p.clamp_min(_SMALL).log()).sum())

    single = entropy(joint.sum(0)) + entropy(joint.sum(1))
    return 2 * (single - entropy(joint.flatten())) / single if single > _SMALL else 0.0


def edge_agreement(fixed: Tensor, moved: Tensor, where: Tensor) -> float:
    """Return sum (f . m)^2 / sqrt(sum |f|^4 sum |m|^4) of the normalised gradients of images (1, 1, *spatial).

    A gradient g becomes g / sqrt(|g|^2 + e^2), where e is the mean length within ``where``: strong edges count alike,
    noise does not (after Haber and Modersitzki, 2006).
    """
    f, m = (_normalised_gradient(image, where) for image in (fixed, moved))
    inner, own, other = ((a * b).sum(0) for a, b in ((f, m), (f, f), (m, m)))
    scale = float((own.square().sum() * other.square().sum()).sqrt())
    return float(inner.square().sum()) / scale if scale > _SMALL else 0.0


def _normalised_gradient(image: Tensor, where: Tensor) -> Tensor:
    image = _smooth(image)
    gradient = torch.stack(torch.gradient(image[0, 0], dim=tuple(range(image.ndim - 2))))[:, where[0, 0]]
    square = gradient.square().sum(0)
    usual = square.sqrt().mean() if square.numel() else square.sum()
    return gradient / (square + usual.square() + _SMALL).sqrt()


def _smooth(image: Tensor) -> Tensor:
    ndim = image.ndim - 2
    pool = F.avg_pool2d if ndim == 2 else F.avg_pool3d
    return pool(F.pad(image, (1, 1) * ndim, mode="replicate"), 3, stride=1)


def squared_local(fixed: Tensor, moved: Tensor, radius: int = RADIUS, epsilon: float = 1e-4) -> Tensor:
    """Return the squared correlation in the window around each voxel, (1, 1, *spatial)."""
    weight = 1 / box_sum(torch.ones_like(fixed), radius)
    means = [box_sum(x, radius) * weight for x in (fixed, moved, fixed * fixed, moved * moved, fixed * moved)]
    f, m, ff, mm, fm = means
    return (fm - f * m).square() / (((ff - f * f).clamp_min(0) + epsilon) * ((mm - m * m).clamp_min(0) + epsilon))


def coverage(result: Registration) -> dict[str, float]:
    """Return how much content the transform takes out of sight, in percent.

    Returns:
        fixed_outside_percent: of the fixed foreground that looks outside the moving image; moving_outside_percent: of
        the moving foreground that the inverse puts outside the fixed image.
    """
    pair = result.pair
    found = {}
    for name, field, here, there in (
        ("fixed_outside_percent", result.field, pair.fixed, pair.moving),
        ("moving_outside_percent", result.inverse_field, pair.moving, pair.fixed),
    ):
        inside = np.flatnonzero(foreground(here.array[0]).numpy())
        inside = inside[:: max(1, len(inside) // POINTS)]
        index = np.stack(np.unravel_index(inside, here.frame.shape), -1)
        end_mm = here.frame.to_mm(index) + _at(field, index)
        found[name] = 100 * float(1 - _within(end_mm, there.frame).mean()) if len(inside) else 0.0
    return plain(found)


def _at(field: PhysicalField, index: np.ndarray) -> np.ndarray:
    """Return the displacement (N, D) in RAS mm at voxels (N, D) that are sorted by their first index."""
    found = np.empty(index.shape, np.float32)
    for where, part in field.parts():
        these = slice(*np.searchsorted(index[:, 0], (where.start, where.stop)))
        first, *others = index[these].T
        found[these] = part[(slice(None), first - where.start, *others)].T
    return found


def _within(points_mm: np.ndarray, frame: Frame) -> np.ndarray:
    points_vox = frame.to_vox(points_mm)
    return ((points_vox >= -0.5) & (points_vox <= np.asarray(frame.shape) - 0.5)).all(-1)


def volume(result: Registration, fixed: Tensor) -> dict[str, float | None]:
    """Return by which factors the map fixed mm -> moving mm changes volume (area in 2-D).

    Args:
        result: a registration.
        fixed: (*spatial) the fixed image on the network's grid, whose foreground counts.

    Returns:
        affine: determinant of the affine stage, initial transform included, None where there is none; low, middle,
        high: 1st, 50th and 99th percentile of the determinant of the whole map.
    """
    whole = float(np.linalg.det(result.pair.initial[:-1, :-1]))
    det = jacobian_determinant(result.ddf)[0][foreground(fixed)].numpy() * whole
    low, middle, high = np.percentile(det, (1, 50, 99)) if det.size else (math.nan,) * 3
    world = result.affine_world
    affine = None if world is None else float(np.linalg.det(world[:-1, :-1]))
    return plain({"affine": affine, "low": float(low), "middle": float(middle), "high": float(high)})


def describe_view(view: Tensor, spacing_mm: Sequence[float]) -> dict[str, Any]:
    """Return statistics of an image as the network sees it, to be held against those of the training images.

    Args:
        view: (*spatial) in [0, 1].
        spacing_mm: (D,) voxel size; axes lie closest to R, A, S.

    Returns:
        size (foreground, ml; cm^2 in 2-D), spread_K (standard deviation of the foreground along axis K, mm), lean_K
        (its skewness there), mean and deviation of its intensity, saturated (share of it at the upper end), noise
        (median |difference of a voxel and the mean of its neighbours| over the deviation), floor (mean intensity
        outside it).
    """
    view = view.float().cpu()
    inside = foreground(view)
    found: dict[str, Any] = {"size": float(inside.sum()) * float(np.prod(spacing_mm)) / 10.0 ** len(spacing_mm)}
    values = view[inside]
    index = torch.nonzero(inside).double()
    away = index - index.mean(0, keepdim=True)
    spread = away.square().mean(0).sqrt()
    lean = away.pow(3).mean(0) / spread.pow(3).clamp_min(_SMALL)
    for axis, step in enumerate(spacing_mm):
        found[f"spread_{axis}"] = float(spread[axis]) * float(step)
        found[f"lean_{axis}"] = float(lean[axis])
    deviation = float(values.std()) if values.numel() > 1 else 0.0
    rough = (view - _smooth(view[None, None])[0, 0]).abs()[inside]
    found |= {
        "mean": float(values.mean()) if values.numel() else 0.0,
        "deviation": deviation,
        "saturated": float((values >= 0.999).float().mean()) if values.numel() else 0.0,
        "noise": float(rough.median()) / (deviation + 1e-6) if values.numel() else 0.0,
        "floor": float(view[~inside].mean()) if not bool(inside.all()) else 0.0,
    }
    return plain(found)


def add_numbers(metrics: Mapping[str, Any], result: Registration, image: Tensor) -> dict[str, Any]:
    """Return the metrics with "agreement", "coverage", "volume" and "input", which the verdict is found from.

    Args:
        metrics: of ``results.measure``.
        result: the registration.
        image: (2, *spatial) or (1, 2, *spatial), what the network saw.
    """
    image = image.detach().to("cpu", torch.float32)
    image = getattr(image, "as_tensor", lambda: image)()
    image = image if image.ndim == result.ddf.ndim else image[None]
    spacing = result.pair.network.spacing
    views = dict(zip(("fixed", "moving"), image[0, :2], strict=True))
    native = {side: result.pair.images[side].frame.spacing.tolist() for side in views}
    return {
        **metrics,
        "agreement": agreement(image, result.ddf),
        "coverage": coverage(result),
        "volume": volume(result, views["fixed"]),
        "input": {
            side: plain({"spacing": [float(f"{s:.6g}") for s in native[side]]}) | describe_view(view, spacing)
            for side, view in views.items()
        },
    }
