"""All numbers of a field at once, from slabs of it: no array of the whole grid is made but that of its determinants."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..slabs import slabs
from ..warp import jacobian_determinant
from .jacobian import Field, _as_mask, as_field, turned_volume


class Spread:
    """Mean and population standard deviation of numbers that come in parts, in double precision."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Take some more."""
        count = values.numel()
        if not count:
            return
        values = values.double()
        mean = float(values.mean())
        total, away = self.count + count, mean - self.mean
        self._squares += float((values - mean).square().sum()) + away * away * self.count * count / total
        self.mean, self.count = self.mean + away * count / total, total

    @property
    def deviation(self) -> float:
        """NaN where nothing came."""
        return math.sqrt(self._squares / self.count) if self.count else math.nan


def field_statistics(parts: Iterable[Tensor], chosen: Tensor) -> dict[str, float]:
    """Return folds_percent, folded_voxels, ndv_percent, sdlogj, sdlogj_l2r, det_min, det_median, det_max, std_jacobian.

    The central-difference determinant is computed once for all of them; det_* are of that determinant. The last is of
    the whole grid, the others within the mask; see the functions of these names.

    Args:
        parts: (D, n, ...) voxels, slabs of the first axis in their order.
        chosen: bool (*spatial), where to look.
    """
    logs, l2r, whole = Spread(), Spread(), Spread()
    determinants, turned, inner = [], 0.0, torch.zeros_like(chosen)
    inner[(slice(2, -2),) * chosen.ndim] = True
    inner &= chosen
    for at, det, cells, planes in _with_neighbours(parts, chosen.shape[0]):
        if det is not None:
            values = det[chosen[at]]
            determinants.append(values)
            logs.add(values[values > 0].log())
            l2r.add((det[inner[at]] + 3).clamp(1e-9, 1e9).log())
        if cells is not None:
            turned += turned_volume(planes, chosen[cells])
            whole.add(jacobian_determinant(planes[None], "forward")[0][(slice(None, -1),) * chosen.ndim])
    values = torch.cat(determinants)
    count = values.numel()
    folded = int((values <= 0).sum())
    low, middle, high = (values.min(), values.median(), values.max()) if count else (math.nan,) * 3
    return {
        "folds_percent": 100.0 * folded / count if count else math.nan,
        "folded_voxels": count - logs.count,
        "ndv_percent": 100.0 * turned / count if count else math.nan,
        "sdlogj": logs.deviation,
        "sdlogj_l2r": l2r.deviation,
        "det_min": float(low),
        "det_median": float(middle),
        "det_max": float(high),
        "std_jacobian": whole.deviation,
    }


def _with_neighbours(
    parts: Iterable[Tensor], length: int
) -> Iterator[tuple[slice, Tensor | None, slice | None, Tensor]]:
    """Yield what each slab completes: planes and their determinants; planes of cells, and the field on these.

    A central difference waits for the plane behind it, a cell for its far side; at the ends of the grid differences
    are one-sided. None: nothing is complete yet.
    """
    kept, begin, done = None, 0, 0
    for part in parts:
        known = begin if kept is None else begin + kept.shape[1]  # planes seen before
        kept = part if kept is None else torch.cat([kept, part], 1)
        end = begin + kept.shape[1]
        ready = end if end == length else end - 1
        det = cells = None
        if kept.shape[1] > 1 and ready > done:
            det = jacobian_determinant(kept[None])[0][done - begin : ready - begin]
        at, start = slice(done, ready), max(known - 1, 0)
        if end - start > 1:
            cells = slice(start, end)
        yield at, det, cells, kept[:, start - begin :]
        done = ready if det is not None else done
        kept, begin = kept[:, -2:], max(begin, end - 2)


def jacobian_statistics(ddf: Field, mask: Field | None = None) -> dict[str, float]:
    """Return all of ``field_statistics`` but std_jacobian for a field in memory."""
    field = as_field(ddf)
    found = field_statistics((field[0][:, where] for where in slabs(field.shape[2:])), _as_mask(mask, field))
    return {name: value for name, value in found.items() if name != "std_jacobian"}
