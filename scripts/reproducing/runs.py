"""Train and evaluate through a bundle's committed configuration, so that a killed reproduction goes on where it was.

Each run has a folder: ``run.json`` (its settings), ``epochs.jsonl`` (seconds and losses, a line an epoch),
``checkpoint.pt``, ``model.pt``, and at the very end ``result.json``. A run that has a result is not repeated.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow

from shared_components.engines import load_weights
from shared_components.errors import InputError
from shared_components.images.files import atomic_path
from shared_components.pairs import PairDataset

Result = dict[str, Any]
_BREAK = r"\n *"  # between values: within text JSON has no bare line break


@dataclass(frozen=True)
class Recipe:
    """A bundle, its configuration files, and what is set in them for all runs.

    Attributes:
        bundle: its folder.
        configs: names in ``configs/``, later ones on top.
        settings: overrides for all runs, id -> value.
    """

    bundle: Path
    configs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def files(self) -> list[str]:
        """Return the paths of the configuration files."""
        return [str(self.bundle / "configs" / name) for name in self.configs]

    def overrides(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """Return all overrides with paths in a form that MONAI takes literally."""
        return {key: literal(value) for key, value in {**self.settings, **more}.items()}

    def parser(self, **more: Any) -> ConfigParser:
        """Return the configuration, ready to build parts of."""
        parser = ConfigParser(ConfigParser.load_config_files(self.files()))
        for key, value in self.overrides({"bundle_root": str(self.bundle), **more}).items():
            parser[key] = value
        return parser

    def command(self, **more: Any) -> str:
        """Return the command line of such a run, from within the bundle's folder, without the machine's paths."""
        files = ",".join(f"'configs/{name}'" for name in self.configs)
        options = {**self.settings, **more} | {"datalist": "subjects.json", "output_dir": "run"}
        given = " ".join(f"--{key} {_shell(value)}" for key, value in options.items())
        return f'python -m monai.bundle run --config_file "[{files}]" {given}'


def _shell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f'"{text}"' if " " in text else text


def literal(value: Any) -> Any:
    """Return an absolute path as an expression for itself where MONAI would read references into it (@ and %)."""
    if not isinstance(value, str) or not os.path.isabs(value) or not set(value) & set("@%"):
        return value
    return "$" + repr(value).replace("@", r"\x40").replace("%", r"\x25").replace("#", r"\x23")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of ours.

    Raises:
        InputError: it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not readable JSON ({error}); delete it and start again") from None


def write_json(path: Path, content: Any) -> None:
    """Write JSON, the whole file or none of it; a list of plain values takes one line."""
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[\n([^\[\]{}]*)\]", lambda found: f"[{re.sub(_BREAK, ' ', found[1]).strip()}]", text)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")


def same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings to a file, or compare them with what an earlier start has written there.

    Raises:
        InputError: they differ; results of different settings must not meet in one table.
    """
    settings = json.loads(json.dumps(settings))
    if not path.is_file():
        write_json(path, settings)
        return
    before = read_json(path)
    changed = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if changed:
        raise InputError(
            f"{path.parent} holds runs with other settings ({changed[0]}: {before.get(changed[0])}, now "
            f"{settings.get(changed[0])}); choose another --output_dir or repeat the earlier settings"
        )


class EpochRecorder:
    """Append seconds and mean losses of each epoch to a file, after its checkpoint was written.

    Args:
        path: lines of JSON.
        name: of the run, for the line on the console; None is silent.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path, self.name, self._began = path, name, _clocks()

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after its other handlers."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._began = _clocks()

    def _write(self, engine: Engine) -> None:
        wall, cpu = (round(now - then, 4) for now, then in zip(_clocks(), self._began, strict=True))
        terms = {name: round(value, 6) for name, value in getattr(engine.state, "loss_terms", {}).items()}
        line = {"epoch": engine.state.epoch, "seconds": wall, "cpu_seconds": cpu, **terms}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.name:
            told = f"epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {terms.get('loss', float('nan')):.4f}"
            print(f"  {self.name}: {told}, {wall:.1f} s", file=sys.stderr, flush=True)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Return the recorded epochs in order; of an epoch that was repeated after a kill, the last; half lines not."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # the end of a line that a kill cut short
            continue
        found[entry["epoch"]] = entry
    return [found[epoch] for epoch in sorted(found)]


def epochs_done(folder: Path) -> int:
    """Return how many epochs the checkpoint of a run has; 0 without one."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)["trainer"]
    return int(state["iteration"]) // int(state["epoch_length"])


def train(recipe: Recipe, folder: Path, name: str, **more: Any) -> None:
    """Train into a folder, from its checkpoint if it has one, up to the configuration's last epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    done, wanted = epochs_done(folder), recipe.parser(**more).get_parsed_content("max_epochs")
    if done >= wanted:
        return
    options = recipe.overrides({**more, "output_dir": str(folder.resolve()), "resume": done > 0})
    workflow = ConfigWorkflow(
        recipe.files(), workflow_type="train", bundle_root=literal(str(recipe.bundle)), logging_file=False, **options
    )
    workflow.initialize()
    EpochRecorder(folder / "epochs.jsonl", name).attach(workflow.parser.get_parsed_content("train#trainer"))
    workflow.run()
    workflow.finalize()


def finished(folder: Path) -> Result | None:
    """Return the result of a run that is complete, or None."""
    path = folder / "result.json"
    return read_json(path) if path.is_file() else None


def trained_network(recipe: Recipe, folder: Path, **more: Any) -> torch.nn.Module:
    """Return the network of a run with its last weights, for evaluation."""
    network = recipe.parser(**more).get_parsed_content("network")
    load_weights(network, folder / "model.pt")
    return network.eval()


def measure_pairs(
    dataset: PairDataset, indices: Sequence[int], measure: Callable[[dict[str, Any]], Mapping[str, float]]
) -> dict[str, list[float]]:
    """Return {metric: [a value a pair]} of chosen pairs of a dataset, rounded to six significant digits."""
    rows = [measure(dataset[index]) for index in indices]
    return {name: [float(f"{row[name]:.6g}") for row in rows] for name in rows[0]}
