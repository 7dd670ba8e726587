"""Ignite handlers for MONAI's SupervisedTrainer and SupervisedEvaluator; all can be written in a JSON config."""

from .pair_metrics import (
    AsymmetryHandler,
    DiceHandler,
    HD95Handler,
    InverseConsistencyHandler,
    IoUHandler,
    JacobianHandler,
    LabelMetricHandler,
    MeanSquaresHandler,
    TREHandler,
)
from .phases import PhaseRates, PhaseValues, phase_of
from .progress import EpochProgress, StageLossLogger
from .rows import PairMetricHandler, TakeKeys
from .training import GradientClip, StopOnNaN

__all__ = [
    "AsymmetryHandler",
    "DiceHandler",
    "EpochProgress",
    "GradientClip",
    "HD95Handler",
    "InverseConsistencyHandler",
    "IoUHandler",
    "JacobianHandler",
    "LabelMetricHandler",
    "MeanSquaresHandler",
    "PairMetricHandler",
    "PhaseRates",
    "PhaseValues",
    "StageLossLogger",
    "StopOnNaN",
    "TREHandler",
    "TakeKeys",
    "phase_of",
]
