"""How to solve, as frozen numbers, and what comes back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

ON_FAILURE = ("raise", "warn", "ignore")
AMG_KINDS = ("smoothed_aggregation", "ruge_stuben")


@dataclass(frozen=True)
class Method:
    """What all methods share.

    Attributes:
        tolerance: of the relative residual |b - A z| / |b|, each pair for itself. None: exactly ``max_iterations``
            steps, nothing is checked and nothing waits for the device, which is what tracing and CUDA graphs need.
        max_iterations: at most.
        on_failure: to reach the tolerance: "raise" NotConvergedError, "warn" or "ignore".
    """

    tolerance: float | None = 1e-6
    max_iterations: int = 1000
    on_failure: str = "raise"

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1 or be None, got {self.tolerance}")
        if self.max_iterations < 1:
            raise ValueError(f"max_iterations must be at least 1, got {self.max_iterations}")
        if self.on_failure not in ON_FAILURE:
            raise ValueError(f"on_failure must be one of {', '.join(ON_FAILURE)}, got '{self.on_failure}'")

    @property
    def name(self) -> str:
        """Lower-case name, as in ``METHODS``."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Spectral(Method):
    """Conjugate gradients, preconditioned by the exact inverse of lambda L + mean of M in the basis of cosines.

    Best where smoothness dominates: a handful of iterations at lambda around 10 for features in [0, 1].

    Attributes:
        mixed: float64 systems are solved by corrections in float32, to any tolerance; needs a tolerance.
    """

    mixed: bool = False


@dataclass(frozen=True)
class Multigrid(Method):
    """Conjugate gradients, preconditioned by a V-cycle on grids of half the size, D x D block smoother.

    Best where the data term dominates and varies: its iterations hardly depend on lambda.

    Attributes:
        sweeps: of the smoother before and after each correction.
        smallest: grids of at most so many voxels are solved directly.
    """

    sweeps: int = 2
    smallest: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sweeps < 1 or not 1 <= self.smallest <= 512:
            raise ValueError(
                f"sweeps must be >= 1 and smallest within 1 and 512, got {self.sweeps} and {self.smallest}"
            )


@dataclass(frozen=True)
class Pcg(Method):
    """Conjugate gradients, preconditioned by the inverse of each voxel's D x D block: simple, many iterations."""


@dataclass(frozen=True)
class Amg(Method):
    """Algebraic multigrid of pyamg as preconditioner, float64 on the CPU: the paper's own and the reference.

    Attributes:
        kind: "smoothed_aggregation", with the D block-constant vectors as near null space, or "ruge_stuben".
    """

    kind: str = "smoothed_aggregation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in AMG_KINDS:
            raise ValueError(f"kind must be one of {', '.join(AMG_KINDS)}, got '{self.kind}'")


@dataclass(frozen=True)
class Auto(Method):
    """Spectral or Multigrid, by how much the data term varies beside lambda; ``choice`` tells the measured rule.

    Attributes:
        contrast: the largest kappa at which Spectral is taken. Without tolerance it always is.
    """

    contrast: float = 20.0


METHODS: dict[str, type[Method]] = {cls.__name__.lower(): cls for cls in (Spectral, Multigrid, Pcg, Amg, Auto)}


def find_method(method: Method | str, **numbers: Any) -> Method:
    """Return the method of a name, with these numbers; a Method comes back as it is.

    Raises:
        ValueError: unknown name.
    """
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise ValueError(f"there is no solver '{method}'; choose from {', '.join(METHODS)}")
    return METHODS[method](**numbers)


@dataclass(frozen=True)
class Statistics:
    """What a solve took, one entry a pair.

    Attributes:
        method: name of what ran; never "auto".
        iterations: (B,) integers.
        residual: (B,) relative residual |b - A z| / |b| as conjugate gradients track it.
        converged: (B,) booleans; all True without tolerance.
    """

    method: str
    iterations: Tensor
    residual: Tensor
    converged: Tensor


@dataclass(frozen=True)
class Solution:
    """z (B, D, *spatial) with A z = b, of smallest norm where A is singular, and what it took."""

    z: Tensor
    statistics: Statistics


class NotConvergedError(RuntimeError):
    """The tolerance was not reached; ``statistics`` tells each pair's residual."""

    def __init__(self, message: str, statistics: Statistics) -> None:
        super().__init__(message)
        self.statistics = statistics


def judge(statistics: Statistics, method: Method) -> None:
    """Raise or warn, as the method says, if a pair did not converge.

    Raises:
        NotConvergedError: with ``on_failure="raise"``.
    """
    if method.tolerance is None or method.on_failure == "ignore" or bool(statistics.converged.all()):
        return
    worst = int(statistics.residual.nan_to_num(float("inf")).argmax())
    message = (
        f"{statistics.method} stopped at a relative residual of {float(statistics.residual[worst]):.1e} (pair {worst}) "
        f"after {int(statistics.iterations[worst])} iterations, tolerance {method.tolerance:.0e}; raise max_iterations "
        "or lambda, loosen the tolerance, or use another method"
    )
    if method.on_failure == "raise":
        raise NotConvergedError(message, statistics)
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def refuse_nonfinite(values: Tensor, what: str) -> None:
    """Refuse numbers (B, ...) that are not finite.

    Raises:
        InputError: naming the first pair that has some.
    """
    wrong = ~torch.isfinite(values.flatten(1)).all(1)
    if bool(wrong.any()):
        pair = int(wrong.nonzero()[0])
        raise InputError(f"{what} of pair {pair} is not finite; look for NaN or infinity in its images or features")
