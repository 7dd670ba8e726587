"""Classical registration of one pair of images, one adapter a tool: two arrays in, one field out.

    python pair_peers.py NAME PAIR.npz DDF.npy FACTS.json THREADS

Runs in a process of its own and imports nothing of this project, so that it can live in another environment
(``pip install itk-elastix antspyx picsl-greedy SimpleITK``). PAIR has "image" (2, *size), fixed and moving, and
"spacing_mm". DDF gets the displacement (D, *size) float32 in voxels, component k along axis k, from the fixed image's
voxels to the moving image's. FACTS gets {"seconds", "cpu_seconds" of the registration alone, "tool", "failed",
"message"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

NEEDS = {  # method -> package
    "elastix": "itk-elastix",
    "elastix_30mm": "itk-elastix",
    "syn": "antspyx",
    "syn_mi": "antspyx",
    "greedy": "picsl-greedy",
    "greedy_2d": "picsl-greedy",
    "demons": "SimpleITK",
}
RESOLUTIONS, GRID_SPACING_MM = 4, 10.0  # the defaults, 256 iterations of 2048 samples each
COARSE_MM = 30.0  # better than 10 mm, and than either after an affine part, on validation pairs of the abdomen
Found = tuple[np.ndarray, float, float]  # field (D, *size) in mm, seconds, CPU seconds
FilesTool = Callable[[str, str, str, str], tuple[str, float]]  # fixed, moving, field, folder -> version, seconds
Adapter = Callable[[np.ndarray, np.ndarray, Sequence[float], int], Found]


def elastix(
    fixed: np.ndarray,
    moving: np.ndarray,
    spacing_mm: Sequence[float],
    threads: int,
    knots_mm: float = GRID_SPACING_MM,
) -> Found:
    """B-splines by mutual information with bending energy, stochastic gradient descent, 4 resolutions; no affine part.

    The default map "bspline" of SimpleElastix, which the paper used. The labels go through the field that transformix
    gives, in the same way as those of all others.
    """
    from importlib.metadata import version

    import itk

    version("itk-elastix")  # ITK alone imports as well
    maps = itk.ParameterObject.New()
    settings = maps.GetDefaultParameterMap("bspline", RESOLUTIONS, knots_mm)
    settings["WriteResultImage"] = ["false"]
    maps.AddParameterMap(settings)
    images = [_image(itk, array, spacing_mm) for array in (fixed, moving)]
    begin = time.perf_counter(), time.process_time()
    _, found = itk.elastix_registration_method(
        *images, parameter_object=maps, log_to_console=False, number_of_threads=threads
    )
    seconds, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    field = itk.array_from_image(itk.transformix_deformation_field(images[1], found))
    return np.ascontiguousarray(field.T), seconds, cpu  # ITK's first axis is the array's last


def _image(itk: object, array: np.ndarray, spacing_mm: Sequence[float]) -> object:
    made = itk.image_from_array(np.ascontiguousarray(array.T, dtype=np.float32))
    made.SetSpacing([float(step) for step in spacing_mm])
    return made


def syn(fixed: str, moving: str, out: str, folder: str) -> tuple[str, float]:
    """ANTsPy's SyNCC: rigid and affine by mutual information, then correlation in windows of radius 4 (AVSM sec. 3)."""
    import ants

    images = ants.image_read(fixed), ants.image_read(moving)
    begin = time.perf_counter()
    found = ants.registration(*images, type_of_transform="SyNCC", outprefix=f"{folder}/a", random_seed=1)
    seconds = time.perf_counter() - begin
    field = ants.apply_transforms(*images, transformlist=found["fwdtransforms"], compose=f"{folder}/all_")
    os.replace(field, out)
    return ants.__version__, seconds


def greedy_2d(fixed: str, moving: str, out: str, folder: str) -> tuple[str, float]:
    """Greedy on two slices: local NCC of radius 2, 100/50/10 iterations over three levels; no affine part."""
    from importlib.metadata import version

    from picsl_greedy import Greedy2D

    tool, threads = Greedy2D(), os.environ.get("OMP_NUM_THREADS", "1")
    begin = time.perf_counter()
    tool.execute(f"-threads {threads} -m NCC 2x2 -i {fixed} {moving} -n 100x50x10 -o {folder}/warp.nii.gz")
    seconds = time.perf_counter() - begin
    tool.execute(f"-threads {threads} -rf {fixed} -r {folder}/warp.nii.gz -rc {out}")
    return version("picsl-greedy"), seconds


def of_benchmark(tool: str, kind: str) -> FilesTool:
    """Return a tool as the benchmark runs it, with the settings that are told there."""

    def run(*paths: str) -> tuple[str, float]:
        from benchmarking import peers

        return getattr(peers, tool)(kind, *paths)

    return run


def by_files(
    tool: FilesTool, fixed: np.ndarray, moving: np.ndarray, spacing_mm: Sequence[float], threads: int
) -> Found:
    """Run a tool that reads and writes files; the seconds are its own count, CPU seconds hold the files too."""
    import SimpleITK as sitk

    with TemporaryDirectory() as folder:
        paths = [f"{folder}/{name}.nii.gz" for name in ("fixed", "moving", "field")]
        for array, path in zip((fixed, moving), paths, strict=False):
            image = sitk.GetImageFromArray(np.ascontiguousarray(array.T, dtype=np.float32))
            image.SetSpacing([float(step) for step in spacing_mm])
            sitk.WriteImage(image, path)
        begin = time.process_time()
        _, seconds = tool(*paths, folder)
        cpu = time.process_time() - begin
        field = sitk.GetArrayFromImage(sitk.ReadImage(paths[-1]))
    return np.ascontiguousarray(field.T), seconds, cpu


ADAPTERS: dict[str, Adapter] = {
    "elastix": elastix,
    "elastix_30mm": partial(elastix, knots_mm=COARSE_MM),
    "syn": partial(by_files, syn),
    "syn_mi": partial(by_files, of_benchmark("ants", "syn")),
    "greedy": partial(by_files, of_benchmark("greedy", "ncc")),
    "greedy_2d": partial(by_files, greedy_2d),
    "demons": partial(by_files, of_benchmark("demons", "")),
}


def register(adapter: Adapter, images: np.ndarray, spacing_mm: Sequence[float], threads: int) -> tuple:
    """Run an adapter; return the field in voxels, or None where the tool gave up, and the facts."""
    begin = time.perf_counter(), time.process_time()
    try:
        field, seconds, cpu = adapter(*images, spacing_mm, threads)
    except RuntimeError as error:  # what ITK raises where the images do not meet any more
        seconds, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        return None, _facts(seconds, cpu, str(error).strip().splitlines()[-1])
    ddf = field / np.reshape(spacing_mm, (-1, *(1,) * (field.ndim - 1)))
    if not np.isfinite(ddf).all():
        return None, _facts(seconds, cpu, "the field is not finite")
    return ddf.astype(np.float32), _facts(seconds, cpu)


def _facts(seconds: float, cpu: float, message: str = "") -> dict:
    return {"seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "failed": bool(message), "message": message}


def main(name: str, pair: str, out: str, told: str, threads: str) -> None:
    """Register the pair and write field and facts."""
    from importlib.metadata import version

    with np.load(pair) as given:
        images, spacing_mm = given["image"], given["spacing_mm"].tolist()
    try:
        tool = f"{NEEDS[name]} {version(NEEDS[name])}"
        ddf, facts = register(ADAPTERS[name], images, spacing_mm, int(threads))
    except ImportError as error:
        sys.exit(f"{name} is skipped: {error}; pip install {error.name or NEEDS[name]}")
    if ddf is not None:
        np.save(out, ddf)
    with open(told, "w") as file:
        json.dump(facts | {"tool": tool}, file)


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # where the benchmark lies
    main(*sys.argv[1:6])
