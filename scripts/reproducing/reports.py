"""What all reproductions do with their numbers: common options, facts of the machine, files to publish."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from shared_components.images.files import atomic_path

from .runs import write_json


def add_report_arguments(parser: argparse.ArgumentParser, devices: str = "cpu (default), auto or cuda:0") -> None:
    """Add the options of where to compute and where to write the report."""
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default: %(default)s")
    parser.add_argument("--device", default="cpu", help=devices)
    parser.add_argument("--json", metavar="FILE", help="write all numbers here")
    parser.add_argument("--markdown", metavar="FILE", help="write the report here")


def publish(content: Mapping[str, Any], text: str, options: argparse.Namespace) -> None:
    """Print the report; write numbers and text to the files of ``--json`` and ``--markdown``, if given."""
    print("\n" + text)
    if options.json:
        write_json(Path(options.json), content)
    if options.markdown:
        with atomic_path(options.markdown) as temporary:
            temporary.write_text(text)


def rounded(value: Any) -> Any:
    """Round floats to six significant digits; keys become text."""
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Return versions and hardware."""
    packages = {name: version(name) for name in ("torch", "monai", "pytorch-ignite", "numpy", "scipy")}
    gpu = torch.cuda.get_device_name() if options.device != "cpu" and torch.cuda.is_available() else None
    found = {"python": platform.python_version(), **packages, "processor": _processor(), "cores": os.cpu_count()}
    return found | {"threads": options.threads, "gpu": gpu}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
