"""The pair of the quickstart: a real brain, the same brain under a known deformation, and the exact truth.

The fixed image is the skull-stripped MNI152 T1 average brain that ships inside nilearn (1 mm, no download), every
second voxel of it, untouched. The moving image is that brain pushed through a known smooth diffeomorphism and sampled
once, from the 1 mm original, on another grid: 1.7 x 1.7 x 2.1 mm, LAS, 10 degrees oblique, smaller field of view, other
intensity scale, bias field and Rician noise. ``truth`` maps fixed RAS mm to moving RAS mm and is linear between the
voxels of the fixed grid by definition, so that every label and landmark made from it is exact.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..geometry import Frame, vox_to_vox
from ..images import atomic_path, write_image
from ..transform import PhysicalField
from ..warp import affine_coords, jacobian_determinant, sample
from .anatomy import LABEL_ORIGIN, LABELS, load_anatomy
from .deformations import diffeomorphism
from .intensities import add_rician_noise, bias_field

STRIDE = 2  # fixed voxels per axis are every second one of the 1 mm template
MEAN_MM, LARGEST_MM, SMOOTHNESS_MM = 6.0, 15.0, 36.0
MOVING_SHAPE, MOVING_SPACING = (94, 114, 70), (1.7, 1.7, 2.1)
MOVING_CENTER_MM = (0.0, -17.0, 9.0)
MOVING_TURN_DEG, MOVING_TURN_AXIS = 10.0, (0.8, 0.45, -0.4)
BIAS_STRENGTH, NOISE_STD, MOVING_SCALE = 0.3, 0.02, 1000.0


@dataclass(frozen=True, eq=False)
class DemoPair:
    """What ``make_demo_pair`` writes, as arrays.

    Attributes:
        fixed: (*fixed_frame.shape) uint8.
        moving: (*moving_frame.shape) int16.
        fixed_label, moving_label: uint8 on the same grids, names in ``anatomy.LABELS``.
        fixed_frame, moving_frame: their grids.
        truth: the true map, fixed RAS mm -> moving RAS mm, on the fixed grid.
        fixed_points_mm, moving_points_mm: (N, 3) corresponding landmarks, RAS mm.
        facts: numbers worth printing.
    """

    fixed: np.ndarray
    moving: np.ndarray
    fixed_label: np.ndarray
    moving_label: np.ndarray
    fixed_frame: Frame
    moving_frame: Frame
    truth: PhysicalField
    fixed_points_mm: np.ndarray
    moving_points_mm: np.ndarray
    facts: dict[str, object]


def moving_frame() -> Frame:
    """Return the moving grid: LAS, 10 degrees oblique, 1.7 x 1.7 x 2.1 mm, 160 x 194 x 147 mm."""
    axis = np.asarray(MOVING_TURN_AXIS) / np.linalg.norm(MOVING_TURN_AXIS)
    turn = Rotation.from_rotvec(np.deg2rad(MOVING_TURN_DEG) * axis).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(np.asarray(MOVING_SPACING) * (-1, 1, 1))
    affine[:3, 3] = MOVING_CENTER_MM - affine[:3, :3] @ ((np.asarray(MOVING_SHAPE) - 1) / 2)
    return Frame(MOVING_SHAPE, affine)


def true_origins(ddf: Tensor, inverse: Tensor, fixed: Frame, moving: Frame) -> tuple[Tensor, float]:
    """Solve x + ddf(x) = y for the position x of every voxel y of the moving grid.

    Args:
        ddf: (1, 3, *fixed.shape) true field in fixed voxels, takes its grid onto itself.
        inverse: its inverse on the same grid.
        fixed: grid of the field.
        moving: grid of the voxels y.

    Returns:
        x in fixed voxels, (1, 3, *moving.shape), and the largest component of |x + ddf(x) - y| in fixed voxels.
    """
    target = affine_coords(torch.from_numpy(vox_to_vox(moving, fixed)).float(), moving.shape)
    aim = target
    for _ in range(20):  # the inverse is interpolated between its voxels: aim beside the target until it is hit
        origin = aim + sample(inverse, aim)
        miss = origin + sample(ddf, origin) - target
        residual = float(miss.abs().max())
        if residual < 1e-4:
            break
        aim = aim - miss
    return origin, residual


def find_landmarks(image: np.ndarray, mask: np.ndarray, usable: np.ndarray, distance: float, count: int) -> np.ndarray:
    """Return (<= count, 3) voxel indices of distinct places: the corners of the image, strongest first, well apart.

    Args:
        image: (*spatial).
        mask: (*spatial) bool, the brain; landmarks keep three voxels off its border.
        usable: (*spatial) bool, where a landmark may lie besides.
        distance: between any two landmarks, voxels.
        count: at most so many.
    """
    gradient = np.gradient(ndimage.gaussian_filter(image.astype(np.float32), 1.0))
    tensor = np.empty((*image.shape, 3, 3), np.float32)
    for i in range(3):
        for j in range(i, 3):
            tensor[..., i, j] = tensor[..., j, i] = ndimage.gaussian_filter(gradient[i] * gradient[j], 2.0)
    inner = ndimage.binary_erosion(mask, iterations=3) & usable
    candidates = np.argwhere(inner)
    trace = np.trace(tensor[inner], axis1=-2, axis2=-1)
    corner = np.linalg.det(tensor[inner].astype(np.float64)) / np.maximum(trace, 1e-12) ** 2
    chosen: list[np.ndarray] = []
    free = np.ones(len(candidates), dtype=bool)
    for best in np.argsort(-corner, kind="stable"):
        if len(chosen) == count:
            break
        if free[best]:
            chosen.append(candidates[best])
            free &= np.linalg.norm(candidates - candidates[best], axis=1) >= distance
    return np.array(chosen)


def build_demo_pair(seed: int = 0, landmarks: int = 40) -> DemoPair:
    """Make the pair in memory; see the module. The same seed gives the same pair.

    Raises:
        InputError: nilearn is not installed.
    """
    whole = load_anatomy()
    every = (slice(None, None, STRIDE),) * 3
    fixed = np.round(whole.t1[every] * 255).astype(np.uint8)
    fixed_frame = Frame(fixed.shape, whole.frame.affine @ np.diag([STRIDE, STRIDE, STRIDE, 1.0]))
    mask, target = whole.mask[every], moving_frame()
    generator = torch.Generator().manual_seed(seed)
    ddf, inverse = diffeomorphism(
        fixed.shape, generator, MEAN_MM, LARGEST_MM, SMOOTHNESS_MM, fixed_frame.spacing, torch.from_numpy(mask.copy())
    )
    ddf_mm = (ddf[0] * float(STRIDE)).numpy()  # the fixed axes are R, A, S
    truth = PhysicalField(fixed_frame, ddf_mm)
    origin, residual = true_origins(ddf, inverse, fixed_frame, target)
    moving, moving_label = (
        sample(torch.from_numpy(array).float()[None, None], origin * STRIDE, mode, "zeros")
        for array, mode in ((whole.t1, "linear"), (whole.labels, "nearest"))
    )
    moving = moving * bias_field(target.shape, generator, strength=BIAS_STRENGTH)
    moving = add_rician_noise(moving, NOISE_STD, generator, keep_background=True) * MOVING_SCALE

    seen = truth_lands_inside(truth, target, margin=2.0)
    points = fixed_frame.to_mm(find_landmarks(fixed, mask, seen, distance=11.0, count=landmarks))
    facts = _facts(seed, ddf, ddf_mm, mask, truth_lands_inside(truth, target), residual * STRIDE)
    return DemoPair(
        fixed=fixed,
        moving=moving[0, 0].round().clamp(0, 32767).to(torch.int16).numpy(),
        fixed_label=whole.labels[every].copy(),
        moving_label=moving_label[0, 0].to(torch.uint8).numpy(),
        fixed_frame=fixed_frame,
        moving_frame=target,
        truth=truth,
        fixed_points_mm=points,
        moving_points_mm=truth.map_points(points),
        facts=facts,
    )


def truth_lands_inside(truth: PhysicalField, target: Frame, margin: float = 0.0) -> np.ndarray:
    """Tell which voxels of the fixed grid the true map takes into ``target``, at least ``margin`` voxels deep."""
    coords = truth.coords_in(target)[0]
    last = torch.tensor(target.shape).view(-1, 1, 1, 1) - 1 - margin
    return ((coords >= margin) & (coords <= last)).all(0).numpy()


def _facts(
    seed: int, ddf: Tensor, ddf_mm: np.ndarray, mask: np.ndarray, seen: np.ndarray, residual_mm: float
) -> dict[str, object]:
    length = np.linalg.norm(ddf_mm, axis=0)[mask]
    determinant = jacobian_determinant(ddf)[0].numpy()
    return {
        "seed": seed,
        "direction": "true_ddf.npy is (3, *fixed shape), RAS mm: fixed point p corresponds to moving point p + ddf(p)",
        "displacement_mean_mm": round(float(length.mean()), 3),
        "displacement_max_mm": round(float(length.max()), 3),
        "folds": int((determinant <= 0).sum()),
        "jacobian_min": round(float(determinant.min()), 3),
        "jacobian_max": round(float(determinant.max()), 3),
        "inverse_residual_max_mm": residual_mm,
        "brain_outside_moving_percent": round(100 * float((mask & ~seen).sum() / mask.sum()), 2),
        "bias_factor_bounds": [round(float(np.exp(s * BIAS_STRENGTH)), 3) for s in (-1, 1)],
        "noise": f"Rician inside the brain, std {NOISE_STD * MOVING_SCALE:g} of {MOVING_SCALE:g}",
        "labels": {str(value): name for value, name in LABELS.items()},
        "label_origin": LABEL_ORIGIN,
    }


def _csv(points_mm: np.ndarray) -> str:
    rows = [f"{x:.4f},{y:.4f},{z:.4f},L{k:02d}" for k, (x, y, z) in enumerate(points_mm, 1)]
    return "\n".join(["x_mm,y_mm,z_mm,name", *rows]) + "\n"


def make_demo_pair(output_dir: str | os.PathLike[str], seed: int = 0) -> dict[str, str]:
    """Write the demo pair with its truth and return the paths, named as the arguments of a bundle.

    Args:
        output_dir: folder to write to, made if absent; files of an earlier run are replaced.
        seed: of the deformation, the bias field and the noise.

    Returns:
        paths of ``fixed``, ``moving``, ``fixed_label``, ``moving_label`` (.nii.gz), ``fixed_points``, ``moving_points``
        (.csv: x_mm,y_mm,z_mm,name in RAS mm), ``true_ddf`` (.npy, (3, *fixed shape) float32, RAS mm, fixed -> moving)
        and ``facts`` (.json).

    Raises:
        InputError: nilearn is not installed, or the folder cannot be written.
    """
    folder = Path(output_dir)
    pair = build_demo_pair(seed)
    images = {
        "fixed": (pair.fixed, pair.fixed_frame),
        "moving": (pair.moving, pair.moving_frame),
        "fixed_label": (pair.fixed_label, pair.fixed_frame),
        "moving_label": (pair.moving_label, pair.moving_frame),
    }
    paths = {name: str(folder / f"{name}.nii.gz") for name in images}
    for name, (array, frame) in images.items():
        write_image(paths[name], array, frame)
    texts = {
        "fixed_points": ("csv", _csv(pair.fixed_points_mm)),
        "moving_points": ("csv", _csv(pair.moving_points_mm)),
        "facts": ("json", json.dumps(pair.facts, indent=2) + "\n"),
    }
    for name, (suffix, text) in texts.items():
        paths[name] = str(folder / f"{name}.{suffix}")
        with atomic_path(paths[name]) as temporary:
            temporary.write_text(text)
    paths["true_ddf"] = str(folder / "true_ddf.npy")
    with atomic_path(paths["true_ddf"]) as temporary:
        np.save(temporary, pair.truth.ddf_mm)
    return paths
