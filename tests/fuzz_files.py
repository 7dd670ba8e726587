"""Spoil files and read them: ``python fuzz_files.py FOLDER COUNT SEED`` prints what happened as one line of JSON.

Whatever a file holds, reading it must end with an image or with one sentence: no other exception, no minute lost, no
4 GB taken. The process is limited to 8 GB of addresses, so that a reader that believes an absurd header is stopped.
"""

from __future__ import annotations

import json
import logging
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import read_image, read_labels
from shared_components.itk_io import read_transform, write_affine, write_field
from shared_components.points import read_points, write_points
from shared_components.transform import PhysicalField

SHAPE, SECONDS = (7, 6, 5), 60
Spoil = Callable[[bytearray, np.random.Generator], bytearray]


def truncated(content: bytearray, rng: np.random.Generator) -> bytearray:
    return content[: int(rng.integers(len(content)))]


def flipped(content: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(len(content), size=int(rng.integers(1, 9))):
        content[place] ^= 1 << int(rng.integers(8))
    return content


def wrong_dims(content: bytearray, rng: np.random.Generator) -> bytearray:
    """dim[8] of the NIfTI header, int16 at byte 40."""
    dims = rng.choice([-32768, -1, 0, 1, 2, 7, 32767], size=8).astype("<i2")
    content[40:56] = np.where(rng.random(8) < 0.5, dims, np.frombuffer(content[40:56], "<i2")).tobytes()
    return content


def absurd_header(content: bytearray, rng: np.random.Generator) -> bytearray:
    """Data type, bits, voxel sizes, offset, scaling, forms and magic of the NIfTI header: extreme numbers."""
    floats = np.array([np.nan, np.inf, -np.inf, 0, -1, 1e38, 1e-38, 352.5], "<f4")
    for start in rng.choice([*range(76, 120, 4), *range(256, 328, 4)], size=6):
        content[start : start + 4] = rng.choice(floats).tobytes()
    for start in rng.choice([68, 70, 72, 74, 252, 254], size=2):
        content[start : start + 2] = rng.integers(-32768, 32768, dtype="i2").tobytes()
    return content


def noise(content: bytearray, rng: np.random.Generator) -> bytearray:
    return bytearray(rng.bytes(int(rng.integers(len(content)))))


NIFTI: tuple[Spoil, ...] = (truncated, flipped, wrong_dims, absurd_header, noise)
ANY: tuple[Spoil, ...] = (truncated, flipped, noise)


def sources(folder: Path) -> list[tuple[str, Callable[[Path], Any], tuple[Spoil, ...], float]]:
    """Write good files; return name, reader, ways to spoil, and share of the cases."""
    rng = np.random.default_rng(0)
    frame = Frame(SHAPE, np.diag([1.0, 1.5, 2.0, 1.0]))
    for dtype in ("uint8", "int16", "float32", "float64"):
        nib.save(nib.Nifti1Image(rng.uniform(0, 200, SHAPE).astype(dtype), frame.affine), folder / f"{dtype}.nii")
    nib.save(nib.Nifti1Image(rng.uniform(0, 200, SHAPE).astype("int16"), frame.affine), folder / "packed.nii.gz")
    nib.save(nib.Nifti1Image(rng.integers(0, 4, SHAPE).astype("uint8"), frame.affine), folder / "labels.nii")
    write_field(folder / "field.nii", PhysicalField(frame, rng.normal(size=(3, *SHAPE)).astype("f4")))
    write_affine(folder / "affine.tfm", np.eye(4))
    for name in ("points.csv", "points.fcsv", "points.mrk.json"):
        write_points(folder / name, rng.uniform(0, 4, (5, 3)), list("abcde"))
    images = [(f"{dtype}.nii", read_image, NIFTI, 4.0) for dtype in ("uint8", "int16", "float32", "float64")]
    others = [("field.nii", read_transform, NIFTI), ("affine.tfm", read_transform, ANY)]
    others += [(name, read_points, ANY) for name in ("points.csv", "points.fcsv", "points.mrk.json")]
    return [*images, ("packed.nii.gz", read_image, ANY, 4.0), ("labels.nii", read_labels, NIFTI, 2.0)] + [
        (*one, 1.0) for one in others
    ]


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    """Return "read", "refused", or what went wrong."""
    try:
        read(path)
        return "read"
    except InputError as error:
        text = str(error)
        good = "\n" not in text and path.name in text and len(text) > 30
        return "refused" if good else f"no sentence: {text[:200]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"


def main(folder: Path, count: int, seed: int) -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    rng, files = np.random.default_rng(seed), sources(folder)
    shares = np.array([share for *_, share in files])
    told: Counter[str] = Counter()
    faults, slowest = [], 0.0
    for number, which in enumerate(rng.choice(len(files), size=count, p=shares / shares.sum())):
        name, read, ways, _ = files[which]
        spoil = ways[int(rng.integers(len(ways)))]
        path = folder / f"spoilt_{name}"
        path.write_bytes(spoil(bytearray((folder / name).read_bytes()), rng))
        signal.alarm(SECONDS)  # its default action ends the process: a hang is seen as such
        begin = time.perf_counter()
        end = outcome(read, path)
        slowest = max(slowest, time.perf_counter() - begin)
        signal.alarm(0)
        told[end if end in ("read", "refused") else "fault"] += 1
        if end not in ("read", "refused"):
            faults.append(f"{number} {name} {spoil.__name__}: {end}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"told": dict(told), "faults": faults, "slowest_seconds": slowest, "peak_gb": peak / 2**30}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
