"""Finish the frames of a series as they come and write everything in the end: all of it, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor

from ..geometry import Frame
from ..images import sha256_of
from ..images.slices import write_slice_series
from ..pairs.datasets import Item
from ..pairs.series import identify_series
from ..results import Registration, SaveRegistration
from ..results.records import describe_frame
from ..results.save import all_or_nothing
from ..results.stages import CLEAR_LINE
from ..results.summary import format_table, format_verdict
from ..verdict import tell
from .fields import DIRECTION, describe_plane, write_plane_field
from .frames import SeriesFrames
from .numbers import plot_rows, summarise, table, verdict_of
from .report import SeriesReport, write_series_report

UNITS = "fields: mm, LPS (ITK, ANTs, Slicer); matrices: mm of the plane's coordinates, column vectors"


@dataclass
class Found:
    """What has been made of the frames so far, in their order."""

    moved: list[Tensor] = field(default_factory=list)
    errors_mm: list[Tensor] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    network: Frame | None = None


class SaveSeries:
    """Post transform of a batch of frames; ``run`` runs the evaluator that it belongs to and writes the results.

    Files: moved.nii.gz, all frames on the fixed one, with the header of the series; ddf/frame_K.nii.gz and
    inverse_ddf/frame_K.nii.gz; uncertainty_mm.nii.gz where the bundle predicts it; transform.json, metrics.json,
    run.json; report.html.

    Args:
        frames: the series.
        transforms: a bundle's post transforms of one pair, the last of them ``SaveRegistration``.
        output_dir: folder for the results.
        report: also write report.html.
    """

    def __init__(
        self, frames: SeriesFrames, transforms: Sequence[Callable[[Item], Item]], output_dir: str, report: bool = True
    ) -> None:
        *self.transforms, self.save = transforms
        if not isinstance(self.save, SaveRegistration):
            raise ValueError("the last post transform of a bundle must be SaveRegistration")
        self.frames, self.output_dir, self.report = frames, Path(output_dir), report
        self._digits = len(str(len(frames) - 1))
        self._found, self._place = Found(), Path()

    def run(self, evaluator: Engine) -> None:
        """Register all frames, write the results, print a summary."""
        self._found, started = Found(), time.perf_counter()
        with all_or_nothing(self.output_dir) as self._place:
            for name in ("ddf", "inverse_ddf"):
                (self._place / name).mkdir()
            evaluator.run()
            run = self._write(started)
        tell(run["verdict"]["level"])
        self._print(run)

    def __call__(self, data: Item) -> Item:
        """Finish a batch of frames; what comes back holds no images, so that none pile up in the engine."""
        for index, number in enumerate(data["number"]):
            item = {
                key: value[index : index + 1] if isinstance(value, Tensor) else value[index]
                for key, value in data.items()
                if key in ("image", "pair", "name", "spacing_mm")
            }
            self._finish(number, {**item, "pred": _part(data["pred"], index)})
        return {"number": data["number"]}

    def _finish(self, number: int, item: Item) -> None:
        for transform in self.transforms:
            item = transform(item)
        if number == self.frames.fixed:  # it stays where it is, whatever a network makes of twice the same image
            item = {key: value for key, value in item.items() if key not in ("record", "refine", "unfolded")}
            item |= {name: torch.zeros_like(item[name]) for name in ("pred", "uncertainty_mm") if name in item}
            item["pair"].initial = np.eye(3)
        result = self._result(number, item)
        name = f"frame_{number:0{self._digits}d}.nii.gz"
        plane, found = self.frames.series.plane, self._found
        write_plane_field(self._place / "ddf" / name, result.field, plane)
        write_plane_field(self._place / "inverse_ddf" / name, result.inverse_field, plane)
        found.moved.append(result.moved()[0])
        metrics, error_mm = self.save.measured(result, item)
        if error_mm is not None:
            found.errors_mm.append(error_mm)
        metrics["verdict"].pop("fallback", None)  # a series has no such files; its frames stay as they came
        found.metrics.append({"frame": number, **metrics})
        files = {key: f"{key}/{name}" for key in ("ddf", "inverse_ddf")}
        found.records.append({"frame": number, **files, **self.save.of_pair(result), **item.get("record", {})})
        found.network = result.pair.network

    def _result(self, number: int, item: Item) -> Registration:
        if number == self.frames.fixed:
            return Registration(item["pair"], item["pred"].detach().float().cpu())
        return self.save.result(item)

    def _write(self, started: float) -> dict[str, Any]:
        found, series, place = self._found, self.frames.series, self._place
        moved = torch.stack(found.moved)
        write_slice_series(place / "moved.nii.gz", moved, series)
        if found.errors_mm:
            write_slice_series(place / "uncertainty_mm.nii.gz", torch.stack(found.errors_mm), series)
        summary = summarise(found.metrics, self.frames.fixed)
        metrics = {"fixed_frame": self.frames.fixed, "verdict": verdict_of(found.metrics), "summary": summary}
        head = self._head()
        _write_lines(place / "metrics.json", metrics, found.metrics)
        results = {str(file.relative_to(place)): sha256_of(file) for file in sorted(place.rglob("*")) if file.is_file()}
        _write_lines(place / "transform.json", {**head, "results": results}, found.records)
        run = {**self.save.run_facts(started), "frames": len(moved)}
        run["frames_per_second"] = round(len(moved) / max(run["seconds"], 0.01), 2)
        if self.report:
            rows = plot_rows(found.metrics)
            facts = {**head, **run}
            page = SeriesReport(series, self.frames.fixed, moved, rows, table(summary), facts, metrics["verdict"])
            write_series_report(place / "report.html", page)
        (place / "run.json").write_text(json.dumps(run, indent=2) + "\n")
        return {**run, "table": table(summary), "verdict": metrics["verdict"]}

    def _head(self) -> dict[str, Any]:
        """What transform.json says of all frames."""
        series = self.frames.series
        return {
            "bundle": self.save.bundle,
            "direction": DIRECTION,
            "units": UNITS,
            "series": {**identify_series(series.path), "frames": len(series.array), "seconds_a_frame": series.seconds},
            "fixed_frame": self.frames.fixed,
            "plane": describe_plane(series.plane),
            "fixed": describe_frame(series.frame),
            "network_frame": describe_frame(self._found.network),
            **self.save.origin({}),
        }

    def _print(self, run: dict[str, Any]) -> None:
        if sys.stderr.isatty():
            print(CLEAR_LINE, end="", file=sys.stderr)
        print(f"\n{run['frames']} frames onto frame {self.frames.fixed} of {self.frames.series.path.name}")
        print(format_table(run["table"]))
        print(format_verdict(run["verdict"]))
        speed = f"{run['seconds']} s, {run['frames_per_second']} frames a second"
        print(f"{speed}, peak memory {run['peak_memory_mb']} MB, files in {self.output_dir}", flush=True)


def _part(pred: Any, index: int) -> Any:
    """One frame's share of a prediction, a tensor or a dictionary of tensors, with a batch axis."""
    if isinstance(pred, dict):
        return {key: _part(value, index) for key, value in pred.items()}
    return pred[index : index + 1]


def _write_lines(path: Path, head: dict[str, Any], frames: list[dict[str, Any]]) -> None:
    """Write JSON with one line a frame, which people can still read."""
    text = json.dumps(head, indent=2)[:-2]
    lines = ",\n".join("    " + json.dumps(frame) for frame in frames)
    path.write_text(f'{text},\n  "frames": [\n{lines}\n  ]\n}}\n')
