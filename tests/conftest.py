"""What the tests share: real data where they exist, a fixed seed, smooth fields and images made from sines."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from shared_components.geometry import Frame

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real images, which is no part of the repository."""
    folder = Path(os.environ.get("REGISTRATION_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data are not at {folder}; set REGISTRATION_DATA to their folder")
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Network initialisation draws from torch's global generator: make every test independent of the others."""
    torch.manual_seed(0)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """``torch.set_num_threads``, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def undo_config(monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]) -> None:
    """Undo what a bundle's configuration sets in the process that runs it."""
    monkeypatch.setattr("sys.excepthook", None)


@pytest.fixture(name="finished", scope="session")
def finished_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, three pairs, and ``out``, the cohort of them; not to be written to."""
    from cohort_case import run, tiny_bundle, write_pairs

    folder = tmp_path_factory.mktemp("cohort")
    tiny_bundle(folder)
    write_pairs(folder, 3)
    before, hook = torch.get_num_threads(), sys.excepthook
    assert run(folder) == 0
    torch.set_num_threads(before)
    sys.excepthook = hook
    return folder


@pytest.fixture(name="mine")
def copy_of_cohort(finished: Path, tmp_path: Path) -> Path:
    """A copy of all that, to be spoilt; copying keeps the times of files."""
    return Path(shutil.copytree(finished, tmp_path / "mine", symlinks=True))


def _waves(shape: Sequence[int], count: int, generator: torch.Generator) -> Tensor:
    """(count, *shape) float64 in [-1, 1]: products of one slow sine an axis, with random phases."""
    out = torch.ones(count, *shape, dtype=torch.float64)
    for axis, n in enumerate(shape):
        phase = torch.rand(count, 1, generator=generator, dtype=torch.float64) * 6.28
        wave = torch.sin(phase + torch.linspace(0, 3.5, n, dtype=torch.float64))
        out = out * wave.view(count, *(n if a == axis else 1 for a in range(len(shape))))
    return out


@pytest.fixture
def smooth_ddf() -> Callable[..., Tensor]:
    """``make(shape, amplitude, seed, batch, vanish, dtype)`` -> ddf (B, D, *shape), |component| <= amplitude voxels.

    ``vanish`` brings the field to zero at the border, so that nothing leaves the grid.
    """

    def make(
        shape: Sequence[int],
        amplitude: float = 1.0,
        seed: int = 0,
        batch: int = 1,
        vanish: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        ndim = len(shape)
        ddf = _waves(shape, batch * ndim, torch.Generator().manual_seed(seed)).view(batch, ndim, *shape)
        for axis, n in enumerate(shape if vanish else ()):
            window = torch.sin(torch.linspace(0, np.pi, n, dtype=torch.float64))
            ddf = ddf * window.view(*(n if a == axis else 1 for a in range(ndim)))
        return (amplitude * ddf).to(dtype)

    return make


@pytest.fixture
def smooth_image() -> Callable[..., Tensor]:
    """``make(shape, seed, batch, channels)`` -> (B, C, *shape) float64 in [-1, 1], without fine detail."""

    def make(shape: Sequence[int], seed: int = 0, batch: int = 1, channels: int = 1) -> Tensor:
        return _waves(shape, batch * channels, torch.Generator().manual_seed(seed)).view(batch, channels, *shape)

    return make


def _oblique(degrees: Sequence[float]) -> np.ndarray:
    """Rotation matrix from angles about the three axes, x first."""
    x, y, z = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@pytest.fixture
def make_frame() -> Callable[..., Frame]:
    """``make(codes, shape, spacing, oblique, origin)`` -> 3-D Frame with axes such as "LPS", turned by degrees."""

    def make(
        codes: str = "RAS",
        shape: Sequence[int] = (20, 24, 28),
        spacing: Sequence[float] = (1.0, 1.5, 2.0),
        oblique: Sequence[float] = (0.0, 0.0, 0.0),
        origin: Sequence[float] = (-7.0, 11.0, 3.0),
    ) -> Frame:
        columns = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
        affine = np.eye(4)
        affine[:3, :3] = _oblique(oblique) @ np.array([columns[c] for c in codes]).T @ np.diag(spacing)
        affine[:3, 3] = origin
        return Frame(tuple(shape), affine)

    return make
