"""From signs of error to an expected error: a weighted sum and a monotone curve, fitted where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression, nnls
from scipy.stats import spearmanr
from torch import Tensor

from ..errors import InputError
from .signs import CONTRADICTIONS

ROUNDING_MM = 0.01
_MOST = 400_000  # voxels that a fit looks at


@dataclass(frozen=True)
class Calibration:
    """expected error = curve(sum of weight x sign), in mm. The default is the plain sum of what contradicts itself.

    Attributes:
        weights: of the signs, by name; empty: 1 for each of ``signs.CONTRADICTIONS``.
        score_mm: where the curve has its knots, increasing; empty: the curve is the identity.
        error_mm: its values there, nowhere falling. Beyond the last knot it rises in proportion, so that what was never
            seen in the fit is not called harmless.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    score_mm: tuple[float, ...] = ()
    error_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        scores, errors = np.asarray(self.score_mm, dtype=float), np.asarray(self.error_mm, dtype=float)
        if scores.shape != errors.shape or (np.diff(scores) <= 0).any() or (np.diff(errors) < 0).any():
            raise InputError("a calibration needs as many error_mm as score_mm, the scores rising, no error falling")
        if any(weight < 0 for weight in self.weights.values()) or (errors < 0).any():
            raise InputError("a calibration cannot have negative weights or errors; fit it again")

    @classmethod
    def of(cls, numbers: Mapping[str, Any] | None) -> Calibration:
        """Return the calibration that a configuration holds as {"weights", "score_mm", "error_mm"}, or the default."""
        if not numbers:
            return cls()
        try:
            curve = {key: tuple(map(float, numbers[key])) for key in ("score_mm", "error_mm")}
            return cls({str(k): float(v) for k, v in numbers["weights"].items()}, **curve)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("a calibration is {weights: {sign: number}, score_mm: [...], error_mm: [...]}") from error

    def numbers(self) -> dict[str, Any]:
        """Return what ``of`` takes, rounded to four digits; of knots that become one the first stays."""

        def short(values: Any) -> list[float]:
            return [float(f"{value:.4g}") for value in values]

        curve = dict(reversed(list(zip(short(self.score_mm), short(self.error_mm), strict=True))))
        scores = sorted(curve)
        weights = dict(zip(self.weights, short(self.weights.values()), strict=True))
        return {"weights": weights, "score_mm": scores, "error_mm": [curve[score] for score in scores]}

    def score(self, signs: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of signs, in mm.

        Raises:
            InputError: a sign that has a weight is missing.
        """
        weights = self.weights or {name: 1.0 for name in signs if name in CONTRADICTIONS}
        missing = sorted(name for name, weight in weights.items() if weight > 0 and name not in signs)
        if missing:
            raise InputError(f"the calibration needs the sign '{missing[0]}'; fit it anew for the signs that are used")
        return sum(weight * signs[name] for name, weight in weights.items() if name in signs)

    def __call__(self, signs: Mapping[str, Tensor]) -> Tensor:
        """Return the expected error in mm."""
        score = self.score(signs)
        if not self.score_mm:
            return score
        values = score.detach().double().cpu().numpy()
        error = np.interp(values, self.score_mm, self.error_mm)
        last, highest = self.score_mm[-1], self.error_mm[-1]
        error = np.where(values > last, highest * values / max(last, 1e-12), error)
        return torch.from_numpy(error).to(score)


def fit_calibration(signs: Mapping[str, np.ndarray], errors_mm: np.ndarray, knots: int = 10) -> Calibration:
    """Return the calibration under which the expected error is right on average, at every level of it.

    Weights by non-negative least squares; the curve is the isotonic regression of the mean errors of ``knots`` equally
    large groups of the score. A sign of less than ``ROUNDING_MM`` (root mean square) gets no weight: what differs from
    one machine to the next must not be magnified into millimetres.

    Args:
        signs: (N,) each, mm.
        errors_mm: (N,) true errors.
        knots: of the curve, at most.

    Raises:
        InputError: no numbers to fit, or none but rounding.
    """
    errors = np.asarray(errors_mm, dtype=np.float64).ravel()
    if errors.size < 2 * knots or not signs:
        raise InputError(f"{errors.size} voxels are too few to calibrate on; give more series")
    every = max(1, errors.size // _MOST)
    columns = {name: np.asarray(values, dtype=np.float64).ravel()[::every] for name, values in signs.items()}
    errors = errors[::every]
    table = np.stack([*columns.values(), np.ones(errors.size)], -1)  # the constant is the curve's business afterwards
    telling = [np.sqrt(np.mean(np.square(values))) >= ROUNDING_MM for values in columns.values()]
    if not any(telling):
        raise InputError(f"no sign is above {ROUNDING_MM} mm; give pairs that are harder to register")
    table[:, :-1] *= telling
    weights, _ = nnls(table, errors)
    kept = {name: float(weight) for name, weight in zip(columns, weights, strict=False)}
    if not any(kept.values()):
        kept = {name: float(tells) for name, tells in zip(columns, telling, strict=True)}
    score = sum(kept[name] * columns[name] for name in columns)
    groups = np.array_split(np.argsort(score, kind="stable"), knots)
    levels = np.array([score[group].mean() for group in groups])
    means = isotonic_regression([errors[group].mean() for group in groups]).x
    rising = np.concatenate([[True], np.diff(levels) > 1e-9])
    return Calibration(kept, tuple(levels[rising].tolist()), tuple(means[rising].tolist()))


def spearman(expected_mm: np.ndarray, errors_mm: np.ndarray) -> float:
    """Return Spearman's rho of expected and true error: 1 where they have the same order, 0 where none tells of other.

    NaN where one of them is constant.
    """
    expected, errors = np.ravel(expected_mm), np.ravel(errors_mm)
    every = max(1, expected.size // _MOST)
    expected, errors = expected[::every], errors[::every]
    if expected.size < 2 or np.ptp(expected) == 0 or np.ptp(errors) == 0:
        return float("nan")
    return float(spearmanr(expected, errors).statistic)


def reliability(expected_mm: np.ndarray, errors_mm: np.ndarray, groups: int = 10) -> dict[str, np.ndarray]:
    """Return what lies behind a calibration plot, for equally large groups of voxels by expected error.

    Returns:
        "expected" and "mean", mean expected and mean true error of each group in mm; "low" and "high", the 10th and
        90th percentile of the true error.
    """
    expected, errors = np.ravel(expected_mm), np.ravel(errors_mm)
    parts = np.array_split(np.argsort(expected, kind="stable"), groups)
    return {
        "expected": np.array([expected[part].mean() for part in parts]),
        "mean": np.array([errors[part].mean() for part in parts]),
        "low": np.array([np.percentile(errors[part], 10) for part in parts]),
        "high": np.array([np.percentile(errors[part], 90) for part in parts]),
    }
