"""Landmarks on disk: csv and 3D Slicer's .fcsv and .mrk.json. In memory RAS mm, in files the space they state.

| file | space unless it says otherwise |
|---|---|
| .csv with the header ``x_mm,y_mm,z_mm[,name]``, or three plain columns | RAS mm |
| .csv with the header ``x,y,z,t[,...]`` | LPS mm: that is the table of antsApplyTransformsToPoints |
| .fcsv | its line ``# CoordinateSystem = RAS, LPS, 0 (RAS) or 1 (LPS)``; RAS if it has none |
| .mrk.json | its ``coordinateSystem``; LPS if it has none |

A line ``# space: LPS`` (RAS, LPS or VOX) in a csv overrides the default, the argument ``space`` overrides everything.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import InputError
from .geometry import Frame
from .images import atomic_path
from .images.files import existing_file, suffix_of

SPACES = ("RAS", "LPS", "VOX")
_WANTED = {2: "x_mm,y_mm in a .csv", 3: "x_mm,y_mm,z_mm in a .csv, or a file that Slicer wrote"}
_NAMES = ("name", "label", "id")
_FCSV_SYSTEMS = {"0": "RAS", "1": "LPS", "RAS": "RAS", "LPS": "LPS"}
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"


@dataclass(frozen=True, eq=False)
class Points:
    """Landmarks.

    Attributes:
        points_mm: (N, D) float64, RAS mm.
        names: N names, empty strings where the file has none.
        path: the file they came from, if any.
    """

    points_mm: np.ndarray
    names: list[str] = field(default_factory=list)
    path: Path | None = None


def read_points(
    path: str | os.PathLike,
    what: str = "points",
    ndim: int = 3,
    space: str | None = None,
    frame: Frame | None = None,
) -> Points:
    """Read landmarks.

    Args:
        path: .csv, .fcsv or .mrk.json.
        what: their role in words, such as "fixed points"; it opens the sentence of a fault.
        ndim: dimensions D that are needed, 2 or 3.
        space: "RAS", "LPS" (mm) or "VOX" (voxel indices of ``frame``); overrides what the file says.
        frame: grid of the image that the points belong to; needed for voxel indices only.

    Raises:
        InputError: missing, of another format, damaged, without points, of another dimension, or not finite.
    """
    if space is not None and space.upper() not in SPACES:
        raise InputError(f"the space {space!r} of {what} {path} is unknown; give one of {', '.join(SPACES)}")
    path = existing_file(path, what)
    suffix = suffix_of(path)
    reader = {".csv": _read_csv, ".txt": _read_csv, ".fcsv": _read_fcsv}.get(suffix)
    reader = _read_markups if suffix.endswith(".json") else reader
    if reader is None:
        raise InputError(f"{what} {path} has a format that is not read here; convert it to .csv, .fcsv or .mrk.json")
    try:
        found, names, stated = reader(path.read_text(encoding="utf-8-sig"), ndim)
        points = np.array(found, dtype=np.float64).reshape(len(found), ndim)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, csv.Error) as error:
        detail = " ".join(str(error).split())[:120]
        raise InputError(f"{what} {path} cannot be understood ({detail}); give {_WANTED[ndim]}") from error
    if len(points) == 0:
        raise InputError(f"{what} {path} holds no points; check that it is the right file")
    if not np.isfinite(points).all():
        bad = int(np.flatnonzero(~np.isfinite(points).all(1))[0]) + 1
        raise InputError(f"{what} {path} has NaN or infinite coordinates (point {bad}); remove or correct them")
    return Points(_to_ras(points, (space or stated).upper(), frame, f"{what} {path}"), names, path)


def _to_ras(points: np.ndarray, space: str, frame: Frame | None, subject: str) -> np.ndarray:
    if space == "VOX":
        if frame is None:
            raise InputError(f"{subject} are in voxels and no image tells where these lie; give the points in mm")
        return frame.to_mm(points)
    return points * _signs(space, points.shape[1])


def _signs(space: str, ndim: int) -> np.ndarray:
    return np.array([-1.0, -1.0, 1.0][:ndim]) if space == "LPS" else np.ones(ndim)


def write_points(path: str | os.PathLike, points: Points | np.ndarray, names: Sequence[str] | None = None) -> None:
    """Write landmarks: RAS mm in a .csv, LPS mm in Slicer's files (each file says so).

    Args:
        path: .csv, .fcsv or .mrk.json.
        points: landmarks, or (N, D) RAS mm.
        names: N names; default those of ``points``.

    Raises:
        InputError: another suffix, or the place cannot be written.
    """
    if isinstance(points, Points):
        points, names = points.points_mm, points.names if names is None else names
    points = np.asarray(points, dtype=np.float64)
    names = [*(names or [""] * len(points))]
    if points.ndim != 2 or points.shape[1] not in (2, 3) or len(names) != len(points):
        raise ValueError(f"points must be (N, 2) or (N, 3) with one name each, got {points.shape}, {len(names)} names")
    suffix = suffix_of(path)
    writer = {".csv": _csv_text, ".fcsv": _fcsv_text, ".mrk.json": _markups_text}.get(suffix)
    if writer is None or (suffix != ".csv" and points.shape[1] != 3):
        known = ".csv, .fcsv or .mrk.json" if points.shape[1] == 3 else ".csv"
        raise InputError(
            f"cannot write {path}: points are not written in that format; give a name that ends in {known}"
        )
    with atomic_path(path) as temporary:
        temporary.write_text(writer(points, names), encoding="utf-8", newline="\n")


def check_points_inside(points_mm: np.ndarray, frame: Frame, path: str | os.PathLike, what: str = "points") -> None:
    """Refuse points that lie outside the image they belong to.

    Args:
        points_mm: (N, D) RAS mm.
        frame: the image's grid; half a voxel around the outermost voxel centres still is inside.
        path: the file they came from.
        what: their role in words.

    Raises:
        InputError: with the number of points outside, the first of them, and a hint where another space would fit.
    """
    outside = ~_inside(points_mm, frame)
    if not outside.any():
        return
    first = int(np.flatnonzero(outside)[0])
    place = ", ".join(f"{number:.1f}" for number in points_mm[first])
    remedy = "check that they are in RAS mm and belong to this image"
    if _inside(points_mm * _signs("LPS", frame.ndim), frame).all():
        remedy = "they would fit as LPS, so say so by a line '# space: LPS' in the csv"
    elif _inside(frame.to_mm(points_mm), frame).all():
        remedy = "they would fit as voxel indices, so say so by a line '# space: VOX' in the csv"
    raise InputError(
        f"{what} {path}: {int(outside.sum())} of {len(outside)} lie outside the image (the first is point {first + 1} "
        f"at {place} mm RAS); {remedy}"
    )


def _inside(points_mm: np.ndarray, frame: Frame) -> np.ndarray:
    points_vox = frame.to_vox(points_mm)
    return ((points_vox >= -0.501) & (points_vox <= np.asarray(frame.shape) - 0.499)).all(-1)


# ---- formats: text -> (rows, names, space) and back ------------------------------------------------------------------

_Parsed = tuple[list[list[float]], list[str], str]


def _read_csv(text: str, ndim: int) -> _Parsed:
    space, lines = "", []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            key, _, value = line.lstrip("# \t").partition(":")
            space = value.strip().upper() if key.strip().lower() == "space" else space
        elif line.strip():
            lines.append(line)
    if space and space not in SPACES:
        raise ValueError(f"unknown space {space}")
    if not lines:
        return [], [], "RAS"
    delimiter = next((mark for mark in ",;\t" if mark in lines[0]), None)
    if delimiter is None:
        rows = [line.split() for line in lines]
    else:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    columns, named, ants = list(range(ndim)), ndim, False
    if not _is_number(rows[0][0]):
        columns, named, ants = _columns_of(rows.pop(0), ndim)
    elif len(rows[0]) >= ndim + 1 and _is_number(rows[0][ndim]):
        raise ValueError(f"{len(rows[0])} columns of numbers without a header, where {ndim} are needed")
    if any(len(row) <= max(columns) for row in rows):
        raise ValueError(f"a line of fewer than {ndim} coordinates")
    found = [[float(row[column]) for column in columns] for row in rows]
    names = [row[named] if 0 <= named < len(row) else "" for row in rows]
    return found, names, space or ("LPS" if ants else "RAS")


def _columns_of(header: list[str], ndim: int) -> tuple[list[int], int, bool]:
    """Return the columns of the coordinates, that of the name (-1 if none), and whether ANTs wrote the header."""
    keys = [key.lower() for key in header]
    axes = "xyz"[:ndim]
    for suffix in ("_mm", ""):
        if all(f"{axis}{suffix}" in keys for axis in axes):
            if ndim == 2 and f"z{suffix}" in keys:
                raise ValueError("three coordinates where two are needed")
            named = next((keys.index(name) for name in _NAMES if name in keys), -1)
            return [keys.index(f"{axis}{suffix}") for axis in axes], named, not suffix and "t" in keys
    raise ValueError(f"no columns {','.join(f'{axis}_mm' for axis in axes)} in the header {','.join(header)}")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_fcsv(text: str, ndim: int) -> _Parsed:
    if ndim != 3:
        raise ValueError("Slicer's points are 3-D")
    space, columns, rows = "RAS", _FCSV_COLUMNS.split(","), []
    for line in text.splitlines():
        key, _, value = line.lstrip("# ").partition("=")
        if not line.startswith("#") and line.strip():
            rows.append(line)
        elif key.strip().lower() == "coordinatesystem":
            if value.strip().upper() not in _FCSV_SYSTEMS:
                raise ValueError(f"unknown CoordinateSystem {value.strip()}")
            space = _FCSV_SYSTEMS[value.strip().upper()]
        elif key.strip().lower() == "columns":
            columns = [column.strip() for column in value.split(",")]
    found, names = [], []
    place, label = columns.index("x"), columns.index("label") if "label" in columns else -1
    for row in csv.reader(rows):
        found.append([float(cell) for cell in row[place : place + 3]])
        names.append(row[label] if 0 <= label < len(row) else "")
    return found, names, space


def _read_markups(text: str, ndim: int) -> _Parsed:
    if ndim != 3:
        raise ValueError("Slicer's points are 3-D")
    markups = json.loads(text)["markups"]
    if len(markups) != 1:
        raise ValueError(f"{len(markups)} markups instead of one")
    space = _FCSV_SYSTEMS.get(str(markups[0].get("coordinateSystem", "LPS")).upper())
    if space is None:
        raise ValueError(f"unknown coordinateSystem {markups[0]['coordinateSystem']}")
    placed = [point for point in markups[0]["controlPoints"] if point.get("positionStatus", "defined") == "defined"]
    return [list(point["position"]) for point in placed], [str(point.get("label", "")) for point in placed], space


def _csv_text(points: np.ndarray, names: list[str]) -> str:
    ndim, named = points.shape[1], any(names)
    stream = io.StringIO()
    stream.write("# space: RAS\n")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*("x_mm", "y_mm", "z_mm")[:ndim], *(["name"] if named else [])])
    for point, name in zip(points, names, strict=True):
        writer.writerow([*(repr(float(number)) for number in point), *([name] if named else [])])
    return stream.getvalue()


def _fcsv_text(points: np.ndarray, names: list[str]) -> str:
    stream = io.StringIO()
    stream.write("# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n")
    stream.write(f"# columns = {_FCSV_COLUMNS}\n")
    writer = csv.writer(stream, lineterminator="\n")
    for index, (point, name) in enumerate(zip(points * _signs("LPS", 3), names, strict=True), 1):
        place = [repr(float(number)) for number in point]
        writer.writerow([index, *place, 0, 0, 0, 1, 1, 1, 0, name or f"F-{index}", "", ""])
    return stream.getvalue()


def _markups_text(points: np.ndarray, names: list[str]) -> str:
    control_points = [
        {"id": str(index), "label": name or f"F-{index}", "position": point.tolist(), "positionStatus": "defined"}
        for index, (point, name) in enumerate(zip(points * _signs("LPS", 3), names, strict=True), 1)
    ]
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    content = {
        "@schema": f"{schema}markups-schema-v1.0.3.json#",
        "markups": [
            {
                "type": "Fiducial",
                "coordinateSystem": "LPS",
                "coordinateUnits": "mm",
                "controlPoints": control_points,
            }
        ],
    }
    return json.dumps(content, indent=1) + "\n"
