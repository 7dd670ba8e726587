"""What goes wrong in the night, sorted: the fault of a pair, of the place where results go."""

from __future__ import annotations

import errno

from shared_components.cuda_memory import causes
from shared_components.errors import find_input_error

_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


class StopError(Exception):
    """Nothing more can be written; what is finished is kept."""


def is_of_place(error: BaseException) -> bool:
    """Tell whether the disk is full, read-only or gone: the next pair would fare no better."""
    return any(isinstance(cause, OSError) and cause.errno in _PLACE for cause in causes(error))


def sentence(error: BaseException) -> str:
    """Return what is told about a failed pair, in one line."""
    found = find_input_error(error)
    if found is not None:
        return " ".join(str(found).split())
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    told = f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in told.lower() or "can't allocate memory" in told.lower():
        return f"there is not enough memory ({told}); use fewer workers or smaller images"
    return told
