"""What a person reads in the terminal when a registration is done."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from .save import table


class PrintSummary:
    """Ignite handler: after each pair, a table of what changed and where the files lie."""

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Print one pair."""
        output = engine.state.output
        done, total = engine.state.iteration, engine.state.epoch_length
        print(f"\n[{done}/{total}] {engine.state.batch['name']}", file=sys.stdout)
        print(format_table(table(output["metrics"])))
        print(format_verdict(output["metrics"]["verdict"]))
        run = output["run"]
        print(f"{run['seconds']} s, peak memory {run['peak_memory_mb']} MB, files in {output['folder']}", flush=True)


def format_table(rows: dict[str, dict[str, Any]]) -> str:
    """Return rows {name: {"before", "after", "unit"}} as aligned text.

    Example:
        >>> print(format_table({"Dice": {"before": 0.5, "after": 0.75, "unit": ""}}))
                before     after
        Dice    0.5000    0.7500
    """
    width = max(len(_label(name, row)) for name, row in rows.items())
    lines = [f"{'':{width}}{'before':>10}{'after':>10}"]
    for name, row in rows.items():
        lines.append(f"{_label(name, row):{width}}{_number(row['before']):>10}{_number(row['after']):>10}")
    return "\n".join(lines)


def format_verdict(verdict: Mapping[str, Any]) -> str:
    """Return a verdict as text, a line a reason.

    Example:
        >>> print(format_verdict({"level": "check", "reasons": ["0.2 % of the content is folded"]}))
        verdict: check
          - 0.2 % of the content is folded
    """
    reasons = [*verdict["reasons"], *([verdict["fallback"]] if "fallback" in verdict else [])]
    return "\n".join([f"verdict: {verdict['level']}", *(f"  - {reason}" for reason in reasons)])


def _label(name: str, row: dict[str, Any]) -> str:
    return f"{name} [{row['unit']}]" if row["unit"] else name


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
