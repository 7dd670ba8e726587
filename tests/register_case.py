"""Two images, labels and weights for scripts/register.py, and its command."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from script_tools import blob, load_script, make_weights, save, tiny_options


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("register")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images, labels and weights."""
    folder = tmp_path_factory.mktemp("register")
    save(folder / "a.nii.gz", blob((17, 16, 15)).astype(np.float32))
    save(folder / "b.nii.gz", blob((14, 18, 16), 1.0).astype(np.float32))
    for name in ("a", "b"):
        image = nib.load(folder / f"{name}.nii.gz")
        save(folder / f"{name}_seg.nii.gz", (image.get_fdata() > 60).astype(np.uint8) * 3)
    make_weights(folder / "model.pt")
    return folder


@pytest.fixture(autouse=True)
def undo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a configuration sets: the excepthook, and the handlers of logging.conf."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def command(place: Path, output: str, *more: str) -> list[str]:
    files = [f"--fixed={place / 'a.nii.gz'}", f"--moving={place / 'b.nii.gz'}", f"--weights={place / 'model.pt'}"]
    return ["vtn", *files, f"--output_dir={place / output}", "--device=cpu", "--no_report", *tiny_options(), *more]


def moved(folder: Path) -> np.ndarray:
    return nib.load(folder / "moved.nii.gz").get_fdata()
