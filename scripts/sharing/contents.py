"""What belongs into a released bundle, and what merely lies in its folder after some work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared_components.checkpoints import SUMS

REPOSITORY = Path(__file__).resolve().parents[2]
LIBRARY = REPOSITORY / "shared_components"
REQUIRED = """
    LICENSE configs/metadata.json configs/train.json configs/inference.json configs/evaluate.json
    configs/multi_gpu_train.json configs/logging.conf docs/README.md docs/data_license.txt models/model.pt
    scripts/__init__.py scripts/network.py
""".split()
# Folders of a release, and the suffixes of the files in them; docs may hold anything.
FOLDERS: dict[str, set[str] | None] = {
    "configs": {".json", ".conf"},
    "docs": None,
    "models": {".pt", ".ts", ".onnx"},
    "scripts": {".py"},
}
LEFTOVERS = {"runs", "eval", "data", "__pycache__", "README.md", "shared_components"}  # the last two are of a release
ADDED = {f"models/{SUMS}"}  # when a bundle is packaged


def bundle_files(bundle: Path) -> list[Path]:
    """Return a bundle's own files for a release, sorted."""
    return [path for path in _files(bundle) if _belongs(path.relative_to(bundle))]


def strangers(bundle: Path) -> list[str]:
    """Return the files that belong to no release and are no known leftovers of work: somebody should look at them."""
    return [str(path.relative_to(bundle)) for path in _files(bundle) if not _belongs(path.relative_to(bundle))]


def _files(bundle: Path) -> Iterator[Path]:
    for path in sorted(bundle.rglob("*")):
        parts = path.relative_to(bundle).parts
        known = parts[0] in LEFTOVERS or "__pycache__" in parts or "/".join(parts) in ADDED
        known |= any(part.startswith(".") for part in parts)
        if path.is_file() and not known:
            yield path


def _belongs(path: Path) -> bool:
    if len(path.parts) == 1:
        return path.name == "LICENSE"
    suffixes = FOLDERS.get(path.parts[0], set())
    return suffixes is None or path.suffix in suffixes


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def metadata_of(bundle: Path) -> dict[str, Any]:
    """Return configs/metadata.json."""
    return read_json(bundle / "configs" / "metadata.json")


def library_of(bundle: Path) -> Path:
    """Return the library that a bundle runs with: its own in an unzipped release, else the repository's."""
    own = bundle / "shared_components"
    return own if own.is_dir() else LIBRARY
