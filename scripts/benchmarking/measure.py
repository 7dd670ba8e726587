"""Judge a displacement field from its file alone, the same way for every tool that wrote one.

SimpleITK reads the field (fixed grid, LPS mm), warps the moving labels and maps the points; nothing of the code that
made our own fields is used. Dice, HD95, TRE and Jacobian follow the definitions of ``shared_components.metrics``.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from shared_components.errors import InputError
from shared_components.metrics import common_labels, dice, hd95_mm, jacobian_statistics, mean_over_labels, tre_mm
from shared_components.points import read_points

LARGE_MM3 = 1000.0


def read_transform(path: str | Path | None) -> sitk.Transform:
    """Return the transform of a field (.nii.gz), of an ITK transform file, or the identity for None."""
    if path is None:
        return sitk.Transform(3, sitk.sitkIdentity)
    if str(path).endswith((".nii", ".nii.gz")):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    return sitk.ReadTransform(str(path))


def measure(pair: dict[str, str], transform: str | Path | None, surface: bool = True) -> dict[str, float]:
    """Return the numbers of one pair under one transform.

    Args:
        pair: paths "fixed", "moving", "fixed_label", "moving_label" and, if there are any, "fixed_points",
            "moving_points".
        transform: path of the field or transform, None for the identity (the images as their headers put them).
        surface: measure HD95 too, seconds a pair.

    Returns:
        "dice" and "hd95_mm" (mean over all structures that both images have), "dice_large", "hd95_large_mm" (those of
        1 cm^3 or more in the fixed image), "lost" (structures that the warp left without a voxel; Dice 0, no HD95),
        "folds_percent", "ndv_percent" (whole grid), "sdlogj" (fixed foreground), "tre_mm" and "tre_max_mm".
    """
    chosen = read_transform(transform)
    numbers = _labels(pair, chosen, surface)
    numbers |= _jacobian(pair["fixed"], transform)
    if pair.get("fixed_points") and pair.get("moving_points"):
        numbers |= _points(pair, chosen)
    return numbers


def _labels(pair: dict[str, str], transform: sitk.Transform, surface: bool) -> dict[str, float]:
    fixed, moving = (_read_labels(pair[f"{side}_label"]) for side in ("fixed", "moving"))
    moved = sitk.Resample(moving, fixed, transform, sitk.sitkNearestNeighbor, 0)
    known = common_labels(sitk.GetArrayViewFromImage(fixed), sitk.GetArrayViewFromImage(moving))
    if not known:
        raise InputError(f"{pair['fixed_label']} and {pair['moving_label']} have no label in common; check the pair")
    target, result = (sitk.GetArrayFromImage(image) for image in (fixed, moved))
    spacing = fixed.GetSpacing()[::-1]
    sizes = np.bincount(target.ravel()) * math.prod(spacing)
    large = [label for label in known if sizes[label] >= LARGE_MM3]
    overlap = dice(target, result, known, absent="zero")
    numbers = {
        "dice": mean_over_labels(overlap),
        "dice_large": mean_over_labels({label: overlap[label] for label in large}),
        "labels": len(known),
        "labels_large": len(large),
        "lost": sum(not (result == label).any() for label in known),
    }
    if surface:
        distance = hd95_mm(target, result, spacing, known)
        numbers["hd95_mm"] = mean_over_labels(distance)
        numbers["hd95_large_mm"] = mean_over_labels({label: distance[label] for label in large if label in distance})
    return numbers


def _read_labels(path: str) -> sitk.Image:
    image = sitk.ReadImage(str(path))
    if image.GetPixelID() in (sitk.sitkFloat32, sitk.sitkFloat64):
        return sitk.Cast(sitk.Round(image), sitk.sitkInt32)
    return sitk.Cast(image, sitk.sitkInt32)


def _jacobian(fixed_path: str, transform: str | Path | None) -> dict[str, float]:
    """Look at the transform as a field on the fixed grid, in voxels and array order of that grid."""
    fixed = sitk.ReadImage(str(fixed_path), sitk.sitkFloat32)
    field = _field_on(fixed, transform)
    vectors = sitk.GetArrayFromImage(field)  # (z, y, x, 3), each (x, y, z) in mm
    direction = np.array(fixed.GetDirection()).reshape(3, 3)
    voxels = vectors @ direction / np.array(fixed.GetSpacing())
    ddf = np.moveaxis(voxels[..., ::-1], -1, 0)  # components in array order too
    whole = jacobian_statistics(ddf)
    inside = jacobian_statistics(ddf, sitk.GetArrayFromImage(fixed) > 0)
    return {
        "folds_percent": whole["folds_percent"],
        "ndv_percent": whole["ndv_percent"],
        "sdlogj": inside["sdlogj"],
    }


def _field_on(fixed: sitk.Image, transform: str | Path | None) -> sitk.Image:
    """Return the field as it was written where it lies on the fixed grid, else sampled there."""
    if transform is not None and str(transform).endswith((".nii", ".nii.gz")):
        field = sitk.ReadImage(str(transform), sitk.sitkVectorFloat64)
        if field.GetSize() == fixed.GetSize() and np.allclose(field.GetOrigin(), fixed.GetOrigin(), atol=1e-3):
            return field
    grid = fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    return sitk.TransformToDisplacementField(read_transform(transform), sitk.sitkVectorFloat64, *grid)


def _points(pair: dict[str, str], transform: sitk.Transform) -> dict[str, float]:
    to_lps = np.array([-1.0, -1.0, 1.0])
    fixed, moving = (read_points(pair[f"{side}_points"]).points_mm for side in ("fixed", "moving"))
    mapped = np.array([transform.TransformPoint(point) for point in (fixed * to_lps).tolist()]) * to_lps
    found = tre_mm(fixed, moving, mapped)
    return {"tre_mm": found["mean"], "tre_max_mm": found["max"]}


def summarise(rows: list[dict[str, Any]], names: list[str]) -> dict[str, dict[str, float]]:
    """Return {"mean", "sd", "worst"} of each number over rows; worst is the smallest Dice, the largest of the rest."""
    found = {}
    for name in names:
        values = np.array([row[name] for row in rows if row.get(name) is not None], dtype=float)
        if values.size:
            worst = values.min() if name.startswith("dice") else values.max()
            found[name] = {"mean": float(values.mean()), "sd": float(values.std()), "worst": float(worst)}
    return found
