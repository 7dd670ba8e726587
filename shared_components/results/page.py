"""What a person reads of a registration: report.html, and the rows of its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..report import ReportData, write_report
from .registration import Registration, thinned


def write_page(
    path: Path, result: Registration, metrics: dict[str, Any], facts: dict[str, Any], name: str, error_mm: Tensor | None
) -> None:
    """Write report.html of a registration.

    Args:
        path: of the file.
        result: the registration; its plan of memory may have it shown on a thinner grid.
        metrics: what metrics.json holds.
        facts: about the run.
        name: of the pair.
        error_mm: expected error on the fixed grid, (*fixed) mm, or None.
    """
    step = result.pair.plan.means.report_step
    if step > 1:
        result = thinned(result, step)
        error_mm = None if error_mm is None else error_mm[(slice(None, None, step),) * error_mm.ndim]
    pair, labels = result.pair, result.pair.labels
    both = len(labels) == 2
    page = ReportData(
        title=name,
        frame=pair.fixed.frame,
        fixed=pair.fixed.array[0].numpy(),
        moved_before=result.moved("initial")[0].numpy(),
        moved=result.moved()[0].numpy(),
        ddf_mm=result.field.ddf_mm,
        fixed_label=labels["fixed"].array[0].numpy() if both else None,
        moved_label_before=result.moved_label("initial")[0].numpy() if both else None,
        moved_label=result.moved_label()[0].numpy() if both else None,
        fixed_points_mm=pair.points_mm.get("fixed"),
        moving_points_mm=pair.points_mm.get("moving"),
        mapped_points_mm=result.mapped_points(),
        initial_world=pair.initial,
        metrics=table(metrics),
        verdict=metrics["verdict"],
        run=facts,
        expected_error_mm=None if error_mm is None else error_mm.numpy(),
    )
    write_report(path, page)


def table(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the rows a person reads first: {name: {before, after, unit}}; before is after the initial transform."""
    rows: dict[str, Any] = {}

    def add(name: str, group: dict[str, Any], key: str, unit: str) -> None:
        rows[name] = {"before": group["initial"][key], "after": group["after"][key], "unit": unit}

    correlation = metrics["similarity"]["correlation"]
    rows["correlation in the fixed foreground"] = {
        "before": correlation["initial"],
        "after": correlation["after"],
        "unit": "",
    }
    if "labels" in metrics:
        means = {stage: value["mean"] for stage, value in metrics["labels"].items()}
        add("label Dice, mean", means, "dice", "")
        add("label HD95, mean", means, "hd95_mm", "mm")
    if "points" in metrics:
        add("landmark error (TRE), mean", metrics["points"], "mean", "mm")
        add("landmark error (TRE), largest", metrics["points"], "max", "mm")
    field = metrics["field"]
    for name, value, unit in (
        ("folds (central J <= 0)", field["folds_percent"], "%"),
        ("folds (strict, NDV)", field["ndv_percent"], "%"),
        ("SD of log J", field["sdlogj"], ""),
        ("displacement, mean", field["displacement_mm"]["mean"], "mm"),
        ("displacement, largest", field["displacement_mm"]["max"], "mm"),
        ("inverse consistency error, mean", field["inverse_consistency_mm"]["mean"], "mm"),
    ):
        rows[name] = {"before": None, "after": value, "unit": unit}
    return rows
