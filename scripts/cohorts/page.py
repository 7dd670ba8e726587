"""index.html: one row a pair with its pictures, sortable, one file, offline, small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .summary import NUMBERS, Row, count_verdicts
from .thumbnails import SIZES, shrink

LARGEST_BYTES = 5_000_000
_SAMPLE = 40
_HEADS = {
    "correlation_before": "correlation before",
    "correlation_after": "after",
    "dice_before": "Dice before",
    "dice_after": "after",
    "hd95_mm_before": "HD95 before, mm",
    "hd95_mm_after": "after",
    "tre_mm_before": "TRE before, mm",
    "tre_mm_after": "after",
    "folds_percent": "folds, %",
    "sdlogj": "SD log J",
    "displacement_mm": "displacement, mm",
    "inverse_consistency_mm": "inverse consistency, mm",
    "seconds": "seconds",
    "peak_memory_mb": "memory, MB",
    "peak_cuda_mb": "GPU memory, MB",
}
_STYLE = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #dde3e9; --accent: #0b6a88; }
body { margin: 0; padding: 24px 28px; color: var(--ink); background: #fff;
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 22px; margin: 0 0 4px; font-weight: 650; overflow-wrap: anywhere; }
p { margin: 0 0 12px; color: var(--soft); max-width: 90ch; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; vertical-align: middle; border-bottom: 1px solid var(--line); }
thead th { position: sticky; top: 0; background: #fff; color: var(--soft); font-weight: 500; font-size: 13px;
  vertical-align: bottom; z-index: 1; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: left; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.n { text-align: right; } td.n { white-space: nowrap; } .n button { text-align: right; }
td.pic { white-space: nowrap; padding-right: 10px; }
td.pic img { background: #000; vertical-align: middle; margin-right: 3px; }
td.name { overflow-wrap: anywhere; min-width: 9ch; max-width: 36ch; font-weight: 600; }
td.say { min-width: 26ch; max-width: 48ch; overflow-wrap: anywhere; color: var(--soft); font-size: 13px; }
.s { display: inline-block; border-radius: 9px; padding: 0 9px; font-size: 13px; background: #e7ebef; }
.ok { background: #dcf1e3; color: #14532d; }
.check { background: #fdebcf; color: #7a4406; } .failed { background: #fbdcd9; color: #7f1d1d; }
@media print { thead th { position: static; } tr { break-inside: avoid; } }
"""
_SCRIPT = """
(function () {
  var table = document.querySelector("table"), body = table.tBodies[0], heads = table.tHead.rows[0].cells;
  function value(row, column) {
    var cell = row.cells[column], v = cell.dataset.v;
    return v === undefined ? cell.textContent.trim() : v === "" ? null : parseFloat(v);
  }
  function sort(column) {
    var up = heads[column].getAttribute("aria-sort") !== "ascending", rows = Array.from(body.rows);
    rows.sort(function (a, b) { // empty cells stay below, equal ones in the order they have
      var x = value(a, column), y = value(b, column);
      if (x === null || y === null) return (x === null) - (y === null);
      var order = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return up ? order : -order;
    });
    for (var i = 0; i < heads.length; i++) heads[i].removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.forEach(function (row) { body.appendChild(row); });
  }
  Array.from(heads).forEach(function (head, column) {
    var button = head.querySelector("button");
    if (button) button.addEventListener("click", function () { sort(column); });
  });
})();
"""
Pictures = Mapping[str, Mapping[str, str]]


def build_page(title: str, rows: Sequence[Row], pictures: Pictures, folder: Path) -> str:
    """Return the page, below ``LARGEST_BYTES`` as long as its text alone is.

    Pictures that would make it larger are shrunk, and left out where the smallest are still too much; it says so.

    Args:
        title: its heading.
        rows: in their order.
        pictures: {name: {"fixed", "moved"}}, PNG in base64.
        folder: the output folder, to see which results there are to link to.
    """
    room = LARGEST_BYTES - _bytes(_page(title, rows, {}, folder, ""))
    for size in (*SIZES, 0):
        if size and _estimate(pictures, size) > room:
            continue
        shown = {name: _shrink(both, size) for name, both in pictures.items()} if size else {}
        page = _page(title, rows, shown, folder, _remark(size, bool(pictures)))
        if _bytes(page) < LARGEST_BYTES:
            break
    return page


def _bytes(page: str) -> int:
    return len(page.encode("utf-8", "backslashreplace"))


def _shrink(both: Mapping[str, str], size: int) -> dict[str, str]:
    return {kind: shrink(data, size) for kind, data in both.items()}


def _estimate(pictures: Pictures, size: int) -> float:
    """Return about how many bytes all pictures take at a size, from some of them: thousands take their time."""
    some = list(pictures.values())[:: max(1, len(pictures) // _SAMPLE)]
    taken = sum(len(data) for both in some for data in _shrink(both, size).values())
    return taken * len(pictures) / max(1, len(some))


def _remark(size: int, any_pictures: bool) -> str:
    if not any_pictures or size == SIZES[0]:
        return ""
    if size:
        return f" Pictures are {size} pixels large, so that this page stays below 5 MB."
    return " There are too many pairs for pictures on a page below 5 MB; each pair's report has its own."


def _page(title: str, rows: Sequence[Row], pictures: Pictures, folder: Path, remark: str) -> str:
    columns = [column for column in NUMBERS if any(row.get(column) is not None for row in rows)]
    verdicts = any(row.get("verdict") for row in rows)
    heads = ["<th>fixed, moved</th>" if pictures else "", _head("pair"), _head("status")]
    heads += [_head("verdict") if verdicts else "", _head("said"), *(_head(_HEADS[column], "n") for column in columns)]
    body = "\n".join(_row(row, pictures, columns, verdicts, folder) for row in rows)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<p>{_counts(rows)} Click a head to sort by it. Before: after the initial transform. Pictures: the middle axial slice,
patient's right on the left.{remark} The same numbers: <a href="summary.csv">summary.csv</a>.</p>
<table><thead><tr>{"".join(heads)}</tr></thead>
<tbody>
{body}
</tbody></table>
<script>{_SCRIPT}</script>
</body></html>
"""


def _counts(rows: Sequence[Row]) -> str:
    kinds = {kind: sum(row.get("status") == kind for row in rows) for kind in ("ok", "failed", "waiting")}
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    verdicts = ", ".join(f"{count} {level}" for level, count in count_verdicts(rows).items())
    return f"{len(rows)} pair{'s' if len(rows) != 1 else ''}: {told}.{f' Verdicts: {verdicts}.' if verdicts else ''}"


def _head(text: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<th{mark}><button>{escape(text)}</button></th>"


def _row(row: Row, pictures: Pictures, columns: Sequence[str], verdicts: bool, folder: Path) -> str:
    name, status = row["name"], row["status"]
    cells = [_pictures(pictures.get(name, {}), name)] if pictures else []
    link = _link(name, folder) if status == "ok" else None
    cells.append(f'<td class="name">{f"<a href={chr(34)}{link}{chr(34)}>" if link else ""}{escape(name)}'
                 f'{"</a>" if link else ""}</td>')  # fmt: skip
    cells.append(f'<td><span class="s {status}">{status}</span></td>')
    if verdicts:
        cells.append(_verdict(str(row.get("verdict") or "")))
    said = " ".join(text for text in (row.get("fault"), row.get("note")) if text)
    cells.append(f'<td class="{"say" if said else ""}">{escape(said)}</td>')
    cells += [_number(row.get(column)) for column in columns]
    return f"<tr>{''.join(cells)}</tr>"


def _verdict(told: str) -> str:
    level, _, reasons = told.partition(":")
    pill = f'<span class="s {level}">{level}</span>' if level in ("ok", "check", "failed") else escape(level)
    return f'<td class="say">{pill}{escape(reasons)}</td>' if reasons else f"<td>{pill}</td>"


def _pictures(both: Mapping[str, str], name: str) -> str:
    shown = "".join(
        f'<img alt="{kind} image of {escape(name)}" src="data:image/png;base64,{data}">' for kind, data in both.items()
    )
    return f'<td class="pic">{shown}</td>'


def _link(name: str, folder: Path) -> str:
    report = folder / name / "report.html"
    return quote(f"{name}/report.html" if report.is_file() else f"{name}/")


def _number(value: Any) -> str:
    if value is None:
        return '<td class="n" data-v=""></td>'
    text = f"{value:.4g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}"
    return f'<td class="n" data-v="{value}">{text}</td>'
