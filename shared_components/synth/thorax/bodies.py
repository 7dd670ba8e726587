"""What stays when a thorax breathes: outline, fat, muscle and bones, seen from the front or from the side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from .anatomy import Knots, level_of, paint_bone, paint_flesh, paint_ribs, paint_spine
from .tissues import Canvas, Tissue


@dataclass(frozen=True)
class Chest:
    """Proportions of one subject, in units.

    Attributes:
        apex: row of the lungs' upper end.
        dome: row of the higher diaphragm dome.
        left, right: columns of the pleura by row.
        fat: thickness under the skin.
        posterior: a coronal slice through the spine.
    """

    apex: float
    dome: float
    left: Knots
    right: Knots
    fat: float
    posterior: bool = False


def draw_coronal(canvas: Canvas) -> Chest:
    """Draw the proportions of a chest seen from the front."""
    apex, wide = canvas.vary(42, 5), canvas.vary(1.0, 0.05)
    dome = apex + canvas.vary(108, 8)
    posterior = bool(canvas.rng.random() < 0.4)
    sides = []
    for sign in (-1, 1):
        narrow = canvas.vary(38, 3)
        steps = ((0, narrow - 6), (apex - 2, narrow), (apex + 22, 62), (apex + 55, 76), (dome, 84), (dome + 60, 85))
        sides.append([(y, sign * wide * canvas.vary(x, 1.0)) for y, x in (*steps, (310, 80))])
    return Chest(apex, dome, sides[0], sides[1], float(canvas.rng.uniform(4, 11)), posterior)


def draw_sagittal(canvas: Canvas) -> Chest:
    """Draw the proportions of a chest seen from its right, face to the left."""
    apex, deep = canvas.vary(40, 5), canvas.vary(1.0, 0.06)
    dome = apex + canvas.vary(106, 8)
    shift = canvas.vary(4, 4)
    front = ((0, -14), (apex - 2, -16), (apex + 22, -36), (apex + 60, -52), (dome, -64), (dome + 50, -72), (310, -72))
    back = ((0, 26), (apex - 2, 30), (apex + 22, 50), (apex + 55, 62), (dome, 68), (dome + 50, 63), (310, 50))
    left, right = ([(y, deep * canvas.vary(x, 1.2) + shift) for y, x in side] for side in (front, back))
    return Chest(apex, dome, left, right, float(canvas.rng.uniform(5, 14)))


def paint_front(canvas: Canvas, chest: Chest) -> None:
    """Paint the wall of a coronal slice: neck, shoulders, arms, trunk, ribs, and the spine of a posterior one."""
    y, x = canvas.rows, canvas.columns
    thick = canvas.vary(13, 1.0) + chest.fat
    trunk = (x > level_of(chest.left, y) - thick) & (x < level_of(chest.right, y) + thick) & (y > chest.apex + 20)
    drop = canvas.vary(0, 5)
    slope = [(0, -45), (24, -12), (36, 14), (70, 25), (104, 35), (128, 43), (140, 47)]
    shoulder = (y > drop + level_of(slope, np.abs(x))) & (y < chest.apex + 62 - 0.15 * np.abs(x))
    arms = canvas.rng.random() < 0.65
    body = trunk | shoulder
    away = canvas.vary(128, 3)
    if arms:
        center = away + 0.03 * (y - 70)
        body |= (np.abs(np.abs(x) - center) < 21 - 0.012 * (y - 70)) & (y > 62)
    touching = arms & (np.abs(np.abs(x) - (away - 21.5 + 0.04 * (y - 70))) < 1.2) & (y > chest.apex + 50)
    body &= ~touching  # skin lies on skin, with a dark line between
    paint_flesh(canvas, body, distance_transform_edt(body) * canvas.pixel, chest.fat)
    for side in (-1, 1):
        head = (canvas.vary(66, 3), side * canvas.vary(113, 3))
        paint_bone(canvas, head, (15, 14), canvas.vary(0, 20))
        if arms:
            paint_bone(canvas, (165, side * (away + 4)), (76, 6), -2 * side)
        paint_bone(canvas, (chest.apex - 9, side * canvas.vary(52, 5)), (4.2, 11), -side * canvas.vary(15, 6))
        if chest.posterior:
            paint_bone(canvas, (canvas.vary(86, 4), side * canvas.vary(98, 3)), (22, 3.4), -side * canvas.vary(12, 4))
        wall = chest.left if side < 0 else chest.right
        paint_ribs(canvas, wall, side, (chest.apex + 6, chest.dome + 72), canvas.vary(19, 1), 12.0)
    if chest.posterior:
        paint_spine(canvas, canvas.vary(15, 1))


def paint_side(canvas: Canvas, chest: Chest) -> None:
    """Paint the wall of a sagittal slice beside the spine: shoulder, breast and belly, back, ribs."""
    y, x = canvas.rows, canvas.columns
    front = canvas.vary(11, 1) + chest.fat + 9 * np.exp(-(((y - chest.apex - 45) / 26) ** 2)) * canvas.vary(1, 0.4)
    back = canvas.vary(17, 2) + 0.6 * chest.fat + 7 * np.exp(-(((y - chest.apex - 25) / 30) ** 2))
    shoulder = canvas.vary(13, 6) * np.exp(-(((y - chest.apex + 10) / 34) ** 2))
    front, back = front + shoulder, back + shoulder
    middle = 0.5 * (level_of(chest.left, np.array(chest.apex)) + level_of(chest.right, np.array(chest.apex)))
    top = canvas.vary(3, 5) + 44 * (np.abs(x - middle) / 72) ** 2
    body = (x > level_of(chest.left, y) - front) & (x < level_of(chest.right, y) + back) & (y > top)
    paint_flesh(canvas, body, distance_transform_edt(body) * canvas.pixel, chest.fat)
    rim = (x > level_of(chest.right, y) + 11) & (canvas.tissue == Tissue.MUSCLE)  # fat between the layers of the back
    canvas.paint(rim & (np.abs(x - level_of(chest.right, y) - 13) < 0.8), Tissue.FAT)
    paint_bone(canvas, (chest.apex - 8, float(middle) - 24), (5, 4), 0)  # clavicle
    blade = (chest.apex + 42, float(level_of(chest.right, np.array(chest.apex + 42.0))) + 16)
    paint_bone(canvas, blade, (26, 2.6), canvas.vary(8, 4))
    paint_ribs(canvas, chest.right, 1, (chest.apex + 4, chest.dome + 78), canvas.vary(17, 1), -14.0)
    paint_ribs(canvas, chest.left, -1, (chest.apex + 10, chest.dome + 18), canvas.vary(21, 1), 22.0)
