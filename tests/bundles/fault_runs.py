"""Let trainings of a bundle fail: ``python fault_runs.py BUNDLE PLAN.json`` writes FAULTS.json beside the plan.

The plan: {"output": folder, "datalist": of good images, "spoilt": one with a damaged file in it, "options": {...}}.
What happens, one after the other: "whole" is not disturbed; "killed" dies, as of kill -9, while the checkpoint of its
second epoch is half written, and is resumed; "nan" has a loss that is none in its second iteration; "empty" has no
images; "spoilt" has a damaged one.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

MOST_DRAWN = 5000


def prepared(bundle: Path, **options: Any) -> ConfigWorkflow:
    """Return the bundle's training, ready to run."""
    workflow = ConfigWorkflow(
        [str(bundle / "configs" / "train.json")], workflow_type="train", bundle_root=str(bundle), **options
    )
    workflow.initialize()
    return workflow


def in_a_process_that_dies(work: Callable[[], None]) -> int:
    """Fork, work in the child, and return the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def kill_at_second_checkpoint() -> None:
    """Have torch.save write the first half of the second checkpoint, and the process be killed."""
    real, seen = torch.save, [0]

    def save(content: Any, file: Any, *more: Any, **options: Any) -> None:
        seen[0] += "checkpoint" in file.name
        if seen[0] == 2:
            real(content, file, *more, **options)
            file.flush()
            file.truncate(file.tell() // 2)
            os.fsync(file.fileno())
            os.kill(os.getpid(), signal.SIGKILL)
        real(content, file, *more, **options)

    torch.save = save


class NoNumber:
    """A loss that is none the second time."""

    def __init__(self, loss: Any) -> None:
        self._loss, self._calls = loss, 0

    def __call__(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self._calls += 1
        return self._loss(*arguments, **options) * (float("nan") if self._calls == 2 else 1.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)


def told_by(work: Callable[[], object]) -> list[str]:
    """Return kind and text of the exceptions that the work ends with, from the outermost to what it came from."""
    found = []
    try:
        work()
    except Exception as error:
        while error is not None:
            found.append(f"{type(error).__name__}: {error}")
            error = error.__cause__
    return found


def stopped_by_nan(bundle: Path, **options: Any) -> list[str]:
    workflow = prepared(bundle, **options)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.loss_function = NoNumber(trainer.loss_function)
    return told_by(workflow.run)


def trained_with_a_damaged_image(bundle: Path, **options: Any) -> dict[str, Any]:
    """Draw pairs until the damaged image was met, then train."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("shared_components").addHandler(handler)
    workflow = prepared(bundle, **options)
    dataset, drawn = workflow.parser.get_parsed_content("train#dataset"), 0
    while not heard and drawn < MOST_DRAWN:
        dataset[drawn]
        drawn += 1
    return {"told": told_by(workflow.run), "heard": heard, "drawn": drawn}


def main(bundle: Path, plan_file: Path) -> None:
    """Do all of it."""
    sys.path.insert(0, str(bundle))
    plan = json.loads(plan_file.read_text())
    output, known = Path(plan["output"]), plan["options"] | {"datalist": plan["datalist"], "max_epochs": 2}

    def options(name: str, **more: Any) -> dict[str, Any]:
        (output / name).mkdir(exist_ok=True)
        return {**known, **more, "output_dir": str(output / name)}

    def killed() -> None:
        kill_at_second_checkpoint()
        prepared(bundle, **options("killed")).run()

    found: dict[str, Any] = {"signal": in_a_process_that_dies(killed)}
    found["left"] = sorted(path.name for path in (output / "killed").iterdir() if "tfevents" not in path.name)
    prepared(bundle, **options("whole")).run()
    prepared(bundle, **options("killed", resume=True)).run()
    found["nan"] = stopped_by_nan(bundle, **options("nan"))
    nothing = {"datalist": None, "dataset_dir": str(output / "nowhere")}
    found["empty"] = told_by(lambda: prepared(bundle, **options("empty", **nothing)).run())
    found["spoilt"] = trained_with_a_damaged_image(bundle, **options("spoilt", datalist=plan["spoilt"], max_epochs=1))
    plan_file.with_name("FAULTS.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
