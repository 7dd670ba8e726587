"""A cohort from its list to its summary: what is to be done, doing it, telling how it went."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from shared_components.errors import InputError

from .crew import register_all
from .faults import StopError
from .job import Job
from .ledger import Ledger
from .lists import Task
from .page import build_page
from .progress import Progress, duration
from .summary import Row, all_rows, count_verdicts, to_csv

ALL_OK, NOTHING, SOME_FAILED = 0, 2, 3
_PAUSE_S, _SHARE = 10.0, 20.0  # the summary is brought up to date that seldom, and for at most 1/20 of the time
_SHOWN = 10


@dataclass(frozen=True)
class Plan:
    """The pairs of this shard.

    Attributes:
        own: all of them, in the order of the list.
        todo: those that are not finished.
    """

    own: list[Task]
    todo: list[Task]


def run_cohort(job: Job, tasks: Sequence[Task], shard: tuple[int, int] = (1, 1), workers: int = 1) -> int:
    """Register what is not finished, write summary.csv and index.html, and return the exit code.

    Args:
        job: how.
        tasks: the whole list, also where only a shard of it is this run's.
        shard: (i, n): the i-th of every n pairs is this run's.
        workers: processes; 0 does the work in this one.

    Returns:
        0: every pair of this shard is registered; 3: some failed or could not be written; 2: none is registered.

    Raises:
        InputError: the bundle or the output folder is at fault.
    """
    ledger = Ledger(job.output_dir)
    try:
        with ledger.workplace():
            ledger.clean()
            plan = make_plan(job, tasks, shard, ledger)
            return _run(job, tasks, plan, workers, ledger)
    finally:
        ledger.clean()  # after workers that had to be killed
        ledger.remove_if_unused()


def make_plan(job: Job, tasks: Sequence[Task], shard: tuple[int, int], ledger: Ledger) -> Plan:
    """Return this shard's pairs and those to be done, and tell about them."""
    index, count = shard
    own = list(tasks[index - 1 :: count])
    todo, again, failed = [], Counter(), 0
    for task in own:
        status, why = ledger.state(task, job.recipe)
        if status == "ok":
            continue
        todo.append(task)
        failed += status == "failed"
        again.update([why] if why else [])
    part = f", of which shard {index}/{count} has {len(own)}" if count > 1 else ""
    _say(f"{Path(job.root).name}: {len(tasks)} pairs{part}; {len(own) - len(todo)} finished before, {len(todo)} to do")
    if failed:
        _say(f"{failed} that failed before {'is' if failed == 1 else 'are'} tried again")
    for why, number in sorted(again.items()):
        _say(f"{number} finished before {'is' if number == 1 else 'are'} registered again: {why}")
    return Plan(own, todo)


def _run(job: Job, tasks: Sequence[Task], plan: Plan, workers: int, ledger: Ledger) -> int:
    stopped: StopError | None = None
    begin = time.monotonic()
    try:
        if plan.todo:
            _register(job, tasks, plan, workers, ledger)
    except StopError as error:
        stopped = error
    except KeyboardInterrupt:
        write_summary(job, tasks, ledger)
        raise
    rows = _summarise(job, tasks, ledger, stopped)
    own = {task.name for task in plan.own}
    return _conclude(job, [row for row in rows if row["name"] in own], stopped, time.monotonic() - begin)


def _register(job: Job, tasks: Sequence[Task], plan: Plan, workers: int, ledger: Ledger) -> None:
    progress, written, cost = Progress(len(plan.todo)), time.monotonic(), 0.0
    try:
        with closing(register_all(job, plan.todo, ledger, workers)) as rows:
            for row in rows:
                progress.add(row)
                if time.monotonic() - written > max(_PAUSE_S, _SHARE * cost):
                    begin = time.monotonic()
                    write_summary(job, tasks, ledger)
                    written = time.monotonic()
                    cost = written - begin
    finally:
        progress.close()


def _summarise(job: Job, tasks: Sequence[Task], ledger: Ledger, stopped: StopError | None) -> list[Row]:
    """Write the summary; where nothing can be written any more, return its rows all the same."""
    try:
        return write_summary(job, tasks, ledger)
    except InputError:
        if stopped is None:
            raise
        return all_rows(tasks, ledger, job.recipe)


def write_summary(job: Job, tasks: Sequence[Task], ledger: Ledger) -> list[Row]:
    """Write summary.csv and index.html of all shards from their markers, and return the rows.

    Another shard may finish in between and write before us what we have not seen: looked at again until nothing is new,
    whoever writes last has seen everything.

    Raises:
        InputError: the file system refuses.
    """
    folder = Path(job.output_dir)
    rows = all_rows(tasks, ledger, job.recipe)
    while True:
        records = {row["name"]: ledger.read(row["name"]) for row in rows if row["status"] == "ok"}
        pictures = {name: record["thumbnails"] for name, record in records.items() if record and record["thumbnails"]}
        ledger.put(folder / "summary.csv", to_csv(rows))
        ledger.put(folder / "index.html", build_page(f"{Path(job.root).name}: cohort", rows, pictures, folder))
        seen, rows = rows, all_rows(tasks, ledger, job.recipe)
        if rows == seen:
            return rows


def _conclude(job: Job, own: Sequence[Row], stopped: StopError | None, seconds: float) -> int:
    """Tell how it went and return the exit code."""
    failed = [row for row in own if row["status"] == "failed"]
    ok = sum(row["status"] == "ok" for row in own)
    for row in failed[:_SHOWN]:
        _say(f"failed: {row['name']}: {row['fault']}")
    if len(failed) > _SHOWN:
        _say(f"... and {len(failed) - _SHOWN} more, see summary.csv")
    if stopped is not None:
        _say(f"error: {stopped}; {ok} of {len(own)} pairs are finished and kept, start the same command to go on")
    verdicts = ", ".join(f"{count} {level}" for level, count in count_verdicts(own).items())
    if verdicts:
        print(f"verdicts: {verdicts}")
    print(f"{ok} ok, {len(failed)} failed of {len(own)} in {duration(seconds)}: {Path(job.output_dir) / 'index.html'}")
    if stopped is None and ok == len(own):
        return ALL_OK
    return SOME_FAILED if ok else NOTHING


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
