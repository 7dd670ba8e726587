"""Results as text: rows as aligned columns or markdown, the machine in a paragraph, the command, the JSON file."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared_components.images import atomic_path

Row = Mapping[str, Any]


def cells(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]]) -> list[list[str]]:
    """Return the table as text, heads first; columns that no row fills are left out.

    Args:
        rows: what was measured.
        columns: key -> (head, format such as ".2f"; for truth values "yes" and "no").
    """
    kept = {key: how for key, how in columns.items() if any(row.get(key) is not None for row in rows)}
    table = [[head for head, _ in kept.values()]]
    for row in rows:
        table.append([_cell(row.get(key), form) for key, (_, form) in kept.items()])
    return table


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else format(value, form)


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Return the table in columns, the first to the left, numbers to the right; nothing where nothing was measured.

    Example:
        >>> print(aligned([["", "s"], ["warp", "0.5"], ["loss", "12.0"]]))
                 s
        warp   0.5
        loss  12.0
    """
    if not table[0]:
        return ""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Return the table in markdown; nothing where nothing was measured.

    Example:
        >>> print(markdown([["", "s"], ["warp", "0.5"]]))
        |  | s |
        |---|---:|
        | warp | 0.5 |
    """
    head, *rows = table
    if not head:
        return ""
    lines = [head, *rows]
    text = ["| " + " | ".join(cell.strip().replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([text[0], "|---|" + "---:|" * (len(head) - 1), *text[1:]])


def describe(machine: Row, versions: Row) -> str:
    """Return one paragraph about the machine, its limits and the versions."""
    parts = [f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['memory_gb']} GB"]
    if "cuda_device" in machine:
        parts.append(f"{machine['cuda_device']}, CUDA {machine['cuda']}")
    parts.append(f"load before {machine['load_before']}")
    if "matmul_gflops" in machine:
        rates = f"float32 matrix product {machine['matmul_gflops']} GFLOP/s, 3³ convolution "
        rates += f"{machine['convolution_gflops']} GFLOP/s, memory {machine['memory_gb_s']} GB/s"
        parts.append(f"measured in the same run on {machine['device']}: {rates}")
    parts.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    return "; ".join(parts) + "."


def command_line(function: Callable[..., Any], options: dict[str, Any]) -> str:
    """Return the command that repeats a measurement; options at their defaults, but the bundle, are not in it."""
    defaults = {key: parameter.default for key, parameter in inspect.signature(function).parameters.items()}
    given = {key: value for key, value in options.items() if key == "bundle" or value != defaults[key]}
    words = [f"--{key} {_word(value)}" for key, value in given.items()]
    return " ".join(["python scripts/benchmark.py", function.__name__, *words])


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """Write the result if a path is given."""
    if path is not None:
        with atomic_path(path) as temporary:
            Path(temporary).write_text(json.dumps(result, indent=2) + "\n")


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
