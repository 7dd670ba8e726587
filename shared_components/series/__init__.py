"""A whole series, 2-D + t, registered to one of its frames: frames in batches, one moved series, a film for a report.

``series.json`` is a configuration to be put on top of the inference.json of any bundle for 2-D images; that is what
``scripts/register.py BUNDLE --series FILE`` does.
"""

from .frames import SeriesFrames
from .save import SaveSeries

__all__ = ["SaveSeries", "SeriesFrames"]
