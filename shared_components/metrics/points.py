"""How far landmarks end from where they belong, in mm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import InputError

Mapping = Callable[[np.ndarray], np.ndarray]


def distance_statistics(distances: np.ndarray) -> dict[str, float]:
    """Return mean, p95 (linear between ranks) and max of distances; NaN if there are none."""
    if distances.size == 0:
        return dict.fromkeys(("mean", "p95", "max"), float("nan"))
    return {
        "mean": float(distances.mean()),
        "p95": float(np.percentile(distances, 95)),
        "max": float(distances.max()),
    }


def tre_mm(fixed_points_mm: np.ndarray, moving_points_mm: np.ndarray, mapped: np.ndarray | Mapping) -> dict[str, float]:
    """Return the target registration error: distances of mapped fixed points to their moving points.

    Args:
        fixed_points_mm: (N, D) landmarks of the fixed image, RAS mm.
        moving_points_mm: (N, D) the same landmarks in the moving image, RAS mm.
        mapped: the fixed points after the transform, (N, D) RAS mm, or the map itself, such as
            ``PhysicalField.map_points``. ``tre_mm(f, m, f)`` is the error before registration.

    Returns:
        {"mean", "p95", "max"} in mm.

    Raises:
        InputError: if the points do not come in pairs.
    """
    fixed, moving = np.asarray(fixed_points_mm, np.float64), np.asarray(moving_points_mm, np.float64)
    arrived = np.asarray(mapped(fixed) if callable(mapped) else mapped, np.float64)
    if not fixed.shape == moving.shape == arrived.shape or fixed.ndim != 2:
        raise InputError(
            f"landmarks must come in pairs (N, D), got {fixed.shape} fixed, {moving.shape} moving and "
            f"{arrived.shape} mapped points; give both images the same landmarks in the same order"
        )
    return distance_statistics(np.linalg.norm(arrived - moving, axis=1))
