"""Classical affine registration tools on pairs of pictures, one short adapter each: two arrays in, one map out.

    python meta_affine_peers.py NAME CASES.npz OUT.json COUNT

Runs in a process of its own and imports nothing of this project, so that it can live in another environment
(``pip install itk-elastix SimpleITK antspyx``). CASES has "image" (N, 2, n, n), fixed and moving. OUT gets "x", the
first COUNT maps as [a11, a12, a21, a22, b1, b2] with phi(z) = A z + b from fixed to moving in Omega = [-1, 1]^2, whose
component k runs along axis k of the array (null where the tool gave up), and seconds and CPU seconds of each: between
images in memory and the map in memory. Every tool sees pixels of 1 mm, their centre at the origin.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

NEEDS = {"elastix": "itk-elastix", "simpleitk": "SimpleITK", "ants_initialiser": "antspyx"}
Map = tuple[np.ndarray, np.ndarray]  # A (2, 2) and b (2,) in pixels
Adapter = Callable[[np.ndarray, np.ndarray], Map]


def about(matrix: Sequence[float], shift: Sequence[float], centre: Sequence[float]) -> Map:
    """Return A and b of ITK's p -> M (p - c) + c + t."""
    A, t, c = np.reshape(matrix, (2, 2)), np.asarray(shift), np.asarray(centre)
    return A, c + t - A @ c


def elastix(folder: str) -> Adapter:
    """Elastix, the paper's best setting: L-BFGS on mean squares, 4 levels, all pixels; from the images' centres."""
    from importlib.metadata import version

    import itk

    version("itk-elastix")  # ITK alone imports as well
    chosen = {
        "Metric": "AdvancedMeanSquares",
        "Optimizer": "QuasiNewtonLBFGS",
        "ImageSampler": "Full",
        "NewSamplesEveryIteration": "false",
        "NumberOfResolutions": "4",
        "MaximumNumberOfIterations": "200",
        "AutomaticTransformInitialization": "false",
        "AutomaticScalesEstimation": "true",
        "WriteResultImage": "false",
    }
    maps = itk.ParameterObject.New()
    settings = maps.GetDefaultParameterMap("affine", 4)
    for key, value in chosen.items():
        settings[key] = [value]
    maps.AddParameterMap(settings)

    def image(array: np.ndarray) -> object:
        made = itk.image_from_array(np.ascontiguousarray(array.T))  # ITK's first axis is the array's last
        made.SetOrigin([-(n - 1) / 2 for n in array.shape])
        return made

    def run(fixed: np.ndarray, moving: np.ndarray) -> Map:
        _, found = itk.elastix_registration_method(
            image(fixed), image(moving), parameter_object=maps, log_to_console=False, number_of_threads=1
        )
        last = found.GetParameterMap(0)
        numbers = [float(value) for value in last["TransformParameters"]]
        return about(numbers[:4], numbers[4:], [float(value) for value in last["CenterOfRotationPoint"]])

    return run


def simpleitk(folder: str) -> Adapter:
    """SimpleITK: gradient descent with line search on mean squares, 4 levels, all pixels; from the images' centres."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)

    def image(array: np.ndarray) -> object:
        made = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
        made.SetOrigin([-(n - 1) / 2 for n in array.shape])
        return made

    def run(fixed: np.ndarray, moving: np.ndarray) -> Map:
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMeanSquares()
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsGradientDescentLineSearch(1.0, 100, 1e-6, 10)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([8, 4, 2, 1])
        method.SetSmoothingSigmasPerLevel([4, 2, 1, 0])
        method.SetInitialTransform(sitk.AffineTransform(2), inPlace=True)
        found = sitk.AffineTransform(method.Execute(image(fixed), image(moving)))
        return about(found.GetMatrix(), found.GetTranslation(), found.GetCenter())

    return run


def ants_initialiser(folder: str) -> Adapter:
    """ANTs' affine initialiser: every 20 degrees within +-63 (its default arc is +-18), 10 iterations from each."""
    import ants

    path = f"{folder}/found.mat"

    def image(array: np.ndarray) -> object:
        array = array - array.min()  # it starts at the centres of mass, which need values from 0 on
        return ants.from_numpy(array, origin=tuple(-(n - 1) / 2 for n in array.shape), spacing=(1.0, 1.0))

    def run(fixed: np.ndarray, moving: np.ndarray) -> Map:
        ants.affine_initializer(image(fixed), image(moving), search_factor=20, radian_fraction=0.35, txfn=path)
        found = ants.read_transform(path)
        return about(found.parameters[:4], found.parameters[4:], found.fixed_parameters)

    return run


def register(adapter: Adapter, images: np.ndarray) -> dict[str, list]:
    """Run an adapter over pairs (N, 2, n, n); a pair on which it fails gets null and its message."""
    pixel = 2 / max(images.shape[2:])
    rows: dict[str, list] = {"x": [], "seconds": [], "cpu_seconds": [], "failures": []}
    for fixed, moving in images.astype(np.float32):
        begin = time.perf_counter(), time.process_time()
        try:
            A, b = adapter(fixed, moving)
            x = [*map(float, A.ravel()), *map(float, pixel * b)]
        except RuntimeError as error:  # what ITK raises where the images do not meet any more
            x = None
            rows["failures"].append(str(error).strip().splitlines()[-1])
        rows["x"].append(x if x is None or np.isfinite(x).all() else None)
        rows["seconds"].append(round(time.perf_counter() - begin[0], 4))
        rows["cpu_seconds"].append(round(time.process_time() - begin[1], 4))
    return rows


def main(name: str, cases: str, out: str, count: str) -> None:
    """Run one tool over the first cases and write what it found."""
    images = np.load(cases)["image"][: int(count)]
    with TemporaryDirectory(dir=Path(out).parent) as folder:
        try:
            adapter = {"elastix": elastix, "simpleitk": simpleitk, "ants_initialiser": ants_initialiser}[name](folder)
        except ImportError as error:
            sys.exit(f"{name} is skipped: {error}; pip install {NEEDS[name]}")
        adapter(*images[0].astype(np.float32))  # the first call loads libraries
        found = {"tool": NEEDS[name], "version": version(NEEDS[name]), **register(adapter, images)}
    temporary = f"{out}.tmp"
    with open(temporary, "w") as file:
        json.dump(found, file)
    os.replace(temporary, out)


if __name__ == "__main__":
    main(*sys.argv[1:5])
