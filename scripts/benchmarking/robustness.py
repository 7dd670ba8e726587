"""How often an affine start succeeds on badly posed brains, and how fast: ours, plain ones, classical tools."""

from __future__ import annotations

import json as json_format
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from shared_components.errors import InputError
from shared_components.images import Image, read_image
from shared_components.pairs import find_subjects
from shared_components.pairs.frames import initial_world

from . import machine, robustness_peers, tables
from .child import run_child
from .robustness_cases import Case, Judge, draw_cases, subject_name, write_case
from .robustness_tables import OURS, PEERS, PLAIN, summarise, to_text
from .solver import torch_threads

METHODS = (*PLAIN, "ants_affine", "elastix_affine", "greedy_affine", "greedy_moments", *OURS)
TOGETHER = 10  # cases whose files lie on the disk at a time, and that a classical tool gets in one process
Row = dict[str, Any]


def robustness(
    data: str = "",
    peer_python: str = sys.executable,
    cases: int = 40,
    methods: Sequence[str] | str = METHODS,
    threads: int = 2,
    seed: int = 0,
    angle: float = 60.0,
    shift: float = 0.25,
    again: bool = False,
    json: str | None = None,
) -> dict[str, Any]:
    """Pose brains at random, let every method find them, print the table and keep everything.

    Args:
        data: folder of subjects, *_t1.nii.gz and *_labels.nii.gz; every fifth is used.
        peer_python: interpreter of the environment that has the classical tools.
        cases: pairs, half of them "same", half "across"; the first of many are those of few.
        methods: of header, centre_of_mass, meta_affine, multistart (":7" behind these two gives the number of starts)
            and those of robustness_peers.py, among them ants_initialiser and greedy_search, which are slow. What is
            not installed is skipped with a sentence.
        threads: for all.
        seed: of the cases.
        angle: bound of the rotation in degrees.
        shift: bound of the shift along each axis in fields of view.
        again: measure the methods anew, also where the JSON file has them.
        json: where to keep the result. A file of the same cases is completed: what it holds is not run again.

    Raises:
        InputError: an unknown method or interpreter, no cases or subjects, or a file of other settings.
    """
    chosen = _chosen(methods)
    if cases < 1:
        raise InputError(f"--cases must be at least 1, not {cases}")
    if shutil.which(peer_python) is None:
        raise InputError(f"--peer_python {peer_python} is no program; give the Python that has the classical tools")
    subjects = find_subjects(data)["validation"]
    drawn = draw_cases(subjects, cases, seed, angle, shift)
    names = [subject_name(subject["image"]) for subject in subjects]
    settings = {"cases": cases, "seed": seed, "angle": angle, "shift": shift, "threads": threads, "subjects": names}
    result = _earlier(json, settings)
    if again:
        result["rows"] = [row for row in result["rows"] if row["method"] not in chosen]
    for first in tqdm(range(0, cases, TOGETHER), desc=f"cases, {TOGETHER} at a time", file=sys.stderr):
        _some(drawn[first : first + TOGETHER], chosen, peer_python, result, lambda: _finish(json, result))
    _finish(json, result)
    print(to_text(result))
    return result


def _chosen(methods: Sequence[str] | str) -> list[str]:
    found = [name for name in (methods.split(",") if isinstance(methods, str) else methods) if name]
    for method in found:
        name, _, starts = method.partition(":")
        if name not in (*PLAIN, *OURS, *PEERS) or (starts and (name not in OURS or not starts.isdecimal())):
            raise InputError(f"there is no method '{method}'; choose from {', '.join((*PLAIN, *OURS, *PEERS))}")
    return found


def _some(cases: list[Case], methods: list[str], python: str, result: Row, keep: Callable[[], None]) -> None:
    """Write some cases, run what is missing on them, and add the rows to the result."""
    known = {(row["method"], row["case"]) for row in result["rows"]}
    needed = [case for case in cases if any((method, case.name) not in known for method in methods)]
    judges = {case.name: Judge(case) for case in needed}
    _tell(needed, judges, result["cases"])
    with TemporaryDirectory() as work:
        paths = {case.name: write_case(case, Path(work)) for case in needed}
        jobs = {
            name: [{"fixed": found["fixed"], "moving": path} for key, path in found.items() if key != "fixed"]
            for name, found in paths.items()
        }
        for method in methods:
            left = [case for case in needed if (method, case.name) not in known]
            if not left or method in result["skipped"]:
                continue
            todo = [job for case in left for job in jobs[case.name]]
            threads = result["settings"]["threads"]
            try:
                answers = iter(own(method, todo, threads) if _is_own(method) else peer(method, python, todo, threads))
            except RuntimeError as error:
                result["skipped"][method] = str(error)
                continue
            for case in left:
                mine = [next(answers) for _ in jobs[case.name]]
                result["rows"].append(judged(method, case, judges[case.name], mine))
            keep()


def _tell(cases: Sequence[Case], judges: dict[str, Judge], told: list[Row]) -> None:
    """Add what tells the cases to those told already."""
    names = {facts["case"] for facts in told}
    for case in cases:
        if case.name not in names:
            judge = judges[case.name]
            told.append(case.facts(judge.moving.frame) | {"dice_before": round(judge.dice(np.eye(4)), 4)})


def _is_own(method: str) -> bool:
    return method.partition(":")[0] in (*PLAIN, *OURS)


def judged(method: str, case: Case, judge: Judge, answers: Sequence[Row]) -> Row:
    """Return the row of a method and a case from its answers with and, for "across", without the pose."""
    row = {"method": method, "case": case.name, "kind": case.kind}
    for answer, how in zip(answers, ("", "without the pose: "), strict=False):
        if "error" in answer:
            return row | {"error": how + answer["error"]}
    worlds = [np.array(answer["world"]) for answer in answers]
    unposed = worlds[1] if case.kind == "across" else None
    row |= {"seconds": answers[0]["seconds"], **judge.numbers(worlds[0], unposed), "world": answers[0]["world"]}
    if unposed is not None:
        row |= {"unposed_world": answers[1]["world"], "unposed_seconds": answers[1]["seconds"]}
    return row | ({"version": answers[0]["version"]} if "version" in answers[0] else {})


def find(method: str, fixed: Image, moving: Image) -> np.ndarray:
    """Return the (4, 4) map fixed mm -> moving mm of one of our methods or of a plain one."""
    pair = fixed.array, fixed.frame, moving.array, moving.frame
    name, _, starts = method.partition(":")
    if name in PLAIN:
        return initial_world(*pair, name)
    from shared_components.pairs.affine_start import learned_world

    return learned_world(*pair, starts=int(starts) if starts else None, learned=name == "meta_affine")


def own(method: str, jobs: Sequence[dict[str, str]], threads: int) -> list[Row]:
    """Return the answers of a method of this process, the first job run once before it is timed.

    Raises:
        RuntimeError: its code or weights are not there; it is skipped.
    """
    answers: list[Row] = []
    with torch_threads(threads):
        for job in jobs:
            pair = read_image(job["fixed"], "fixed image"), read_image(job["moving"], "moving image")
            try:
                if not answers:
                    find(method, *pair)
                begin = time.perf_counter()
                world = find(method, *pair)
                answers.append({"world": world.tolist(), "seconds": round(time.perf_counter() - begin, 4)})
            except (ImportError, OSError) as error:
                raise RuntimeError(f"{method} is skipped: {error}") from error
            except (InputError, RuntimeError, ValueError) as error:
                answers.append({"error": str(error)})
    return answers


def peer(method: str, python: str, jobs: Sequence[dict[str, str]], threads: int) -> list[Row]:
    """Return the answers of a classical tool; a job at which its process dies is answered by an error.

    Raises:
        RuntimeError: not installed; it is skipped.
    """
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")}
    answers: list[Row] = []
    while len(answers) < len(jobs):
        with TemporaryDirectory() as work:
            todo, done, error = Path(work) / "jobs.json", Path(work) / "answers.jsonl", "it ended early"
            todo.write_text(json_format.dumps(jobs[len(answers) :]))
            try:
                run_child([python, robustness_peers.__file__, method, str(todo), str(done)], limits)
            except RuntimeError as fault:
                error = str(fault)
                if "is skipped" in error:
                    raise
            lines = done.read_text().splitlines() if done.exists() else []
        answers += [json_format.loads(line) for line in lines]
        if len(answers) < len(jobs):
            answers.append({"error": error})
    return answers


def _earlier(json_file: str | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a file of the same cases holds, fewer of them at most, or an empty result."""
    with torch_threads(settings["threads"]):
        facts = machine.facts(torch.device("cpu"))
    if not json_file or not Path(json_file).exists():
        known = {"versions": machine.versions(), "machine": facts, "settings": settings}
        return {**known, "skipped": {}, "cases": [], "rows": []}
    found = json_format.loads(Path(json_file).read_text())
    earlier = found.get("settings", {})
    same = {**earlier, "cases": settings["cases"]} == settings and earlier["cases"] <= settings["cases"]
    if not same or found["machine"]["cpu"] != facts["cpu"]:
        raise InputError(f"{json_file} was made with other settings or elsewhere; move it away or name another file")
    return found | {"versions": found["versions"] | machine.versions(), "settings": settings, "skipped": {}}


def _finish(json_file: str | None, result: dict[str, Any]) -> None:
    """Add command, versions and summary to the result, and keep it."""
    done = list(dict.fromkeys(row["method"] for row in result["rows"]))
    listed = {name: place for place, name in enumerate((*PLAIN, *PEERS, *OURS))}
    done.sort(key=lambda method: listed[method.partition(":")[0]])
    for row in result["rows"]:
        result["versions"] |= [row["version"].split()] if "version" in row else []
    given = {key: value for key, value in result["settings"].items() if key != "subjects"}
    options = {"data": "DATA", "peer_python": "PEERS/bin/python", **given, "methods": ",".join(done)}
    result["command"] = tables.command_line(robustness, options)
    result["summary"] = summarise(result["rows"], done)
    if json_file:
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
        tables.write_json(json_file, result)
