"""The metrics of ``shared_components.metrics`` as handlers for ``key_val_metric`` and ``additional_metrics``.

They fill ``engine.state.metrics``, and ``engine.state.metric_details`` for MONAI's ``MetricsSaver``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics import (
    diagonal_folds_percent,
    dice,
    hd95_l2r,
    hd95_mm,
    inverse_consistency_error,
    iou,
    jacobian_statistics,
    log_asymmetry,
    mean_over_labels,
    std_jacobian,
    tre_mm,
)
from ..metrics.overlap import Absent
from ..similarity import mse_loss
from ..warp import fixed_points_to_moving, inside, warp_image
from .rows import NAN, OutputTransform, PairMetricHandler, mean_or_nan

_JACOBIAN = ("folds_percent", "ndv_percent", "sdlogj")


class LabelMetricHandler(PairMetricHandler):
    """Base class of metrics with a value for each label: the mean over labels, then over pairs, under its own name.

    The details have a column for each of ``labels``; without them one column, the pair's mean.

    Args:
        labels: only these, in this order; None takes all that a pair has.
        keys: label maps on one grid, (1, *spatial): fixed and moved; which is which does not matter.
        output_transform: see ``PairMetricHandler``.
        save_details: see ``PairMetricHandler``.
    """

    def __init__(
        self,
        labels: Sequence[int] | None = None,
        keys: Sequence[str] = ("fixed_label", "moved_label"),
        output_transform: OutputTransform | None = None,
        save_details: bool = True,
    ) -> None:
        self.labels = None if labels is None else [int(label) for label in labels]
        columns = ["mean"] if self.labels is None else [str(label) for label in self.labels]
        super().__init__(columns, keys, output_transform, save_details)

    def scores(self, fixed_labels: Tensor, moved_labels: Tensor) -> dict[int, float]:
        """Return {label: value} of one pair."""
        raise NotImplementedError

    def measure(self, *values: Any) -> Sequence[float]:
        """Return the value of each label, NaN where it has none."""
        scores = self.scores(*values)
        return [mean_over_labels(scores)] if self.labels is None else [scores.get(label, NAN) for label in self.labels]

    def summarise(self, rows: np.ndarray) -> float:
        """Return the mean over labels, then over pairs."""
        return mean_or_nan(np.array([mean_or_nan(row) for row in rows]))

    def _details(self, rows: Tensor) -> dict[str, Tensor]:
        return {str(self._name): rows}

    def _is_scalar(self) -> bool:
        return True


class DiceHandler(LabelMetricHandler):
    """Dice of moved against fixed labels; see ``metrics.dice``.

    Args:
        absent: "zero" counts a label that only one of the two images holds as 0, "skip" leaves it out. The default
            is "zero": a network must not gain by pushing a label out of the image.
        labels, keys, output_transform, save_details: see ``LabelMetricHandler``.
    """

    measure_of = staticmethod(dice)

    def __init__(
        self,
        labels: Sequence[int] | None = None,
        absent: Absent = "zero",
        keys: Sequence[str] = ("fixed_label", "moved_label"),
        output_transform: OutputTransform | None = None,
        save_details: bool = True,
    ) -> None:
        super().__init__(labels, keys, output_transform, save_details)
        self.absent: Absent = absent

    def scores(self, fixed_labels: Tensor, moved_labels: Tensor) -> dict[int, float]:
        """Return the overlap of each label."""
        return self.measure_of(fixed_labels, moved_labels, self.labels, self.absent)


class IoUHandler(DiceHandler):
    """Jaccard index of moved against fixed labels; arguments as for ``DiceHandler``, see ``metrics.iou``."""

    measure_of = staticmethod(iou)


class HD95Handler(LabelMetricHandler):
    """95 % Hausdorff distance of the labels that both images hold, in mm; see ``metrics.hd95_mm``.

    Args:
        spacing_mm: (D,) voxel size of the grid that the labels lie on; "pair" takes each pair's own "spacing_mm"; None
            gives ``metrics.hd95_l2r``, in voxels.
        labels, keys, output_transform, save_details: see ``LabelMetricHandler``.
    """

    def __init__(
        self,
        spacing_mm: Sequence[float] | str | None,
        labels: Sequence[int] | None = None,
        keys: Sequence[str] = ("fixed_label", "moved_label"),
        output_transform: OutputTransform | None = None,
        save_details: bool = True,
    ) -> None:
        keys = (*keys, "spacing_mm") if spacing_mm == "pair" else keys
        super().__init__(labels, keys, output_transform, save_details)
        self.spacing_mm = spacing_mm

    def scores(self, fixed_labels: Tensor, moved_labels: Tensor, spacing_mm: Tensor | None = None) -> dict[int, float]:
        """Return the distance of each label."""
        if self.spacing_mm is None:
            return hd95_l2r(fixed_labels, moved_labels, self.labels)
        step = self.spacing_mm if spacing_mm is None else spacing_mm.flatten().tolist()
        return hd95_mm(fixed_labels, moved_labels, step, self.labels)


class TREHandler(PairMetricHandler):
    """Target registration error: "tre_mm" and "tre_mm_p95", means over pairs, and "tre_mm_max", the worst landmark.

    Args:
        spacing_mm: None if the points are in mm: two keys, mapped fixed points and moving points, (N, D). With the
            (D,) voxel size of the network grid: three keys, ddf (D, *spatial), fixed and moving points (N, D) in its
            voxels; the error is a distance in mm as long as that grid is orthogonal, which every ``Frame`` cut is.
            "pair" takes each pair's own "spacing_mm" as a fourth.
        keys: by default ("mapped_points_mm", "moving_points_mm") or ("pred", "fixed_points_vox", "moving_points_vox").
        output_transform, save_details: see ``PairMetricHandler``.
    """

    def __init__(
        self,
        spacing_mm: Sequence[float] | str | None = None,
        keys: Sequence[str] | None = None,
        output_transform: OutputTransform | None = None,
        save_details: bool = True,
    ) -> None:
        self.spacing_mm = spacing_mm
        in_mm, in_voxels = ("mapped_points_mm", "moving_points_mm"), ("pred", "fixed_points_vox", "moving_points_vox")
        keys = keys or (in_mm if spacing_mm is None else in_voxels)
        keys = (*keys, "spacing_mm") if spacing_mm == "pair" else keys
        super().__init__(("tre_mm", "tre_mm_p95", "tre_mm_max"), keys, output_transform, save_details)

    def measure(self, *values: Any) -> Sequence[float]:
        """Return mean, p95 and max over the landmarks of one pair."""
        if self.spacing_mm is not None:
            ddf, fixed, moving, *own = (torch.as_tensor(value).double() for value in values)
            spacing = own[0].flatten().tolist() if own else self.spacing_mm
            step = torch.tensor([float(s) for s in spacing], dtype=torch.float64, device=ddf.device)
            mapped = fixed_points_to_moving(fixed[None].to(ddf.device), ddf[None])[0]
            values = ((mapped * step), (moving.to(ddf.device) * step))
        mapped_mm, moving_mm = (torch.as_tensor(value).detach().cpu().numpy() for value in values)
        return list(tre_mm(mapped_mm, moving_mm, mapped_mm).values())

    def summarise(self, rows: np.ndarray) -> dict[str, float]:
        """Return means over pairs, and the largest error of all."""
        worst = rows[:, 2][~np.isnan(rows[:, 2])].max(initial=-math.inf)
        return {**super().summarise(rows), "tre_mm_max": float(worst) if worst >= 0 else NAN}


class MeanSquaresHandler(PairMetricHandler):
    """Mean squared difference of the images, "mse" after and "mse_before" registration, means over pairs.

    Pixels that come from outside the moving image do not count.

    Args:
        keys: fixed and moving image on one grid (2, *spatial), and the field, ddf (D, *spatial) in voxels.
        output_transform, save_details: see ``PairMetricHandler``.
    """

    def __init__(
        self,
        keys: Sequence[str] = ("image", "pred"),
        output_transform: OutputTransform | None = None,
        save_details: bool = True,
    ) -> None:
        super().__init__(("mse", "mse_before"), keys, output_transform, save_details)

    def measure(self, *values: Any) -> Sequence[float]:
        """Return the row of one pair."""
        image, ddf = (torch.as_tensor(value)[None] for value in values)
        fixed, moving = image[:, :1], image[:, 1:2]
        after = mse_loss(fixed, warp_image(moving, ddf), inside(ddf))
        return [float(after), float(mse_loss(fixed, moving))]


class JacobianHandler(PairMetricHandler):
    """Folds and volume change of the fields, means over pairs under the names of the statistics.

    Args:
        statistics: some of "folds_percent", "ndv_percent", "sdlogj", "sdlogj_l2r", "std_jacobian", "det_min",
            "diagonal_folds_percent", ...; see ``metrics.jacobian_statistics``.
        keys: the field, ddf (D, *spatial) in voxels.
        output_transform, save_details: see ``PairMetricHandler``.
    """

    others = MappingProxyType({"std_jacobian": std_jacobian, "diagonal_folds_percent": diagonal_folds_percent})

    def __init__(
        self,
        statistics: Sequence[str] = _JACOBIAN,
        keys: Sequence[str] = ("pred",),
        output_transform: OutputTransform | None = None,
        save_details: bool = True,
    ) -> None:
        super().__init__(statistics, keys, output_transform, save_details)
        known = {*jacobian_statistics(torch.zeros(2, 2, 2)), *self.others}
        if unknown := set(self.columns) - known:
            raise ValueError(f"unknown Jacobian statistics {sorted(unknown)}; choose among {sorted(known)}")

    def measure(self, *values: Any) -> Sequence[float]:
        """Return the statistics of one field."""
        found = jacobian_statistics(values[0])
        return [self.others[name](values[0]) if name in self.others else found[name] for name in self.columns]


class InverseConsistencyHandler(PairMetricHandler):
    """Inverse consistency "ice_mm", "ice_mm_p95" and "ice_mm_max", means over pairs.

    Args:
        spacing_mm: (D,) voxel size of the grid that both fields lie on.
        keys: the field and its inverse, ddf (D, *spatial) in voxels.
        output_transform, save_details: see ``PairMetricHandler``.
    """

    def __init__(
        self,
        spacing_mm: Sequence[float],
        keys: Sequence[str] = ("pred", "inverse_ddf"),
        output_transform: OutputTransform | None = None,
        save_details: bool = True,
    ) -> None:
        super().__init__(("ice_mm", "ice_mm_p95", "ice_mm_max"), keys, output_transform, save_details)
        self.spacing_mm = spacing_mm

    def measure(self, *values: Any) -> Sequence[float]:
        """Return mean, p95 and max over the voxels of one pair."""
        return list(inverse_consistency_error(values[0], values[1], self.spacing_mm).values())


class AsymmetryHandler(PairMetricHandler):
    """How far the fields of the two orders of a pair are from inverses, "log_asymmetry"; see ``metrics.log_asymmetry``.

    Args:
        margin: voxels from the border that do not count.
        keys: both fields, ddf (D, *spatial) in voxels; the second comes from ``engines.RegisterBack``.
        output_transform, save_details: see ``PairMetricHandler``.
    """

    def __init__(
        self,
        margin: int = 10,
        keys: Sequence[str] = ("pred", "pred_back"),
        output_transform: OutputTransform | None = None,
        save_details: bool = True,
    ) -> None:
        super().__init__(("log_asymmetry",), keys, output_transform, save_details)
        self.margin = margin

    def measure(self, *values: Any) -> Sequence[float]:
        """Return the number of one pair."""
        return [log_asymmetry(values[0], values[1], self.margin)]
