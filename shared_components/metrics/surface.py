"""How far the surfaces of labels lie apart. Computed in numpy and scipy on the bounding box of each label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from monai.metrics.utils import get_code_to_measure_table, get_mask_edges
from scipy import ndimage

from ..slabs import slabs
from .overlap import Labels, as_pair

Measure = Callable[[np.ndarray, np.ndarray], float]


def _without_channel(labels: np.ndarray, ndim: int) -> np.ndarray:
    if labels.ndim == ndim + 1 and labels.shape[0] == 1:
        return labels[0]
    if labels.ndim != ndim:
        raise ValueError(f"labels of shape {labels.shape} are not {ndim}-D")
    return labels


def _per_label(
    fixed: np.ndarray, moved: np.ndarray, labels: Iterable[int] | None, measure: Measure
) -> dict[int, float]:
    """Call ``measure`` with both masks of each label that both images hold, cut to their common box plus one voxel."""
    values = np.unique(np.concatenate([_values(fixed), _values(moved)]))
    codes = [_codes(image, values) for image in (fixed, moved)]
    boxes = [ndimage.find_objects(image, len(values)) for image in codes]
    wanted = None if labels is None else {int(label) for label in labels}
    distances: dict[int, float] = {}
    for code, (value, *pair) in enumerate(zip(values, *boxes, strict=True), start=1):
        label = int(value)
        if label == 0 or None in pair or (wanted is not None and label not in wanted):
            continue
        box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(*pair, strict=True))
        distances[label] = measure(*(np.pad(image[box] == code, 1) for image in codes))
    return distances


def _values(image: np.ndarray) -> np.ndarray:
    """Return the values of an image, slab by slab: sorting all voxels at once takes ten times their memory."""
    return np.unique(np.concatenate([np.unique(image[where]) for where in slabs(image.shape)]))


def _codes(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the place of each voxel's value among the values, from 1 on: find_objects passes over 0."""
    codes = np.empty(image.shape, np.int32)
    for where in slabs(image.shape):
        codes[where] = np.searchsorted(values, image[where]) + 1
    return codes


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Return the voxels of a boolean mask with a face neighbour outside it; the edge of the array counts as outside."""
    return mask & ~ndimage.binary_erosion(mask)


def hd95_mm(
    fixed_labels: Labels, moved_labels: Labels, spacing_mm: Sequence[float], labels: Iterable[int] | None = None
) -> dict[int, float]:
    """Return the 95 % Hausdorff distance of each label in mm.

    Each image's surface voxels (see ``surface_voxels``) have a distance to the nearest surface voxel of the other
    image; the 95th percentile (linear between ranks) is taken in each direction, and the larger of the two returned.
    That is the definition of MONAI and, but for the weighting of surface elements, of Learn2Reg; pooling both
    directions before the percentile would give less.

    Args:
        fixed_labels: (*spatial) or (1, *spatial) whole numbers, 0 is background.
        moved_labels: likewise, on the same grid.
        spacing_mm: (D,) voxel size in mm.
        labels: only these; None takes all.

    Returns:
        {label: distance in mm} of the labels that both images hold; for others there is no distance.
    """
    sampling = [float(step) for step in spacing_mm]
    fixed, moved = (_without_channel(image, len(sampling)) for image in as_pair(fixed_labels, moved_labels))

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        a, b = surface_voxels(a), surface_voxels(b)
        to_b = ndimage.distance_transform_edt(~b, sampling=sampling)[a]
        to_a = ndimage.distance_transform_edt(~a, sampling=sampling)[b]
        return float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))

    return _per_label(fixed, moved, labels, measure)


def hd95_l2r(fixed_labels: Labels, moved_labels: Labels, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Return the 95 % Hausdorff distance of each label as Learn2Reg computes it, in VOXELS.

    Surface elements (marching cubes on the 2^D neighbourhoods) are weighted by their area, each direction's distance
    is the first one that 95 % of the area does not exceed, the larger direction counts, and the spacing is (1, 1, 1)
    whatever the image's. Of the labels absent somewhere see ``dice``; here they are left out.

    Reference: MDL-UzL/L2R, evaluation/utils.py, compute_hd95; 2-D is its plane equivalent (contour lengths).
    """
    fixed, moved = as_pair(fixed_labels, moved_labels)
    ndim = fixed.ndim - 1 if fixed.shape[0] == 1 else fixed.ndim
    fixed, moved = _without_channel(fixed, ndim), _without_channel(moved, ndim)
    ones = (1.0,) * ndim
    get_code_to_measure_table(ones)  # says so in a sentence if neither 2-D nor 3-D

    def measure(a: np.ndarray, b: np.ndarray) -> float:
        edges = get_mask_edges(torch.from_numpy(a), torch.from_numpy(b), crop=False, spacing=ones)
        edge_a, edge_b, area_a, area_b = (np.asarray(x) for x in edges)
        to_b = ndimage.distance_transform_edt(~edge_b)[edge_a]
        to_a = ndimage.distance_transform_edt(~edge_a)[edge_b]
        return max(_area_percentile(to_b, area_a[edge_a]), _area_percentile(to_a, area_b[edge_b]))

    return _per_label(fixed, moved, labels, measure)


def _area_percentile(distances: np.ndarray, areas: np.ndarray, share: float = 0.95) -> float:
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order])
    rank = np.searchsorted(covered, share * covered[-1])
    return float(distances[order][min(rank, len(distances) - 1)])
