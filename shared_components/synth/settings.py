"""What a made data set was made with, kept beside it, so that a stopped run goes on with nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..images import atomic_path


def keep_settings(folder: Path, settings: Mapping[str, Any], what: str) -> None:
    """Write ``settings.json`` of a new folder, or check that of an old one.

    Args:
        folder: of the data set; made if absent.
        settings: as JSON gives them back: lists, no tuples.
        what: the folder holds, for the sentence, such as "patients".

    Raises:
        InputError: the folder was made with other settings, or its file of them cannot be read.
    """
    path = folder / "settings.json"
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(settings) + "\n")
        return
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = None
    if before != settings:
        raise InputError(f"{folder} holds {what} made with other settings ({path}); choose another folder")
