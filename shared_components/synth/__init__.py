"""Deformations, intensities, a demo pair, whole patients and breathing chests made to order, with exact truth."""

from .abdomen import Patient, abdomen_patient, write_abdomen
from .deformations import bspline_field, diffeomorphism, random_affine, refine_inverse
from .demo import DemoPair, build_demo_pair, make_demo_pair
from .intensities import (
    add_gaussian_noise,
    add_rician_noise,
    bias_field,
    change_contrast,
    change_gamma,
    redraw_contrast,
)
from .thorax import BreathingSeries, Thorax, breathing_series, make_breathing_set, procedural_thorax, thorax_from_slice

__all__ = [
    "BreathingSeries",
    "DemoPair",
    "Patient",
    "Thorax",
    "abdomen_patient",
    "add_gaussian_noise",
    "add_rician_noise",
    "bias_field",
    "breathing_series",
    "bspline_field",
    "build_demo_pair",
    "change_contrast",
    "change_gamma",
    "diffeomorphism",
    "make_breathing_set",
    "make_demo_pair",
    "procedural_thorax",
    "random_affine",
    "redraw_contrast",
    "refine_inverse",
    "thorax_from_slice",
    "write_abdomen",
]
