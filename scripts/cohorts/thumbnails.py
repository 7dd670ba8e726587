"""Small pictures of a pair: the middle axial slice of the fixed and of the moved image."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image as Picture

LARGEST = 96  # pixels of the longer side
SIZES = (LARGEST, 64, 48, 32, 24)


def make_thumbnails(fixed: np.ndarray, moved_file: Path, frame: object) -> dict[str, str]:
    """Return {"fixed", "moved"} as PNG in base64, radiological convention, each in its own window.

    Args:
        fixed: (*spatial) fixed image.
        moved_file: the moved image, on the grid of the fixed one.
        frame: their ``Frame``.
    """
    import nibabel as nib  # with torch and all: needed by workers only

    from shared_components.report.planes import Display, Plane, window

    display = Display(frame)
    moved = np.asarray(nib.load(moved_file).dataobj, dtype=np.float32).reshape(frame.shape)
    flat = display.frame.ndim == 2
    plane = Plane(display.frame, 0, 1, None if flat else 2, 0 if flat else display.frame.shape[2] // 2)
    width, height = plane.size_mm
    scale = LARGEST / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    found = {}
    for name, image in (("fixed", fixed), ("moved", moved)):
        low, high = window(image)
        grey = 255 * np.clip((plane.picture(display(image)).astype(np.float64) - low) / (high - low), 0, 1)
        picture = Picture.fromarray(np.ascontiguousarray(np.rint(grey).astype(np.uint8)))
        found[name] = _encode(picture.resize(size, _filter(picture, size)))
    return found


def _filter(picture: Picture.Image, size: tuple[int, int]) -> Picture.Resampling:
    smaller = size[0] < picture.width or size[1] < picture.height
    return Picture.Resampling.BOX if smaller else Picture.Resampling.BILINEAR


def shrink(encoded: str, longest: int) -> str:
    """Return a thumbnail whose longer side is at most ``longest`` pixels."""
    picture = Picture.open(io.BytesIO(base64.b64decode(encoded)))
    if max(picture.size) <= longest:
        return encoded
    scale = longest / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return _encode(picture.resize(size, Picture.Resampling.BOX))


def _encode(picture: Picture.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()
