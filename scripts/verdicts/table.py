"""What the verdicts on the cases amount to, as numbers and as Markdown: a page a bundle, a row in docs/verdict.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_components.images.files import atomic_path
from shared_components.verdict import Limits, judge

from .limits import AGREEMENT, choose_least, value_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
WANTED = 0.95
HALVES = ("chosen_on", "reported_on")
SHARED = "The same people and synthetic bodies are in both halves, in other pairs or another order."
HEAD = """\
| bundle | spoilt pairs: flagged | of these failed | good pairs: not flagged | on the half that chose: spoilt, good |
|---|---:|---:|---:|---:|
"""
Record = Mapping[str, Any]


def judged(records: Sequence[Record], limits: Limits, trained_on: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return {"name", "kind", "spoilt", "half", "level", "reasons"} of each record; a refused pair counts as failed."""
    found = []
    for record in records:
        verdict = {"level": "failed", "reasons": [f"refused: {record['refused']}"]}
        if record["metrics"] is not None:
            verdict = judge(record["metrics"], limits, trained_on)
        kept = {key: record[key] for key in ("name", "kind", "spoilt", "half")}
        found.append({**kept, "level": verdict["level"], "reasons": verdict["reasons"]})
    return found


def summarise(cases: Sequence[Record], records: Sequence[Record]) -> dict[str, Any]:
    """Return counts by kind and half, the two shares that matter by half, and how well single numbers do."""
    kinds = dict.fromkeys(case["kind"] for case in cases)
    rows = {kind: [_count([c for c in cases if c["kind"] == kind and c["half"] == half]) for half in (0, 1)]
            for kind in kinds}  # fmt: skip
    spoilt = {case["kind"]: case["spoilt"] for case in cases}
    return {
        "kinds": {kind: {"spoilt": spoilt[kind], "chosen_on": a, "reported_on": b} for kind, (a, b) in rows.items()},
        "halves": [_shares([case for case in cases if case["half"] == half]) for half in (0, 1)],
        "single_numbers": {name: single(records, name) for name in AGREEMENT},
        "wrong": [dict(case) for case in cases if case["spoilt"] is (case["level"] == "ok")],
    }


def _count(cases: Sequence[Record]) -> dict[str, int]:
    levels = [case["level"] for case in cases]
    return {"cases": len(levels), **{level: levels.count(level) for level in ("ok", "check", "failed")}}


def _shares(cases: Sequence[Record]) -> dict[str, float]:
    flagged: dict[bool, list[bool]] = {False: [], True: []}
    for case in cases:
        flagged[case["spoilt"]].append(case["level"] != "ok")
    return {
        "spoilt_flagged": sum(flagged[True]) / max(1, len(flagged[True])),
        "good_not_flagged": 1 - sum(flagged[False]) / max(1, len(flagged[False])),
    }


def single(records: Sequence[Record], name: str) -> dict[str, Any]:
    """Return how one number alone does on the second half, with its limit chosen on the first."""
    pair = choose_least([record for record in records if record["half"] == 0], name)
    values = {spoilt: [v for r in records if r["half"] == 1 and r["spoilt"] is spoilt
                       and (v := value_of(r, name)) is not None] for spoilt in (False, True)}  # fmt: skip
    found: dict[str, Any] = {"lowest_good": min(values[False], default=None), "limit": pair and pair[0]}
    if pair:
        for spoilt, key in ((True, "spoilt_flagged"), (False, "good_flagged")):
            found[key] = sum(v < pair[0] for v in values[spoilt]) / max(1, len(values[spoilt]))
    return found


def to_markdown(summary: Mapping[str, Any], name: str, command: str, about: str) -> str:
    """Return the page of a bundle."""
    cases = sum(row[half]["cases"] for row in summary["kinds"].values() for half in ("chosen_on", "reported_on"))
    lines = [f"# The verdict on {cases} pairs: {name}", "", about, ""]
    lines += [f"By `{command}`: the shipped bundle, as `register.py` runs it ([what it is](../verdict.md)).", ""]
    lines += ["| pairs | limits chosen on: flagged | reported on: flagged | of these failed |", "|---|---:|---:|---:|"]
    for spoilt, words in ((False, "good"), (True, "spoilt")):
        rows = {kind: row for kind, row in summary["kinds"].items() if row["spoilt"] is spoilt}
        lines += [_row(kind, row) for kind, row in rows.items()]
        lines.append(_row(f"**all {words}**", {half: _total(list(rows.values()), half) for half in HALVES}))
    first, second = summary["halves"]
    lines += [
        "",
        _sentence(first, second),
        SHARED,
        "",
        "What single numbers would do, limits chosen on the first half:",
        "",
    ]
    lines += ["| number after registration | limit | spoilt flagged | good flagged |", "|---|---:|---:|---:|"]
    for number, row in summary["single_numbers"].items():
        if row["limit"] is None:
            lines.append(f"| {number} | – | – | – |")
        else:
            lines.append(f"| {number} | {row['limit']:.3g} | {row['spoilt_flagged']:.0%} | {row['good_flagged']:.0%} |")
    return "\n".join([*lines, *_wrong(summary["wrong"])]) + "\n"


def _total(rows: Iterable[Mapping[str, Any]], half: str) -> dict[str, int]:
    return {key: sum(row[half][key] for row in rows) for key in ("cases", "ok", "check", "failed")}


def _row(words: str, row: Mapping[str, Any]) -> str:
    a, b = row["chosen_on"], row["reported_on"]
    counts = [f"{part['cases'] - part['ok']} of {part['cases']}" for part in (a, b)]
    return f"| {words} | {counts[0]} | {counts[1]} | {b['failed']} |"


def _sentence(first: Mapping[str, float], second: Mapping[str, float]) -> str:
    met = min(second.values()) >= WANTED
    return (
        f"On the half that the limits have not seen {second['spoilt_flagged']:.0%} of the spoilt pairs are flagged and "
        f"{second['good_not_flagged']:.0%} of the good ones are not (wanted: {WANTED:.0%} each, "
        f"{'reached' if met else 'not reached'}); on the other {first['spoilt_flagged']:.0%} and "
        f"{first['good_not_flagged']:.0%}."
    )


def _wrong(cases: Sequence[Record]) -> list[str]:
    if not cases:
        return ["", "No verdict was wrong."]
    lines = ["", "Wrong verdicts, both halves:", ""]
    for case in cases:
        said = f"flagged: {'; '.join(case['reasons'])}" if case["reasons"] else "not flagged"
        lines.append(f"- `{case['name']}` ({'spoilt' if case['spoilt'] else 'good'}), {said}")
    return lines


def publish(name: str, content: Mapping[str, Any], text: str, docs: Path = DOCS) -> None:
    """Write a bundle's page and numbers, and the table of all of them between the markers of docs/verdict.md.

    Raises:
        ValueError: the page has no such markers.
    """
    page, folder = docs / "verdict.md", docs / "verdict"
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} ... {END}")
    folder.mkdir(exist_ok=True)
    for kind, written in (("json", json.dumps(content, indent=1, ensure_ascii=False) + "\n"), ("md", text)):
        with atomic_path(folder / f"{name}.{kind}") as temporary:
            temporary.write_text(written)
    rows = "".join(_line(file.stem, json.loads(file.read_text())) for file in sorted(folder.glob("*.json")))
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{HEAD}{rows}{END}{after}")


def _line(name: str, content: Mapping[str, Any]) -> str:
    kinds = content["kinds"].values()
    spoilt, good = (_total([row for row in kinds if row["spoilt"] is is_it], "reported_on") for is_it in (True, False))
    chose = content["halves"][0]
    cells = [
        f"[{name}](verdict/{name}.md)",
        f"{spoilt['cases'] - spoilt['ok']} of {spoilt['cases']}",
        str(spoilt["failed"]),
        f"{good['ok']} of {good['cases']}",
        f"{chose['spoilt_flagged']:.0%}, {chose['good_not_flagged']:.0%}",
    ]
    return f"| {' | '.join(cells)} |\n"
