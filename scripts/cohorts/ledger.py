"""What is finished, and how it got there whole: markers, work folders, and results that appear by one rename.

    O/NAME/                   the results of a pair, there as a whole or not at all
    O/.cohort/pairs/NAME.json its marker, written last: recipe, sha256 of inputs and results, the row of the summary
    O/.cohort/work/ID/        where a worker writes; O/.cohort/work/ID.lock is locked as long as the worker lives

Every step is a rename within one file system, so that a process may be killed between any two of them: a folder without
a marker, or a marker that its folder contradicts, is a pair to be done again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from shared_components.errors import InputError
from shared_components.images.files import sha256_of

from .inputs import changed_input
from .lists import Task
from .recipe import Recipe, difference

HOME = ".cohort"
RESULTS = {"moved.nii.gz", "moved_label.nii.gz", "ddf.nii.gz", "inverse_ddf.nii.gz", "affine.tfm", "transform.json",
           "metrics.json", "run.json", "report.html", "uncertainty_mm.nii.gz", "fallback.tfm",
           "moved_fallback.nii.gz"}  # fmt: skip
_FORMAT = 1
_TRIES = 4
_SMALL = 1 << 16
Record = dict[str, Any]


class Ledger:
    """The records of a cohort in its output folder.

    Args:
        output_dir: of the cohort.
    """

    def __init__(self, output_dir: str | Path) -> None:
        self.output_dir = Path(output_dir)
        self.pairs, self.work = self.output_dir / HOME / "pairs", self.output_dir / HOME / "work"
        self.place = Path()  # see ``workplace``
        self._known: dict[str, tuple[tuple[int, int], Record]] = {}

    def read(self, name: str) -> Record | None:
        """Return the marker of a pair; None if there is none or it makes no sense."""
        path = self._marker(name)
        try:
            stat = path.stat()
            stamp = stat.st_mtime_ns, stat.st_ino
            if self._known.get(name, (None,))[0] != stamp:
                record = json.loads(path.read_bytes())
                if record["format"] != _FORMAT or record["row"]["name"] != name:
                    return None
                self._known[name] = stamp, record
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self._known[name][1]

    def write(self, name: str, record: Record) -> None:
        """Write the marker of a pair, whole.

        Raises:
            InputError: the file system refuses.
        """
        self.put(self._marker(name), json.dumps({"format": _FORMAT, **record}, indent=1) + "\n")

    def put(self, path: Path, text: str) -> None:
        """Write a file by way of the workplace, so that not even its temporary name shows among the results.

        Raises:
            InputError: the file system refuses.
        """
        temporary = self.place / uuid.uuid4().hex
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
            os.replace(temporary, path)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror or error}); free space or choose another output folder"
            ) from error

    def _marker(self, name: str) -> Path:
        return self.pairs / f"{name}.json"

    def state(self, task: Task, recipe: Recipe) -> tuple[str, str | None]:
        """Return ("ok" | "failed" | "waiting", why a pair that was done waits again or None).

        "ok" only if marker, recipe, inputs and results agree; a pair that failed is "failed", to be tried again.
        """
        record = self.read(task.name)
        if record is None:
            return "waiting", None
        changed = difference(record["recipe"], recipe) or changed_input(record["inputs"], task.item)
        if record["row"]["status"] != "ok":
            return ("failed", None) if changed is None else ("waiting", None)
        if changed is None and not _holds(self.output_dir / task.name, record["files"]):
            changed = "results changed or are missing"
        return ("ok", None) if changed is None else ("waiting", changed)

    def publish(self, name: str, results: Path, record: Record) -> None:
        """Put a folder of results in its place and write the marker.

        Raises:
            InputError: the file system refuses, or something lies there that is no result of a registration.
        """
        files = {file.name: _fact(file) for file in sorted(results.iterdir())}
        olds = [self.place / f"old-{uuid.uuid4().hex}" for _ in range(_TRIES)]
        for old in olds:
            try:
                self._replace(name, results, old, set(files))
                break
            except OSError as error:
                taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST)  # another run of the same command was faster
                if taken and old is not olds[-1]:
                    continue
                raise InputError(
                    f"results could not be moved to {self.output_dir / name} ({error.strerror}); choose another folder"
                ) from error
        self.write(name, {**record, "files": files})
        for old in olds:
            shutil.rmtree(old, ignore_errors=True)

    def _replace(self, name: str, results: Path, old: Path, new: set[str]) -> None:
        target = self.output_dir / name
        if target.exists() or target.is_symlink():
            self._check_replaceable(name, target, new)
            self._marker(name).unlink(missing_ok=True)  # from here on the pair counts as not done
            os.replace(target, old)
        os.replace(results, target)

    def fail(self, name: str, record: Record) -> None:
        """Write the marker of a pair that failed; older results of that name would belong to something else."""
        target = self.output_dir / name
        before = self.read(name)
        if before is not None and target.is_dir() and before.get("files"):
            for file in before["files"]:
                (target / file).unlink(missing_ok=True)
            _remove_if_empty(target)
        self.write(name, record)

    def _check_replaceable(self, name: str, target: Path, new: set[str]) -> None:
        """Refuse to replace what a cohort did not write."""
        before = (self.read(name) or {}).get("files") or {}
        here = {entry.name for entry in target.iterdir()} if target.is_dir() and not target.is_symlink() else {"it"}
        foreign = sorted(entry for entry in here - RESULTS - new - set(before) if not entry.startswith(".partial-"))
        if foreign:
            raise InputError(
                f"{target} holds {foreign[0]}, which no registration wrote, and would be replaced; "
                "give the pair another name or choose another output folder"
            )

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """Give a folder of one's own to write in, locked as long as this process lives, and removed after.

        Raises:
            InputError: the file system refuses.
        """
        try:
            lock, stream = self._locked()
            self.place = lock.with_suffix("")
            self.place.mkdir()
        except OSError as error:
            raise InputError(
                f"output folder {self.output_dir} cannot be written to ({error.strerror}); choose another"
            ) from error
        try:
            yield self.place
        finally:
            shutil.rmtree(self.place, ignore_errors=True)
            lock.unlink(missing_ok=True)
            stream.close()

    def _locked(self) -> tuple[Path, IO[str]]:
        for _ in range(_TRIES):
            self.work.mkdir(parents=True, exist_ok=True)
            lock = self.work / f"{uuid.uuid4().hex}.lock"
            stream = lock.open("w")
            _lock(stream.fileno())
            if lock.exists():  # nobody cleaned it away before it was locked
                return lock, stream
            stream.close()
        raise OSError(errno.EBUSY, "its locks vanish")

    def remove_if_unused(self) -> None:
        """Remove the folders that a run has made which came to nothing."""
        if not self.pairs.exists():
            for folder in (self.work, self.work.parent, self.output_dir):
                _remove_if_empty(folder)

    def clean(self) -> None:
        """Remove what killed processes left: work folders whose lock nobody holds."""
        for folder in self.work.glob("*"):
            lock = folder.with_suffix(".lock")
            if folder.suffix == ".lock":
                if not folder.with_suffix("").exists() and _is_free(folder):
                    folder.unlink(missing_ok=True)
            elif _is_free(lock):
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)


def _lock(descriptor: int) -> None:
    """Lock; where the file system knows no locks, nothing is ever cleaned, see ``_is_free``."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass


def _is_free(lock: Path) -> bool:
    """Tell whether a lock file is there and nobody holds it; never where locks are unknown."""
    try:
        with lock.open("r+") as stream:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:
        return False


def _fact(file: Path) -> Record:
    return {"size": file.stat().st_size, "sha256": sha256_of(file)}


def _holds(folder: Path, files: dict[str, Record]) -> bool:
    """Tell whether the results are those of the marker: names and sizes of all, and the bytes of the small ones."""
    try:
        for name, fact in files.items():
            if (folder / name).stat().st_size != fact["size"]:
                return False
            if fact["size"] <= _SMALL and sha256_of(folder / name) != fact["sha256"]:
                return False
    except (OSError, InputError):
        return False
    return True


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # something else lies there, which is not ours
        pass
