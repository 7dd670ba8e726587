"""Repeat a run from its record: the same bundle, weights, files and options, and the same bytes, or a sentence."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared_components.errors import InputError
from shared_components.images.files import existing_file, sha256_of

from .record import FILES, OPTIONS, Record, is_set, read_record

_OTHERS = (*OPTIONS, "datalist", "section", "fixed_frame")


class ResultDiffersError(RuntimeError):
    """The run was repeated and did not give the same bytes."""


def replay(options: argparse.Namespace, find_bundle: Callable[[str], Path], run: Callable[..., None]) -> None:
    """Repeat the run of ``options.replay`` into ``options.output_dir``; without one, only compare the results.

    Args:
        options: of register.py. Files and weights in them say where those of the record lie now.
        find_bundle: folder of a bundle by its name.
        run: registers with options, ``register.register``.

    Raises:
        InputError: no such record, or bundle, weights or a file are not those of it.
        ResultDiffersError: naming the results that differ.
    """
    record = read_record(options.replay)
    _check_alone(options, record)
    root = find_bundle(options.bundle or record.bundle[0])
    _check_bundle(root, record)
    folders = list(dict.fromkeys([Path.cwd(), *list(record.path.parents)[:3]]))
    again = _options(options, record, root, folders)
    _tell_versions(record)
    if options.output_dir is not None:
        target = Path(options.output_dir).expanduser().absolute()
        if target.resolve() == record.path.parent.resolve():
            raise InputError(f"--output_dir {target} holds the run to be repeated; give another folder")
        _repeat(again, record, target, run)
        return
    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        _repeat(again, record, Path(folder) / "out", run)


def _check_alone(options: argparse.Namespace, record: Record) -> None:
    """Options come from the record, files may be told anew: but only such as it names."""
    known = record.files
    for name in _OTHERS:
        if is_set(getattr(options, name)):
            raise InputError(f"--replay takes the options from {record.path}; leave --{name} out")
    if options.set:
        raise InputError(f"--replay takes the options from {record.path}; leave --set {options.set[0]} out")
    for name in _files_of(options):
        if name not in known:
            raise InputError(f"the run of {record.path} took no file as --{name}; leave it out")


def _files_of(options: argparse.Namespace) -> dict[str, str]:
    given = {name: getattr(options, name) for name in (*FILES, "series", "initial_transform")}
    return {name: path for name, path in given.items() if path is not None}


def _check_bundle(root: Path, record: Record) -> None:
    name, version = record.bundle
    metadata = root / "configs" / "metadata.json"
    here = str(json.loads(metadata.read_text()).get("version", "")) if metadata.is_file() else ""
    if (root.name, here) != (name, version):
        raise InputError(
            f"{record.path} was made by {name} {version} and {root} is {root.name} {here}; give the folder of that "
            "version as BUNDLE"
        )


def _options(options: argparse.Namespace, record: Record, root: Path, folders: Sequence[Path]) -> argparse.Namespace:
    """Return the options of the first run, with the files where they lie now."""
    again = argparse.Namespace(**{**vars(options), "replay": None, "bundle": str(root)})
    for name in OPTIONS:
        setattr(again, name, record.options.get(name, getattr(options, name)))
    again.set, again.initial_transform = record.options.get("set", []), record.options.get("initial_transform")
    again.fixed_frame = record.fixed_frame
    given = _files_of(options)
    for role, known in record.files.items():
        setattr(again, role, str(_find(role, known, given.get(role), folders, record)))
    if options.threads is None:
        threads = record.run.get("threads")
        again.threads = threads if isinstance(threads, int) and threads > 0 else None
    if record.weights is not None:
        again.weights = str(_weights(options, record, root, folders))
    return again


def _find(role: str, known: dict[str, str], given: str | None, folders: Sequence[Path], record: Record) -> Path:
    """Return the file of a role: where it is said to be, else by its name near the record; its bytes must be the same.

    Raises:
        InputError: it is not there, or another one.
    """
    places = [folder / Path(known["file"]).name for folder in folders]
    if given is not None:
        given_path = Path(given).expanduser().absolute()
        folder = role == "series" and given_path.is_dir()
        places = [given_path if folder else existing_file(given_path, role.replace("_", " "))]
    there = [place for place in places if _is_there(role, place)]
    found = next((place for place in there if _sha256(role, place) == known["sha256"]), None)
    if found is not None:
        return found
    if there:
        raise InputError(
            f"{role.replace('_', ' ')} {there[0]} is not the file that {record.path} was made with (sha256 "
            f"{_sha256(role, there[0])[:12]}... instead of {known['sha256'][:12]}...); give that one with --{role}"
        )
    raise InputError(
        f"{role.replace('_', ' ')} {known['file']} of {record.path} is not in {', '.join(map(str, folders))}; "
        f"give its path with --{role}"
    )


def _is_there(role: str, path: Path) -> bool:
    return (path.is_file() and path.stat().st_size > 0) or (role == "series" and path.is_dir())


def _sha256(role: str, path: Path) -> str:
    """Of a file, or of a series, which may be a folder."""
    if role != "series":
        return sha256_of(path)
    from shared_components.pairs.series import identify_series  # with torch, seconds to import

    return identify_series(path)["sha256"]


def _weights(options: argparse.Namespace, record: Record, root: Path, folders: Sequence[Path]) -> Path:
    """Return the weights of the record: those given, else the bundle's, else a file of that name near the record."""
    known = record.weights
    if options.weights is None:
        own = _own_weights(root, record.options.get("config"))
        if own.is_file() and own.stat().st_size and sha256_of(own) == known["sha256"]:
            return own
        if own.name == known["file"]:
            folders = [*folders, own.parent]
    return _find("weights", known, options.weights, folders, record)


def _own_weights(root: Path, config: str | None) -> Path:
    """Return the path that the bundle's configuration names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.bundle import ConfigParser  # seconds to import: after what can fail at once
    names = ["inference", *([config.removesuffix(".json")] if config else [])]
    files = [root / "configs" / f"{name}.json" for name in names]
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files if file.is_file()]))
    parser["bundle_root"] = str(root)
    return Path(parser.get_parsed_content("weights"))


def _tell_versions(record: Record) -> None:
    """Tell what may change the last digits."""
    changed = [f"{name} {was} is now {now}" for name, (was, now) in _versions(record).items() if was != now]
    if changed:
        print(f"other versions than in {record.path}: {', '.join(changed)}", file=sys.stderr, flush=True)


def _versions(record: Record) -> dict[str, tuple[Any, Any]]:
    from shared_components.results.records import library_versions  # with torch, seconds to import

    return {name: (record.content["versions"].get(name), now) for name, now in library_versions().items()}


def _repeat(again: argparse.Namespace, record: Record, target: Path, run: Callable[..., None]) -> None:
    again.output_dir = str(target)
    run(again)
    results = read_record(target / "transform.json").content["results"]
    known = record.content["results"]
    differ = sorted(name for name in {*results, *known} if results.get(name) != known.get(name))
    if differ:
        raise ResultDiffersError(
            f"{', '.join(differ)} differ from the run of {record.path}; versions, device ({record.run.get('device')}) "
            f"and threads ({record.run.get('threads')}) must be the same for the same bytes"
        )
    print(f"the same bytes as {record.path} tells of: {', '.join(sorted(known))}")
