"""What a report is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..geometry import Frame, apply_affine

_ON_GRID = (
    *("fixed", "moved_before", "moved", "jacobian", "expected_error_mm"),
    *("fixed_label", "moved_label_before", "moved_label"),
)
_POINTS = ("fixed_points_mm", "moving_points_mm", "mapped_points_mm")


@dataclass(frozen=True, eq=False)
class ReportData:
    """One registered pair on the grid of its fixed image. Everything optional leaves out its section where absent.

    Attributes:
        title: heading of the page.
        frame: the fixed grid, 2-D or 3-D, any orientation.
        fixed: (*shape) fixed image.
        moved_before: (*shape) moving image on the fixed grid as it was before registration (initial transform only).
        moved: (*shape) moving image after registration.
        ddf_mm: (D, *shape) RAS mm, pull-back: the point p of the fixed image goes to p + ddf_mm(p).
        jacobian: (*shape) determinant of that map; computed on the slices drawn where it is None.
        expected_error_mm: (*shape) how far the field may be wrong.
        fixed_label, moved_label_before, moved_label: (*shape) integer labels, 0 is background.
        fixed_points_mm: (N, D) RAS mm landmarks in the fixed image.
        moving_points_mm: (N, D) RAS mm the same landmarks in the moving image.
        mapped_points_mm: (N, D) RAS mm where the transform sends ``fixed_points_mm``.
        initial_world: (D+1, D+1) initial transform, fixed RAS mm -> moving RAS mm, that ``ddf_mm`` and the points
            contain. Pictures of movement then show what the registration added to it.
        metrics: nested; a leaf is {"before": x, "after": y, "unit": "mm"} or a plain value; {"before": {...},
            "after": {...}} with equal keys is taken too.
        run: nested facts of the run: bundle, version, weights sha256, frames, seconds, memory.
        notes: sentences to be read first, such as a warning.
        verdict: {"level", "reasons", "fallback"} of ``verdict.judge``; shown above everything else.
    """

    title: str
    frame: Frame
    fixed: np.ndarray
    moved_before: np.ndarray
    moved: np.ndarray
    ddf_mm: np.ndarray
    jacobian: np.ndarray | None = None
    expected_error_mm: np.ndarray | None = None
    fixed_label: np.ndarray | None = None
    moved_label_before: np.ndarray | None = None
    moved_label: np.ndarray | None = None
    fixed_points_mm: np.ndarray | None = None
    moving_points_mm: np.ndarray | None = None
    mapped_points_mm: np.ndarray | None = None
    initial_world: np.ndarray | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    verdict: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        ndim, shape = self.frame.ndim, self.frame.shape
        if ndim not in (2, 3):
            raise ValueError(f"a report shows 2-D and 3-D pairs, the frame is {ndim}-D")
        for name in _ON_GRID:
            self._to_array(name, shape)
        self._to_array("ddf_mm", (ndim, *shape))
        points = [n for n in _POINTS if getattr(self, n) is not None]
        if points:
            count = np.asarray(getattr(self, points[0])).shape[0]
            for name in points:
                self._to_array(name, (count, ndim))

    def _to_array(self, name: str, shape: tuple[int, ...]) -> None:
        value = getattr(self, name)
        if value is None:
            return
        value = np.asarray(value)
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to fit the report's frame, got {value.shape}")
        object.__setattr__(self, name, value)

    @property
    def has_labels(self) -> bool:
        """Whether there are labels of both images to compare."""
        return self.fixed_label is not None and self.moved_label is not None

    @property
    def has_points(self) -> bool:
        """Whether there are landmarks to draw."""
        others = self.mapped_points_mm is not None or self.moving_points_mm is not None
        return self.fixed_points_mm is not None and len(self.fixed_points_mm) > 0 and others

    def without_initial(self, points_mm: np.ndarray) -> np.ndarray:
        """Bring (..., D) points of the moving image back through the initial transform, RAS mm."""
        if self.initial_world is None:
            return np.asarray(points_mm, dtype=np.float64)
        return apply_affine(np.linalg.inv(self.initial_world), points_mm)
