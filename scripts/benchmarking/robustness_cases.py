"""Badly posed brains whose pose is known: drawn, resampled, written; and the numbers that judge a map."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from shared_components.errors import InputError
from shared_components.geometry import Frame, apply_affine, vox_to_vox
from shared_components.images import Image, read_image, read_labels, write_image
from shared_components.metrics import common_labels, dice, mean_over_labels
from shared_components.synth.intensities import add_rician_noise, bias_field, change_gamma

KINDS = ("same", "across")
MARGIN = 0.375  # of the shape, added on either side: 1.75 times the grid
LOG_GAMMA, BIAS, NOISE = 0.3, 0.3, 0.03


@dataclass(frozen=True)
class Case:
    """A pair and its pose.

    Attributes:
        name: "same_00", "across_00", ...
        fixed, moving: subjects {"image", "label"}; one and the same for "same".
        angle_deg: of the turn about ``axis`` (RAS) through the middle of the moving grid.
        axis: unit vector.
        shift_fov: shift along each array axis of the moving grid, in fields of view.
        seed: of the intensities.
    """

    name: str
    fixed: dict[str, str]
    moving: dict[str, str]
    angle_deg: float
    axis: tuple[float, ...]
    shift_fov: tuple[float, ...]
    seed: tuple[int, int]

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        return self.name.partition("_")[0]

    def pose(self, frame: Frame) -> np.ndarray:
        """Return the (4, 4) map of the moving image's RAS mm to where they are after turn and shift."""
        turn = Rotation.from_rotvec(np.radians(self.angle_deg) * np.asarray(self.axis)).as_matrix()
        world = np.eye(4)
        world[:3, :3] = turn
        shift_mm = frame.matrix @ (np.asarray(self.shift_fov) * frame.shape)
        world[:3, 3] = frame.center_mm - turn @ frame.center_mm + shift_mm
        return world

    def facts(self, frame: Frame) -> dict[str, Any]:
        """Return what tells the case to a reader of the JSON."""
        names = {side: subject_name(getattr(self, side)["image"]) for side in ("fixed", "moving")}
        pose = self.pose(frame).tolist()
        numbers = {"angle_deg": self.angle_deg, "axis": list(self.axis), "shift_fov": list(self.shift_fov)}
        return {"case": self.name, "kind": self.kind, **names, **numbers, "seed": list(self.seed), "pose": pose}


def subject_name(path: str) -> str:
    """Return the file's name without its suffix."""
    return Path(path).name.removesuffix(".gz").removesuffix(".nii")


def draw_cases(subjects: Sequence[dict[str, str]], count: int, seed: int, angle: float, shift: float) -> list[Case]:
    """Return cases, "same" and "across" in turns; the first ones do not depend on how many there are.

    Args:
        subjects: {"image", "label"}, at least two of them.
        count: of the cases.
        seed: each case has a generator of its own, from this and its number.
        angle: bound of the uniform angle in degrees; the axis is uniform on the sphere.
        shift: bound of the uniform shift along each axis in fields of view.

    Raises:
        InputError: fewer than two subjects, or one without labels.
    """
    if len(subjects) < 2:
        raise InputError("there are fewer than two validation subjects; give a folder with at least ten *_t1.nii.gz")
    bare = [subject["image"] for subject in subjects if not subject.get("label")]
    if bare:
        raise InputError(f"{bare[0]} has no labels to be measured with; add *_labels.nii.gz")
    pairs = list(itertools.permutations(subjects, 2))
    order = np.random.default_rng(seed).permutation(len(pairs))
    cases = []
    for number in range(count):
        turn, kind = number // 2, KINDS[number % 2]
        subject = subjects[turn % len(subjects)]
        fixed, moving = (subject, subject) if kind == "same" else pairs[order[turn % len(pairs)]]
        random = np.random.default_rng([seed, number])
        axis = random.standard_normal(3)
        axis = tuple((axis / np.linalg.norm(axis)).tolist())
        degrees, moves = random.uniform(-angle, angle), tuple(random.uniform(-shift, shift, 3).tolist())
        cases.append(Case(f"{kind}_{turn:02d}", fixed, moving, float(degrees), axis, moves, (seed, number)))
    return cases


def enlarged(frame: Frame) -> Frame:
    """Return the same grid with room on all sides: its middle, axes and spacing say nothing of a pose."""
    extra = np.ceil(MARGIN * np.asarray(frame.shape)).astype(int)
    affine = frame.affine.copy()
    affine[:3, 3] = frame.to_mm(-extra)
    return Frame(tuple(np.asarray(frame.shape) + 2 * extra), affine)


def posed(values: np.ndarray, frame: Frame, pose: np.ndarray, path: str) -> tuple[np.ndarray, Frame]:
    """Return an image after a pose, resampled linearly on its enlarged grid; the identity only adds background.

    Raises:
        InputError: a part of the foreground would lie outside.
    """
    room = enlarged(frame)
    there = room.to_vox(apply_affine(pose, frame.to_mm(np.argwhere(values > values.min()))))
    if (there < 0).any() or (there > np.asarray(room.shape) - 1).any():
        raise InputError(f"{path} leaves its grid when it is posed; give skull-stripped brains, or a smaller --shift")
    matrix = vox_to_vox(room, frame, np.linalg.inv(pose))
    how = {"output_shape": room.shape, "order": 1, "mode": "grid-constant", "cval": float(values.min())}
    return affine_transform(values, matrix[:3, :3], matrix[:3, 3], **how), room


def write_case(case: Case, folder: Path) -> dict[str, str]:
    """Write the images of a case; return the paths "fixed", "posed" and, for "across", "unposed".

    "same": curve and bias are the moving image's before the pose, noise comes after it. The background stays 0.
    """
    moving = read_image(case.moving["image"], "moving image")
    values = moving.array[0].numpy().astype(np.float32)
    values = (values - values.min()) / max(float(values.max() - values.min()), 1e-6)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(case.seed).generate_state(1)[0]))
    same = case.kind == "same"
    if same:
        image = change_gamma(torch.from_numpy(values)[None, None], generator, LOG_GAMMA, keep_background=True)
        values = (image * bias_field(image.shape[2:], generator, strength=BIAS))[0, 0].numpy()
    paths = {"fixed": case.fixed["image"]}
    for name, pose in (("posed", case.pose(moving.frame)), ("unposed", np.eye(4))):
        if same and name == "unposed":
            continue
        there, frame = posed(values, moving.frame, pose, case.moving["image"])
        if same:
            there = add_rician_noise(torch.from_numpy(there)[None, None], NOISE, generator, True)[0, 0].numpy()
        paths[name] = str(folder / f"{case.name}_{name}.nii")
        write_image(paths[name], np.clip(1000 * there, 0, 32000), frame, "int16")
    return paths


def corner_error_mm(frame: Frame, found: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean distance in mm between where two maps send the corners of the fixed grid."""
    corners = frame.corners_mm()
    return float(np.linalg.norm(apply_affine(found, corners) - apply_affine(reference, corners), axis=-1).mean())


class Judge:
    """Errors and label overlap of the maps found for one case."""

    def __init__(self, case: Case) -> None:
        self.fixed: Image = read_labels(case.fixed["label"], "fixed label")
        self.moving: Image = read_labels(case.moving["label"], "moving label")
        self.kind, self.pose = case.kind, case.pose(self.moving.frame)
        self.target, self.source = (np.asarray(image.array[0]) for image in (self.fixed, self.moving))
        self.known = common_labels(self.target, self.source)
        if not self.known:
            raise InputError(f"{case.fixed['label']} and {case.moving['label']} have no label in common")

    def dice(self, world: np.ndarray, pose: np.ndarray | None = None) -> float:
        """Return the mean Dice when the labels are brought once, as they are in their file, through map and pose.

        Args:
            world: fixed mm -> mm of the posed moving image.
            pose: None takes that of the case; the identity belongs to the image without pose.
        """
        back = np.linalg.inv(self.pose if pose is None else pose) @ world
        matrix = vox_to_vox(self.fixed.frame, self.moving.frame, back)
        how = {"output_shape": self.target.shape, "order": 0, "mode": "constant", "cval": 0}
        moved = affine_transform(self.source, matrix[:3, :3], matrix[:3, 3], **how)
        return mean_over_labels(dice(self.target, moved, self.known, absent="zero"))

    def numbers(self, world: np.ndarray, unposed: np.ndarray | None) -> dict[str, Any]:
        """Return error and Dice of a map.

        Args:
            world: fixed mm -> mm of the posed moving image.
            unposed: what the same method found without the pose, for "across"; for "same" the truth is the pose.
        """
        reference = self.pose if self.kind == "same" else self.pose @ unposed
        error = corner_error_mm(self.fixed.frame, world, reference)
        found = {"corner_mm": round(error, 3), "dice": round(self.dice(world), 4)}
        if unposed is not None:
            found["dice_unposed"] = round(self.dice(unposed, np.eye(4)), 4)
        return found
