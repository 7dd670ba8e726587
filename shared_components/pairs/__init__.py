"""Fixed/moving pairs: where they come from and how they reach the network."""

from .augment import AugmentPair, DrawSeed
from .datasets import (
    PairDataset,
    find_subjects,
    pair_collate,
    read_datalist,
    requested_pairs,
    single_collate,
)
from .load import FramePair, LoadPair, Pair, make_preprocessing
from .samplers import PairSampler, ValidationSampler
from .series import SeriesPairs, find_series, mean_frame, read_series

__all__ = [
    "AugmentPair",
    "DrawSeed",
    "FramePair",
    "LoadPair",
    "Pair",
    "PairDataset",
    "PairSampler",
    "SeriesPairs",
    "ValidationSampler",
    "find_series",
    "find_subjects",
    "make_preprocessing",
    "mean_frame",
    "pair_collate",
    "read_datalist",
    "read_series",
    "requested_pairs",
    "single_collate",
]
