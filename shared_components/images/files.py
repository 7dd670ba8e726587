"""What any file needs: a check before it is opened, a checksum, and writing that never leaves half a file."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

_CHUNK = 1 << 20


def existing_file(path: str | os.PathLike, what: str) -> Path:
    """Return ``path`` as a Path.

    Args:
        path: the file.
        what: its role in words, such as "fixed image"; it opens the sentence.

    Raises:
        InputError: the path names nothing, a folder, or an empty file.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{what} {path} is a folder; give one file (convert a DICOM series to NIfTI first)")
    try:
        size = path.stat().st_size
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{what} {path} does not exist; check the path") from error
        raise InputError(f"{what} {path} cannot be opened ({error.strerror}); check the path and its rights") from error
    if size == 0:
        raise InputError(f"{what} {path} is an empty file; copy or export it again")
    return path


def suffix_of(path: str | os.PathLike) -> str:
    """Return the lower-case suffix, with the one before it for ``.gz`` and ``.json``.

    Example:
        >>> suffix_of("a.b.NII.gz"), suffix_of("points.mrk.json"), suffix_of("1.2.mha")
        ('.nii.gz', '.mrk.json', '.mha')
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    double = len(suffixes) > 1 and suffixes[-1] in (".gz", ".json")
    return "".join(suffixes[-2:] if double else suffixes[-1:])


def stem_of(path: str | os.PathLike) -> str:
    """Return the name of a file without folder and suffix.

    Example:
        >>> stem_of("here/a.b.NII.gz"), stem_of("1.2.mha")
        ('a.b', '1.2')
    """
    name = Path(path).name
    return name[: len(name) - len(suffix_of(path))]


def sha256_of(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        InputError: the file is missing, a folder, or empty.
    """
    digest = hashlib.sha256()
    with existing_file(path, "file").open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, renamed to ``path`` on success and removed on failure.

    Missing folders are made. The temporary name keeps the suffix, by which some writers choose their format.

    Raises:
        InputError: the operating system refuses to write there.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "new" / "note.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}); choose a folder that is writable and has space left"
        ) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # the folder itself is a file or not reachable: the error above has said so
            pass
