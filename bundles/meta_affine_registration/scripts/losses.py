"""What training minimises and validation reports: the distance to the true map (eq. 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from shared_components.affine_search import dimension, displacement_error
from shared_components.handlers import PairMetricHandler


class DisplacementLoss(nn.Module):
    """Mean squared displacement error of the last iterate, in Omega = [-1, 1]^D (eq. 8), mean over the batch."""

    def forward(self, stages: dict, truth: Tensor) -> Tensor:
        """Return the scalar loss of ``MetaAffine(image, return_stages=True)`` and true parameters (B, D (D + 1))."""
        return displacement_error(stages["x"][-1], truth).mean()


class DisplacementHandler(PairMetricHandler):
    """Ignite handler: the error of the last iterate as in the paper's tables, the integral of |phi_x - phi_truth|^2.

    That is 2^D times the mean of eq. 8. Also reported: "success", the part of the pairs below ``limit``.

    Args:
        limit: 0.05 is an error of 0.11, or 7 pixels of 128, in the mean over the image.
    """

    def __init__(self, limit: float = 0.05) -> None:
        super().__init__(("mse", "median", "worst", "success"), (), output_transform=_ends)
        self.limit = limit

    def measure(self, x: Tensor, truth: Tensor) -> Sequence[float]:
        """Return the row of one pair."""
        error = float(table_mse(x, truth))
        return [error, error, error, float(error < self.limit)]

    def summarise(self, rows: np.ndarray) -> dict[str, float]:
        """Return mean, median and largest error and the rate of success."""
        error = rows[:, 0]
        numbers = error.mean(), np.median(error), error.max(), rows[:, 3].mean()
        return dict(zip(self.columns, map(float, numbers), strict=True))


def table_mse(x: Tensor, truth: Tensor) -> Tensor:
    """Return the integral of |phi_x - phi_truth|^2 over [-1, 1]^D, (...,): what the paper's tables call MSE."""
    return 2 ** dimension(x) * displacement_error(x, truth)


def is_better(value: float, best: float) -> bool:
    """Compare errors for MONAI's evaluator, whose best metric begins at -1."""
    return best < 0 or value < best


def _ends(output: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return output["pred"]["x"][-1], output["label"]
