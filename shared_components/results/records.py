"""What a record tells of grids, files and bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import Frame, canonical_axes, orientation_codes
from ..images import sha256_of


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


def bundle_name(bundle: str) -> str:
    """Return "name version" of a bundle's folder, or what was given where there is no metadata."""
    metadata = bundle_metadata(bundle)
    return f"{Path(bundle).resolve().name} {metadata.get('version', '')}".strip() if metadata else bundle
