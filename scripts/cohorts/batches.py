"""Several pairs in one forward pass of the network, for machines that one pair does not fill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from .lists import Task

Group = tuple[Task, ...]


def grouped(tasks: Sequence[Task], batch: int) -> list[Group]:
    """Return neighbours in the list together, ``batch`` of them; the last group may have less.

    Example:
        >>> [len(group) for group in grouped([Task(name, {}, "") for name in "abcde"], 2)]
        [2, 2, 1]
    """
    return [tuple(tasks[start : start + batch]) for start in range(0, len(tasks), batch)]


def predict_together(evaluator: Any, pairs: Sequence[Any]) -> None:
    """Run the network on all pairs whose images have one size, and leave each its part as ``pred``, on the CPU.

    Args:
        evaluator: of the bundle.
        pairs: ``Loaded``; their "image" is (1, 2, *size). The time is shared out among them.
    """
    import torch

    def size(pair: Any) -> tuple[int, ...]:
        return tuple(pair.batch["image"].shape)

    for _, group in groupby(sorted(pairs, key=size), size):
        same = list(group)
        begin = time.perf_counter()
        images = torch.cat([torch.as_tensor(pair.batch["image"]) for pair in same])
        with torch.no_grad(), evaluator.mode(evaluator.network):
            found = evaluator.inferer(images.to(evaluator.state.device), evaluator.network)
        for pair, pred in zip(same, _parts(found, len(same)), strict=True):
            pair.pred = pred
            pair.seconds += (time.perf_counter() - begin) / len(same)


def _parts(pred: Any, count: int) -> Iterator[Any]:
    """Yield what belongs to each pair of a prediction, a tensor or a dictionary of tensors, with a batch axis."""
    if isinstance(pred, dict):
        parts = {key: list(_parts(value, count)) for key, value in pred.items()}
        yield from ({key: values[index] for key, values in parts.items()} for index in range(count))
    else:
        yield from pred.cpu().chunk(count)


class Known:
    """Inferer that returns what is known already, on the device of its input.

    Args:
        pred: a prediction of ``predict_together``.
        inferer: in whose place this stands; where it tells postprocessing which network ran, it does so here too.
    """

    def __init__(self, pred: Any, inferer: Any = None) -> None:
        self.pred, self.inferer = pred, inferer

    def __call__(self, inputs: Any, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return the prediction."""
        if hasattr(self.inferer, "network"):
            self.inferer.network = network
        if isinstance(self.pred, dict):
            return {key: value.to(inputs.device) for key, value in self.pred.items()}
        return self.pred.to(inputs.device)
