"""What moves when a thorax breathes: lungs, heart and great vessels, liver and the organs below."""

from __future__ import annotations

import numpy as np

from .anatomy import level_of, paint_bowel, paint_heart, paint_kidney
from .bodies import Chest
from .tissues import Canvas, Tissue
from .vessels import draw_tubes

Line = list[tuple[float, float, float]]  # (row, column, radius)


def paint_tube(canvas: Canvas, line: Line, tissue: int, label: int | None, where: np.ndarray | bool = True) -> None:
    """Paint a tube through points (row, column, radius) in units."""
    table = np.asarray(line, dtype=np.float64)
    pixels = (table - [canvas.rows[0, 0], canvas.columns[0, 0], 0]) / canvas.pixel
    ends = [[*a[:2], *b[:2], (a[2] + b[2]) / 2, 1.0] for a, b in zip(pixels[:-1], pixels[1:], strict=True)]
    canvas.paint((draw_tubes(canvas.tissue.shape, np.array(ends)) > 0.5) & where, tissue, label)


def paint_lungs(canvas: Canvas, chest: Chest, below: np.ndarray, tops: tuple[float, ...], width: float) -> None:
    """Paint all between apex and diaphragm as lung; ``tops`` are the columns of the apices, ``width`` their breadth."""
    away = np.min([np.abs(canvas.columns - column) for column in tops], axis=0)
    air = (canvas.rows > chest.apex + 34 * (away / width) ** 2.2) & (below < 0)
    canvas.paint(air, Tissue.LUNG, 2)


def paint_mediastinum(canvas: Canvas, chest: Chest, below: np.ndarray, heart: tuple | None) -> None:
    """Paint what lies between the lungs in a coronal slice through the trachea: fat, heart, vessels, airways."""
    y, x, apex = canvas.rows, canvas.columns, chest.apex
    above = below < 0
    right = [(0, -20), (apex + 5, -17), (apex + 40, -15), (chest.dome - 30, -17), (chest.dome + 10, -24)]
    left = [(0, 20), (apex + 8, 17), (apex + 30, 23), (apex + 46, 17), (chest.dome - 30, 20), (chest.dome + 10, 30)]
    wave = 1.5 * np.sin(y / canvas.vary(13, 2) + canvas.vary(0, 2))
    band = (x > level_of(right, y) + wave) & (x < level_of(left, y) + wave) & above
    canvas.paint(band, Tissue.SOFT, 3)
    canvas.paint(band & (canvas.noise(9.0) > 0.7), Tissue.FAT)
    carina = apex + canvas.vary(46, 3)
    for side in (-1, 1):
        neck: Line = [(-4, side * 15, 3.4), (apex, side * canvas.vary(13, 1.5), 3.6), (apex + 22, side * 10, 4)]
        paint_tube(canvas, neck, Tissue.BLOOD, 3)
        hilum: Line = [(carina + 14, side * 4, 6), (carina + 15, side * 20, 5), (carina + 19, side * 32, 3.6)]
        paint_tube(canvas, hilum, Tissue.BLOOD, 3, above)
    arch: Line = [(carina + 42, 4, 8), (carina + 4, -3, 8), (apex + 28, 4, 7.5), (apex + 27, 13, 7), (carina, 17, 6)]
    paint_tube(canvas, arch, Tissue.BLOOD, 3, above)
    cava: Line = [(apex + 20, -12, 5), (carina + 30, -13, 5.5)]
    paint_tube(canvas, cava, Tissue.BLOOD, 3, above)
    if heart is not None:
        over = canvas.tissue.copy(), canvas.label.copy()
        paint_heart(canvas, *heart)
        canvas.tissue[~above], canvas.label[~above] = over[0][~above], over[1][~above]
    trachea: Line = [(-4, 1, 3.9), (carina - 4, 0, 3.9), (carina, 0, 3.6)]
    paint_tube(canvas, trachea, Tissue.GAS, 3)
    for side in (-1, 1):
        paint_tube(canvas, [(carina - 2, 0, 2.9), (carina + 8, side * 15, 2.4)], Tissue.GAS, 3)


def paint_abdomen_front(canvas: Canvas, chest: Chest, below: np.ndarray) -> None:
    """Paint liver, stomach, spleen and bowel of a coronal slice through the heart."""
    y, x, dome = canvas.rows, canvas.columns, chest.dome
    abdomen = below >= 0
    paint_bowel(canvas, abdomen, dome + 40, (-95, 95))
    spleen = canvas.ellipse((dome + canvas.vary(52, 5), 76), (32, 15), canvas.vary(-14, 5))
    canvas.paint(abdomen & (spleen > 0), Tissue.SPLEEN, 5)
    stomach = canvas.ellipse((dome + canvas.vary(42, 4), canvas.vary(46, 4)), (30, 27), canvas.vary(25, 10))
    stomach = stomach + 0.05 * canvas.noise(12.0)
    filling = canvas.rng.choice([Tissue.GAS, Tissue.FLUID, Tissue.SPLEEN])
    canvas.paint(abdomen & (stomach > 0), Tissue.SOFT, 5)
    canvas.paint(abdomen & (stomach > 0.13), filling, 5)
    canvas.paint(abdomen & (below < 2.2), Tissue.MUSCLE, 5)  # the diaphragm
    lower = [(-100, 98), (-55, 84), (-10, 50), (18, 30), (38, 12), (55, -2)]
    lobes = canvas.vary(0, 5)
    liver = y < dome + lobes + level_of([(a + lobes, b) for a, b in lower], x) + 2 * np.sin(x / 9)
    canvas.paint(abdomen & liver, Tissue.LIVER, 4)


def paint_abdomen_back(canvas: Canvas, chest: Chest, below: np.ndarray) -> None:
    """Paint liver, spleen, kidneys and fat of a coronal slice through the spine."""
    y, x, dome = canvas.rows, canvas.columns, chest.dome
    abdomen = below >= 0
    paint_bowel(canvas, abdomen, dome + 84, (-90, 90))
    canvas.paint(abdomen & (np.abs(x) < 30 + 0.12 * (y - dome)), Tissue.MUSCLE, 5)
    canvas.paint(abdomen & (below < 2.2), Tissue.MUSCLE, 5)
    liver = (y < dome + canvas.vary(78, 5) - 0.45 * np.abs(x + 60)) & (x < 0)
    canvas.paint(abdomen & liver, Tissue.LIVER, 4)
    spleen = canvas.ellipse((dome + canvas.vary(30, 4), canvas.vary(58, 3)), (36, 21), canvas.vary(-25, 6))
    canvas.paint(abdomen & (spleen > 0), Tissue.SPLEEN, 5)
    for side in (-1, 1):
        center = (dome + canvas.vary(90 - 5 * side, 4), side * canvas.vary(45, 2))
        paint_kidney(canvas, abdomen, center, side * canvas.vary(12, 3))
    aorta: Line = [(chest.apex + 34, 22, 6.5), (dome, 21, 6.5), (dome + 40, 20, 6)]
    paint_tube(canvas, aorta, Tissue.BLOOD, 3)


def paint_abdomen_side(canvas: Canvas, chest: Chest, below: np.ndarray, right: bool) -> None:
    """Paint the organs of a sagittal slice: liver and kidney on the right, stomach and spleen on the left."""
    y, x, dome = canvas.rows, canvas.columns, chest.dome
    abdomen = below >= 0
    paint_bowel(canvas, abdomen, dome + (70 if right else 45), (-75, 60))
    if right:
        paint_kidney(canvas, abdomen, (dome + canvas.vary(82, 5), canvas.vary(36, 3)), canvas.vary(10, 5))
        lower = [(-90, 40), (-60, 66), (-20, 84), (20, 68), (45, 52), (70, 58), (90, 60)]
        liver = y < dome + canvas.vary(0, 5) + level_of(lower, x) + 2 * np.sin(x / 8)
        canvas.paint(abdomen & liver, Tissue.LIVER, 4)
        return
    stomach = canvas.ellipse((dome + 34, canvas.vary(-18, 5)), (30, 36), canvas.vary(0, 12)) + 0.05 * canvas.noise(12.0)
    canvas.paint(abdomen & (stomach > 0), Tissue.SOFT, 5)
    canvas.paint(abdomen & (stomach > 0.12), Tissue.FLUID, 5)
    canvas.paint(abdomen & (stomach > 0.12) & (x < canvas.vary(-22, 6)), Tissue.GAS, 5)  # supine: gas is in front
    spleen = canvas.ellipse((dome + canvas.vary(44, 4), canvas.vary(38, 3)), (34, 20), canvas.vary(-18, 6))
    canvas.paint(abdomen & (spleen > 0), Tissue.SPLEEN, 5)
    canvas.paint(abdomen & (below < 2.2), Tissue.MUSCLE, 5)
