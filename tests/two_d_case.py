"""Pairs of 2-D images, painted in the world, so that every grid shows the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shared_components.geometry import Frame
from shared_components.images import write_image
from shared_components.points import write_points

SIZE, SPACING_MM = [48, 56], 1.0
CENTER = np.array([15.0, -20.0])
TRUE_SHIFT_MM = np.array([4.0, -3.0])
LANDMARKS = np.array([[0.0, 0.0], [5.0, -4.0], [-6.0, 8.0], [3.0, 11.0]])


def make_grid(
    shape: tuple[int, int],
    spacing: tuple[float, float],
    degrees: float = 0.0,
    signs: tuple[int, int] = (1, 1),
    center: np.ndarray = CENTER,
) -> Frame:
    """A grid about ``center`` whose axes are flipped, then turned in the plane."""
    turn = np.radians(degrees)
    affine = np.eye(3)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:2, :2] = affine[:2, :2] * signs * spacing
    affine[:2, 2] = center - affine[:2, :2] @ ((np.array(shape) - 1) / 2)
    return Frame(shape, affine)


def swapped(frame: Frame) -> Frame:
    """The same image with its axes exchanged."""
    return Frame(frame.shape[::-1], frame.affine[:, [1, 0, 2]])


PLAIN = make_grid((60, 80), (1.0, 0.8))
OTHER = make_grid((70, 64), (0.9, 1.3), center=CENTER + [3.0, 2.0])
CASES = {
    "plain": (PLAIN, OTHER),
    "as in ITK": (make_grid((60, 80), (1.0, 0.8), 0, (-1, -1)), make_grid((70, 64), (0.9, 1.3), 0, (-1, -1))),
    "one axis flipped": (make_grid((60, 80), (1.0, 0.8), 0, (-1, 1)), make_grid((70, 64), (0.9, 1.3), 0, (1, -1))),
    "turned": (make_grid((60, 80), (1.0, 0.8), 25), make_grid((70, 64), (0.9, 1.3), -40, (1, -1))),
    "axes exchanged": (swapped(make_grid((60, 80), (1.0, 0.8), 8, (-1, 1))), make_grid((70, 64), (0.9, 1.3), 170)),
}


def paint(frame: Frame, center: np.ndarray) -> np.ndarray:
    """A textured ellipse in [0, 135], the same in the world on every grid."""
    away = frame.to_mm(np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), -1)) - center
    inside = np.clip(1.2 - ((away / [14.0, 20.0]) ** 2).sum(-1), 0, 1)
    return inside * (100 + 20 * np.sin(away[..., 0] / 3) + 15 * np.tanh(away[..., 1] / 4))


def write_pair(folder: Path, frames: tuple[Frame, Frame]) -> dict[str, str]:
    files = {}
    for side, frame, center in zip(("fixed", "moving"), frames, (CENTER, CENTER + TRUE_SHIFT_MM), strict=True):
        image = paint(frame, center)
        files[side] = str(folder / f"{side}.nii.gz")
        files |= {f"{side}_label": str(folder / f"{side}_seg.nii.gz"), f"{side}_points": str(folder / f"{side}.csv")}
        write_image(files[side], image.astype(np.float32), frame)
        write_image(files[f"{side}_label"], (image > 20).astype(np.uint8) + (image > 80), frame)
        write_points(files[f"{side}_points"], LANDMARKS + center)
    return files
