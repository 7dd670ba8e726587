"""What code holds in memory: for the way back, and at its peak."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

_MEASURE = """
import torch
torch.set_num_threads(1)

def largest():
    with open("/proc/self/status") as status:  # the peak of this process alone; rusage would hand down the parent's
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))

draw(2).requires_grad_().sum().backward()
"""


def saved_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes that autograd holds for the way back, each storage once."""
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        result = run()
    assert result.requires_grad
    return sum(held.values())


def peak_mb(setup: str, work: str) -> float:
    """MB by which ``work`` raises the peak of a fresh process after ``setup``; both may ``draw`` tensors (Linux)."""
    code = f"{_MEASURE}\n{setup}\nbefore = largest()\n{work}\nprint(largest() - before)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
