"""The numbers of Shen et al. (2019), Tables 1 and 2."""

from __future__ import annotations

# method -> Dice and its standard deviation in percent, folds and the sum of |det| there, longitudinal and across
# subjects; seconds (networks and optimisation on a GPU, tools on ten cores)
TABLE_1 = {
    "affine_opt": ((78.61, 4.48, 0.0, 0.0), (34.49, 18.07, 0.0, 0.0), 8.0),
    "affine_net_7": ((77.75, 4.77, 0.0, 0.0), (44.58, 7.74, 0.0, 0.0), 0.20),
    "demons": ((83.43, 2.64, 10.7, 0.56), (63.47, 9.52, 19.0, 0.56), 114.0),
    "syn": ((83.13, 2.67, 0.0, 0.0), (65.71, 15.01, 0.0, 0.0), 1330.0),
    "vsvf_opt": ((82.99, 2.68, 0.0, 0.0), (67.35, 9.73, 0.0, 0.0), 79.0),
    "avsm_2": ((82.60, 2.73, 0.0, 0.0), (67.59, 4.47, 5.5, 0.39), 0.62),
    "avsm_3": ((82.67, 2.74, 3.4, 0.12), (68.40, 4.35, 14.3, 1.07), 0.83),
}
OTHERS = {  # what the paper has beside
    "affine-NiftyReg": ((75.07, 6.21, 0.0, 0.0), (30.43, 12.11, 0.0, 0.0), 45.0),
    "NiftyReg-NMI": ((83.17, 2.76, 0.0, 0.0), (59.65, 7.62, 0.0, 0.0), 143.0),
    "NiftyReg-LNCC": ((83.35, 2.70, 0.0, 0.0), (67.92, 5.24, 203.3, 35.19), 270.0),
    "VoxelMorph without affine": ((71.25, 9.54, 2.72, 1.57), (46.06, 14.94, 83.0, 18.13), 0.12),
    "VoxelMorph with affine": ((82.54, 2.78, 5.85, 0.59), (66.08, 5.13, 39.0, 3.31), 0.31),
}
VOXELMORPH = OTHERS["VoxelMorph with affine"]
TABLE_2 = {  # row -> Dice in percent, longitudinal and across subjects; row I failed
    "I": (None, None),
    "II": (55.41, 28.68),
    "III": (64.78, 36.31),
    "IV": (68.87, 37.54),
    "V": (77.75, 44.58),
    "VI": (80.71, 59.21),
    "VII": (81.64, 64.56),
    "VIII": (82.81, 69.08),
    "IX": (82.67, 68.40),
}
SETS = ("longitudinal", "cross")


def table_1(method: str, name: str) -> tuple[float, float, float, float] | None:
    """Return Dice, its standard deviation (percent), folds and the sum of |det| there, or None."""
    return TABLE_1[method][SETS.index(name)] if method in TABLE_1 else None


def dice_2(row: str, name: str) -> float | None:
    """Return Dice (percent) of a row of Table 2, or None."""
    return TABLE_2[row][SETS.index(name)]
