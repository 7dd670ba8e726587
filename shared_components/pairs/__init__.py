"""Fixed/moving pairs: where they come from and how they reach the network."""

from .augment import AugmentPair
from .datasets import (
    PairDataset,
    PairSampler,
    find_subjects,
    pair_collate,
    read_datalist,
    requested_pairs,
    single_collate,
)
from .load import FramePair, LoadPair, Pair, make_preprocessing

__all__ = [
    "AugmentPair",
    "FramePair",
    "LoadPair",
    "Pair",
    "PairDataset",
    "PairSampler",
    "find_subjects",
    "make_preprocessing",
    "pair_collate",
    "read_datalist",
    "requested_pairs",
    "single_collate",
]
