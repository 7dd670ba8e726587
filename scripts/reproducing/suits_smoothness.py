"""Lambda of the descent, chosen on validation pairs for each method: features differ in how much their slopes weigh."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence

import torch

from shared_components.metrics import folds_percent

from .runs import read_json, write_json
from .suits_methods import METHODS, Fields, TestPairs, mean_dice, result_file

CANDIDATES = (0.2, 0.4, 0.6, 1.0, 1.5, 3.0, 10.0)
PAIRS, MOST_FOLDS_PERCENT = 4, 0.01


def choose_smoothness(pairs: TestPairs, method: str, make: Callable[[float], Fields], version: str) -> float:
    """Return the lambda with the highest mean Dice among those that (nearly) never fold; kept once found.

    Args:
        pairs: of validation; ``PAIRS`` of them, spread over the list, are registered.
        method: a name of ``METHODS``.
        make: the registration with a lambda.
        version: of the weights.
    """
    path = result_file(pairs, f"smoothness_{method}")
    if path.is_file() and (kept := read_json(path))["version"] == [pairs.version, version]:
        return kept["chosen"]
    step = max(1, len(pairs.dataset) // PAIRS)
    scores = {lam: _score(pairs, range(0, len(pairs.dataset), step)[:PAIRS], make(lam)) for lam in CANDIDATES}
    calm = {lam: dice for lam, (dice, folds) in scores.items() if folds <= MOST_FOLDS_PERCENT}
    chosen = max(calm, key=calm.__getitem__) if calm else CANDIDATES[-1]
    rows = [{"smoothness": lam, "dice": dice, "folds_percent": folds} for lam, (dice, folds) in scores.items()]
    write_json(path, {"version": [pairs.version, version], "chosen": chosen, "rows": rows})
    told = ", ".join(f"{lam:g}: {dice:.4f} ({folds:.3f} % folds)" for lam, (dice, folds) in scores.items())
    print(f"  {pairs.title}: {METHODS[method]}: lambda {chosen:g}; Dice on validation: {told}", file=sys.stderr)
    return chosen


@torch.no_grad()
def _score(pairs: TestPairs, which: Sequence[int], fields: Fields) -> tuple[float, float]:
    found = []
    for index in which:
        item = pairs.dataset[index]
        ddf = fields(item["image"][None], False)[-1]
        found.append((mean_dice(pairs, item, ddf), folds_percent(ddf)))
    return tuple(statistics.fmean(column) for column in zip(*found, strict=True))
