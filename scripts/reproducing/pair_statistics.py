"""Two methods on the pairs that both have registered: Wilcoxon's test, worst pairs.

A method's numbers are ``{"pairs": [names], metric: [one a pair, None where there is none]}``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import wilcoxon


def common(a: Mapping[str, Any], b: Mapping[str, Any], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a metric of two methods on the pairs that both have registered, NaN left out."""
    there = {name: value for name, value in zip(b["pairs"], b[metric], strict=True) if value is not None}
    both = [
        (value, there[name])
        for name, value in zip(a["pairs"], a[metric], strict=True)
        if value is not None and name in there
    ]
    first, second = np.array(both, dtype=float).reshape(-1, 2).T
    return first, second


def signed_rank(a: Mapping[str, Any], b: Mapping[str, Any], metric: str) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test over pairs; NaN if nothing differs."""
    first, second = common(a, b, metric)
    return float(wilcoxon(first - second).pvalue) if np.any(first != second) else math.nan


def worst(values: Sequence[float | None], lowest: bool) -> float | None:
    """Return the worst pair: the lowest (or highest) of the values that there are."""
    known = [value for value in values if value is not None]
    return None if not known else min(known) if lowest else max(known)
