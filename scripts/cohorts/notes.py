"""What the library warns of, kept by pair."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Notes(logging.Handler):
    """Keeps what the library warns about, by thread: of the pair being read, and of the pair being registered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._here = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self._here.__dict__.setdefault("notes", []).append(" ".join(record.getMessage().split()))

    def take(self) -> list[str]:
        """Return and forget what this thread was warned of."""
        return self._here.__dict__.pop("notes", [])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the warnings of the library, which would tear the line of progress."""
        logger = logging.getLogger("shared_components")
        logger.addHandler(self)
        before, logger.propagate = logger.propagate, False
        try:
            yield
        finally:
            logger.propagate = before
            logger.removeHandler(self)
