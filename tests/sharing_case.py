"""For the tests of packaging and verifying: a bundle that keeps all rules, with a few bytes for weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME = "vtn_registration"
Change = Callable[[Path], object]


def copy_bundle(folder: Path) -> Path:
    """Copy the VTN bundle into a folder, without caches; its weights are no weights."""
    ignored = shutil.ignore_patterns("__pycache__", "runs", "eval", "model.pt")
    bundle = Path(shutil.copytree(ROOT / "bundles" / NAME, folder / NAME, ignore=ignored))
    (bundle / "models" / "model.pt").write_bytes(b"weights")
    return bundle


def small_library(folder: Path, text: str = "") -> Path:
    """Write a library of two modules: the release check, and the errors that it raises."""
    library = folder / "shared_components"
    library.mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "release.py"):
        shutil.copy(ROOT / "shared_components" / name, library / name)
    (library / "method.py").write_text(text)
    return library


def set_entry(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set an entry of nested dictionaries, with / between its keys; None removes it."""
    *folders, last = path.split("/")
    for folder in folders:
        tree = tree[folder]
    if value is None:
        del tree[last]
    else:
        tree[last] = value


def configure(name: str, path: str, value: Any) -> Change:
    """Set an entry of configs/NAME.json, with / between its keys; None removes it."""

    def change(bundle: Path) -> None:
        file = bundle / "configs" / f"{name}.json"
        config = json.loads(file.read_text())
        set_entry(config, path, value)
        file.write_text(json.dumps(config))

    return change


def replace(name: str, old: str, new: str) -> Change:
    """Replace text that must be there."""

    def change(bundle: Path) -> None:
        text = (bundle / name).read_text()
        assert old in text
        (bundle / name).write_text(text.replace(old, new))

    return change


def write(name: str, text: str) -> Change:
    return lambda bundle: (bundle / name).write_text(text)


def remove(name: str) -> Change:
    return lambda bundle: (bundle / name).unlink()
