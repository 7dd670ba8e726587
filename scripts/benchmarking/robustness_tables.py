"""Tables of the robustness benchmark: success, errors, Dice and seconds a method, from its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import robustness_peers, tables
from .robustness_cases import KINDS

PLAIN, OURS, PEERS = ("header", "centre_of_mass"), ("meta_affine", "multistart"), tuple(robustness_peers.METHODS)
SUCCESS_MM = 5.0
TARGETS = {"success": 95.0, "speed": 10.0}
COLUMNS = {
    "method": ("", ""),
    "success_same": ("success, same [%]", ".1f"),
    "success_across": ("success, across [%]", ".1f"),
    "median_mm": ("median error [mm]", ".2f"),
    "largest_mm": ("largest [mm]", ".1f"),
    "dice_same": ("Dice, same", ".3f"),
    "dice_across": ("Dice, across", ".3f"),
    "dice_unposed": ("Dice, across, unposed", ".3f"),
    "seconds": ("seconds", ".2f"),
    "slowest": ("slowest", ".2f"),
    "failed": ("gave up", "d"),
}
NOTES = """\
The moving image is turned by a uniform angle about a random axis through the middle of its grid, shifted along each
axis, and resampled on a grid 1.75 times as large, so that its header says nothing of the pose. *Same*: a subject and
itself with another intensity curve, bias field and noise; the pose is the truth. *Across*: two subjects; no affine map
between two brains is true, so each method is compared with its own result on the same pair without the pose, followed
by the pose. That asks whether the pose disturbs it, not whether its result is good: for that see Dice, the mean over
all structures, with the moving labels brought once through map and pose (*unposed*: the result without the pose).
Error: mean distance over the eight corners of the fixed grid; success: less than 5 mm. Where a tool gave up, with or
without the pose, it did not succeed, and has no error, Dice or seconds. Seconds: median over cases of the
registration call itself with its modules loaded and images in memory (greedy reads its files within it)."""
Row = dict[str, Any]


def summarise(rows: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """Return a row a method: success in per cent by kind and in all, errors in mm, Dice, seconds."""
    table = []
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        good = [row for row in mine if "error" not in row]
        found: Row = {"method": method, "cases": len(mine), "failed": len(mine) - len(good), "success": _success(mine)}
        for kind in KINDS:
            found[f"success_{kind}"] = _success([row for row in mine if row["kind"] == kind])
            found[f"dice_{kind}"] = _mean([row["dice"] for row in good if row["kind"] == kind])
        found["dice_unposed"] = _mean([row["dice_unposed"] for row in good if "dice_unposed" in row])
        for name, key in (("_mm", "corner_mm"), ("", "seconds")):
            values = [row[key] for row in good]
            found |= {f"median{name}": _of(np.median, values), f"largest{name}": _of(np.max, values)}
        table.append(found | {"seconds": found.pop("median"), "slowest": found.pop("largest")})
    return table


def _of(function: Any, values: Sequence[float]) -> float | None:
    return round(float(function(values)), 4) if len(values) else None


def _mean(values: Sequence[float]) -> float | None:
    return _of(np.mean, values)


def _success(rows: Sequence[Row]) -> float | None:
    return _mean([100.0 * (row.get("corner_mm", np.inf) < SUCCESS_MM) for row in rows])


def headline(rows: Sequence[Row], summary: Sequence[Row]) -> list[Row]:
    """Return, a method of ours: success, and how many times as fast as two classical methods.

    "better" is the classical method with most successes, the faster of equals, "quickest" the one of least seconds.
    The ratio is the median over the cases that both finished.
    """
    timed = [row for row in summary if row["seconds"] is not None]
    classical = [row for row in timed if row["method"] in PEERS]
    if not classical:
        return []
    better = min(classical, key=lambda row: (-row["success"], row["seconds"]))
    rivals = {"better": better, "quickest": min(classical, key=lambda row: row["seconds"])}
    times = {(row["method"], row["case"]): row["seconds"] for row in rows if "seconds" in row}
    found = []
    for row in timed:
        if row["method"].partition(":")[0] not in OURS:
            continue
        line: Row = {"method": row["method"], "success": row["success"]}
        for role, rival in rivals.items():
            both = [case for method, case in times if method == row["method"] and (rival["method"], case) in times]
            ratios = [times[rival["method"], case] / times[row["method"], case] for case in both]
            line[role] = {"method": rival["method"], "success": rival["success"], "ratio": _of(np.median, ratios)}
        found.append(line)
    return found


def to_text(result: Row) -> str:
    """Return the table for a terminal, our methods against classical ones on the last lines."""
    summary = result["summary"]
    lines = [tables.describe(result["machine"], result["versions"]), "", _title(result)]
    lines += [tables.aligned(tables.cells(summary, COLUMNS)), "", NOTES, *result["skipped"].values(), ""]
    return "\n".join([*lines, *_headlines(result)])


def to_markdown(result: Row) -> str:
    """Return the result as markdown: the command, the machine, the table, what it means."""
    lines = [f"`{result['command']}`", "", tables.describe(result["machine"], result["versions"]), ""]
    lines += [_title(result), "", tables.markdown(tables.cells(result["summary"], COLUMNS)), ""]
    lines += [f"- {line}" for line in [*_headlines(result), *result["skipped"].values()]]
    return "\n".join([*lines, "", NOTES, ""])


def _title(result: Row) -> str:
    given, cases = result["settings"], result["cases"]
    before = {kind: _mean([case["dice_before"] for case in cases if case["kind"] == kind]) for kind in KINDS}
    dice = ", ".join(f"{kind} {value:.3f}" for kind, value in before.items() if value is not None)
    text = f"{len(cases)} cases of {len(given['subjects'])} brains, turned by up to {given['angle']:g} degrees and "
    return text + f"shifted by up to {given['shift']:g} fields of view, seed {given['seed']}; Dice before: {dice}."


def _headlines(result: Row) -> list[str]:
    lines = []
    for row in headline(result["rows"], result["summary"]):
        text = f"{row['method']}: {row['success']:.1f} % succeed (target {TARGETS['success']:.0f})"
        for role, goal in (("better", f"the best classical method here (target {TARGETS['speed']:.0f})"),
                           ("quickest", "the quickest")):  # fmt: skip
            rival = row[role]
            if rival["ratio"] is not None:
                text += f"; {rival['ratio']:.1f} times as fast as {rival['method']} ({rival['success']:.1f} %), {goal}"
        lines.append(f"{text}.")
    return lines
