"""The files that a pair is made of: what they were when it was registered, and whether they still are."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from shared_components.errors import InputError
from shared_components.images.files import sha256_of

_DETACHED = re.compile(rb"^(?:ElementDataFile|data ?file)\s*[:=]\s*(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_HEADER = 1 << 16
Facts = dict[str, dict[str, Any]]


def input_facts(item: Mapping[str, Any]) -> Facts:
    """Return {role: {"path", "size", "mtime_ns", "sha256"}} of the files of a pair, those that can be read.

    Taken before the files are used: a change in between makes the pair run again.
    """
    facts = {}
    for role, path in _files_of(item).items():
        try:
            stat = os.stat(path)
            facts[role] = {"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_of(path)}
        except (OSError, InputError):
            facts[role] = {"path": path, "size": -1, "mtime_ns": -1, "sha256": ""}
    return facts


def _files_of(item: Mapping[str, Any]) -> dict[str, str]:
    """Return the paths of a pair by role, with the file of voxels behind a header such as .mhd."""
    found = {}
    for role, path in item.items():
        if role == "name" or not isinstance(path, str):
            continue
        found[role] = path
        if path.lower().endswith((".mhd", ".nhdr")) and os.path.isfile(path):
            with open(path, "rb") as stream:
                named = _DETACHED.search(stream.read(_HEADER))
            data = os.path.join(os.path.dirname(path), os.fsdecode(named[1])) if named else ""
            found |= {f"{role} voxels": data} if os.path.isfile(data) else {}
    return found


def changed_input(known: Facts, item: Mapping[str, Any]) -> str | None:
    """Say which file of a pair is another one now; its bytes are looked at only if size, time or path changed.

    A file that is gone, from where it was, is no change: the results of a pair outlive its inputs.
    """
    files = _files_of(item)
    gone = {role for role in known if role.endswith(" voxels")} - set(files)
    if set(known) - gone != set(files):
        return "other files"
    for role, path in files.items():
        fact = known[role]
        try:
            stat = os.stat(path)
        except OSError:
            if path == fact["path"]:
                continue
            return f"{role} changed"
        same = (fact["path"], fact["size"], fact["mtime_ns"]) == (path, stat.st_size, stat.st_mtime_ns)
        if not same and (os.path.basename(path) != os.path.basename(fact["path"]) or not _same(path, fact)):
            return f"{role} changed"
    return None


def _same(path: str, fact: dict[str, Any]) -> bool:
    try:
        return sha256_of(path) == fact["sha256"]
    except InputError:
        return False
