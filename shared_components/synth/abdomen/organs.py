"""The procedural organs, painted from back to front of importance: gut, psoas, liver, spleen, kidneys, vessels."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .body import Canvas
from .shapes import curve, ellipsoid, smooth_union, tube, tube_level, turn
from .tissues import Tissue

Shape = Mapping[int, np.ndarray]  # label -> level (N,) of a given organ shape


def paint_gut(canvas: Canvas) -> None:
    """Paint small bowel, colon and pancreas."""
    loops = canvas.rng.uniform([-80, -2, -140], [80, 66, -8], (70, 3))
    order = np.lexsort((canvas.rng.uniform(0, 40, 70) + loops[:, 2],))
    _paint_lumen(canvas, curve(loops[order], canvas.rng.uniform(9, 15, 70)), 2.2, gas=0.55, stool=False)
    drop = canvas.rng.uniform(0, 35)
    colon = canvas.around(
        [
            [98, -8, -128],
            [106, -4, -75],
            [104, 4, -28],
            [82, 40, -22],
            [40, 62, -35 - drop],
            [-10, 66, -38 - drop],
            [-58, 58, -12 - drop / 2],
            [-98, 22, 22],
            [-112, -18, 5],
            [-114, -22, -50],
            [-104, -6, -100],
            [-92, 8, -140],
        ],
        7,
    )
    line = curve(colon, canvas.vary(1, 0.1) * np.array([25, 26, 24, 22, 19, 18, 18, 19, 17, 15, 14, 14]))
    line[:, 3] *= 1 + 0.13 * np.sin(np.arange(len(line)) * 1.5 * 2 * np.pi / 30)  # haustra
    _paint_lumen(canvas, line, 2.5, gas=0.3, stool=True)
    pancreas = canvas.around([[34, 14, -8], [28, 18, 14], [2, 24, 24], [-42, 4, 36], [-76, -16, 46]], 5)
    canvas.paint_tube(curve(pancreas, [13, 14, 9, 9, 8]), Tissue.PANCREAS)


def _paint_lumen(canvas: Canvas, line: np.ndarray, wall: float, gas: float, stool: bool) -> None:
    """Paint a hollow tube; gas collects in front (the patient lies on the back) of some stretches."""
    near, level = tube(canvas.points, line)
    keep = (level > 0) & (canvas.cavity[near] > 3) & (canvas.below[near] > 4)
    near, level = near[keep], level[keep]
    canvas.paint(near, Tissue.GUT_WALL, 0)
    near = near[level > wall]
    mixed = canvas.textures["coarse"](canvas.points[near])
    content = np.where(mixed > -0.9, Tissue.STOOL, Tissue.GUT_FLUID) if stool else Tissue.GUT_FLUID
    canvas.paint(near, content)
    y = canvas.points[near, 1]
    canvas.paint(near[(mixed + 0.02 * (y - 40) > gas + 0.4) & (y > 0)], Tissue.GAS)


def paint_stomach(canvas: Canvas) -> None:
    """Paint the stomach with fluid below and gas above a level, and its wall."""
    knots = canvas.around([[-52, -8, 84], [-68, 14, 58], [-58, 42, 26], [-22, 54, 8], [22, 44, 14]], 7)
    line = curve(knots, canvas.vary(1, 0.15) * np.array([33, 33, 27, 20, 14]))
    near, level = tube(canvas.points, line)
    keep = (level > 0) & (canvas.cavity[near] > 3) & (canvas.below[near] > 5)
    near, level = near[keep], level[keep]
    canvas.paint(near, Tissue.GUT_WALL, 0)
    near = near[level > 4]
    canvas.paint(near, Tissue.GUT_FLUID)
    canvas.paint(near[canvas.points[near, 1] > canvas.vary(38, 14)], Tissue.GAS)


def paint_psoas(canvas: Canvas, given: Shape) -> None:
    """Paint both psoas muscles (labels 3 and 4), long spindles beside the spine that part and come forward."""
    for label, side in ((3, -1), (4, 1)):
        size, apart, ahead = canvas.vary(1, 0.12), canvas.vary(0, 4), canvas.vary(0, 4)
        knots = np.array(
            [[27, -40, 62], [32, -42, 30], [39, -39, -10], [46, -33, -55], [56, -24, -100], [66, -10, -150]], float
        )
        knots += canvas.rng.standard_normal(knots.shape).clip(-2, 2) * 2.5 + [apart, ahead, 0]
        knots *= [side, 1, 1]
        line = curve(knots, size * np.array([4, 11, 17, 20.5, 19.5, 17]))
        if label in given:  # without the iliacus, that lies at some distance along the iliac wing
            level = np.minimum(given[label], tube_level(canvas.points, line + [0, 0, 0, 12]))
        else:
            level = tube_level(canvas.points, line)
        canvas.paint(level > 0, Tissue.MUSCLE, label)
        seam = np.abs(canvas.textures["coarse"](canvas.points)) < 0.07
        canvas.paint((level > 2) & seam, Tissue.STRAND)


def paint_liver(canvas: Canvas, given: Shape) -> None:
    """Paint the liver (label 1) below the right dome, with its two trees of veins, and the gallbladder."""
    points = canvas.points
    scale = canvas.vary(1, 0.07)
    right = canvas.around([[72, -2, 52]], 5)[0]
    left = canvas.around([[2, 30, 72]], 7)[0]
    big = ellipsoid(points, right, scale * np.array([70, 80, 84]), turn(canvas.around([[0, 8, 0]], 6)[0]), 2.3)
    reach = scale * np.array([canvas.vary(78, 14), 44, canvas.vary(36, 5)])
    small = ellipsoid(points, left, reach, turn(canvas.around([[10, 10, -8]], 6)[0]))
    level = smooth_union(big, small, 16)
    edge, slope = canvas.vary(40, 8), canvas.vary(0.62, 0.1)
    x, y, z = points.T
    floor = edge - slope * np.maximum(x, 0) - 0.22 * (y - 10) + 3 * canvas.textures["coarse"](points)
    level = np.minimum(np.minimum(level, (z - floor) * 0.8), np.minimum(canvas.cavity - 2, canvas.below - 3))
    level = given.get(1, level)
    hilum = np.array([26, 8, edge + 4]) + canvas.rng.standard_normal(3) * 4
    bladder = (hilum + [18, 26, -6], (13, canvas.vary(26, 4), canvas.vary(14, 2)), turn([-25, 0, 10]))
    canvas.paint(level > 0, Tissue.LIVER, 1)
    cava = np.array([20, -24, 92.0])
    _paint_tree(canvas, cava, [(60, -40, 60), (75, 20, 60), (-10, 30, 75)], level, Tissue.HEPATIC_VEIN)
    _paint_tree(canvas, hilum, [(90, 20, 40), (95, -35, 45), (70, 0, 85), (-25, 38, 72)], level, Tissue.PORTAL_VEIN)
    near = (ellipsoid(points, *bladder) > 0) & (canvas.cavity > 4)
    canvas.paint(near, Tissue.BILE, 0)
    portal = np.array([[8, 8, 18], [16, 6, 30], hilum])
    canvas.paint_tube(curve(portal, [6.5, 6.5, 6]), Tissue.PORTAL_VEIN, None)


def _paint_tree(
    canvas: Canvas, root: np.ndarray, targets: list[tuple[int, int, int]], level: np.ndarray, tissue: int
) -> None:
    """Paint a vessel tree inside the liver: a trunk to each target, each with side branches that branch once more."""
    parts = []
    for target in targets:
        end = np.asarray(target) + canvas.rng.standard_normal(3) * 8
        bend = (root + end) / 2 + canvas.rng.standard_normal(3) * 6
        trunk = curve([root, bend, end], [5.5, 4.5, 2.6])
        parts.append(trunk)
        for at in canvas.rng.uniform(0.3, 1.0, 5):
            start = trunk[int(at * (len(trunk) - 1))]
            tip = start[:3] + (end - root) * 0.25 + canvas.rng.standard_normal(3) * 24
            middle = (start[:3] + tip) / 2 + canvas.rng.standard_normal(3) * 4
            branch = curve([start[:3], middle, tip], [3.0, 2.6, 1.7])
            twig = branch[-1, :3] + canvas.rng.standard_normal(3) * 18
            parts += [branch, curve([branch[len(branch) // 2, :3], twig], [2.2, 1.5])]
    near, depth = tube(canvas.points, np.concatenate(parts))
    canvas.paint(near[(depth > 0) & (level[near] > 3)], tissue)


def paint_spleen(canvas: Canvas, given: Shape) -> None:
    """Paint the spleen (label 2): an ellipsoid under the left dome, hollowed by stomach and kidney."""
    size = canvas.vary(1, 0.12)
    center = canvas.around([[-94, -32, 54]], 6)[0]
    axes = turn([canvas.vary(25, 8), canvas.vary(0, 8), canvas.vary(-20, 8)])
    level = ellipsoid(canvas.points, center, size * np.array([31, 50, 54]), axes)
    hollow = ellipsoid(canvas.points, center + [46, 18, -12], (34, 46, 52), axes)
    level = np.minimum(np.minimum(level, -hollow), np.minimum(canvas.cavity - 2, canvas.below - 3))
    level = given.get(2, level)
    canvas.paint(level > 0, Tissue.SPLEEN, 2)
    hilum = center + [22, 10, -4]
    splenic = [[6, 12, 24], [-30, 2, 36], (hilum + [-40, 0, 36]) / 2 + [-8, 0, 12], hilum]
    canvas.paint_tube(curve(splenic, [5, 4.5, 4.5, 4]), Tissue.PORTAL_VEIN, None)
    twigs = [curve([hilum, hilum + canvas.rng.uniform([-22, -22, -22], [-4, 12, 22])], [3.2, 2]) for _ in range(4)]
    canvas.paint_tube(np.concatenate(twigs), Tissue.VEIN, None)


def paint_kidneys(canvas: Canvas, given: Shape) -> list[np.ndarray]:
    """Paint both kidneys (labels 5 and 6) with cortex, pyramids, sinus fat and pelvis; return their hilums (3,) mm."""
    hilums = []
    for label, side, height in ((5, -1, 14.0), (6, 1, 0.0)):
        center = np.array([side * canvas.vary(69, 5), canvas.vary(-42, 4), canvas.vary(height, 11)])
        size = canvas.vary(1, 0.05)
        radii = size * np.array([canvas.vary(27, 1.5), canvas.vary(24.5, 1.5), canvas.vary(53, 3)])
        axes = turn([canvas.vary(-8, 5), side * canvas.vary(11, 4), side * canvas.vary(25, 8)])
        outer = ellipsoid(canvas.points, center, radii, axes, 2.15)
        if label in given:  # its own middle, so that the inner structures follow
            outer = given[label]
            inside = canvas.points[outer > 0]
            center = inside.mean(0) if len(inside) else center
        medial = np.array([-side * 0.9, 0.35, 0.0])
        hilum = center + medial * 0.72 * radii[0]
        outer = np.minimum(outer, canvas.below - 3)
        sinus = ellipsoid(canvas.points, center + medial * 0.62 * radii[0], (17, 11, 24), axes)
        capsule = (outer > -7) & (canvas.label == 0) & (canvas.cavity > -2) & (canvas.below > 3)
        canvas.paint(capsule, Tissue.FAT)
        canvas.paint(outer > 0, Tissue.CORTEX, label)
        columns = 2.2 * np.sin((canvas.points[:, 2] - center[2]) / 2.6 + canvas.points[:, 1] / 9)
        canvas.paint((outer > 6.5 + columns) & (sinus < -1.5), Tissue.MEDULLA)
        canvas.paint((sinus > 0) & (outer > -4), Tissue.FAT, 0)
        calyx = canvas.textures["strand"](canvas.points) > 0.75
        canvas.paint((sinus > 1) & (sinus < 7) & (outer > 2) & calyx, Tissue.URINE)
        ureter = canvas.around([[side * 40, -18, center[2] - 45], [side * 40, -8, -90], [side * 36, 0, -150]], 4)
        line = curve([hilum, hilum + medial * 14 + [0, 4, -10], *ureter], [7, 5, 2.2, 2.2, 2.2])
        canvas.paint_tube(line, Tissue.URINE, None)
        hilums.append(hilum)
    return hilums


def paint_vessels(canvas: Canvas, hilums: list[np.ndarray]) -> None:
    """Paint aorta, vena cava and their iliac and renal branches, and the artery of the gut."""
    fork = canvas.vary(-82, 9)
    aorta = canvas.around([[-6, -20, 150], [-8, -16, 80], [-8, -10, 10], [-6, -6, fork]], 2.5)
    cava = canvas.around([[20, -14, 150], [21, -16, 90], [21, -11, 10], [17, -8, fork - 6]], 2.5)
    caliber = canvas.vary(1, 0.1)
    for trunk, radii, tissue in (
        (cava, [12, 12, 11, 10], Tissue.VEIN),
        (aorta, [11.5, 11, 9.5, 8.5], Tissue.ARTERY),
    ):
        canvas.paint_tube(curve(trunk, caliber * np.array(radii)), tissue, 0, within=-8)
        for side in (-1, 1):
            iliac = [trunk[-1], trunk[-1] + [side * 16, -4, -28], trunk[-1] + [side * 36, 2, -70]]
            canvas.paint_tube(curve(iliac, [6.5, 6, 5.5]), tissue, 0)
        for hilum in hilums:
            start = trunk[2] + [0, 0, 0.6 * (hilum[2] - trunk[2][2])]
            bend = (start + hilum) / 2 + [0, 7 if tissue == Tissue.VEIN else 1, 3]
            widths = [4.6, 4.4, 4] if tissue == Tissue.VEIN else [3.2, 3, 2.6]
            canvas.paint_tube(curve([start, bend, hilum], widths), tissue, 0)
    mesenteric = np.array([aorta[2] + [0, 10, 14], aorta[2] + [3, 22, -6], [6, 26, -60], [16, 34, -105]])
    canvas.paint_tube(curve(mesenteric, [4, 3.8, 3.2, 2.5]), Tissue.ARTERY, 0)
    canvas.paint_tube(curve(mesenteric + [11, 0, 0], [5, 5, 4, 3]), Tissue.VEIN, 0)
