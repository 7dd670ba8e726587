"""Pictures (PNG, JPEG, BMP, TIFF) as grey values, with the pixel size that ITK gives them."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image as Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DAMAGED = (OSError, SyntaxError, EOFError, ValueError, LookupError, TypeError, AttributeError, struct.error)
TooLarge = Picture.DecompressionBombError
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF")
_UNPACKED = {"1": "L", "P": "RGB", "PA": "RGBA"}
_MM_PER_UNIT = {"JPEG": {1: 25.4, 2: 10.0}, "TIFF": {2: 25.4, 3: 10.0}}
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296


def decode(path: Path) -> tuple[np.ndarray, int, tuple[float, float]]:
    """Read a picture.

    Args:
        path: of one of ``SUFFIXES``; the content decides about the format.

    Returns:
        values (columns, rows), (columns, rows, components) if they are not grey, or (columns, rows, pages[,
        components]) of a TIFF of many pages; the number of components; the size of a pixel (x, y) in mm.

    Raises:
        One of ``DAMAGED``, or ``TooLarge``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures and odd metadata
        with Picture.open(path, formats=_FORMATS) as picture:
            if picture.format == "PNG":
                picture.verify()  # the checksums, which reading leaves out
        with Picture.open(path, formats=_FORMATS) as picture:
            size_mm = _pixel_size_mm(picture)
            pages = []
            for page in range(getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1):
                picture.seek(page)
                pages.append(_channels(picture))
            has_alpha = picture.getbands()[-1] in ("A", "a")
    values = _grey(np.stack(pages) if len(pages) > 1 else pages[0], has_alpha)  # ([pages,] rows, columns, components)
    components = values.shape[-1]
    values = values[..., 0] if components == 1 else values
    grid = values.ndim - (components > 1)
    return values.transpose(*reversed(range(grid)), *range(grid, values.ndim)), components, size_mm


def grid_of(path: Path) -> tuple[int, ...]:
    """Return (columns, rows) as the header tells."""
    with Picture.open(path, formats=_FORMATS) as picture:
        return picture.size


def _channels(picture: Picture.Image) -> np.ndarray:
    """Return (rows, columns, components), native byte order; one bit becomes 0 and 255, as in ITK."""
    picture = picture.convert(_UNPACKED[picture.mode]) if picture.mode in _UNPACKED else picture
    values = np.asarray(picture)
    values = values.astype(values.dtype.newbyteorder("="))
    return values if values.ndim == 3 else values[..., None]


def _grey(values: np.ndarray, has_alpha: bool) -> np.ndarray:
    """Keep one component if the colours are all equal and nothing is more transparent than the rest."""
    colours, alpha = (values[..., :-1], values[..., -1:]) if has_alpha else (values, values[..., :1] * 0)
    plain = (colours == colours[..., :1]).all() and (alpha == alpha.flat[0]).all()
    return colours[..., :1] if plain else values


def _pixel_size_mm(picture: Picture.Image) -> tuple[float, float]:
    """Return what ITK takes: the resolution of a JPEG or TIFF that is given per inch or cm, otherwise 1 mm."""
    if picture.format in ("JPEG", "MPO"):  # MPO: a JPEG of some cameras, with a preview behind it
        unit, (x, y) = picture.info.get("jfif_unit"), picture.info.get("jfif_density", (0, 0))
        scale = _MM_PER_UNIT["JPEG"].get(unit)
    elif picture.format == "TIFF":
        x, y, unit = (picture.tag_v2.get(tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT))
        scale = _MM_PER_UNIT["TIFF"].get(unit)
    else:
        return 1.0, 1.0
    if scale is None or not x or not y:
        return 1.0, 1.0
    return scale / float(x), scale / float(y)
