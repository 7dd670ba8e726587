"""What a thorax is made of, and how bright MR shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from scipy.ndimage import gaussian_filter

LABELS = {1: "chest wall", 2: "lung", 3: "heart and mediastinum", 4: "liver", 5: "other abdomen", 6: "bone"}


class Tissue(IntEnum):
    """Tissues that a slice is painted with."""

    AIR = 0
    FAT = 1
    SKIN = 2
    MUSCLE = 3
    CORTEX = 4
    MARROW = 5
    DISC = 6
    LUNG = 7
    SOFT = 8  # mediastinum, bowel wall
    BLOOD = 9
    MYOCARDIUM = 10
    LIVER = 11
    SPLEEN = 12
    KIDNEY = 13
    FLUID = 14
    GAS = 15
    STRAND = 16  # in fat
    MEDULLA = 17


_RANGES = {  # brightness of balanced and of spoiled gradient echoes, fat near 1
    Tissue.AIR: ((0.0, 0.0), (0.0, 0.0)),
    Tissue.FAT: ((0.72, 0.95), (0.75, 1.0)),
    Tissue.SKIN: ((0.4, 0.6), (0.4, 0.6)),
    Tissue.MUSCLE: ((0.24, 0.36), (0.24, 0.36)),
    Tissue.CORTEX: ((0.05, 0.09), (0.05, 0.09)),
    Tissue.MARROW: ((0.36, 0.55), (0.36, 0.6)),
    Tissue.DISC: ((0.35, 0.6), (0.18, 0.3)),
    Tissue.LUNG: ((0.05, 0.1), (0.03, 0.08)),
    Tissue.SOFT: ((0.3, 0.42), (0.28, 0.4)),
    Tissue.BLOOD: ((0.62, 0.85), (0.48, 0.7)),
    Tissue.MYOCARDIUM: ((0.28, 0.38), (0.26, 0.34)),
    Tissue.LIVER: ((0.36, 0.5), (0.42, 0.6)),
    Tissue.SPLEEN: ((0.42, 0.55), (0.26, 0.38)),
    Tissue.KIDNEY: ((0.5, 0.65), (0.4, 0.5)),
    Tissue.FLUID: ((0.6, 0.85), (0.18, 0.3)),
    Tissue.GAS: ((0.03, 0.06), (0.03, 0.05)),
    Tissue.STRAND: ((0.5, 0.65), (0.5, 0.7)),
    Tissue.MEDULLA: ((0.62, 0.75), (0.28, 0.36)),
}
_GRAIN = {  # relative standard deviation of the texture
    Tissue.FAT: 0.07,
    Tissue.MUSCLE: 0.16,
    Tissue.MARROW: 0.15,
    Tissue.LUNG: 0.3,
    Tissue.SOFT: 0.12,
    Tissue.BLOOD: 0.07,
    Tissue.MYOCARDIUM: 0.08,
    Tissue.LIVER: 0.05,
    Tissue.SPLEEN: 0.05,
    Tissue.KIDNEY: 0.07,
    Tissue.FLUID: 0.08,
}


@dataclass(eq=False)
class Canvas:
    """A fine grid to paint on; coordinates are units of which the view has 256 rows, columns count from its middle.

    Attributes:
        rows, columns: (n, 1) and (1, m), positions of the fine pixels.
        pixel: size of a fine pixel.
        rng: of the anatomy.
    """

    rows: np.ndarray
    columns: np.ndarray
    pixel: float
    rng: np.random.Generator
    tissue: np.ndarray = field(init=False)
    label: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.tissue = np.zeros((self.rows.size, self.columns.size), np.uint8)
        self.label = np.zeros_like(self.tissue)

    def vary(self, value: float, spread: float) -> float:
        """Return ``value`` plus a normal deviate of standard deviation ``spread``, cut at two of them."""
        return value + spread * float(np.clip(self.rng.standard_normal(), -2, 2))

    def paint(self, where: np.ndarray, tissue: int, label: int | None = None) -> None:
        """Paint a mask; ``label`` None keeps what is there."""
        self.tissue[where] = tissue
        if label is not None:
            self.label[where] = label

    def ellipse(self, center: tuple[float, float], radii: tuple[float, float], degrees: float = 0.0) -> np.ndarray:
        """Return the level of an ellipse, 1 in its middle, 0 on its border; radii along rows and columns at 0."""
        angle = np.deg2rad(degrees)
        y, x = self.rows - center[0], self.columns - center[1]
        first, second = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
        return 1 - np.hypot(first / radii[0], second / radii[1])

    def noise(self, grain: float) -> np.ndarray:
        """Return a smooth random field of unit variance with structures of about ``grain`` units."""
        rough = self.rng.standard_normal(self.tissue.shape, dtype=np.float32)
        smooth = gaussian_filter(rough, 0.5 * grain / self.pixel, mode="wrap")
        return smooth / max(float(smooth.std()), 1e-6)


def brightness(rng: np.random.Generator, balanced: bool) -> np.ndarray:
    """Return the brightness of every ``Tissue`` in one scan, (18,) float32."""
    table = np.zeros(len(Tissue), np.float32)
    for tissue, ranges in _RANGES.items():
        table[tissue] = rng.uniform(*ranges[0 if balanced else 1])
    return table


def grain_of(canvas: Canvas) -> np.ndarray:
    """Return the texture (n, m) of unit variance that the tissues of a scan share."""
    return 0.7 * canvas.noise(4.0) + 0.7 * canvas.noise(11.0)


def shade(tissue: np.ndarray, table: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """Return the picture (n, m) float32 of painted tissues: brightness times texture."""
    grain = np.zeros(len(Tissue), np.float32)
    for kind, value in _GRAIN.items():
        grain[kind] = value
    return table[tissue] * (1 + grain[tissue] * texture).clip(0.2, 2)
