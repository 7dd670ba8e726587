"""What a record tells of grids, files and bundles."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from .. import __version__
from ..geometry import Frame, canonical_axes, orientation_codes
from ..images import sha256_of

_ASKED: ContextVar[dict[str, Any] | None] = ContextVar("options", default=None)


@contextmanager
def asked_with(options: Mapping[str, Any]) -> Iterator[None]:
    """Have the records made meanwhile tell the options of the command, by which it can be given again.

    Args:
        options: fit for JSON; nothing that differs between places, such as the folder of a file.
    """
    token = _ASKED.set(dict(options))
    try:
        yield
    finally:
        _ASKED.reset(token)


def asked_options() -> dict[str, Any] | None:
    """Return the options of the command that is running; None where it did not tell."""
    return _ASKED.get()


def describe_frame(frame: Frame) -> dict[str, Any]:
    """Return shape, spacing, orientation and affine for a record."""
    return {
        "shape": list(frame.shape),
        "spacing_mm": [round(float(s), 6) for s in frame.spacing],
        "orientation": _orientation(frame),
        "affine_ras_mm": frame.affine.tolist(),
    }


def _orientation(frame: Frame) -> str:
    """Return codes such as LPS, or "-x -y" in 2-D: a flat image does not say which body axes it shows."""
    if frame.ndim == 3:
        return orientation_codes(frame.affine)
    return " ".join(
        f"{'+' if row.sum() > 0 else '-'}{'xy'[int(np.abs(row).argmax())]}" for row in canonical_axes(frame.affine)
    )


def identify(path: str | Path) -> dict[str, str]:
    """Return name and sha256 of a file for a record."""
    return {"file": Path(path).name, "sha256": sha256_of(path)}


def bundle_metadata(bundle: str) -> dict[str, Any]:
    """Return configs/metadata.json of a bundle's folder, empty where there is none."""
    metadata = Path(bundle) / "configs" / "metadata.json"
    return json.loads(metadata.read_text()) if bundle and metadata.is_file() else {}


def identify_all(files: Iterable[Path]) -> dict[str, str]:
    """Return {name: sha256} of files, sorted by name."""
    return {file.name: sha256_of(file) for file in sorted(files)}


def device_of(network: Any) -> dict[str, str]:
    """Return {"device": where the parameters of a network lie}; nothing if there are none."""
    parameter = next(network.parameters(), None) if isinstance(network, torch.nn.Module) else None
    return {} if parameter is None else {"device": str(parameter.device)}


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a result's last digits depend on."""
    return {
        "shared_components": __version__,
        "monai": monai.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def bundle_name(bundle: str) -> str:
    """Return "name version" of a bundle's folder, or what was given where there is no metadata."""
    metadata = bundle_metadata(bundle)
    return f"{Path(bundle).resolve().name} {metadata.get('version', '')}".strip() if metadata else bundle
