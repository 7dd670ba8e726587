"""A breathing thorax in MR, made to order: 2-D series with the exact truth of every frame."""

from .breath import Breath, draw_breath
from .motion import Motion
from .procedural import procedural_thorax
from .real import thorax_from_slice
from .series import PLAIN, BreathingSeries, Look, breathing_series
from .slices import Thorax
from .tissues import LABELS
from .write import RecordedSeries, make_breathing_set, read_breathing, true_fields, write_series

__all__ = [
    "LABELS",
    "PLAIN",
    "Breath",
    "BreathingSeries",
    "Look",
    "Motion",
    "RecordedSeries",
    "Thorax",
    "breathing_series",
    "draw_breath",
    "make_breathing_set",
    "procedural_thorax",
    "read_breathing",
    "true_fields",
    "thorax_from_slice",
    "write_series",
]
