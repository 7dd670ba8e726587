"""Spoil a file and hand it to a command: ``python fuzz_commands.py FOLDER COUNT SEED`` prints one line of JSON.

The readers alone are fuzzed by fuzz_files.py. Here the whole command runs: register.py with spoilt images, labels,
masks, points, initial transforms, lists, series and records to replay; apply_transform.py with spoilt fields, affines
and what they are applied to; cohort.py with spoilt tables. It must end with results, or with one sentence and code 2.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import resource
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from fuzz_files import ANY, NIFTI, SECONDS, Spoil
from script_tools import ROOT, blob, make_weights, save, tiny_options

sys.path.insert(0, str(ROOT / "scripts"))
import apply_transform  # noqa: E402
import cohort  # noqa: E402
import register  # noqa: E402

from shared_components.itk_io import write_affine  # noqa: E402
from shared_components.points import write_points  # noqa: E402

SHAPE = (12, 11, 10)
ODD = (None, -1, 0, 10**30, 1e308, "", "x", "../x", "\0", "$print(1)", "@x", [], {}, [[]], {"a": None}, True)
DONE = (0, 3, 4)
Argv = list[str]


@dataclass(frozen=True)
class Case:
    """A file, the ways to spoil it, and the command that gets it under the name ``{}``.

    A folder that the command needs the file in is copied as a whole, with the spoilt file in it, and ``{}`` is that.
    """

    file: str
    ways: tuple[Spoil, ...]
    main: Callable[[Argv], int]
    argv: Argv
    share: float = 1.0


def odd_values(content: bytearray, rng: np.random.Generator) -> bytearray:
    """JSON with some of its values exchanged for odd ones, or taken out."""
    tree = json.loads(content)
    for _ in range(int(rng.integers(1, 4))):
        node: Any = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.7:
                node = node[key]
                continue
            if rng.random() < 0.2:
                del node[key]
            else:
                node[key] = ODD[int(rng.integers(len(ODD)))]
            break
    return bytearray(json.dumps(tree).encode())


def odd_cells(content: bytearray, rng: np.random.Generator) -> bytearray:
    """A table with some of its cells exchanged for odd ones."""
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(int(rng.integers(1, 4))):
        row = rows[int(rng.integers(len(rows)))]
        row[int(rng.integers(len(row)))] = str(ODD[int(rng.integers(len(ODD)))])
    return bytearray("\n".join(",".join(row) for row in rows).encode())


def vtn(folder: Path, **files: str) -> Argv:
    """A registration by a tiny VTN."""
    named = {"fixed": "fixed.nii", "moving": "moving.nii", "weights": "vtn.pt"} | files
    paths = [f"--{role}={name if name.startswith('{') else folder / name}" for role, name in named.items()]
    return ["vtn", *paths, f"--output_dir={folder / 'out'}", "--device=cpu", "--no_report", *tiny_options()]


def prepare(folder: Path) -> list[Case]:
    """Write good files and results; return what is done to them."""
    for side, shift in (("fixed", 0.0), ("moving", 0.8)):
        image = blob(SHAPE, shift)
        save(folder / f"{side}.nii", image.astype("float32"))
        save(folder / f"{side}_seg.nii", (image > 50).astype("uint8"))
    middle = nib.load(folder / "fixed.nii").affine[:3] @ [5, 5, 5, 1]
    for name in ("points.csv", "points.fcsv", "points.mrk.json"):
        write_points(folder / name, np.stack([middle, middle + 3]), ["a", "b"])
    write_affine(folder / "start.tfm", np.eye(4))
    make_weights(folder / "vtn.pt")
    pair = {"fixed": "fixed.nii", "moving": "moving.nii", "name": "p"}
    (folder / "pairs.json").write_text(json.dumps({"test": [pair]}))
    (folder / "pairs.csv").write_text("name,fixed,moving\np,fixed.nii,moving.nii\n")
    assert register.main([*vtn(folder), "--refine_steps=1", f"--output_dir={folder / 'done'}"]) in DONE
    for name in ("ddf", "inverse_ddf"):
        nib.save(nib.load(folder / "done" / f"{name}.nii.gz"), folder / f"{name}.nii")
    return [*registrations(folder), *applications(folder), *series(folder)]


def registrations(folder: Path) -> list[Case]:
    """register.py and cohort.py."""
    run, points = register.main, [f"points{suffix}" for suffix in (".csv", ".fcsv", ".mrk.json")]
    table = ["{}", "--bundle=vtn", f"--output_dir={folder / 'out'}", "--workers=0", "--device=cpu", "--no_report"]
    table += [f"--weights={folder / 'vtn.pt'}", *tiny_options()]
    listed = [text for text in vtn(folder) if not text.startswith(("--fixed", "--moving"))]
    return [
        Case("moving.nii", NIFTI, run, vtn(folder, moving="{}"), 3.0),
        Case("fixed.nii", NIFTI, run, vtn(folder, fixed="{}"), 3.0),
        Case("moving_seg.nii", NIFTI, run, vtn(folder, moving_label="{}")),
        Case("fixed_seg.nii", NIFTI, run, vtn(folder, fixed_mask="{}")),
        *(Case(name, ANY, run, vtn(folder, fixed_points="{}"), 0.5) for name in points),
        Case("start.tfm", ANY, run, vtn(folder, initial_transform="{}"), 0.5),
        Case("pairs.json", (*ANY, odd_values), run, [*listed, "--datalist={}"]),
        Case("pairs.csv", (*ANY, odd_cells), cohort.main, table),
        Case("done/transform.json", (*ANY, *[odd_values] * 4), run, ["--replay={}", "--device=cpu"], 3.0),
    ]


def applications(folder: Path) -> list[Case]:
    """apply_transform.py."""
    out, run = f"--output_dir={folder / 'out'}", apply_transform.main
    on = [f"--image={folder / 'moving.nii'}", f"--label={folder / 'moving_seg.nii'}", out]
    by = [f"--transform={folder / 'ddf.nii'}", out]
    reference = f"--reference={folder / 'fixed.nii'}"
    return [
        Case("ddf.nii", NIFTI, run, ["--transform={}", *on], 3.0),
        Case("inverse_ddf.nii", NIFTI, run, ["--transform={}", *by, f"--points={folder / 'points.csv'}"]),
        Case("start.tfm", ANY, run, ["--transform={}", reference, *on], 0.5),
        Case("moving.nii", NIFTI, run, [*by, "--image={}"]),
        Case("moving_seg.nii", NIFTI, run, [*by, "--label={}"]),
        Case("fixed.nii", NIFTI, run, [*by, f"--image={folder / 'moving.nii'}", "--reference={}"]),
        Case("points.csv", ANY, run, [*by, "--points={}"], 0.5),
        Case("done/transform.json", (*ANY, odd_values), run, ["--transform={}", "--transform={}", *on], 0.5),
    ]


def series(folder: Path) -> list[Case]:
    """register.py --series, a file and a folder of frames."""
    from test_series import cine

    cine(folder / "cine.nii")
    (folder / "frames").mkdir()
    for k in range(3):
        save(folder / "frames" / f"{k}.nii", blob((20, 24), 0.3 * k).astype("float32"), np.diag([2.0, 2, 2, 1]))
    with register.bundle_code(ROOT / "bundles" / "r2n2_registration"):
        from scripts.network import R2N2
    torch.save(R2N2(channels=2, steps=1).state_dict(), folder / "r2n2.pt")
    argv = ["r2n2", "--series={}", f"--weights={folder / 'r2n2.pt'}", f"--output_dir={folder / 'out'}", "--steps=1"]
    argv += ["--device=cpu", "--no_report", "--set=size=[24,24]", "--set=channels=2"]
    return [Case("cine.nii", NIFTI, register.main, argv, 2.0), Case("frames/1.nii", NIFTI, register.main, argv)]


def spoilt(case: Case, folder: Path, spoil: Spoil, rng: np.random.Generator) -> Path:
    """Write the spoilt file and return its path, or that of the folder that it is in."""
    source = folder / case.file
    content = spoil(bytearray(source.read_bytes()), rng)
    if "/" not in case.file:
        (folder / f"spoilt_{case.file}").write_bytes(content)
        return folder / f"spoilt_{case.file}"
    place = folder / "spoilt"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(source.parent, place)
    (place / source.name).write_bytes(content)
    return place


def outcome(case: Case, path: Path) -> str:
    """Return "done", "refused", or what went wrong."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = case.main([text.replace("{}", str(path)) for text in case.argv])
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    lines = err.getvalue().splitlines() or [""]
    if "Traceback" in err.getvalue():
        return f"a traceback: {lines[-1][:200]}"
    if code in DONE or (code == 1 and "differ from the run of" in lines[-1]):
        return "done"
    told = [line for line in lines if line.startswith(("error: ", "failed: "))]
    return "refused" if code == 2 and told and len(told[-1]) > 40 else f"code {code}: {lines[-1][:200]}"


def main(folder: Path, count: int, seed: int) -> dict[str, Any]:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        cases = prepare(folder)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    rng, shares = np.random.default_rng(seed), np.array([case.share for case in cases])
    told: Counter[str] = Counter()
    faults, slowest = [], 0.0
    for number, which in enumerate(rng.choice(len(cases), size=count, p=shares / shares.sum())):
        case = cases[which]
        spoil = case.ways[int(rng.integers(len(case.ways)))]
        path = spoilt(case, folder, spoil, rng)
        shutil.rmtree(folder / "out", ignore_errors=True)
        signal.alarm(SECONDS)  # its default action ends the process: a hang is seen as such
        begin = time.perf_counter()
        end = outcome(case, path)
        slowest = max(slowest, time.perf_counter() - begin)
        signal.alarm(0)
        left = [path.name for path in folder.rglob("*") if ".partial-" in path.name]
        told[end if end in ("done", "refused") else "fault"] += 1
        if end not in ("done", "refused") or left:
            faults.append(f"{number} {case.argv[0]} {case.file} {spoil.__name__}: {end} {left}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"told": dict(told), "faults": faults, "slowest_seconds": slowest, "peak_gb": peak / 2**30}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
