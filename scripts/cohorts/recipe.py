"""What the results of a pair depend on beside its own files: code, configuration, weights, options, versions."""

from __future__ import annotations

import argparse
import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from register import PAIR

import shared_components
from shared_components.images.files import sha256_of

# where and how fast, not what: a cohort begun on one machine may be finished on another
_ELSEWHERE = {*PAIR, "output_dir", "datalist", "section", "weights", "device#name", "pairs", "max_memory_gb"}
WORDS = {
    "bundle": "another bundle",
    "configuration": "the configuration changed",
    "code": "the code changed",
    "weights": "other weights",
    "options": "other options",
    "versions": "other versions of the libraries",
}
Recipe = dict[str, Any]


def make_recipe(
    options: argparse.Namespace, root: Path, config_files: Iterable[Path], chosen: dict[str, Any]
) -> Recipe:
    """Return what two runs must share for a finished pair of one to count in the other.

    Args:
        options: of register.py.
        root: folder of the bundle.
        config_files: its inference.json and what comes on top.
        chosen: the ids that the options change, from ``register.overrides``.

    Returns:
        plain values by the keys of ``WORDS``; files by their sha256. Device and threads are not among them.
    """
    changed = {key: value for key, value in sorted(chosen.items()) if key not in _ELSEWHERE}
    start = options.initial_transform
    if start is not None and Path(start).expanduser().is_file():
        changed["initial_transform"] = sha256_of(Path(start).expanduser())
    weights = options.weights or chosen.get("weights")
    return {
        "bundle": root.name,
        "configuration": {file.name: sha256_of(file) for file in (*config_files, *_metadata(root))},
        "code": _sha256_of_tree([root / "scripts", Path(shared_components.__file__).parent]),
        "weights": _sha256_of_tree([root / "models"]) if weights is None else _sha256_if_there(weights),
        "options": changed,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in ("monai", "torch")}},
    }


def difference(old: Recipe, new: Recipe) -> str | None:
    """Say in words what changed first, or None if nothing did."""
    for key, words in WORDS.items():
        if old.get(key) == new[key]:
            continue
        if key != "options":
            return words
        before, after = old.get(key) or {}, new[key]
        names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
        return f"{words} ({', '.join(names)})"
    return None


def _metadata(root: Path) -> list[Path]:
    """It holds the version and the limits of the verdict."""
    file = root / "configs" / "metadata.json"
    return [file] if file.is_file() else []


def _sha256_of_tree(folders: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if file.is_file() and file.suffix in (".py", ".pt") and file.stat().st_size:
                digest.update(f"{file.relative_to(folder).as_posix()} {sha256_of(file)}\n".encode())
    return digest.hexdigest()


def _sha256_if_there(path: str) -> str:
    """Weights that are missing are told about by the bundle itself."""
    file = Path(path).expanduser()
    return sha256_of(file) if file.is_file() and file.stat().st_size else "missing"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
