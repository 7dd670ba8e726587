"""Nested dictionaries as HTML tables. Every text from outside is escaped here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

_LEAF_KEYS = ("before", "after", "value")
_LONG_GROUP = 12  # rows of a group beyond which it is folded away
DASH = "–"


def text(value: Any) -> str:
    """Return any text safe to stand in HTML, in an element or in quotes."""
    return escape(str(value), quote=True)


def number(value: float) -> str:
    """Write a number with four significant digits, without an exponent where a reader can do without.

    Example:
        >>> number(0.123456), number(20480.0), number(3.0), number(1.5e-7)
        ('0.1235', '20480', '3', '1.5e-07')
    """
    if not math.isfinite(value):
        return "not defined" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}".replace("-", "−", 1) if value < 0 else f"{value:.3g}"
    if not value:
        return "0"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    plain = f"{value:.{digits}f}"
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return plain.replace("-", "−")


def cell(value: Any) -> str:
    """Write one value as HTML."""
    if value is None:
        return DASH
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0):
        value = value.item()
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (str, Path)):
        code = isinstance(value, Path) or (len(value) >= 32 and all(c in "0123456789abcdef" for c in value))
        return f"<code>{text(value)}</code>" if code else text(value)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(row, (list, tuple)) for row in value):
            return _matrix(value)
        return ", ".join(cell(entry) for entry in value) or DASH
    return text(value)


def _matrix(rows: Sequence[Sequence[Any]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{cell(entry)}</td>" for entry in row) + "</tr>" for row in rows)
    return f'<table class="matrix">{lines}</table>'


def _is_leaf(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return True
    return any(key in value and not isinstance(value[key], Mapping) for key in _LEAF_KEYS)


def _zipped(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Turn {"before": {...}, "after": {...}} into leaves with before and after."""
    before, after = tree.get("before"), tree.get("after")
    if not isinstance(before, Mapping) and not isinstance(after, Mapping):
        return tree
    before, after = (side if isinstance(side, Mapping) else {} for side in (before, after))
    merged: dict[str, Any] = {}
    for key in dict.fromkeys((*before, *after)):
        sides = {name: side[key] for name, side in (("before", before), ("after", after)) if key in side}
        if not any(isinstance(side, Mapping) for side in sides.values()):
            sides["unit"] = tree.get("unit", "")
        merged[str(key)] = sides
    return {**{key: value for key, value in tree.items() if key not in ("before", "after")}, **merged}


def _metric_row(depth: int, name: str, leaf: Mapping[str, Any]) -> str:
    after = leaf.get("after", leaf.get("value"))
    return (
        f'<tr><th scope="row" style="--depth:{depth}">{text(name)}</th><td>{cell(leaf.get("before"))}</td>'
        f'<td>{cell(after)}</td><td class="unit">{text(leaf.get("unit") or "")}</td></tr>'
    )


_HEAD = '<thead><tr><th scope="col">Metric</th><th>Before</th><th>After</th><th>Unit</th></tr></thead>'


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Render nested metrics as a table of name, before, after, unit; long groups are folded away below it.

    Args:
        metrics: as in ``ReportData.metrics``.
    """
    short: list[str] = []
    folded: list[str] = []
    _collect(metrics, (), str(metrics.get("unit", "")), short, folded)
    return (_metric_block(short) if short else "") + "".join(folded)


def _metric_block(rows: Sequence[str]) -> str:
    return f'<table class="metrics">{_HEAD}<tbody>{"".join(rows)}</tbody></table>'


def _collect(tree: Mapping[str, Any], path: tuple[str, ...], unit: str, short: list[str], folded: list[str]) -> None:
    """Add the rows of a tree to ``short``, and those of a group of many leaves as a table of its own to ``folded``."""
    tree = _zipped(tree)
    unit = str(tree.get("unit", unit))
    entries = {str(name): value for name, value in tree.items() if name != "unit"}
    leaves = [_metric_row(len(path), name, _leaf(value, unit)) for name, value in entries.items() if _is_leaf(value)]
    if path and len(leaves) > _LONG_GROUP:
        summary = f"{text(' · '.join(path))} ({len(leaves)} rows)"
        folded.append(f"<details><summary>{summary}</summary>{_metric_block(leaves)}</details>")
    for name, value in entries.items():
        if not _is_leaf(value):
            group: list[str] = []
            _collect(value, (*path, name), unit, group, folded)
            heading = (
                f'<tr class="group"><th scope="rowgroup" colspan="4" style="--depth:{len(path)}">{text(name)}</th></tr>'
            )
            short += [heading, *group] if group else []
        elif not (path and len(leaves) > _LONG_GROUP):
            short.append(_metric_row(len(path), name, _leaf(value, unit)))


def _leaf(value: Any, unit: str) -> Mapping[str, Any]:
    return {"unit": unit, **(value if isinstance(value, Mapping) else {"after": value})}


_VERDICTS = {
    "ok": "ok: nothing speaks against this result",
    "check": "check: look at this result before you use it",
    "failed": "failed: do not use this result",
}


def verdict_banner(verdict: Mapping[str, Any] | None) -> str:
    """Render a verdict {"level", "reasons", "fallback"}; nothing for None."""
    if verdict is None:
        return ""
    level = str(verdict["level"])
    reasons = "".join(f"<li>{text(reason)}</li>" for reason in verdict["reasons"])
    more = f"<p>{text(verdict['fallback'])}</p>" if "fallback" in verdict else ""
    head = f"<strong>Verdict: {text(_VERDICTS.get(level, level))}</strong>"
    kind = level if level in _VERDICTS else "check"
    return f'<div class="verdict {kind}">{head}{f"<ul>{reasons}</ul>" if reasons else ""}{more}</div>'


def facts_table(facts: Mapping[str, Any]) -> str:
    """Render nested facts as one table of name and value; underscores of the names become spaces."""

    def rows(tree: Mapping[str, Any], depth: int) -> Iterator[str]:
        for key, value in tree.items():
            name = text(str(key).replace("_", " "))
            if isinstance(value, Mapping):
                yield f'<tr class="group"><th colspan="2" style="--depth:{depth}">{name}</th></tr>'
                yield from rows(value, depth + 1)
            else:
                yield f'<tr><th scope="row" style="--depth:{depth}">{name}</th><td>{cell(value)}</td></tr>'

    return f'<table class="facts"><tbody>{"".join(rows(facts, 0))}</tbody></table>'
