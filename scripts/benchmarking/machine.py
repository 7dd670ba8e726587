"""What the machine is, and what it can do at best: rates of matrix product, convolution and memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import torch

import shared_components

from .timing import Timing, interleave


class Probe(NamedTuple):
    """Work of known amount: floating-point operations (a multiply-add is two), or bytes moved."""

    run: Callable[[], object]
    amount: float

    def rate(self, timing: Timing) -> float:
        """Return the amount in units of 1e9 a second."""
        return self.amount / timing.seconds / 1e9


def versions() -> dict[str, str]:
    """Return the versions that a time depends on."""
    return {
        "shared_components": shared_components.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
        "numpy": np.__version__,
    }


def facts(device: torch.device) -> dict[str, Any]:
    """Return processor, cores that this process may use, threads, memory, load at this moment, and the CUDA device."""
    found: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "device": str(device),
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"cuda_device": card.name, "cuda_memory_gb": round(card.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "convolutions_in_tf32": torch.backends.cudnn.allow_tf32}
    return found


def _cpu_model() -> str:
    """Return the processor's name; ``platform.processor`` says only x86_64 on Linux."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def matmul_probe(size: int, device: torch.device) -> Probe:
    """Product of two float32 (size, size) matrices."""
    a, b = (_random((size, size), device, seed) for seed in (0, 1))
    return Probe(lambda: a @ b, 2.0 * size**3)


def convolution_probe(size: int, device: torch.device, channels: int = 32) -> Probe:
    """3^3 convolution of ``channels`` to as many on ``size``^3 float32, channels last: the kind networks consist of."""
    layer = torch.nn.Conv3d(channels, channels, 3, padding=1, bias=False).to(device)
    layer = layer.to(memory_format=torch.channels_last_3d).requires_grad_(False)
    x = _random((1, channels, size, size, size), device).contiguous(memory_format=torch.channels_last_3d)
    return Probe(lambda: layer(x), 2.0 * layer.weight.numel() * size**3)


def memory_probes(megabytes: int, device: torch.device) -> dict[str, Probe]:
    """Copy and sum of arrays of so many 1e6 bytes, larger than the caches, into memory that is there already."""
    a = _random((megabytes * 250_000,), device)
    b, out = a.clone(), torch.empty_like(a)
    size = a.numel() * a.element_size()
    return {
        "copy": Probe(lambda: out.copy_(a), 2.0 * size),
        "add": Probe(lambda: torch.add(a, b, out=out), 3.0 * size),
    }


def limits(
    device: torch.device,
    repeats: int = 5,
    matmul_sizes: Sequence[int] | None = None,
    convolution_size: int = 64,
    megabytes: int | None = None,
) -> dict[str, Any]:
    """Return the machine's rates, float32, medians of rounds.

    Args:
        device: where to measure.
        repeats: rounds.
        matmul_sizes: of square matrices; the best counts. Default: 1024, 2048, on CUDA 4096, 8192.
        convolution_size: edge of the volume.
        megabytes: of each array of the memory probes. Default: 256, on CUDA 2048.

    Returns:
        "matmul_gflops" and its "matmul_size", "convolution_gflops", "memory_gb_s" (read and written, 1e9 bytes).
    """
    fast = device.type == "cuda"
    sizes = matmul_sizes or ((4096, 8192) if fast else (1024, 2048))
    probes = {f"matmul {size}": matmul_probe(size, device) for size in sizes}
    probes["convolution"] = convolution_probe(convolution_size, device)
    probes |= memory_probes(megabytes or (2048 if fast else 256), device)
    found = interleave({name: probe.run for name, probe in probes.items()}, repeats, 1, device)
    rates = {name: probes[name].rate(timing) for name, timing in found.items()}
    best = max(sizes, key=lambda size: rates[f"matmul {size}"])
    return {
        "matmul_gflops": round(rates[f"matmul {best}"], 1),
        "matmul_size": best,
        "convolution_gflops": round(rates["convolution"], 1),
        "memory_gb_s": round(max(rates["copy"], rates["add"]), 1),
    }


def _random(shape: Sequence[int], device: torch.device, seed: int = 0) -> torch.Tensor:
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(device)
