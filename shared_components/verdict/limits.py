"""Where a number begins to make a result suspicious, and where nobody should use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..errors import InputError

Pair = tuple[float | None, float | None]


@dataclass(frozen=True)
class Limits:
    """Two limits a number: beyond the first a result is to be checked, beyond the second it has failed; None: never.

    A bundle replaces what does not fit it by the entry "verdict" of its metadata.json, such as
    {"folds_percent": [0.5, null], "similarity": "nmi"}.

    Attributes:
        similarity: number of ``numbers.agreement`` that must not fall: "correlation" for images of one kind, "nmi" or
            "edges" for images of two kinds.
        loss: of that number, initial - after; judged where the images do not agree almost perfectly as they came.
        least_correlation, least_nmi, least_edges, least_local, least_overlap: of the numbers after registration.
        folds_percent: voxels of the fixed foreground with det J <= 0, %.
        inverse_consistency_mm: mean over the grid of |phi_inv(phi(x)) - x|, mm.
        expected_error_mm: mean over the fixed foreground, mm; judged where it was predicted.
        outside_percent: content of one image that the transform takes out of the other's field of view, %.
        affine_factor: by which the affine stage may enlarge or shrink volumes (areas in 2-D).
        local_factor: likewise the whole map, from its 1st to its 99th percentile.
        unlike: how far statistics of an image may lie beyond the range of the training images, in widths of that range.
    """

    similarity: str = "correlation"
    loss: Pair = (0.001, 0.05)
    least_correlation: Pair = (None, None)
    least_nmi: Pair = (None, None)
    least_edges: Pair = (None, None)
    least_local: Pair = (None, None)
    least_overlap: Pair = (None, None)
    folds_percent: Pair = (0.1, 2.0)
    inverse_consistency_mm: Pair = (1.0, 5.0)
    expected_error_mm: Pair = (5.0, 15.0)
    outside_percent: Pair = (10.0, 40.0)
    affine_factor: Pair = (2.0, 4.0)
    local_factor: Pair = (10.0, 50.0)
    unlike: Pair = (0.5, None)

    @classmethod
    def of(cls, changes: Mapping[str, Any] | None) -> Limits:
        """Return the limits with some of them replaced: by two numbers, or by one, which is the first.

        Raises:
            InputError: a name that is no limit, or a value that is none.
        """
        known = {item.name for item in fields(cls)}
        chosen: dict[str, Any] = {}
        for name, value in (changes or {}).items():
            if name not in known:
                raise InputError(
                    f"metadata.json has the limit '{name}' under \"verdict\", which there is not; "
                    f"give some of {', '.join(sorted(known))}"
                )
            chosen[name] = _similarity(value) if name == "similarity" else _pair(name, value)
        return cls(**chosen)


def _similarity(value: Any) -> str:
    if value not in SIMILARITIES:
        raise InputError(
            f'metadata.json has "similarity": \'{value}\' under "verdict"; give one of {", ".join(SIMILARITIES)}'
        )
    return value


def _pair(name: str, value: Any) -> Pair:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value, None]
    if len(values) != 2 or not all(one is None or isinstance(one, (int, float)) for one in values):
        raise InputError(
            f'metadata.json has the limit {name} = {value} under "verdict"; give [check, failed], numbers or null'
        )
    return tuple(None if one is None else float(one) for one in values)


SIMILARITIES = ("correlation", "nmi", "edges", "local")
