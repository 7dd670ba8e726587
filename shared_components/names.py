"""What a pair is called, and the folder of its results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InputError
from .images.files import stem_of

LONGEST_NAME = 200  # bytes; file systems take 255, and temporary names are longer
RESERVED = ("summary.csv", "index.html")  # what a cohort writes beside the folders of its pairs


def pair_name(item: Mapping[str, Any]) -> str:
    """Return the name that a pair has been given, or one made of those of its images.

    Args:
        item: "name", or the paths "fixed" (also called "image") and "moving".

    Example:
        >>> pair_name({"fixed": "here/a.nii.gz", "moving": "there/b.mha"})
        'a<-b'
    """
    name = item.get("name")
    return f"{stem_of(item.get('fixed') or item['image'])}<-{stem_of(item['moving'])}" if name is None else str(name)


def folder_name(name: str) -> str:
    """Return the folder of a pair's results.

    Example:
        >>> folder_name("a<-b")
        'a_from_b'
    """
    return name.replace("<-", "_from_")


def fault_of_name(name: str) -> str | None:
    """Return what is wrong with the name of a pair, to follow "has", or None: its folder must be one, and right here.

    Example:
        >>> fault_of_name("../x")
        "the name '../x', which cannot be that of a folder of results"
    """
    folder = folder_name(name)
    if not folder.strip():
        return "an empty name; give one, or leave 'name' out"
    if folder.startswith(".") or folder in RESERVED or set(folder) & set("/\\") or not folder.isprintable():
        return f"the name '{name}', which cannot be that of a folder of results"
    if len(folder.encode()) > LONGEST_NAME:
        return f"a name of more than {LONGEST_NAME} bytes; give a short one as 'name'"
    return None


def check_unique(named: Iterable[tuple[str, str]]) -> None:
    """Refuse pairs whose results would take each other's place.

    Args:
        named: (name of the pair, where it is written, for the sentence).

    Raises:
        InputError: naming both places.
    """
    seen: dict[str, str] = {}
    for name, where in named:
        folder = folder_name(name)
        if folder in seen:
            raise InputError(
                f"{where} would write to the folder '{folder}' as {seen[folder]} does; "
                "give each pair a 'name' of its own"
            )
        seen[folder] = where
