"""The rows of a cohort: one a pair, in the order of the list, as summary.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from .ledger import Ledger
from .lists import Task
from .recipe import Recipe

BEFORE_AFTER = ("correlation", "dice", "hd95_mm", "tre_mm")
FIELD = ("folds_percent", "sdlogj", "displacement_mm", "inverse_consistency_mm")
COLUMNS = (
    "name",
    "status",
    "fault",
    "verdict",
    "note",
    *(f"{name}_{when}" for name in BEFORE_AFTER for when in ("before", "after")),
    *FIELD,
    "seconds",
    "peak_memory_mb",
    "peak_cuda_mb",
    "device",
    "fixed",
    "moving",
)
NUMBERS = (*COLUMNS[5:-3],)
Row = dict[str, Any]


def failed_row(task: Task, fault: str, note: str = "") -> Row:
    """Return the row of a pair that failed; its fault in one sentence."""
    return _row(task, status="failed", fault=" ".join(fault.split()), note=note)


def ok_row(task: Task, metrics: Mapping[str, Any], run: Mapping[str, Any], device: str, note: str = "") -> Row:
    """Return the row of a registered pair from its metrics.json and run.json."""
    kept = {key: run.get(key) for key in ("seconds", "peak_memory_mb", "peak_cuda_mb")}
    return _row(task, status="ok", note=note, device=device, verdict=_verdict(metrics), **_numbers(metrics), **kept)


def _row(task: Task, **values: Any) -> Row:
    fixed, moving = task.item.get("fixed") or task.item.get("image"), task.item.get("moving")
    return {"name": task.name, **values, "fixed": fixed, "moving": moving}


def _numbers(metrics: Mapping[str, Any]) -> Row:
    """Return the numbers of the columns; "before" is after the initial transform, as in the report."""
    found: Row = {}
    for when, stage in (("before", "initial"), ("after", "after")):
        label = metrics["labels"][stage]["mean"] if "labels" in metrics else {}
        found[f"correlation_{when}"] = metrics["similarity"]["correlation"][stage]
        found[f"dice_{when}"], found[f"hd95_mm_{when}"] = label.get("dice"), label.get("hd95_mm")
        found[f"tre_mm_{when}"] = metrics["points"][stage]["mean"] if "points" in metrics else None
    field = metrics["field"]
    for name in FIELD:
        found[name] = field[name]["mean"] if isinstance(field[name], Mapping) else field[name]
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items()}


def _verdict(metrics: Mapping[str, Any]) -> str:
    """Return the verdict of the registration, where it has one, with its reasons."""
    verdict = metrics.get("verdict")
    if isinstance(verdict, Mapping):
        word = str(verdict.get("level") or "")
        return ": ".join([word, "; ".join(map(str, verdict["reasons"]))]) if verdict.get("reasons") else word
    return "" if verdict is None else str(verdict)


def count_verdicts(rows: Sequence[Row]) -> dict[str, int]:
    """Return how many registered pairs have which verdict, worst first; empty where none has one."""
    words = [str(row.get("verdict") or "").partition(":")[0] for row in rows]
    return {level: words.count(level) for level in ("failed", "check", "ok") if level in words}


def all_rows(tasks: Sequence[Task], ledger: Ledger, recipe: Recipe) -> list[Row]:
    """Return a row a pair, from the markers of all shards; "waiting" where another shard is not there yet."""
    rows = []
    for task in tasks:
        status, _ = ledger.state(task, recipe)
        record = None if status == "waiting" else ledger.read(task.name)
        rows.append(_row(task, status="waiting") if record is None else record["row"])
    return rows


def to_csv(rows: Sequence[Row]) -> str:
    """Return the table."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
