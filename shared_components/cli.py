"""What the command lines share: sentences instead of tracebacks, exit codes, silent libraries."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import find_input_error

FAULT_OF_INPUT, FAULT_OF_PROGRAM, INTERRUPTED = 2, 1, 130
DONE = (0, 3, 4)  # of register.py: results are written; their verdict is ok, check or failed
_CHATTY = ("monai", "ignite")


def run_main(body: Callable[[], object], verbose: bool = False) -> int:
    """Call ``body`` and return the exit code of the program.

    Args:
        body: the work.
        verbose: print the traceback of a failure before its sentence.

    Returns:
        0; 2 after an InputError, however deeply wrapped, whose sentence is printed to stderr; 1 after any other
        exception; 130 after Ctrl-C.
    """
    try:
        body()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if verbose:
            traceback.print_exc()
        found = find_input_error(error)
        sys.stdout.flush()
        begin = "\r\x1b[K" if sys.stderr.isatty() else ""  # wipe a half-drawn line of progress
        print(f"{begin}error: {found or _unexpected(error, verbose)}", file=sys.stderr, flush=True)
        return FAULT_OF_PROGRAM if found is None else FAULT_OF_INPUT
    return 0


def _unexpected(error: BaseException, verbose: bool) -> str:
    """Tell the innermost cause in one line: frameworks wrap it in sentences about themselves."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    told = f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__
    if "out of memory" in told.lower() or isinstance(error, MemoryError):
        return f"there is not enough memory ({told}); use --device cpu or smaller images"
    return told if verbose else f"{told} (add --verbose to see where)"


@contextmanager
def quiet(active: bool = True) -> Iterator[None]:
    """Silence Python warnings and the loggers of MONAI and Ignite; warnings of this library still come through.

    MONAI's loggers write to stdout by handlers of their own, so each is set by itself. Import MONAI before.
    """
    if not active:
        yield
        return
    known = [name for name in list(logging.root.manager.loggerDict) if name.split(".")[0] in _CHATTY]
    loggers = [logging.getLogger(name) for name in {*known, *_CHATTY}]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
