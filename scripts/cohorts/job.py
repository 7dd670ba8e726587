"""What travels through a cohort: what every worker needs to know, and a pair in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .inputs import Facts
from .recipe import Recipe


@dataclass(frozen=True)
class Job:
    """What every worker needs to know; it travels to their processes.

    Attributes:
        root: folder of the bundle.
        config_files: its configurations, one on top of the other.
        chosen: ids that the options change, see ``register.overrides``.
        output_dir: of the cohort.
        recipe: goes into the markers.
        threads: CPU threads of a worker; None gives each its part of what torch would take.
        workers: how many there are.
        batch: pairs in one forward pass of the network.
        verbose: what MONAI says, and tracebacks.
        asked: options that go into the records of the results, see ``replaying.record``.
    """

    root: str
    config_files: tuple[str, ...]
    chosen: dict[str, Any]
    output_dir: str
    recipe: Recipe
    threads: int | None = None
    workers: int = 1
    batch: int = 1
    verbose: bool = False
    asked: dict[str, Any] = field(default_factory=dict)


@dataclass
class Loaded:
    """A pair in memory: what the network takes, how long that took, the state of its files before, and remarks.

    ``pred`` is what the network made of it, where several pairs went through it at once.
    """

    batch: dict[str, Any]
    seconds: float
    inputs: Facts
    notes: list[str]
    pred: Any = None
