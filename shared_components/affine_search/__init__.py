"""Affine registration as a search for few numbers: what is minimised, the learned optimiser, the classical one."""

from .network import MetaOptimiser
from .parameters import (
    compose,
    dimension,
    displacement_error,
    from_matrix_vox,
    initial_guess,
    inverse,
    join,
    matrix_vox,
    pixel,
    split,
)
from .search import AffineSearch, SearchResult, align_group, best_of, rotation_starts
from .ssd import AffineSSD, halved, normalise

__all__ = [
    "AffineSSD",
    "AffineSearch",
    "MetaOptimiser",
    "SearchResult",
    "align_group",
    "best_of",
    "compose",
    "dimension",
    "displacement_error",
    "from_matrix_vox",
    "halved",
    "initial_guess",
    "inverse",
    "join",
    "matrix_vox",
    "normalise",
    "pixel",
    "rotation_starts",
    "split",
]
