"""Awkward but good input works: odd and tiny sizes, any number type, any orientation, doubtful headers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from script_tools import AFFINE, DONE, OBLIQUE, Options, blob, good_options, load_script, run_register, save

Case = Callable[[Path, Options], Options]
SHEARED = np.array([[2.9, -0.5, 0.3, -17], [0.6, 3.8, -0.6, -25], [-0.2, 0.7, 4.9, -33], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("register")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Options of a run that succeeds."""
    return good_options(tmp_path_factory.mktemp("good"))


@pytest.fixture(autouse=True)
def _hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo the excepthook that a configuration sets."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def odd(dtype: str, peak: float = 100.0, name: str = "odd.nii.gz", affine: np.ndarray = AFFINE) -> Case:
    return lambda folder, good: {
        "moving": save(folder / name, (blob((17, 23, 9)) * (peak / 100)).astype(dtype), affine)
    }


def singleton(folder: Path, good: Options) -> Options:
    return {"moving": save(folder / "channel.nii.gz", blob((17, 23, 9)).astype(np.float32)[..., None, None])}


def tiny(folder: Path, good: Options) -> Options:
    return {"fixed": save(folder / "tiny.nii.gz", blob((5, 4, 3)).astype(np.float32), np.diag([10.0, 10, 10, 1]))}


def one_slice(folder: Path, good: Options) -> Options:
    """A volume one voxel thick is still a volume (its header says three dimensions)."""
    return {"moving": save(folder / "slab.nii.gz", blob((12, 2, 14)).astype(np.float32))}


def metaimage(folder: Path, good: Options) -> Options:
    sitk = pytest.importorskip("SimpleITK")
    picture = sitk.GetImageFromArray(blob((9, 23, 17)).astype(np.float32))
    picture.SetSpacing((3.0, 3.0, 5.0))
    sitk.WriteImage(picture, str(folder / "odd.mha"))
    return {"moving": str(folder / "odd.mha")}


def singular_qform(folder: Path, good: Options) -> Options:
    """All quaternion and pixdim entries that matter to a qform are broken; the sform is fine."""
    save(folder / "q.nii", blob((17, 23, 9)).astype(np.float32))
    content = bytearray((folder / "q.nii").read_bytes())
    content[252:254] = np.int16(1).tobytes()  # qform_code
    content[256:268] = np.array([2, 2, 2], np.float32).tobytes()  # quaternion longer than 1
    (folder / "q.nii").write_bytes(content)
    return {"moving": str(folder / "q.nii")}


AWKWARD: dict[str, Case] = {
    "uint8": odd("uint8"),
    "int16 with negative values": lambda folder, good: {
        "moving": save(folder / "ct.nii.gz", (blob((17, 23, 9)) * 20 - 1000).astype(np.int16))
    },
    "float64": odd("float64"),
    "intensities of 1e9": odd("float32", 1e9),
    "intensities of 1e-9": odd("float64", 1e-9),
    "not compressed": odd("float32", name="odd.nii"),
    "oblique": odd("float32", affine=OBLIQUE),
    "sheared": odd("float32", affine=SHEARED),
    "LPS": odd("float32", affine=np.diag([-4.0, -4, 4, 1])),
    "axes in another order": odd("float32", affine=AFFINE[[1, 2, 0, 3]]),
    "singleton channel": singleton,
    "fixed of 5 x 4 x 3": tiny,
    "two slices": one_slice,
    "MetaImage": metaimage,
    "singular qform, good sform": singular_qform,
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_input_works(script, good, name, tmp_path):
    options = good | AWKWARD[name](tmp_path, good)
    assert run_register(script, options, tmp_path / "out") in DONE
    moved, fixed = nib.load(tmp_path / "out" / "moved.nii.gz"), nib.load(options["fixed"])
    assert moved.shape == fixed.shape and np.isfinite(moved.get_fdata()).all()
    np.testing.assert_allclose(moved.affine, fixed.affine, atol=1e-4)
    inside = fixed.get_fdata() > 20
    assert np.corrcoef(moved.get_fdata().ravel(), fixed.get_fdata().ravel())[0, 1] > 0.5
    assert moved.get_fdata()[inside].mean() > moved.get_fdata()[~inside].mean()
