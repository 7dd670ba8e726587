"""Train a bundle several times in one process: ``python train_runs.py BUNDLE PLAN.json``; also under torchrun.

The plan is a list of {"configs": [...], "options": {...}, "crash_at": iteration or null, "keep": folder or null}; the
first process copies the checkpoint of the first epoch to the folder "keep". Each run's rank writes
``rankN.json`` (the mean loss terms of its last epoch) and ``rankN.pt`` (the network) to its output folder. A plan entry
with "inspect": true trains nothing; it writes what the configs build to ``inspected.json``.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow


def _crash(engine: Engine) -> None:
    raise RuntimeError("crash on demand")


def _keep(engine: Engine, output: Path, folder: Path) -> None:
    if idist.get_rank() == 0:
        folder.mkdir()
        shutil.copy(output / "checkpoint.pt", folder)


def train(bundle: Path, entry: dict[str, Any]) -> None:
    """Run the configs with the options, up to the crash if one is asked for."""
    files = [str(bundle / "configs" / f"{name}.json") for name in entry["configs"]]
    workflow = ConfigWorkflow(files, workflow_type="train", bundle_root=str(bundle), **entry["options"])
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    if entry.get("crash_at"):
        trainer.add_event_handler(Events.ITERATION_COMPLETED(once=entry["crash_at"]), _crash)
    if entry.get("keep"):
        output = Path(entry["options"]["output_dir"])
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), _keep, output, Path(entry["keep"]))
    try:
        workflow.run()
    except RuntimeError as error:
        if "crash on demand" not in f"{error} {error.__cause__}":
            raise
    stem = Path(entry["options"]["output_dir"]) / f"rank{idist.get_rank()}"
    stem.with_suffix(".json").write_text(json.dumps(getattr(trainer.state, "loss_terms", {})))
    torch.save(workflow.parser.get_parsed_content("network_def").state_dict(), stem.with_suffix(".pt"))
    workflow.finalize()


def inspect(bundle: Path, entry: dict[str, Any]) -> None:
    """Write the size of the network, the settings of the loss and the learning rate of each epoch."""
    parser = ConfigParser(ConfigParser.load_config_files([bundle / "configs" / f"{n}.json" for n in entry["configs"]]))
    for key, value in {**entry["options"], "bundle_root": str(bundle)}.items():
        parser[key] = value
    loss, schedule = parser.get_parsed_content("loss"), parser.get_parsed_content("lr_scheduler")
    network, epochs = parser.get_parsed_content("network_def"), parser.get_parsed_content("max_epochs")
    rates = []
    for _ in range(epochs):
        rates += schedule.get_last_lr()
        schedule.step()
    found = {
        "parameters": sum(value.numel() for value in network.parameters()),
        "weights": loss.weights,
        "loss": {**loss.regular, **loss.extra, "foreground": loss.foreground},
        "similarity": type(loss.similarity).__name__,
        "rates": rates,
        "batches": parser.get_parsed_content("pairs_per_epoch") // parser.get_parsed_content("batch_size"),
    }
    (Path(entry["options"]["output_dir"]) / "inspected.json").write_text(json.dumps(found))


def main(bundle: Path, plan: Path) -> None:
    """Do all entries of the plan."""
    sys.path.insert(0, str(bundle))
    for entry in json.loads(plan.read_text()):
        Path(entry["options"]["output_dir"]).mkdir(exist_ok=True)
        (inspect if entry.get("inspect") else train)(bundle, entry)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
