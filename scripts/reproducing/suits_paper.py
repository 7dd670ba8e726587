"""The numbers of Blendowski et al. (2020), Table 2 and section 5, as far as the text at hand has them."""

from __future__ import annotations

ORGANS = ("liver", "spleen", "left psoas", "right psoas", "left kidney", "right kidney")
DICE = {  # organs in the order above, then mean and standard deviation; means with three digits are the text's
    "initial": (0.47, 0.35, 0.30, 0.43, 0.48, 0.45, 0.413, 0.19),
    "elastix": (0.57, 0.45, 0.35, 0.50, 0.45, 0.43, 0.459, 0.20),
    "voxelmorph": (0.59, 0.46, 0.35, 0.49, 0.46, 0.50, 0.474, 0.17),
    "mind_cnn": (0.51, 0.39, 0.39, 0.58, 0.52, 0.52, 0.484, 0.22),
    "suits": (0.55, 0.44, 0.41, 0.59, 0.55, 0.54, 0.513, 0.21),
}
HD95_MM = {
    "initial": (60.9, 49.1, 46.5, 23.9, 19.9, 18.1, 36.4, 27.1),
    "elastix": (60.0, 46.4, 47.2, 25.2, 21.1, 18.8, 36.5, 26.6),
    "voxelmorph": (58.8, 43.6, 46.7, 22.9, 21.1, 17.7, 35.1, 25.8),
    "mind_cnn": (59.0, 48.7, 43.7, 20.9, 20.8, 16.5, 34.9, 27.4),
    "suits": (57.8, 46.5, 42.4, 20.6, 19.7, 16.0, 33.9, 26.7),
}
P_DICE = {"initial": 1.3e-5, "elastix": 2.9e-5, "voxelmorph": 2.7e-3, "mind_cnn": 4.6e-5}  # against SUITS
P_HD95 = {"initial": 1.7e-5, "elastix": 3.6e-4, "voxelmorph": 0.03, "mind_cnn": 9.0e-5}
SECONDS = {"elastix": 120.0, "suits": 15.0}  # elastix on a CPU, SUITS on a GPU
