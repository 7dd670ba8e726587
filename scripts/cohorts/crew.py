"""Workers in processes of their own: what kills one of them costs a pair at most, and not the night."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from shared_components.errors import InputError, find_input_error

from .batches import Group, grouped
from .faults import StopError, sentence
from .job import Job
from .ledger import Ledger
from .lists import Task
from .summary import Row
from .worker import Worker, record_failure

START = "spawn"  # a worker must not share open files with its master, nor a GPU with anyone


class BuildError(Exception):
    """A worker could not load the network, and it is not the input's fault."""


def register_all(job: Job, tasks: Sequence[Task], ledger: Ledger, workers: int) -> Iterator[Row]:
    """Register pairs and yield their rows as they are finished.

    Args:
        job: how.
        tasks: which.
        ledger: where a worker that dies is recorded.
        workers: processes; 0 does the work in this one.

    Raises:
        InputError: bundle, weights, device or output folder are at fault; nothing is registered.
        BuildError: the network cannot be built for another reason.
        StopError: results can no longer be written.
    """
    if workers == 0:
        yield from _here(job, tasks)
        return
    crew = _Crew(job, tasks, ledger)
    try:
        for _ in range(min(workers, len(tasks))):
            crew.hire()
        yield from crew.rows()
    finally:
        crew.dismiss()


def _here(job: Job, tasks: Sequence[Task]) -> Iterator[Row]:
    with Worker(job) as worker:
        groups = grouped(tasks, job.batch)
        loading = [(task, worker.load(task)) for group in groups[:1] for task in group]
        for following in [*groups[1:], ()]:
            for _, future in loading:
                future.exception()  # memory holds no more than the group at work and the next one
            here, loading = loading, [(task, worker.load(task)) for task in following]
            yield from worker.finish_all(here)


@dataclass(eq=False)
class _Member:
    """A worker as its master sees it: the pairs in its hands, the first at work.

    It has two groups in hand: one being registered, one being read.
    """

    process: BaseProcess
    connection: Connection
    tasks: deque[Task] = field(default_factory=deque)
    ready: bool = False
    alone: bool = False


class _Crew:
    def __init__(self, job: Job, tasks: Sequence[Task], ledger: Ledger) -> None:
        self.job, self.ledger = job, ledger
        self.waiting: deque[Group] = deque(grouped(tasks, job.batch))
        self.suspects: deque[Task] = deque()  # were in the hands of a worker that died
        self.left = len(tasks)
        self.members: list[_Member] = []
        self._context = multiprocessing.get_context(START)

    def hire(self) -> None:
        """Start a worker."""
        here, there = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(there, self.job), daemon=True)
        process.start()
        there.close()
        self.members.append(_Member(process, here))

    def dismiss(self) -> None:
        """End all workers; one that has nothing in its hands is asked to, others are killed."""
        for member in self.members:
            if member.tasks or not member.ready:
                member.process.kill()
            else:
                _send(member, None)
        for member in self.members:
            member.process.join(20)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.connection.close()

    def rows(self) -> Iterator[Row]:
        """Hand out pairs and yield rows until none is left."""
        while self.left:
            events = [m.connection for m in self.members] + [m.process.sentinel for m in self.members]
            woken = set(wait(events))
            for member in list(self.members):
                if member.connection in woken or member.process.sentinel in woken:
                    for row in self._hear(member):
                        self.left -= 1
                        yield row

    def _hear(self, member: _Member) -> Iterator[Row]:
        """Take what a worker has to say, its death included."""
        alive = member.process.is_alive()  # before listening: what a dead one said is all there, up to its end
        try:
            while member.connection.poll():
                row = self._take(member, *member.connection.recv())
                if row is not None:
                    yield row
        except (EOFError, OSError):
            member.process.join()
            alive = False
        if not alive:
            yield from self._bury(member)

    def _take(self, member: _Member, kind: str, content: Any) -> Row | None:
        if kind == "fault":
            raise InputError(content)
        if kind == "broken":
            raise BuildError(content)
        if kind == "stop":
            raise StopError(content)
        if kind == "row":
            member.tasks.popleft()
        member.ready = True
        self._supply(member)
        return content if kind == "row" else None

    def _supply(self, member: _Member) -> None:
        """Fill the hands of a worker; a suspect comes alone, so that the next death has one culprit."""
        if not member.tasks:
            member.alone = bool(self.suspects)
        if member.alone:
            if not member.tasks and self.suspects:
                self._give(member, (self.suspects.popleft(),))
            return
        while len(member.tasks) <= self.job.batch and self.waiting:
            self._give(member, self.waiting.popleft())

    def _give(self, member: _Member, group: Group) -> None:
        member.tasks.extend(group)
        _send(member, group)

    def _bury(self, member: _Member) -> Iterator[Row]:
        """Blame a death on the pair that was alone, or try the pairs in hand again one by one; hire another worker."""
        self.members.remove(member)
        member.connection.close()
        how = _how_it_ended(member.process.exitcode)
        if not member.ready:
            raise BuildError(f"a worker {how} while it loaded the network; use fewer workers or more memory")
        if member.alone and member.tasks:
            fault = f"the process that registered it {how}; the machine may have too little memory for this pair"
            yield record_failure(self.ledger, member.tasks[0], fault, self.job.recipe)
        else:
            self.suspects.extend(member.tasks)
        if self.waiting or self.suspects:
            self.hire()


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with code {code}"


def _send(member: _Member, what: Group | None) -> None:
    """Send; that the worker is dead will be heard of in its turn."""
    with contextlib.suppress(OSError):
        member.connection.send(what)


def _serve(connection: Connection, job: Job) -> None:
    """Be a worker: load the network, register what comes, die with the master."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the master decides
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()
    try:
        with Worker(job) as worker:
            connection.send(("ready", None))
            threading.Thread(target=_receive, args=(connection, worker, received), daemon=True).start()
            while (given := received.get()) is not None:
                for row in worker.finish_all(given):
                    connection.send(("row", row))
    except StopError as error:
        _tell(connection, "stop", str(error))
    except Exception as error:
        if job.verbose:
            traceback.print_exception(error)
        _tell(connection, "broken" if find_input_error(error) is None else "fault", sentence(error))


def _tell(connection: Connection, kind: str, text: str) -> None:
    with contextlib.suppress(OSError):  # the master is dead
        connection.send((kind, text))


def _receive(connection: Connection, worker: Worker, received: queue.SimpleQueue) -> None:
    """Begin to read the pairs of each group as it arrives; the end of the line is the death of the master."""
    while True:
        try:
            group = connection.recv()
        except (EOFError, OSError):
            os._exit(1)
        received.put(None if group is None else [(task, worker.load(task)) for task in group])
        if group is None:
            return
