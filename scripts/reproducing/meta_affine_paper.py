"""The numbers of Kanter & Lellmann (2022), Tables 1 to 6, as (mean, median, max); None where the text is illegible."""

from __future__ import annotations

Triple = tuple[float | None, float | None, float | None]

# Table 1: MSE of the deformation grids
MSE: dict[str, dict[str, Triple]] = {
    "Hands": {
        "plain": (1.17, 0.30, 8.28),
        "comb": (0.02, 0.00, 0.23),
        "FAIR": (0.19, 0.02, 2.76),
        "elastix": (0.22, 0.00, 3.53),
    },
    "Brain": {
        "plain": (1.00, 0.24, 5.43),
        "comb": (0.28, 0.00, 4.69),
        "FAIR": (0.43, 0.02, 7.69),
        "elastix": (0.33, 0.00, 7.13),
    },
    "fastMRI": {
        "plain": (0.69, 0.07, 6.62),
        "comb": (0.58, 0.03, 6.33),
        "FAIR": (0.12, 0.01, 6.60),
        "elastix": (0.12, 0.00, 6.80),
    },
}
# Table 2: MSE of comb, (trained on, tested on)
TRANSFER: dict[tuple[str, str], Triple] = {
    ("Hands", "Brain"): (1.43, 0.22, 17.26),
    ("Hands", "fastMRI"): (0.19, 0.00, 2.28),
    ("Brain", "Hands"): (0.83, 0.11, 4.77),
    ("Brain", "fastMRI"): (0.60, 0.05, 5.13),
    ("fastMRI", "Hands"): (0.84, 0.16, 7.02),
    ("fastMRI", "Brain"): (1.09, 0.01, 8.64),
}
# Table 3: |A - A_truth|
EPSILON_A: dict[str, dict[str, Triple]] = {
    "Hands": {
        "plain": (0.63, 0.40, 1.68),
        "comb": (0.03, 0.00, 0.33),
        "FAIR": (0.08, None, 1.38),
        "elastix": (0.12, None, 1.57),
    },
    "Brain": {
        "plain": (0.59, 0.42, 2.01),
        "comb": (0.21, 0.03, 1.83),
        "FAIR": (0.15, None, 2.38),
        "elastix": (0.13, None, 2.30),
    },
    "fastMRI": {
        "plain": (0.47, 0.19, 2.08),
        "comb": (0.40, 0.13, 2.17),
        "FAIR": (0.04, None, 2.21),
        "elastix": (0.06, None, 2.21),
    },
}
# Table 4: |b - b_truth|
EPSILON_B: dict[str, dict[str, Triple]] = {
    "Hands": {
        "plain": (0.15, 0.13, 1.09),
        "comb": (0.01, 0.00, 0.16),
        "FAIR": (0.08, 0.07, 0.25),
        "elastix": (0.03, 0.00, 0.34),
    },
    "Brain": {
        "plain": (0.08, 0.03, 0.33),
        "comb": (0.04, 0.01, 0.41),
        "FAIR": (0.08, 0.07, 0.29),
        "elastix": (0.01, 0.00, 0.20),
    },
    "fastMRI": {
        "plain": (0.06, 0.03, 0.46),
        "comb": (0.04, 0.02, 0.25),
        "FAIR": (0.07, 0.06, 0.18),
        "elastix": (0.01, 0.00, 0.27),
    },
}
# Table 5: MSE, full affine maps
FULL_AFFINE: dict[str, dict[str, Triple]] = {
    "Hands": {"plain": (1.17, 0.31, 6.55), "learn": (0.02, 0.01, 0.13), "comb": (0.01, 0.00, 0.23)},
    "Brain": {"plain": (1.02, 0.39, 4.51), "learn": (0.13, 0.04, 1.54), "comb": (0.04, 0.00, 0.56)},
    "fastMRI": {"plain": (0.96, 0.72, 3.02), "learn": (0.72, 0.29, 4.97), "comb": (1.19, 0.02, 94.30)},
}
# Table 6: MSE, networks of four levels
LEVELS: dict[str, dict[str, Triple]] = {
    "Hands": {"plain": (1.17, 0.30, 8.28), "learn": (0.00, 0.00, 0.03), "comb": (0.00, 0.00, 0.00)},
    "Brain": {"plain": (0.98, 0.45, 3.19), "learn": (0.23, 0.01, 4.18), "comb": (0.21, 0.00, 6.43)},
    "fastMRI": {"plain": (0.69, 0.07, 6.62), "learn": (0.49, 0.07, 7.85), "comb": (0.44, 0.00, 8.97)},
}
