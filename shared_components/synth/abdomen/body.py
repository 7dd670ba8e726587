"""The trunk around the organs: skin, fat, muscle wall, ribs, lung bases, spine, pelvis. Canonical mm, z = 0 near L2."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .shapes import Texture, curve, ellipsoid, smooth_union, tube
from .tissues import ORGAN_TISSUES, Tissue

VERTEBRA_MM = 35.0  # body and disc
SPINE_Y = -42.0


@dataclass(eq=False)
class Canvas:
    """The points of a patient in canonical mm, and what has been painted on them.

    Attributes:
        points: (N, 3) float32.
        rng: of the individual's anatomy; drawing order does not depend on the points.
        tissue: (N,) uint8.
        label: (N,) uint8.
        cavity: level (N,) of the space inside the muscle wall.
        below: level (N,) of the space below the diaphragm.
        textures: random fields of the body by name.
    """

    points: np.ndarray
    rng: np.random.Generator
    tissue: np.ndarray = field(init=False)
    label: np.ndarray = field(init=False)
    cavity: np.ndarray = field(init=False)
    below: np.ndarray = field(init=False)
    textures: dict[str, Texture] = field(init=False)

    def __post_init__(self) -> None:
        self.tissue = np.zeros(len(self.points), np.uint8)
        self.label = np.zeros(len(self.points), np.uint8)
        grains = {"strand": 11.0, "coarse": 22.0, "fine": 7.0}
        self.textures = {name: Texture(self.rng, grain) for name, grain in grains.items()}

    def vary(self, value: float, spread: float) -> float:
        """Return ``value`` plus a normal deviate of standard deviation ``spread``, cut at two of them."""
        return value + spread * float(np.clip(self.rng.standard_normal(), -2, 2))

    def around(self, knots: list[list[float]], spread: float) -> np.ndarray:
        """Return ``knots`` (K, 3) with normal deviates of ``spread`` mm."""
        return np.asarray(knots) + spread * self.rng.standard_normal((len(knots), 3)).clip(-2, 2)

    def paint(self, where: np.ndarray, tissue: int, label: int | None = None) -> None:
        """Paint on an index or a mask; ``label`` 0 takes a label away, None keeps what is there."""
        self.tissue[where] = tissue
        if label is not None:
            self.label[where] = label

    def paint_tube(self, line: np.ndarray, tissue: int, label: int | None = 0, within: float = 3.0) -> None:
        """Paint a tube where it lies ``within`` mm inside the cavity."""
        near, level = tube(self.points, line)
        self.paint(near[(level > 0) & (self.cavity[near] > within)], tissue, label)


def clear_strangers(canvas: Canvas) -> None:
    """Take the label from every point whose tissue is no part of that organ: what was painted over it later."""
    for label, parts in ORGAN_TISSUES.items():
        canvas.label[(canvas.label == label) & ~np.isin(canvas.tissue, parts)] = 0


def paint_trunk(canvas: Canvas) -> None:
    """Paint skin, fat and wall, and set ``canvas.cavity`` and ``canvas.below``."""
    x, y, z = canvas.points.T
    fat, back = canvas.vary(20, 6), canvas.vary(13, 3)
    wide, deep = canvas.vary(132, 4), canvas.vary(84, 4)
    power = canvas.vary(2.35, 0.12)
    waist = 1 - canvas.vary(0.05, 0.02) * np.exp(-(((z + 20) / 55) ** 2))
    radius = (np.abs(x / (wide * waist)) ** power + np.abs((y - 2) / (deep * waist)) ** power) ** (1 / power)
    scale = np.hypot(x, y) / np.maximum(radius, 1e-3)  # distance of the wall in this direction
    canvas.cavity = (1 - radius) * scale
    share = 0.5 + 0.5 * np.clip(y / deep, -1, 1)  # 0 at the back, 1 in front
    thickness = back + (fat - back) * share + 4 * np.abs(x) / wide + np.clip(-(z + 40) * 0.06, 0, 6)
    wall = canvas.vary(12, 1.5)
    outside = -canvas.cavity
    body = outside < wall + thickness
    canvas.paint(body, Tissue.SKIN)
    canvas.paint(body & (outside < wall + thickness - 2.5), Tissue.FAT)
    canvas.paint(outside < wall, Tissue.MUSCLE)
    layer = (np.abs(outside - 0.35 * wall) < 0.7) | (np.abs(outside - 0.7 * wall) < 0.6)
    canvas.paint(layer & (y > -40) & (z < 60), Tissue.STRAND)  # fat between the three layers of the wall
    canvas.paint(canvas.cavity > 0, Tissue.FAT)
    right, left = canvas.vary(112, 7), canvas.vary(102, 7)
    drop = 52 * np.abs((y - 18) / 92) ** 2.5  # towards the chest wall, most at the back
    domes = [top - 72 * np.abs((x - c) / 92) ** 3 - drop for top, c in ((right, 58), (left, -58))]
    canvas.below = smooth_union(*domes, 14) - z
    strands = np.abs(canvas.textures["strand"](canvas.points)) < 0.09
    canvas.paint(strands & (canvas.cavity > 4), Tissue.STRAND)


def paint_chest(canvas: Canvas) -> None:
    """Paint the lung bases with vessels, the diaphragm, the heart, and the ribs in the wall."""
    x, y, z = canvas.points.T
    chest = (canvas.cavity > 2) & (canvas.below < 0)
    canvas.paint(chest & (canvas.below > -3.5), Tissue.MUSCLE)
    lung = chest & (canvas.below <= -3.5)
    canvas.paint(lung, Tissue.LUNG)
    inside = canvas.points[lung]
    vessel = (
        np.hypot(canvas.textures["strand"](inside), canvas.textures["coarse"](inside)) < 0.3
    )  # where two sheets meet
    canvas.paint(np.flatnonzero(lung)[vessel], Tissue.HEART)
    center, radii = canvas.around([[-22, 28, 138]], 6)[0], (52, 42, 38)
    canvas.paint(lung & (ellipsoid(canvas.points, center, radii) > 0), Tissue.HEART)
    period, phase = canvas.vary(27, 1.5), canvas.rng.uniform(0, 27)
    height = z + canvas.vary(0.5, 0.06) * (y - SPINE_Y) + 0.15 * np.abs(x)
    across = np.abs((height + phase) % period - period / 2)
    depth = np.abs(-canvas.cavity - 6)  # ribs lie in the middle of the wall
    end = 20 + 0.55 * np.maximum(y, 0)  # the costal arch: ribs begin higher in front
    rib = (np.hypot(across / 6.5, depth / 4.0) < 1) & (z > end) & (np.abs(x) > 22)
    canvas.paint(rib, Tissue.BONE)
    canvas.paint(rib & (np.hypot(across / 4.2, depth / 2.2) < 1), Tissue.MARROW)


def _spine_line(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y (N,) of the spine's axis at the height of each point."""
    z = canvas.points[:, 2]
    lordosis, lean, bend = canvas.vary(9, 3), canvas.vary(0, 3), canvas.vary(0, 4)
    return lean + bend * np.sin(z / 90), SPINE_Y + lordosis * np.cos((z + 50) / 95)


def paint_spine(canvas: Canvas) -> None:
    """Paint vertebral bodies and discs, the canal, arches and processes, and the muscles of the back."""
    x0, y0 = _spine_line(canvas)
    x, y, z = canvas.points.T
    u, v = x - x0, y - y0
    for side in (-1, 1):
        for center, radii in (((36, -37), (33, 21)), ((62, -14), (17, 12))):  # erector spinae, quadratus lumborum
            a = np.hypot((u * side - center[0]) / radii[0], (v - center[1]) / radii[1])
            muscle = (a < 1) & (canvas.cavity > -9) & ((canvas.below > 0) | (center[0] < 50))
            canvas.paint(muscle, Tissue.MUSCLE)
            if center[0] < 50:
                stripes = np.abs(canvas.textures["coarse"](canvas.points)) < 0.12
                canvas.paint(muscle & stripes, Tissue.STRAND)
    period = canvas.vary(VERTEBRA_MM, 1.5)
    level = (z + canvas.rng.uniform(0, period)) % period - period / 2
    disc_half = canvas.vary(4.6, 0.5)
    height = period / 2 - disc_half - np.abs(level)
    wide, deep = canvas.vary(23, 1.2), canvas.vary(17, 1.0)
    waist = 1 - 0.09 * np.clip(height / 10, 0, 1)
    body = (1 - np.hypot(u / (wide * waist), v / (deep * waist))) * deep
    arch = 4.2 - np.abs(np.hypot(u / 1.25, v + deep + 8) - 11.5)
    arch = np.where(np.abs(level) < 12, arch, -1)
    spinous = np.where((v < -deep - 17) & (v > -deep - 40), 3.6 - np.abs(u), -1)
    spinous = np.minimum(spinous, 9 - np.abs(level + 5))
    wing = np.minimum(5 - np.hypot(level, (v + deep + 3) * 0.8), 42 - np.abs(u))
    wing = np.where(np.abs(u) > 12, wing, -1)
    bones = np.maximum(np.maximum(arch, spinous), wing)
    canvas.paint(bones > 0, Tissue.BONE)
    canvas.paint(bones > 2.4, Tissue.MARROW)
    canvas.paint(np.hypot(u / 1.2, v + deep + 8) < 8, Tissue.FLUID)
    canvas.paint(body > 0, Tissue.BONE)
    canvas.paint((body > 1.8) & (height > 1.6), Tissue.MARROW)
    canvas.paint((body > -1) & (height < 0), Tissue.DISC)


def paint_pelvis(canvas: Canvas) -> None:
    """Paint the iliac wings, that come into view at the lower end, with the muscle on both of their sides."""
    top = canvas.vary(-92, 6)
    for side in (-1, 1):
        line = curve([[side * 42, -68, top - 2], [side * 88, -38, top], [side * 112, 12, top - 22]], [6, 6, 6])
        x, y, z = canvas.points.T
        sheet = np.interp(y, line[:, 1], side * line[:, 0]) + 0.28 * (z - top)
        crest = np.interp(y, line[:, 1], line[:, 2])
        inside = (y > -70) & (y < 14) & (z < crest) & (x * side > 0)
        offset = np.abs(x * side - sheet)
        canvas.paint(inside & (offset < 17 * np.clip((crest - z) / 35, 0, 1)), Tissue.MUSCLE)
        canvas.paint(inside & (offset < 5.5), Tissue.BONE)
        canvas.paint(inside & (offset < 3.2) & (z < crest - 3), Tissue.MARROW)


def paint_table(canvas: Canvas, points_mm: np.ndarray) -> None:
    """Paint the table of a CT scanner under the body: a shallow curved board, straight in the scanner's own mm."""
    x, y, _ = points_mm.T
    back = canvas.points[canvas.tissue > 0]
    lowest = float(np.quantile(back[:, 1], 0.002)) - 6 if len(back) else -130.0
    board = np.abs(y - (lowest + (x / 150) ** 2 * 22 - 2)) < 2.6
    canvas.paint(board & (np.abs(x) < 185) & (canvas.tissue == 0), Tissue.TABLE)
