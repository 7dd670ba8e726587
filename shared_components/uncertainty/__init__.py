"""How far a predicted field may be wrong, in mm a voxel.

Signs of error that need no truth, lengths in mm: the field of the pair in the other order does not lead back; that of
the mirrored pair, mirrored back, is another; the field still moved in the last steps of a sequence; it moves far; edges
do not meet. A ``Calibration``, a few numbers fitted where the truth is known (``synth``), turns them into the
error to be expected.
"""

from .calibration import Calibration, fit_calibration, reliability, spearman
from .plot import draw_calibration
from .post import PredictUncertainty
from .signs import SIGNS, find_signs, flip_axes, flip_back

__all__ = [
    "SIGNS",
    "Calibration",
    "PredictUncertainty",
    "draw_calibration",
    "find_signs",
    "fit_calibration",
    "flip_axes",
    "flip_back",
    "reliability",
    "spearman",
]
