"""Measure the bundles against classical tools, MONAI and the machine's own limits.

examples:
  benchmark.py accuracy --bundle vtn --data DATA --peer_python PEERS/bin/python --json out.json
  benchmark.py speed --bundle vtn --json speed.json
  benchmark.py memory --bundle vtn
  benchmark.py budget --json budget.json
  benchmark.py solver
  benchmark.py robustness --data DATA --peer_python PEERS/bin/python --cases 40 --json out.json
  benchmark.py throughput --bundle meta_affine --peer_python PEERS/bin/python
  benchmark.py batches --batch 4 --threads 1
  benchmark.py results docs/results --output docs/results.md

Classical tools are optional: pip install antspyx picsl-greedy itk-elastix, here or in an environment of their own
(--peer_python). What is missing is skipped with a sentence.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
from benchmarking import results as pages
from benchmarking.accuracy import accuracy
from benchmarking.batches import batches
from benchmarking.budget import budget
from benchmarking.memory import memory
from benchmarking.robustness import robustness
from benchmarking.solver import solver
from benchmarking.speed import speed
from benchmarking.throughput import throughput

from shared_components.cli import run_main


def results(folder: str, output: str | None = None) -> None:
    """Make one markdown page from the JSON files of a folder, in the order of their names.

    Args:
        folder: holds what --json of the other commands wrote.
        output: file to write; None prints.
    """
    page = pages.page(sorted(Path(folder).glob("*.json")))
    if output is None:
        print(page)
    else:
        Path(output).write_text(page)


def silent(command: Callable[..., Any]) -> Callable[..., None]:
    """Return the command without its result, which fire would print after the table."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        command(*arguments, **options)

    return run


MEASURED = (accuracy, speed, memory, budget, solver, robustness, throughput, batches)
COMMANDS = {command.__name__: silent(command) for command in (*MEASURED, results)}

if __name__ == "__main__":
    sys.exit(run_main(lambda: fire.Fire(COMMANDS, name="benchmark.py")))
