"""For the tests of the command lines: the scripts as modules, a tiny VTN with random weights, small images."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from shared_components.geometry import Frame
from shared_components.itk_io import write_field
from shared_components.transform import affine_field

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "vtn_registration"
TINY: dict[str, Any] = {
    "size": [16, 16, 16],
    "spacing_mm": 6.0,
    "cascade": "AD",
    "channels": 2,
    "levels": 3,
    "affine_levels": 3,
}
AFFINE = np.array([[-4.0, 0, 0, 30], [0, 4, 0, -32], [0, 0, 4, -28], [0, 0, 0, 1]])  # LAS, 4 mm
OBLIQUE = np.eye(4)  # 3 x 3 x 4 mm, turned by 20 degrees
OBLIQUE[:3, :3] = Rotation.from_rotvec([0.1, -0.15, 0.3]).as_matrix() * (3.0, 3.0, 4.0)
OBLIQUE[:3, 3] = (-26.0, -30.0, -24.0)
SHAPE = (12, 13, 14)
DONE = (0, 3, 4)  # exit codes of register.py where results are written; random weights earn no better verdict
Options = dict[str, str]
FIXED = Frame((15, 17, 13), AFFINE)
MOVING = Frame((20, 18, 14), OBLIQUE)
POINTS_MM = np.array([[-6.0, 3.0, 2.0], [8.0, -9.0, -4.0], [0.0, 0.0, 0.0]])


def load_script(name: str) -> ModuleType:
    """Import scripts/NAME.py, which is in no package."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_options() -> list[str]:
    """The options of register.py that make the VTN of inference.json tiny."""
    return [f"--set={key}={str(value).replace(' ', '')}" for key, value in TINY.items()]


def make_weights(path: Path, **changes: Any) -> Path:
    """Write weights of the tiny VTN that moves things by a voxel or so."""
    spec = importlib.util.spec_from_file_location("vtn_network", BUNDLE / "scripts" / "network.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = TINY | changes
    torch.manual_seed(7)
    network = module.VTN(
        config["cascade"], config["size"], config["channels"], config["levels"], config["affine_levels"]
    )
    generator = torch.Generator().manual_seed(3)
    last = [network.affine.head_matrix.weight, network.affine.head_shift.weight]
    last += [dense.last.weight for dense in network.dense]
    with torch.no_grad():
        for weight in last:
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    torch.save(network.state_dict(), path)
    return path


def blob(shape: Sequence[int], shift: float = 0.0) -> np.ndarray:
    """A soft ellipsoid with a core, in [0, 100], background exactly 0."""
    axes = [(np.arange(n) - (n - 1) / 2 - shift) / (0.42 * n) for n in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    distance = np.sqrt((grid**2).sum(0))
    return 80 * np.clip(1 - distance, 0, 1) ** 0.5 + 20 * (distance < 0.4)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    """Write an image by nibabel, as any program might."""
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def run_python(arguments: Sequence[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=900)


def files_in(folder: Path) -> list[str]:
    """Names of everything under a folder, hidden files too; empty if it is missing or no folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) if folder.is_dir() else []


def good_options(folder: Path) -> Options:
    """Write a pair and weights; return the options of a run of register.py that succeeds."""
    return {
        "fixed": save(folder / "fixed.nii.gz", blob(SHAPE).astype(np.float32)),
        "moving": save(folder / "moving.nii.gz", blob(SHAPE, 0.7).astype(np.float32)),
        "weights": str(make_weights(folder / "model.pt")),
    }


def run_register(script: ModuleType, options: Options, output: Path) -> int:
    """Run register.py in this process on the tiny VTN and return its exit code."""
    named = [f"--{name}={text}" for name, text in ({"output_dir": str(output)} | options).items()]
    return script.main(["vtn", "--device=cpu", "--no_report", *tiny_options(), *named])


def shift(x: float, y: float, z: float) -> np.ndarray:
    """World map that moves points by so many mm."""
    matrix = np.eye(4)
    matrix[:3, 3] = (x, y, z)
    return matrix


def result_folder(path: Path, world: np.ndarray, fixed: Frame = FIXED, moving: Frame = MOVING) -> Path:
    """A result folder as register.py writes it, whose transform is a world map."""
    path.mkdir()
    write_field(path / "ddf.nii.gz", affine_field(world, fixed))
    write_field(path / "inverse_ddf.nii.gz", affine_field(np.linalg.inv(world), moving))
    return path


def values(path: Path) -> np.ndarray:
    """Voxels of a file."""
    return np.asarray(nib.load(path).dataobj)


def wrapped(error: Exception) -> Exception:
    """As MONAI raises what a transform of its raised."""
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("applying transform") from inner
    except RuntimeError as outer:
        return outer
