"""Affine registration by classical tools, many pairs in one process: files in, matrices out.

    python robustness_peers.py NAME JOBS.json ANSWERS.jsonl

Imports nothing of this project, so that it can live in another environment (``pip install antspyx picsl-greedy
itk-elastix``). JOBS is a list of {"fixed", "moving"}; ANSWERS gets a line a job, as soon as it is done: "world", the
(4, 4) map of fixed RAS mm to moving RAS mm, "seconds" of the registration call itself, images in memory (greedy reads
its files within the call), and "version"; or "error". Settings are each tool's defaults and the start that a user
would choose for images whose headers do not agree.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import numpy as np

Found = tuple[np.ndarray, float, str]


def to_world(matrix: np.ndarray, shift: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return y = M (x - c) + t + c, which ITK means in LPS mm, as a (4, 4) matrix in RAS mm."""
    world = np.eye(4)
    world[:3, :3] = np.reshape(matrix, (3, 3))
    world[:3, 3] = np.asarray(shift) + centre - world[:3, :3] @ centre
    signs = np.array([-1.0, -1.0, 1.0, 1.0])
    return signs[:, None] * world * signs


def ants_affine(fixed: str, moving: str, folder: str, search: bool = False) -> Found:
    """ANTsPy: "Affine" with its defaults: centres of mass matched, mutual information."""
    import ants

    images = ants.image_read(fixed), ants.image_read(moving)
    begin, start = time.perf_counter(), {}
    if search:
        start = {"initial_transform": ants.affine_initializer(*images, txfn=f"{folder}/start.mat")}
    how = {"type_of_transform": "Affine", "outprefix": f"{folder}/a", "random_seed": 1, **start}
    paths = ants.registration(*images, **how)["fwdtransforms"]
    seconds = time.perf_counter() - begin
    world = np.eye(4)
    for path in reversed(paths):  # the last of the list is applied first
        found = ants.read_transform(path)
        numbers = np.asarray(found.parameters)
        world = to_world(numbers[:9], numbers[9:], np.asarray(found.fixed_parameters)[:3]) @ world
    return world, seconds, f"antspyx {ants.__version__}"


def ants_initialiser(fixed: str, moving: str, folder: str) -> Found:
    """ANTsPy: ``affine_initializer`` with its defaults, then "Affine" from what it found."""
    return ants_affine(fixed, moving, folder, search=True)


def elastix_affine(fixed: str, moving: str, folder: str) -> Found:
    """Elastix: its default affine parameter map, centres of gravity matched."""
    from importlib.metadata import version

    import itk

    release = version("itk-elastix")  # ITK alone imports as well
    images = itk.imread(fixed, itk.F), itk.imread(moving, itk.F)
    maps = itk.ParameterObject.New()
    chosen = maps.GetDefaultParameterMap("affine")
    chosen["AutomaticTransformInitialization"] = ["true"]
    chosen["AutomaticTransformInitializationMethod"] = ["CenterOfGravity"]
    maps.AddParameterMap(chosen)
    begin = time.perf_counter()
    _, found = itk.elastix_registration_method(*images, parameter_object=maps, log_to_console=False)
    seconds = time.perf_counter() - begin
    numbers = np.array(found.GetParameterMap(0)["TransformParameters"], float)
    centre = np.array(found.GetParameterMap(0)["CenterOfRotationPoint"], float)
    return to_world(numbers[:9], numbers[9:], centre), seconds, f"itk-elastix {release}"


def greedy_affine(fixed: str, moving: str, folder: str, order: int = 1, search: str = "") -> Found:
    """Greedy: 12 degrees of freedom, local NCC of radius 2, 100/50/10 iterations; centres of mass matched."""
    from importlib.metadata import version

    from picsl_greedy import Greedy3D

    tool, images = Greedy3D(), f"-threads {os.environ.get('OMP_NUM_THREADS', '2')} -i {fixed} {moving}"
    begin = time.perf_counter()
    tool.execute(f"-moments {order} {images} -o {folder}/start.mat")
    how = f"{images} -m NCC 2x2x2 -n 100x50x10 -ia {folder}/start.mat {search}"
    tool.execute(f"-a -dof 12 {how} -o {folder}/affine.mat")
    seconds = time.perf_counter() - begin
    return np.loadtxt(f"{folder}/affine.mat"), seconds, f"picsl-greedy {version('picsl-greedy')}"


def greedy_moments(fixed: str, moving: str, folder: str) -> Found:
    """Greedy as above, but principal axes matched too, which may turn a brain back to front."""
    return greedy_affine(fixed, moving, folder, order=2)


def greedy_search(fixed: str, moving: str, folder: str) -> Found:
    """Greedy as above, centres of mass matched, then the best of 1000 random rotations and shifts of 20 mm."""
    return greedy_affine(fixed, moving, folder, search="-search 1000 any 20")


METHODS: dict[str, Callable[[str, str, str], Found]] = {
    "ants_affine": ants_affine,
    "ants_initialiser": ants_initialiser,
    "elastix_affine": elastix_affine,
    "greedy_affine": greedy_affine,
    "greedy_moments": greedy_moments,
    "greedy_search": greedy_search,
}
NEEDS = {"ants": "antspyx", "greedy": "picsl-greedy", "elastix": "itk-elastix"}


def main(name: str, jobs: str, answers: str) -> None:
    """Run one method on all jobs; one that fails is a line too."""
    with open(jobs) as file:
        todo = json.load(file)
    for job in todo:
        with TemporaryDirectory(dir=os.path.dirname(answers)) as folder:
            try:
                world, seconds, version = METHODS[name](job["fixed"], job["moving"], folder)
                line = {"world": np.asarray(world).tolist(), "seconds": round(seconds, 3), "version": version}
            except ImportError as error:
                sys.exit(f"{name} is skipped: {error}; pip install {NEEDS[name.partition('_')[0]]}")
            except Exception as error:  # whatever a tool throws is this pair's failure
                line = {"error": str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)}
        with open(answers, "a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:4])
