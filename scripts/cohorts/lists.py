"""The list of pairs: a CSV table or a datalist, every fault named by file and line, and the shard of it to be done."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from register import PAIR

from shared_components.errors import InputError
from shared_components.names import check_unique, fault_of_name, folder_name, pair_name

COLUMNS = ("name", *PAIR)
_SHOWN = 5


@dataclass(frozen=True)
class Task:
    """One pair of the list.

    Attributes:
        name: its folder under the output folder.
        item: what ``LoadPair`` takes: paths by role, and "name" if the list gives one.
        where: file and line, for sentences.
    """

    name: str
    item: Mapping[str, str]
    where: str


def read_tasks(path: str | Path, section: str | None = None) -> list[Task]:
    """Read all pairs of a list, in its order.

    Args:
        path: of a .csv (or .tsv, .txt) table or of a .json datalist; relative paths in it start at its folder.
        section: which list of a datalist; None takes "test".

    Raises:
        InputError: no such file, a table without the needed columns, rows at fault, or names that clash.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() == ".json":
        found = _from_datalist(path, section or "test")
    elif section is not None:
        raise InputError(f"--section {section} is for datalists; {path} is read as a table, which has one list only")
    else:
        found = _from_table(path)
    faults = [fault for row in found if (fault := _fault(*row))]
    if faults:
        shown = "; ".join(faults[:_SHOWN])
        more = f" (and {len(faults) - _SHOWN} more rows at fault)" if len(faults) > _SHOWN else ""
        raise InputError(f"{shown}{more}; correct the list, nothing was registered")
    check_unique((pair_name(item), where) for where, item in found)
    return [Task(folder_name(pair_name(item)), item, where) for where, item in found]


def _from_datalist(path: Path, section: str) -> list[tuple[str, dict]]:
    from shared_components.pairs import read_datalist  # with torch, seconds to import; tables do without

    items = read_datalist(path, section)
    return [(f"{path}, pair {number} of '{section}'", item) for number, item in enumerate(items, 1)]


def _from_table(path: Path) -> list[tuple[str, dict]]:
    text = _text(path)
    first = text.lstrip().split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        columns = [(column or "").strip() for column in reader.fieldnames or []]
        _check_columns(path, columns)
        reader.fieldnames = columns
        rows = [(f"{path} line {reader.line_num}", row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} is no row of a table ({error}); correct it") from None
    if not rows:
        raise InputError(f"{path} has no pairs below its first line; add a row a pair")
    return [(where, _item(row, path.parent)) for where, row in rows]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise InputError(f"list of pairs {path} does not exist; give the path of a .csv table or .json list") from None
    except OSError as error:
        raise InputError(f"list of pairs {path} cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"list of pairs {path} is no text in UTF-8; save the table as CSV (UTF-8)") from None


def _check_columns(path: Path, columns: list[str]) -> None:
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise InputError(f"{path} line 1 has a column '{unknown[0]}'; the columns are {', '.join(COLUMNS)}")
    for column in ("fixed", "moving"):
        if columns.count(column) != 1:
            raise InputError(f"{path} line 1 needs one column '{column}'; the columns are {', '.join(COLUMNS)}")
    twice = [column for column in columns if columns.count(column) > 1]
    if twice:
        raise InputError(f"{path} line 1 has the column '{twice[0]}' twice; keep one")


def _item(row: dict, folder: Path) -> dict:
    """Return the row without its empty cells, with absolute paths; what has too many cells keeps them under None."""
    item = {}
    for key, text in row.items():
        if key is None:
            item[None] = text
        elif text and text.strip():
            text = text.strip()
            item[key] = text if key == "name" else os.path.abspath(folder / os.path.expanduser(text))
    return item


def _fault(where: str, item: dict) -> str | None:
    """Return the sentence of a row at fault; files are not looked at here, they cost their own pair only."""
    if None in item:
        return f"{where} has more cells than the first line has columns (quote paths that hold the separator)"
    for side, other in (("fixed", "image"), ("moving", None)):
        if not (item.get(side) or (other and item.get(other))):
            return f"{where} names no {side} image"
    wrong = [key for key, value in item.items() if key in PAIR and value is not None and not isinstance(value, str)]
    if wrong:
        return f"{where} has {item[wrong[0]]!r} under '{wrong[0]}' where a path belongs"
    broken = [key for key in PAIR if "\0" in (item.get(key) or "")]
    if broken:
        return f"{where} has a path under '{broken[0]}' with a zero byte in it"
    fault = fault_of_name(pair_name(item))
    return f"{where} has {fault}" if fault else None


def read_shard(text: str | None) -> tuple[int, int]:
    """Return (i, n) of "i/n", i from 1 to n; (1, 1) for None.

    Raises:
        InputError: no such form.

    Example:
        >>> read_shard("2/8")
        (2, 8)
    """
    if text is None:
        return 1, 1
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise InputError(f"--shard {text} is not possible; give i/n with i from 1 to n, for example 2/8")
    return int(first), int(second)
