"""How metrics of pairs run through an engine: a row per pair, gathered over ranks, averaged over pairs.

What a pair lacks (a label, landmarks) is NaN in its row and left out of the means; a mean of nothing is NaN, never a
perfect score.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler
from monai.metrics import Cumulative, CumulativeIterationMetric
from torch import Tensor

NAN = float("nan")
OutputTransform = Callable[[Any], Any]
_log = logging.getLogger(__name__)


class TakeKeys:
    """Output transform: the values under ``keys``, each as a list with an entry a pair, None where a pair has none.

    Takes MONAI's ``engine.state.output`` before and after decollation. A key that the output lacks is looked for in
    its "label" dictionary, where ``prepare_inference`` puts label maps.

    Args:
        keys: such as ["moved_label", "fixed_label"].
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)

    def __call__(self, output: Any) -> tuple[list[Any], ...]:
        """Return one list for each key."""
        if isinstance(output, Mapping):
            found = [list(_per_pair(self._find(output, key))) for key in self.keys]
            pairs = max(map(len, found), default=0)
            return tuple(values or [None] * pairs for values in found)
        return tuple([self._find(item, key) for item in output] for key in self.keys)

    @staticmethod
    def _find(item: Mapping[str, Any], key: str) -> Any:
        nested = item.get("label")
        if key not in item and isinstance(nested, Mapping):
            return nested.get(key)
        return item.get(key)


def _per_pair(values: Any) -> Iterator[Any]:
    return iter(()) if values is None else iter(values)


class _Rows(Cumulative):
    """A (pairs, columns) table that grows row by row and is gathered over all ranks when read."""

    def aggregate(self) -> Tensor | None:
        """Return the whole table, or None if no rank has a row."""
        return self.get_buffer()


class PairMetricHandler(IgniteMetricHandler):
    """Base class: subclasses say with ``measure`` what a pair's row is and with ``summarise`` what the table says.

    Args:
        columns: names of the numbers in a row.
        keys: what to take from ``engine.state.output``, one value a pair each; handed to ``measure`` in this order.
        output_transform: instead of ``keys``; returns a tuple with a list (or batch) for each argument of ``measure``.
        save_details: put the rows into ``engine.state.metric_details``.
    """

    def __init__(
        self,
        columns: Sequence[str],
        keys: Sequence[str],
        output_transform: OutputTransform | None = None,
        save_details: bool = True,
    ) -> None:
        self.columns = tuple(columns)
        rows = cast(CumulativeIterationMetric, _Rows())
        super().__init__(rows, output_transform=output_transform or TakeKeys(keys), save_details=save_details)

    def measure(self, *values: Any) -> Sequence[float]:
        """Return the row of one pair."""
        raise NotImplementedError

    def summarise(self, rows: np.ndarray) -> float | dict[str, float]:
        """Return what is logged for a (pairs, columns) table: a number, or several by name."""
        return dict(zip(self.columns, map(mean_or_nan, rows.T), strict=True))

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        """Add the rows of this iteration's pairs."""
        self.update(self._output_transform(engine.state.output))

    def update(self, output: Any) -> None:
        """Add a row for each pair in ``output``: a tuple of lists or batches, or a single list or batch."""
        groups = output if isinstance(output, tuple) else (output,)
        for values in zip(*groups, strict=True):
            missing = any(value is None for value in values)
            row = [NAN] * len(self.columns) if missing else list(self.measure(*values))
            on = next((value.device for value in values if isinstance(value, Tensor)), None)
            self.metric_fn.append(torch.tensor(row, dtype=torch.float64, device=on))

    def compute(self) -> float | dict[str, float]:
        """Gather the rows of all ranks and summarise them."""
        table = self.metric_fn.aggregate()
        rows = np.empty((0, len(self.columns))) if table is None else table.double().cpu().numpy()
        if np.isnan(rows).all():
            _log.warning("%s: none of %d pairs had what it takes, the result is NaN", type(self).__name__, len(rows))
        if self.save_details and self._engine is not None:
            self._engine.state.metric_details.update(self._details(torch.from_numpy(rows)))
        return self.summarise(rows)

    def _details(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: rows[:, [i]] for i, name in enumerate(self.columns)}

    def completed(self, engine: Engine, name: str) -> None:
        """Put the result into ``engine.state.metrics``; several numbers each under their own name."""
        result = self.compute()
        engine.state.metrics.update(result if isinstance(result, dict) else {name: result})

    def attach(self, engine: Engine, name: str) -> None:
        """Attach to an engine.

        Raises:
            ValueError: if this is the engine's key metric but none of its numbers has that name.
        """
        is_key = getattr(engine.state, "key_metric_name", None) == name
        if is_key and name not in self.columns and not self._is_scalar():
            raise ValueError(f"key metric '{name}' of {type(self).__name__} must be one of {', '.join(self.columns)}")
        super().attach(engine, name)

    def _is_scalar(self) -> bool:
        return False


def mean_or_nan(values: np.ndarray) -> float:
    """Return the mean of what is not NaN, or NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else NAN
