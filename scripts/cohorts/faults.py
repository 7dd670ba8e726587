"""What goes wrong in the night, sorted: the fault of a pair, of the place where results go, of the GPU's memory."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from shared_components.errors import find_input_error

_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


class StopError(Exception):
    """Nothing more can be written; what is finished is kept."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception and what it came from, MONAI wraps them several times."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def is_of_place(error: BaseException) -> bool:
    """Tell whether the disk is full, read-only or gone: the next pair would fare no better."""
    return any(isinstance(cause, OSError) and cause.errno in _PLACE for cause in causes(error))


def is_cuda_out_of_memory(error: BaseException) -> bool:
    """Tell whether the GPU had too little memory."""
    kinds = ("OutOfMemoryError", "CudaError", "AcceleratorError", "RuntimeError")
    words = ("cuda out of memory", "cuda error: out of memory", "alloc_failed", "not enough gpu memory")
    return any(
        type(cause).__name__ == kinds[0]
        or (type(cause).__name__ in kinds and any(word in str(cause).lower() for word in words))
        for cause in causes(error)
    )


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
