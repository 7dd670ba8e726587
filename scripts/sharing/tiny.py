"""Small data of any dimension, and knobs that make a run of any bundle tiny. Imports nothing of this repository."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE, SPACING_MM = (24, 28, 20), 2.0
# Knobs that make a run tiny, set where a config has them at its top level; {D} is the number of dimensions.
TINY: dict[str, Any] = {
    "size": "[16] * D",
    "channels": 2,
    "levels": 2,
    "affine_levels": 2,
    "batch_size": 1,
    "pairs_per_epoch": 2,
    "max_epochs": 1,
    "val_interval": 1,
    "num_workers": 0,
    "precision": "float32",
    "refine_steps": 2,
}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text())


def config_of(bundle: Path, name: str) -> dict[str, Any]:
    """Return configs/NAME.json."""
    return read_json(bundle / "configs" / f"{name}.json")


def dimensions(bundle: Path) -> int:
    """Return 2 or 3: how many dimensions the network's images have."""
    return len(config_of(bundle, "metadata")["network_data_format"]["inputs"]["image"]["spatial_shape"])


def tiny(bundle: Path, name: str) -> dict[str, Any]:
    """Return those of the TINY knobs that configs/NAME.json has."""
    known = config_of(bundle, name)
    values = {**TINY, "size": [16] * dimensions(bundle)}
    return {key: value for key, value in values.items() if key in known}


def write_subject(folder: Path, name: str, ndim: int, generator: np.random.Generator) -> dict[str, str]:
    """Write a textured ellipsoid with a core and their labels; return {"image", "label"}."""
    shape = SHAPE[:ndim]
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    center = generator.uniform(-0.1, 0.1, (ndim,) + (1,) * ndim)
    radius = generator.uniform(0.65, 0.8, (ndim,) + (1,) * ndim)
    distance = np.sqrt((((grid - center) / radius) ** 2).sum(0))
    image = (distance < 1) * (100.0 + 60 * (distance < 0.5) + generator.normal(0, 3, shape))
    label = (distance < 1).astype(np.uint8) + (distance < 0.5)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    files = {"image": str(folder / f"{name}_t1.nii.gz"), "label": str(folder / f"{name}_labels.nii.gz")}
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), files["image"])
    nib.save(nib.Nifti1Image(label.astype(np.uint8), affine), files["label"])
    return files


def write_data(folder: Path, ndim: int, subjects: int = 4) -> Path:
    """Write subjects and points; return a datalist of single subjects for training and one pair for validation."""
    generator = np.random.default_rng(0)
    made = [write_subject(folder, f"s{index}", ndim, generator) for index in range(subjects)]
    center = (np.array(SHAPE[:ndim]) - 1) / 2 * SPACING_MM
    header = ",".join(f"{axis}_mm" for axis in "xyz"[:ndim])
    for side in ("fixed", "moving"):
        rows = center + generator.uniform(-6, 6, (3, ndim))
        lines = [header, *(",".join(f"{value:.3f}" for value in row) for row in rows)]
        (folder / f"{side}.csv").write_text("\n".join(lines) + "\n")
    pair = {"fixed": made[0]["image"], "moving": made[-1]["image"], "name": "pair"}
    pair |= {"fixed_label": made[0]["label"], "moving_label": made[-1]["label"]}
    pair |= {f"{side}_points": f"{side}.csv" for side in ("fixed", "moving")}
    datalist = folder / "datalist.json"
    datalist.write_text(json.dumps({"training": made[:-1], "validation": [pair], "test": [pair]}))
    return datalist
