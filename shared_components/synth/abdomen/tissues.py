"""What the body is made of, and how each tissue looks: Hounsfield units by contrast phase, MR signals by weighting."""

from __future__ import annotations

from enum import IntEnum

LABELS = {1: "liver", 2: "spleen", 3: "left psoas", 4: "right psoas", 5: "left kidney", 6: "right kidney"}
PHASES = ("native", "arterial", "portal")
WEIGHTINGS = ("t1", "t2")


class Tissue(IntEnum):
    """Numbers in a tissue map."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    LUNG = 4
    BONE = 5
    MARROW = 6
    DISC = 7
    FLUID = 8
    LIVER = 9
    HEPATIC_VEIN = 10
    PORTAL_VEIN = 11
    SPLEEN = 12
    CORTEX = 13
    MEDULLA = 14
    URINE = 15
    ARTERY = 16
    VEIN = 17
    GUT_WALL = 18
    GUT_FLUID = 19
    STOOL = 20
    GAS = 21
    BILE = 22
    PANCREAS = 23
    HEART = 24
    STRAND = 25
    TABLE = 26


# HU native, arterial, portal venous; relative MR signal in T1, T2; gain of the fine texture in HU and in MR (relative)
APPEARANCE: dict[Tissue, tuple[tuple[float, float, float], tuple[float, float], tuple[float, float]]] = {
    Tissue.AIR: ((-1000, -1000, -1000), (0.0, 0.0), (0, 0)),
    Tissue.SKIN: ((10, 20, 25), (0.38, 0.30), (5, 0.05)),
    Tissue.FAT: ((-102, -102, -100), (0.95, 0.72), (7, 0.03)),
    Tissue.MUSCLE: ((52, 58, 64), (0.42, 0.18), (8, -0.08)),
    Tissue.LUNG: ((-830, -820, -815), (0.05, 0.04), (45, 0.3)),
    Tissue.BONE: ((620, 625, 630), (0.06, 0.05), (90, 0.1)),
    Tissue.MARROW: ((190, 195, 200), (0.62, 0.42), (40, -0.12)),
    Tissue.DISC: ((82, 84, 88), (0.34, 0.48), (8, 0.1)),
    Tissue.FLUID: ((12, 12, 14), (0.16, 1.0), (2, 0.02)),
    Tissue.LIVER: ((57, 68, 108), (0.58, 0.30), (4, 0.03)),
    Tissue.HEPATIC_VEIN: ((40, 52, 165), (0.32, 0.13), (2, 0.02)),
    Tissue.PORTAL_VEIN: ((41, 95, 172), (0.34, 0.15), (2, 0.02)),
    Tissue.SPLEEN: ((47, 115, 122), (0.43, 0.55), (4, 0.03)),
    Tissue.CORTEX: ((34, 165, 188), (0.50, 0.58), (6, 0.03)),
    Tissue.MEDULLA: ((29, 62, 150), (0.36, 0.74), (6, 0.03)),
    Tissue.URINE: ((4, 4, 8), (0.17, 1.0), (2, 0.01)),
    Tissue.ARTERY: ((42, 300, 158), (0.26, 0.06), (3, 0.05)),
    Tissue.VEIN: ((40, 62, 138), (0.30, 0.12), (4, 0.05)),
    Tissue.GUT_WALL: ((38, 72, 88), (0.42, 0.34), (6, 0.05)),
    Tissue.GUT_FLUID: ((16, 16, 18), (0.22, 0.92), (8, 0.08)),
    Tissue.STOOL: ((15, 15, 15), (0.48, 0.34), (70, 0.3)),
    Tissue.GAS: ((-960, -960, -960), (0.02, 0.02), (10, 0)),
    Tissue.BILE: ((8, 8, 10), (0.28, 1.0), (2, 0.02)),
    Tissue.PANCREAS: ((40, 98, 92), (0.62, 0.42), (10, 0.08)),
    Tissue.HEART: ((42, 190, 145), (0.34, 0.22), (10, 0.15)),
    Tissue.STRAND: ((-30, 10, 10), (0.55, 0.38), (10, 0.05)),
    Tissue.TABLE: ((60, 60, 60), (0.0, 0.0), (10, 0)),
}

ORGAN_TISSUES: dict[int, tuple[Tissue, ...]] = {
    1: (Tissue.LIVER, Tissue.HEPATIC_VEIN, Tissue.PORTAL_VEIN),
    2: (Tissue.SPLEEN, Tissue.VEIN, Tissue.PORTAL_VEIN),
    3: (Tissue.MUSCLE, Tissue.STRAND),
    4: (Tissue.MUSCLE, Tissue.STRAND),
    5: (Tissue.CORTEX, Tissue.MEDULLA, Tissue.URINE),
    6: (Tissue.CORTEX, Tissue.MEDULLA, Tissue.URINE),
}
