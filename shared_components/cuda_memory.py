"""When a GPU has too little memory: the features in half precision first, then the CPU, and it is said."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_FALLBACK: ContextVar[str] = ContextVar("fallback", default="")
_KINDS = ("OutOfMemoryError", "CudaError", "AcceleratorError", "RuntimeError")
_WORDS = ("cuda out of memory", "cuda error: out of memory", "alloc_failed", "not enough gpu memory")
_log = logging.getLogger(__name__)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception and what it came from, MONAI wraps them several times."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def is_cuda_out_of_memory(error: BaseException) -> bool:
    """Tell whether the GPU had too little memory."""
    return any(
        type(cause).__name__ == _KINDS[0]
        or (type(cause).__name__ in _KINDS and any(word in str(cause).lower() for word in _WORDS))
        for cause in causes(error)
    )


def rungs(config: Mapping[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return what is tried one after the other: ids of a configuration that change, and what that means.

    Half precision where the bundle has an id "precision" that does not say so already. A network's grid is cut into no
    tiles: what it sees of an image would be another.
    """
    half = [({"precision": "bfloat16"}, "features in half precision")] if config.get("precision") == "float32" else []
    return [*half, ({"device#name": "cpu"}, "registered on the CPU")]


def with_less_memory(run: Callable[[dict[str, Any]], T], config: Mapping[str, Any]) -> T:
    """Call ``run`` with nothing changed and, where the GPU's memory does not do, with each of ``rungs`` in turn.

    Args:
        run: does the work, with these ids changed.
        config: the configuration that would be run.

    Raises:
        Exception: what the last of them raised, or any of them but for the GPU's memory.
    """
    ladder = rungs(config)
    for number, (changes, words) in enumerate([({}, ""), *ladder]):
        if words:
            _log.warning("CUDA out of memory: %s", words)
        try:
            with fallen_back(words and f"CUDA out of memory: {words}"):
                return run(changes)
        except Exception as error:
            if number == len(ladder) or not is_cuda_out_of_memory(error):
                raise
        free()  # not before the exception is gone, whose frames hold tensors
    raise AssertionError("the last attempt returns or raises")


def free() -> None:
    """Let go of what nothing refers to any more, on the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def fallen_back(words: str) -> Iterator[None]:
    """Have run.json tell what was done about the GPU's memory."""
    token = _FALLBACK.set(words)
    try:
        yield
    finally:
        _FALLBACK.reset(token)


def fallback_facts() -> dict[str, str]:
    """Return {"fallback": what was done}, empty if nothing was."""
    return {"fallback": _FALLBACK.get()} if _FALLBACK.get() else {}
