"""The quality report: one HTML file next to every result that opens anywhere and needs nothing else.

Example:
    >>> import numpy as np, tempfile
    >>> from shared_components.geometry import Frame
    >>> image = np.eye(16, dtype=np.float32)
    >>> data = ReportData("A pair", Frame((16, 16), np.eye(3)), image, image, image, np.zeros((2, 16, 16)))
    >>> path = write_report(Path(tempfile.mkdtemp()) / "report.html", data)
    >>> path.name
    'report.html'
"""

from __future__ import annotations

import os
from pathlib import Path

from ..images import atomic_path
from .data import ReportData
from .page import build_page

__all__ = ["ReportData", "write_report"]

LARGEST_BYTES = 5_000_000
_RESOLUTIONS = (120, 90, 60, 40)  # dpi; the next one where noise compresses too badly


def write_report(path: str | os.PathLike[str], data: ReportData) -> Path:
    """Write the report of one pair as one offline HTML file below 5 MB; the same input gives the same bytes.

    Args:
        path: the file to write; replaced only once the new one is complete. Missing folders are made.
        data: images, field, labels, points, metrics and facts of the run.

    Returns:
        the path.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    for dpi in _RESOLUTIONS:
        content = build_page(data, dpi).encode("utf-8", "backslashreplace")
        if len(content) < LARGEST_BYTES:
            break
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path
