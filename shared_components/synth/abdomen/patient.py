"""One patient made to order: an anatomy of its own, bent, posed on a frame, and seen by CT or by MR."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from ...geometry import Frame, apply_affine
from ...warp import compose
from ..deformations import diffeomorphism, random_affine
from .body import Canvas, clear_strangers, paint_chest, paint_pelvis, paint_spine, paint_table, paint_trunk
from .organs import (
    paint_gut,
    paint_kidneys,
    paint_liver,
    paint_psoas,
    paint_spleen,
    paint_stomach,
    paint_vessels,
)
from .real import Layout, read_layout
from .render import render_ct, render_mr

SIZE = (128, 96, 96)  # at 3 mm: 384 x 288 x 288 mm, right-left, front-back, up-down
SPACING_MM = 3.0
MODALITIES = ("ct", "mr")
_LATTICE = Frame((55, 43, 43), np.array([[8.0, 0, 0, -216], [0, 8, 0, -168], [0, 0, 8, -168], [0, 0, 0, 1]]))
_BENDS = ((8.0, 90.0), (2.8, 40.0))  # mean displacement and smoothness in mm, coarse and fine


@dataclass(frozen=True, eq=False)
class Patient:
    """A patient's image with its exact truth.

    Attributes:
        image: (*size) float32; HU for CT, a magnitude of about 0 to 1000 for MR.
        labels: (*size) uint8, see ``LABELS``.
        tissue: (*size) uint8, see ``Tissue``.
        frame: the grid, axes R, A, S, its middle at 0 mm.
    """

    image: np.ndarray
    labels: np.ndarray
    tissue: np.ndarray
    frame: Frame


def centred_frame(size: Sequence[int], spacing_mm: float) -> Frame:
    """Return the RAS frame of ``size`` voxels whose middle is the origin of the world."""
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = -spacing_mm * (np.asarray(size) - 1) / 2
    return Frame(tuple(size), affine)


def abdomen_patient(
    modality: str,
    seed: int,
    size: Sequence[int] = SIZE,
    spacing_mm: float = SPACING_MM,
    layout: Layout | str | os.PathLike[str] | None = None,
    variation: float = 1.0,
    contrast: str | None = None,
) -> Patient:
    """Return one patient; everything but the picture depends on the seed alone, so modalities can share an anatomy.

    Args:
        modality: "ct" or "mr".
        seed: of everything. The anatomy does not depend on modality, size or spacing.
        size: voxels along R, A, S.
        spacing_mm: of the cubic voxels.
        layout: organ shapes of a real label map or its path (see ``read_layout``); None draws all organs procedurally.
        variation: 1 is between patients after affine pre-alignment; scales bending and pose, not the organs' drawing.
        contrast: "native", "arterial", "portal" for CT, "t1", "t2" for MR; drawn if None.

    Raises:
        ValueError: another modality or contrast.
    """
    if modality not in MODALITIES:
        raise ValueError(f"modality must be one of ct, mr, got {modality!r}")
    frame = centred_frame(size, spacing_mm)
    layout = layout if layout is None or isinstance(layout, Layout) else read_layout(layout)
    points_mm = frame.to_mm(np.indices(frame.shape).reshape(3, -1).T).astype(np.float32)
    generator = torch.Generator().manual_seed(seed)
    canvas = Canvas(_canonical(points_mm, generator, variation), np.random.default_rng([seed, 0]))
    _paint(canvas, layout)
    if modality == "ct":
        paint_table(canvas, points_mm)
    tissue, labels = (values.reshape(frame.shape) for values in (canvas.tissue, canvas.label))
    texture = canvas.textures["fine"](canvas.points).reshape(frame.shape)
    pictures = np.random.default_rng([seed, 1 + MODALITIES.index(modality)])
    if modality == "ct":
        image = render_ct(tissue, texture, spacing_mm, pictures, contrast)
    else:
        image = render_mr(tissue, texture, spacing_mm, pictures, generator, contrast)
    return Patient(image, labels, tissue, frame)


def _canonical(points_mm: np.ndarray, generator: torch.Generator, variation: float) -> np.ndarray:
    """Return where points (N, 3) of the patient lie in the canonical body: bent, then posed. On a lattice of its own,
    so that the same seed bends alike at every spacing."""
    spacing = float(_LATTICE.spacing[0])
    pose = random_affine(generator, 3, 4.5 * variation, 7.5 * variation, 0.05 * variation, 0.03 * variation)
    ddf = torch.zeros((1, 3, *_LATTICE.shape))
    for mean, smoothness in _BENDS:
        if variation > 0:
            bend, _ = diffeomorphism(
                _LATTICE.shape, generator, mean * variation, smoothness=smoothness, spacing=spacing
            )
            ddf = compose(ddf, bend)
    position = _LATTICE.to_vox(points_mm).T
    shift = [map_coordinates(part, position, order=3, mode="nearest") for part in ddf[0].numpy()]
    return apply_affine(pose, points_mm + spacing * np.stack(shift, 1)).astype(np.float32)


def _paint(canvas: Canvas, layout: Layout | None) -> None:
    paint_trunk(canvas)
    given = {} if layout is None else layout.levels(canvas.points, canvas.rng)
    paint_chest(canvas)
    paint_gut(canvas)
    paint_stomach(canvas)
    paint_pelvis(canvas)
    paint_psoas(canvas, given)
    paint_spine(canvas)
    paint_liver(canvas, given)
    paint_spleen(canvas, given)
    paint_vessels(canvas, paint_kidneys(canvas, given))
    clear_strangers(canvas)
