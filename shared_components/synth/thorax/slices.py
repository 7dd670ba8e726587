"""A thorax slice that can breathe: what moves and what stays as two layers, and the shape of the motion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ...warp import coords_grid, sample
from .motion import Compartment, Motion, Pulse

FINE = 2  # fine pixels a voxel and axis: anatomy is painted finer than it is shown
SPACING_MM = 1.5  # of a series of 256 voxels; coarser series show the same field of view
PLANES = ("coronal", "sagittal")


@dataclass(frozen=True, eq=False)
class Thorax:
    """A static slice in two layers, rows from head to foot, columns as radiologists look at them.

    Attributes:
        contents: (1, 2, h, w) float32 on the fine grid, ``FINE`` pixels a voxel, below the view too: the picture of
            what lies between the walls, and how much of it is lung parenchyma.
        content_labels: (1, 1, h, w) float32, on the same grid.
        wall: (1, 1, H, W) the picture of what stays.
        wall_labels: (1, 1, H, W) float32.
        cover: (1, 1, H, W) in [0, 1], how much of a voxel shows the contents.
        landmarks: (N, 2) float64 voxels, vessel branchings of lung and liver.
        landmark_labels: N labels, see ``LABELS``.
        compartments: where contents move and how.
        pulse: the heart, if it is in the slice.
        size: (H, W).
        plane: "coronal" or "sagittal".
        reference: fullness of the lungs in this slice: 0 after expiration, 1 after inspiration.
        spacing_mm: of the square voxels.
    """

    contents: Tensor
    content_labels: Tensor
    wall: Tensor
    wall_labels: Tensor
    cover: Tensor
    landmarks: Tensor
    landmark_labels: tuple[int, ...]
    compartments: tuple[Compartment, ...]
    pulse: Pulse | None
    size: tuple[int, int]
    plane: str
    reference: float
    spacing_mm: float

    def still(self) -> Motion:
        """Return the motion of one frame in which nothing moves: the slice itself."""
        return Motion(self.compartments, self.pulse, torch.zeros(1, 3, dtype=torch.float64), self.size)

    def render(self, motion: Motion, frame: int, swelling: float = 0.0) -> Tensor:
        """Return the picture (1, 1, H, W) of a frame without bias or noise.

        Args:
            motion: of this slice.
            frame: its number.
            swelling: relative change of the parenchyma's brightness.
        """
        grid = coords_grid(self.size, dtype=torch.float64)[0]
        shown = self.cover[0, 0] > 0
        picture = self.wall.clone()
        origin = motion.inverse(grid[:, shown], frame, margin=2.0) * FINE
        inner, lung = sample(self.contents, origin[None, :, None].float())[0, :, 0]
        cover = self.cover[0, 0, shown]
        picture[0, 0, shown] = (1 - cover) * picture[0, 0, shown] + cover * inner * (1 + swelling * lung)
        return picture

    def labels(self, motion: Motion, frame: int) -> Tensor:
        """Return the labels (1, 1, H, W) uint8 of a frame, see ``LABELS``."""
        grid = coords_grid(self.size, dtype=torch.float64)[0]
        inside = motion.contents()
        found = self.wall_labels.clone()
        origin = motion.inverse(grid[:, inside], frame) * FINE
        found[0, 0, inside] = sample(self.content_labels, origin[None, :, None].float(), "nearest")[0, 0, 0]
        return found.to(torch.uint8)


def rng_of(generator: torch.Generator) -> np.random.Generator:
    """Return a NumPy generator that depends on the state of ``generator``, which goes on by one draw."""
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    return np.random.default_rng(int(seed))


def fine_positions(size: tuple[int, int], below: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (n, 1) and columns (1, m) in voxels of the fine grid, which goes on for ``below`` voxels."""
    rows = np.arange(FINE * (size[0] + below)) / FINE
    return rows[:, None], (np.arange(FINE * size[1]) / FINE)[None, :]


def shares(part: Compartment, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return w of the fine pixels (n, m): 0 to 1 within the compartment."""
    left, right = (curve(torch.from_numpy(rows)).numpy() for curve in (part.left, part.right))
    return (columns - left) / (right - left)


def soften(picture: np.ndarray) -> np.ndarray:
    """Blur a fine picture as a scanner does, by half a voxel."""
    return gaussian_filter(picture.astype(np.float32), 0.5 * FINE)


def on_voxels(fine: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Return every ``FINE``-th pixel of the view, (1, 1, H, W) float32."""
    return torch.from_numpy(np.ascontiguousarray(fine[: FINE * size[0] : FINE, ::FINE], dtype=np.float32))[None, None]


def on_fine(*fine: np.ndarray) -> Tensor:
    """Return fine pictures as the channels of one tensor (1, C, h, w) float32."""
    return torch.from_numpy(np.stack(fine).astype(np.float32))[None]


def covered(parts: tuple[Compartment, ...], rows: np.ndarray, columns: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Return how much of every voxel shows contents, (1, 1, H, W)."""
    inside = np.zeros((rows.size, columns.size), bool)
    for part in parts:
        w = shares(part, rows, columns)
        inside |= (w >= 0) & (w <= 1)
    cover = on_voxels(soften(inside), size)
    return torch.where(cover < 0.02, 0.0, cover)


def visible_landmarks(
    points: np.ndarray, labels: np.ndarray, parts: tuple[Compartment, ...], size: tuple[int, int], reference: float
) -> np.ndarray:
    """Tell which landmarks (N, 2) lie four units inside a compartment and stay in the view while a chest breathes."""
    margin = 4 * size[0] / 256
    lowest = size[0] - 1 - margin * (2 + 8 * (1 - reference))  # they will go down by 32 units and more
    good = np.zeros(len(points), bool)
    where = torch.from_numpy(points.T.copy())
    for part in parts:
        left, right = part.left(where[0]).numpy(), part.right(where[0]).numpy()
        good |= (points[:, 1] > left + margin) & (points[:, 1] < right - margin) & (points[:, 0] > part.top + margin)
    return good & (points[:, 0] < lowest) & (labels > 0)


def fit_pulse(pulse: Pulse, parts: tuple[Compartment, ...]) -> Pulse | None:
    """Return the pulse with its ellipse shrunk until it lies in a compartment; None if less than a third is left."""
    turn = torch.linspace(0, 2 * torch.pi, 97, dtype=torch.float64)
    for scale in torch.linspace(1, 0.35, 27).tolist():
        radii = (pulse.radii[0] * scale, pulse.radii[1] * scale)
        first, second = radii[0] * turn.cos(), radii[1] * turn.sin()
        cos, sin = math.cos(pulse.angle), math.sin(pulse.angle)
        row, column = pulse.center[0] + cos * first - sin * second, pulse.center[1] + sin * first + cos * second
        for part in parts:
            if bool(((column > part.left(row) + 0.5) & (column < part.right(row) - 0.5)).all()):
                return Pulse(pulse.center, radii, pulse.angle)
    return None
