"""For the tests of cohorts: a tiny bundle, a few tiny pairs, runs in this process or in one that can be killed."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import json
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from script_tools import BUNDLE, SHAPE, TINY, blob, make_weights, save

KILLED = 9
SMALL_DISK = 200_000  # bytes
VOLATILE = ("run.json", "report.html")  # hold seconds and memory


def tiny_bundle(folder: Path) -> Path:
    """A folder like the VTN bundle whose configuration builds a tiny network."""
    root = folder / "tiny_registration"
    (root / "configs").mkdir(parents=True)
    (root / "scripts").symlink_to(BUNDLE / "scripts")
    for name in ("inference", "metadata"):
        config = json.loads((BUNDLE / "configs" / f"{name}.json").read_text())
        (root / "configs" / f"{name}.json").write_text(json.dumps(config | (TINY if "size" in config else {})))
    (root / "models").mkdir()
    make_weights(root / "models" / "model.pt")
    return root


def write_pairs(folder: Path, count: int) -> Path:
    """One fixed image with a label, ``count`` moving ones, and pairs.csv with relative paths."""
    save(folder / "fixed.nii.gz", blob(SHAPE).astype("float32"))
    save(folder / "fixed_seg.nii.gz", (blob(SHAPE) > 50).astype("uint8"))
    lines = ["name,fixed,moving,fixed_label,moving_label"]
    for number in range(count):
        image = blob(SHAPE, 0.1 + 0.7 * number / count)
        save(folder / f"m{number}.nii.gz", image.astype("float32"))
        save(folder / f"m{number}_seg.nii.gz", (image > 50).astype("uint8"))
        lines.append(f"p{number},fixed.nii.gz,m{number}.nii.gz,fixed_seg.nii.gz,m{number}_seg.nii.gz")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    return folder / "pairs.csv"


def command(pairs: Path, bundle: Path, output: Path, *more: str) -> list[str]:
    """Arguments of cohort.py for a run in one process on one thread."""
    options = [f"--bundle={bundle}", f"--output_dir={output}", "--device=cpu", "--threads=1", "--no_report"]
    return [str(pairs), *options, "--workers=0", *more]


def run(folder: Path, output: str = "out", *more: str) -> int:
    """Register the pairs of a folder with its bundle; the exit code."""
    import cohort

    return cohort.main(command(folder / "pairs.csv", folder / "tiny_registration", folder / output, *more))


def table(output: Path) -> list[dict[str, str]]:
    """The rows of summary.csv."""
    with (output / "summary.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def pairs_of(output: Path) -> list[str]:
    """The folders of pairs."""
    return sorted(path.name for path in output.iterdir() if path.is_dir() and not path.name.startswith("."))


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files but those with seconds in them, by path; hidden ones left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not name.parts[0].startswith("."):
            volatile = path.name in (*VOLATILE, "summary.csv", "index.html")
            found[str(name)] = b"" if volatile else path.read_bytes()
    return found


def markers(output: Path) -> dict[str, dict[str, Any]]:
    """The completion markers by pair."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((output / ".cohort" / "pairs").iterdir())}


def forkserver() -> Any:
    """Processes that begin with torch and MONAI loaded."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "monai.bundle", "cohort", "shared_components.results", "nibabel"])
    return context


def begin(argv: Sequence[str], stop_at: int | None = None, small: tuple[str, str] | None = None) -> Any:
    """Start a run in a process of its own, forked from one that has torch and MONAI loaded.

    With ``stop_at`` it dies, as of kill -9, before the so-manieth change of a name in the output folder. ``small``: a
    folder where it finds a disk of little space, and a file for what it then told.
    """
    process = forkserver().Process(target=_run, args=(list(argv), stop_at, small))
    process.start()
    return process


def _run(argv: list[str], stop_at: int | None, small: tuple[str, str] | None) -> None:
    import cohort

    if small is not None:
        _run_on_a_small_disk(argv, *small)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if stop_at is not None:
        _die_at(stop_at, next(text for text in argv if text.startswith("--output_dir=")).partition("=")[2])
    os._exit(cohort.main(argv))


def _run_on_a_small_disk(argv: list[str], folder: str, log: str) -> None:
    import cohort

    os.mkdir(folder)
    libc = ctypes.CDLL(None, use_errno=True)
    root = b"/", b"none", None
    private, new_mounts, new_user = (1 << 18) | (1 << 14), 0x20000, 0x10000000
    if libc.unshare(new_mounts) and libc.unshare(new_mounts | new_user):
        os._exit(77)
    if libc.mount(root[1], root[0], None, private, None):
        os._exit(77)
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, b"size=%d" % SMALL_DISK):
        os._exit(77)
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        code = cohort.main(argv)
    pairs = {path.name: sorted(os.listdir(path)) for path in Path(folder).iterdir() if path.name.startswith("p")}
    expected = max(pairs.values(), key=len, default=[])
    Path(log).write_text(json.dumps({"code": code, "err": told.getvalue(), "pairs": pairs, "expected": expected}))
    os._exit(0)


def _die_at(stop_at: int, folder: str) -> None:
    left = [stop_at]

    def wrap(function: Any) -> Any:
        def counted(path: Any, *args: Any, **options: Any) -> Any:
            left[0] -= options.get("dir_fd") is not None or os.fspath(path).startswith(folder)
            if left[0] < 0:
                os._exit(KILLED)
            return function(path, *args, **options)

        return counted

    for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
        setattr(os, name, wrap(getattr(os, name)))
