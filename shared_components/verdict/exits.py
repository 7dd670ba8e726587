"""From verdicts to the exit code of a program: those of all pairs that were registered meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .judge import worst

CODES = {"ok": 0, "check": 3, "failed": 4}
_listening: ContextVar[list[str] | None] = ContextVar("verdicts", default=None)


@contextmanager
def collected() -> Iterator[list[str]]:
    """Give a list that receives the level of every result that is written within, in this thread."""
    levels: list[str] = []
    token = _listening.set(levels)
    try:
        yield levels
    finally:
        _listening.reset(token)


def tell(level: str) -> None:
    """Hand a level to whoever listens."""
    levels = _listening.get()
    if levels is not None:
        levels.append(level)


def exit_code(levels: Iterable[str]) -> int:
    """Return 0, 3 or 4, that of the worst level.

    Example:
        >>> exit_code([]), exit_code(["ok", "failed", "check"])
        (0, 4)
    """
    return CODES[worst(levels)]
