"""Batches on the CPU: pair by pair, as many at a time as torch has threads, each on a thread of its own.

The vectors of one pair stay in a core's cache, those of a batch go through memory at every step; and threads that share
no step do not wait for each other. On other devices a batch is one sequence of larger kernels, which is better there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from .base import Solver
from .methods import Method, Statistics, judge, refuse_nonfinite
from .system import System

SMALLEST = 20_000  # unknowns a pair: below, a batch fits a cache and saves calls

T = TypeVar("T")


def worth_splitting(system: System, method: Method) -> bool:
    """Return whether to solve pair by pair. Not without tolerance: what is traced must stay one sequence."""
    blocks = system.blocks
    unknowns = blocks[0, 0].numel() * len(system.shape)
    return blocks.device.type == "cpu" and len(blocks) > 1 and method.tolerance is not None and unknowns >= SMALLEST


def on_threads(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Return the results of the tasks, each run on one thread, as many at a time as torch has threads."""
    threads = torch.get_num_threads()

    def run(task: Callable[[], T]) -> T:
        torch.set_num_threads(1)  # of this worker; it also becomes that of threads yet to start, hence the last line
        with torch.no_grad():
            return task()

    if threads == 1:
        return [task() for task in tasks]
    try:
        return list(_pool(threads, os.getpid()).map(run, tasks))
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads, kept: new ones would fault in all their memory again. A forked process has its own."""
    return ThreadPoolExecutor(threads)


class PairwiseSolver:
    """The prepared solvers of all pairs; called like one ``Solver``."""

    def __init__(self, system: System, method: Method, kind: Callable[[System, Method], Solver]) -> None:
        self.method, self.weights = method, system.weights
        refuse_nonfinite(system.blocks.flatten(1).sum(1, keepdim=True), "the data term")
        parts = zip(system.blocks.split(1), system.lam.split(1), strict=True)
        pairs = [System(blocks, lam, system.weights) for blocks, lam in parts]
        self.solvers = on_threads([lambda pair=pair: kind(pair, method) for pair in pairs])

    def __call__(self, b: Tensor, start: Tensor | None = None) -> tuple[Tensor, Statistics]:
        """Return z (B, D, *spatial) and what it took, or raise or warn where the method says so."""
        b = b.detach()
        refuse_nonfinite(b.flatten(1).sum(1, keepdim=True), "the right-hand side")
        starts = [None] * len(b) if start is None else start.detach().split(1)
        given = zip(self.solvers, b.split(1), starts, strict=True)
        found = on_threads([lambda args=args: args[0].run(*args[1:]) for args in given])
        parts = [facts for _, facts in found]
        statistics = Statistics(
            parts[0].method,
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("iterations", "residual", "converged")),
        )
        judge(statistics, self.method)
        return torch.cat([z for z, _ in found]), statistics
