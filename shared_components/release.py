"""Which release of this library runs: a process can hold one only, and a bundle that brings another one says so.

``scripts/package_bundle.py`` puts this library into every bundle that it packages, with a record of its content. Python
imports the first ``shared_components`` that it meets and keeps it, and so it does with the package ``scripts``, which
every bundle has. Without a check a second bundle in the same process would run the code of the first.
"""

from __future__ import annotations

import hashlib
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from . import __version__
from .errors import InputError

RECORD = "release.json"
_HERE = Path(__file__).resolve().parent


def library_files(folder: Path) -> list[Path]:
    """Return the files of a library that make a release: all but caches, hidden files and the record itself, sorted."""
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden and path.suffix != ".pyc" and parts != (RECORD,):
            found.append(path)
    return found


def content_hash(folder: Path) -> str:
    """Return the SHA-256 of names and contents of a library's files as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in library_files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def make_record(folder: Path) -> str:
    """Return the text of release.json for a library whose version is this one's: {"version", "sha256"}."""
    return json.dumps({"version": __version__, "sha256": content_hash(folder)}, indent=4) + "\n"


def _identify(folder: Path) -> dict[str, str]:
    """Return the record of a library; one is made for a library that is no release, such as an installed one."""
    record = folder / RECORD
    if record.is_file():
        return json.loads(record.read_text(encoding="utf-8"))
    return {"version": "without a release number", "sha256": content_hash(folder)}


# Read at import: what lies in the folder later, after an update under a running server, is not what runs.
_RUNNING = _identify(_HERE) if (_HERE / RECORD).is_file() else None


def check_release(root: str | Path | None = None) -> None:
    """Make sure that a bundle runs with the library that it brought.

    Args:
        root: folder of the bundle; None: whatever a new ``import shared_components`` would find.

    Raises:
        InputError: the library in this process has another content.
    """
    other = _fresh("shared_components") if root is None else Path(root).resolve() / "shared_components"
    if other is None or not other.is_dir() or (_RUNNING is None and other == _HERE):
        return
    running, brought = _RUNNING or _identify(_HERE), _identify(other)
    if running["sha256"] != brought["sha256"]:
        raise InputError(
            f"this process already runs shared_components {_name(running)} of {_HERE.parent}, but the bundle in "
            f"{other.parent} was released with {_name(brought)}; run it in a process of its own, or take releases that "
            "were packaged together"
        )


def check_bundle_code() -> None:
    """Make sure that the package ``scripts`` in this process is the one that the path names first.

    Raises:
        InputError: it is another bundle's.
    """
    loaded = getattr(sys.modules.get("scripts"), "__file__", None)
    fresh = _fresh("scripts")
    if loaded is None or fresh is None or Path(loaded).resolve().parent == fresh:
        return
    raise InputError(
        f"this process already runs the code of the bundle in {Path(loaded).resolve().parents[1]}, but the one in "
        f"{fresh.parent} is asked for; run it in a process of its own"
    )


def _fresh(package: str) -> Path | None:
    """Return the folder that a new import of the package would take, without importing it."""
    spec = PathFinder.find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).resolve().parent


def _name(record: dict[str, str]) -> str:
    return f"{record['version']} ({record['sha256'][:12]})"
