"""A real brain to build on: the MNI152 average inside nilearn, with labels divided from its tissue maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..geometry import Frame

LABELS = {
    1: "left cortex",
    2: "right cortex",
    3: "left white matter",
    4: "right white matter",
    5: "left deep grey matter",
    6: "right deep grey matter",
    7: "left lateral ventricle",
    8: "right lateral ventricle",
    9: "left cerebellum",
    10: "right cerebellum",
    11: "brainstem",
}
LABEL_ORIGIN = (
    "Labels are not a published atlas. Tissue is the most probable of grey matter, white matter and the rest (taken as "
    "fluid) in the MNI152 probability maps of nilearn, inside its brain mask; it is divided by geometry in MNI "
    "millimetres: the plane x = 0, two ellipsoids a side for the ventricles, one for the deep grey matter, a curved "
    "sheet along the tentorium for the cerebellum and a box for the brainstem. Fluid outside the ventricles is 0."
)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The 1 mm original: T1 in [0, 1], brain mask and labels, (197, 233, 189), on one frame."""

    t1: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    frame: Frame


def load_anatomy() -> Anatomy:
    """Read the MNI152 brain out of the installed nilearn package; nothing is downloaded.

    Raises:
        InputError: nilearn is not installed.
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise InputError(
            "The demo pair is made from the MNI152 brain inside the package nilearn, which is not installed: "
            "run `pip install nilearn`."
        ) from error
    image = datasets.load_mni152_template(resolution=1)
    grey, white, mask = (
        np.asarray(load(resolution=1).dataobj)
        for load in (
            datasets.load_mni152_gm_template,
            datasets.load_mni152_wm_template,
            datasets.load_mni152_brain_mask,
        )
    )
    frame = Frame(image.shape, image.affine)
    mask = mask > 0
    t1 = np.asarray(image.dataobj, dtype=np.float32) * mask
    return Anatomy(t1, mask, divide_tissue(grey, white, mask, frame), frame)


def divide_tissue(grey: np.ndarray, white: np.ndarray, mask: np.ndarray, frame: Frame) -> np.ndarray:
    """Return the label map (uint8) from tissue probabilities on an axis-aligned MNI frame; see ``LABEL_ORIGIN``."""
    index = np.ogrid[tuple(slice(n) for n in frame.shape)]
    x, y, z = (i * frame.matrix[k, k] + frame.affine[k, 3] for k, i in enumerate(index))
    side = np.abs(x)  # the divisions are symmetric
    rest = 1 - grey - white
    is_grey = mask & (grey >= white) & (grey > rest)
    is_white = mask & (white > grey) & (white > rest)
    is_fluid = mask & ~is_grey & ~is_white

    def ellipsoid(center: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
        return sum(((c - m) / r) ** 2 for c, m, r in zip((side, y, z), center, radii, strict=True)) <= 1

    horns = ellipsoid((12, -2, 15), (20, 42, 18)) | ellipsoid((24, -38, 8), (14, 16, 18))
    deep = is_grey & ellipsoid((17, -4, 5), (19, 34, 16))
    ventricle = is_fluid & horns & ((side > 5) | (y > -28)) & (side > 1)  # not the cistern behind the third ventricle
    roof = -20 - 0.2 * np.maximum(side - 30, 0) - 0.6 * np.maximum(y + 42, 0)
    roof = roof + 24 * np.exp(-((side / 14) ** 2) - ((y + 50) / 22) ** 2)  # the vermis reaches highest
    front = -38 + 0.5 * np.maximum(side - 10, 0) - 0.5 * np.maximum(-48 - z, 0)
    solid = is_grey | is_white
    cerebellum = solid & (z < roof) & (y < front)
    stem = solid & ~cerebellum & (z < -8) & (y < -8) & (y > -60) & (side < np.where(z > -20, 13, 16))

    labels = np.where(is_grey, 1, np.where(is_white, 3, 0)).astype(np.uint8)
    labels[is_grey & horns] = 0  # the rim of mixed voxels around a ventricle is no cortex
    for part, value in ((deep, 5), (ventricle, 7), (cerebellum, 9)):
        labels[part] = value
    labels = np.where(labels > 0, labels + (x >= 0), 0).astype(np.uint8)
    labels[stem] = 11
    return labels
