"""Bundles and classical tools on the same pairs: Dice, HD95, TRE, folds, seconds and memory, from their files."""

from __future__ import annotations

import itertools
import json as json_format
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tqdm import tqdm

from shared_components.cli import DONE
from shared_components.errors import InputError
from shared_components.images import atomic_path
from shared_components.pairs import find_subjects, read_datalist

from . import machine, peers
from .child import run_child
from .measure import measure, summarise
from .results import accuracy_text

SCRIPTS = Path(__file__).resolve().parent.parent
COLUMNS = (
    "dice", "dice_large", "hd95_mm", "hd95_large_mm", "tre_mm", "folds_percent", "ndv_percent", "sdlogj", "lost",
    "seconds", "command_seconds", "cpu_seconds", "peak_gb",
)  # fmt: skip
Pair = dict[str, str]


@dataclass(frozen=True)
class Method:
    """One row of the table: ``command(pair, folder)`` makes ``result`` in that folder; None for what needs no run."""

    name: str
    command: Any = None
    result: str | None = None
    shares: str | None = None  # name of the method whose run makes this one's result too


def own_methods(
    bundle: str, refine_steps: Sequence[int], without: Sequence[int], threads: int, extra: Sequence[str] = ()
) -> list[Method]:
    """Return the bundle's affine part, the bundle, the bundle refined, and refinement without any network."""
    runs = {bundle: (0, [])}
    runs |= {f"{bundle} + refine {steps}": (steps, []) for steps in refine_steps}
    runs |= {f"refine {steps} alone": (steps, ["--set", "stage=identity"]) for steps in without}
    found = [Method("identity"), Method(f"{bundle}, affine part", None, "affine.tfm", shares=bundle)]
    for name, (steps, words) in runs.items():

        def command(pair: Pair, folder: Path, steps: int = steps, words: Sequence[str] = words) -> list[str]:
            paths = ["--fixed", pair["fixed"], "--moving", pair["moving"], "--output_dir", str(folder)]
            how = ["--refine_steps", str(steps), "--threads", str(threads), "--no_report", *words, *extra]
            return [sys.executable, str(SCRIPTS / "register.py"), bundle, *paths, *how]

        found.append(Method(name, command, "ddf.nii.gz"))
    return found


def peer_method(name: str, python: str) -> Method:
    """Return a classical tool, run by an interpreter that has it."""

    def command(pair: Pair, folder: Path) -> list[str]:
        return [python, str(Path(peers.__file__)), name, pair["fixed"], pair["moving"], str(folder / "ddf.nii.gz")]

    return Method(name, command, "ddf.nii.gz")


def find_pairs(data: str | Path, section: str = "validation", limit: int | None = None) -> list[Pair]:
    """Return labelled pairs: of a datalist (.json), or all ordered pairs of a folder's validation subjects.

    Raises:
        InputError: no pairs, or pairs without labels.
    """
    where = Path(data)
    items = read_datalist(where, section) if where.suffix == ".json" else find_subjects(where)[section]
    if items and "moving" not in items[0]:
        items = [
            {"fixed": a["image"], "moving": b["image"], "fixed_label": a.get("label"), "moving_label": b.get("label")}
            for a, b in itertools.permutations(items, 2)
        ]
    if not items:
        raise InputError(f"{data} has no {section} pairs; give a folder of *_t1.nii.gz and *_labels.nii.gz, or a list")
    for pair in items:
        if not pair.get("fixed_label") or not pair.get("moving_label"):
            raise InputError(f"{pair['fixed']} and {pair['moving']} have no labels to be measured with; add them")
    return items[:limit]


def _facts(method: Method, folder: Path, out: str) -> dict[str, Any]:
    """Return the seconds that the tool itself counted, and its version."""
    if (folder / "run.json").exists():
        return {"seconds": json_format.loads((folder / "run.json").read_text())["seconds"]}
    told = json_format.loads(out.strip().splitlines()[-1])
    return {"seconds": told["seconds"], "version": f"{told['tool']} {told['version']}"}


def _one_pair(methods: list[Method], pair: Pair, work: Path, threads: int, skipped: dict[str, str]) -> list[dict]:
    rows: list[dict[str, Any]] = []
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")}
    for method in sorted(methods, key=lambda method: method.shares is not None):  # what others' runs make comes last
        if method.name in skipped:
            continue
        folder, facts = work / (method.shares or method.name), {}
        if method.command:
            folder.mkdir(parents=True)
            try:
                command = method.command(pair, folder)
                ours = command[1].endswith("register.py")  # its exit code tells the verdict
                facts, out = run_child(command, limits, allowed=DONE if ours else (0,))
            except RuntimeError as error:
                tqdm.write(f"{method.name}: {error}", file=sys.stderr)
                if "is skipped" in str(error):  # not installed: so for every pair
                    skipped[method.name] = str(error)
                else:
                    rows.append({"method": method.name, **_names(pair), "error": str(error)})
                continue
            facts |= _facts(method, folder, out)
        result = folder / method.result if method.result else None
        if result is not None and not result.exists():  # a bundle without affine part, or a run that failed
            continue
        rows.append({"method": method.name, **_names(pair), **measure(pair, result), **facts})
    return rows


def _names(pair: Pair) -> dict[str, str]:
    return {side: Path(pair[side]).name.removesuffix(".gz").removesuffix(".nii") for side in ("fixed", "moving")}


def accuracy(
    bundle: str = "vtn",
    data: str = "",
    section: str = "validation",
    refine_steps: Sequence[int] | int = (60,),
    refine_alone: Sequence[int] | int = (),
    with_peers: Sequence[str] | str = peers.NAMES,
    peer_python: str = sys.executable,
    threads: int | None = None,
    limit: int | None = None,
    options: Sequence[str] | str = (),
    json: str | None = None,
) -> dict[str, Any]:
    """Register every pair with the bundle and with the peers, measure all fields alike, print and keep the table.

    Args:
        bundle: short name or folder, as for ``register.py``.
        data: folder of subjects, all ordered pairs of whose validation subjects are taken, or a datalist (.json).
        section: of the subjects or of the list.
        refine_steps: one row each beside the bundle without refinement.
        refine_alone: one row each for refinement from the identity, without the network.
        with_peers: names in ``peers.NAMES``; what is not installed is skipped with a sentence.
        peer_python: interpreter of the environment that has them.
        threads: for all; None takes every core.
        limit: only the first pairs.
        options: further words for ``register.py``.
        json: where to keep the rows. What a file of the same command holds already is not run again.
    """
    threads = threads or os.cpu_count() or 1
    steps, alone, chosen, extra = map(_several, (refine_steps, refine_alone, with_peers, options))
    unknown = sorted(set(chosen) - set(peers.NAMES))
    if unknown:
        raise InputError(f"there is no peer '{unknown[0]}'; choose from {', '.join(peers.NAMES)}")
    methods = own_methods(bundle, steps, alone, threads, [str(word) for word in extra])
    methods += [peer_method(name, peer_python) for name in chosen]
    pairs = find_pairs(data, section, limit)
    lists = {"refine_steps": steps, "refine_alone": alone, "with_peers": chosen, "threads": [threads]}
    words = [f"--{name} {','.join(map(str, value))}" for name, value in lists.items() if value]
    command = " ".join(["python scripts/benchmark.py accuracy", f"--bundle {bundle} --data DATA", *words])
    result = _earlier(json, command, threads)
    known = {(row["method"], row["fixed"], row["moving"]) for row in result["rows"]}
    for pair in tqdm(pairs, desc="pairs", file=sys.stderr):
        left = [method for method in methods if (method.name, *_names(pair).values()) not in known]
        with TemporaryDirectory() as work:
            result["rows"] += _one_pair(left, pair, Path(work), threads, result["skipped"])
        _keep(json, result)
    result["summary"] = {m.name: _summary(result["rows"], m.name) for m in methods if m.name not in result["skipped"]}
    _keep(json, result)
    print(accuracy_text(result))
    return result


def _summary(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    mine = [row for row in rows if row["method"] == name]
    failed = sum("error" in row for row in mine)
    versions = sorted({row["version"] for row in mine if "version" in row})
    return {"pairs": len(mine), "failed": failed, "versions": versions, **summarise(mine, list(COLUMNS))}


def _several(value: Any) -> list[Any]:
    if value in (None, ""):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [part for part in str(value).split(",") if part]


def _earlier(json_file: str | None, command: str, threads: int) -> dict[str, Any]:
    """Return what an interrupted run of the same command has left, or an empty result."""
    if json_file and Path(json_file).exists():
        found = json_format.loads(Path(json_file).read_text())
        if found.get("command") != command:
            raise InputError(f"{json_file} was made with other settings; move it away or name another file")
        return found
    torch.set_num_threads(threads)
    known = {"versions": machine.versions(), "machine": machine.facts(torch.device("cpu"))}
    return {"command": command, **known, "skipped": {}, "rows": []}


def _keep(json_file: str | None, result: dict[str, Any]) -> None:
    if json_file:
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(json_file) as place:
            place.write_text(json_format.dumps(result, indent=1) + "\n")
