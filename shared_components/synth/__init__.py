"""Deformations, intensities, a demo pair and whole patients made to order, with exact truth."""

from .abdomen import Patient, abdomen_patient, write_abdomen
from .deformations import bspline_field, diffeomorphism, evaluate_spline, random_affine, refine_inverse, spline_weights
from .demo import DemoPair, build_demo_pair, make_demo_pair
from .intensities import (
    add_gaussian_noise,
    add_rician_noise,
    bias_field,
    change_contrast,
    change_gamma,
    redraw_contrast,
)

__all__ = [
    "DemoPair",
    "Patient",
    "abdomen_patient",
    "add_gaussian_noise",
    "add_rician_noise",
    "bias_field",
    "bspline_field",
    "build_demo_pair",
    "change_contrast",
    "change_gamma",
    "diffeomorphism",
    "evaluate_spline",
    "make_demo_pair",
    "random_affine",
    "redraw_contrast",
    "refine_inverse",
    "spline_weights",
    "write_abdomen",
]
