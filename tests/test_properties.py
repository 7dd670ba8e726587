"""Whatever two files hold, a registration ends with finite results on the fixed grid, or with one sentence."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from functools import reduce
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from shared_components.errors import find_input_error
from shared_components.geometry import Frame, apply_affine
from shared_components.images import read_image, write_image
from shared_components.pairs import make_preprocessing
from shared_components.results import SaveRegistration

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
TYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Voxel -> RAS mm: any turn, flips, axes of 0.1 to 8 mm, a little shear, here or 2 m away."""
    angles = [draw(st.floats(-np.pi, np.pi)) for _ in range(3)]
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        step = np.eye(3)
        a, b = [k for k in range(3) if k != axis]
        step[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turn = turn @ step
    sizes = [draw(st.floats(0.1, 8)) * draw(st.sampled_from((1, -1))) for _ in range(3)]
    shear = np.eye(3)
    shear[0, 1] = draw(st.sampled_from((0.0, 0.0, 0.2)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ shear @ np.diag(sizes)
    affine[:3, 3] = [draw(st.sampled_from((0, -20, 10, 2000, -0.5))) for _ in range(3)]
    return affine


@st.composite
def images(draw: st.DrawFn) -> dict[str, Any]:
    """A volume of any type, size from 1, header and range of values, some of them no image at all."""
    shape = tuple(draw(st.sampled_from((*range(2, 19), 1))) for _ in range(3))
    kind = draw(st.sampled_from((*["smooth"] * 8, "noise", "one voxel", "constant", "nan")))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = np.zeros(shape)
    if kind == "smooth":
        values = reduce(np.multiply, np.ix_(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) for n in shape)))
    elif kind in ("noise", "nan"):
        values = rng.random(shape)
    elif kind == "one voxel":
        values[tuple(n // 2 for n in shape)] = 1
    dtype = draw(st.sampled_from(TYPES))
    if dtype.startswith("float"):
        values = values * 10.0 ** draw(st.integers(-30, 30)) + draw(st.sampled_from((0.0, -1e3, 1e6)))
        if kind == "nan":
            values[tuple(n // 2 for n in shape)] = draw(st.sampled_from((np.nan, np.inf, -np.inf)))
    else:
        values = values * draw(st.sampled_from((20, 100, 127)))
    return {"values": values.astype(dtype), "affine": draw(affines()), "code": draw(st.sampled_from((0, 1, 2, 4)))}


def saved(path: Path, image: dict[str, Any]) -> str:
    nifti = nib.Nifti1Image(image["values"], image["affine"], dtype=image["values"].dtype)
    nifti.set_sform(image["affine"], image["code"])
    nifti.set_qform(image["affine"], 1 if image["code"] == 0 else image["code"])
    nib.save(nifti, path)
    return str(path)


@given(fixed=images(), moving=images(), initial=st.sampled_from(("centre_of_mass", "header")))
@QUICK
def register_or_refuse(ends: Counter[str], fixed: dict, moving: dict, initial: str) -> None:
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        folder = Path(name)
        files = {"fixed": saved(folder / "f.nii", fixed), "moving": saved(folder / "m.nii.gz", moving)}
        try:
            item = make_preprocessing([12, 14, 10], 4.0, initial_transform=initial)(files)
            assert item["image"].shape == (2, 12, 14, 10) and bool(torch.isfinite(item["image"]).all())
            assert 0 <= float(item["image"].min()) and float(item["image"].max()) <= 1
            field = 0.5 * torch.sin(torch.linspace(0, 3, 1680)).reshape(1, 12, 14, 10).repeat(3, 1, 1, 1)
            done = SaveRegistration(str(folder / "out"), report=False)({**item, "pred": field})
        except Exception as error:  # MONAI's Compose wraps what its transforms raise
            found = find_input_error(error)
            if found is None:
                raise
            text = str(found)
            assert "\n" not in text and len(text) > 30 and ("f.nii" in text or "m.nii.gz" in text or "--" in text)
            ends["refused"] += 1
            return
        moved = nib.load(folder / "out" / "moved.nii.gz")
        assert moved.shape == fixed["values"].shape and np.isfinite(moved.get_fdata()).all()
        if moved.header["qform_code"]:  # else the grid is sheared, which ITK cannot load
            assert sitk.ReadImage(str(folder / "out" / "moved.nii.gz")).GetSize() == moved.shape
        assert np.isfinite(nib.load(folder / "out" / "ddf.nii.gz").get_fdata()).all()
        assert np.isfinite(done["metrics"]["field"]["displacement_mm"]["max"])
        ends["registered"] += 1


def test_any_two_files_are_registered_or_refused() -> None:
    ends: Counter[str] = Counter()
    register_or_refuse(ends)
    assert ends["registered"] >= 10 and ends["refused"] >= 10, ends


@given(image=images())
@QUICK
def test_what_is_written_is_read_again(image: dict) -> None:
    values = image["values"].astype(np.float32)
    frame = Frame(values.shape, image["affine"])
    if not np.isfinite(values).all() or values.min() == values.max() or 1 in values.shape:  # flat, or no image
        return
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.nii.gz"
        write_image(path, values, frame)
        again = read_image(path)
    assert again.frame.shape == frame.shape
    np.testing.assert_allclose(again.frame.affine, frame.affine, atol=2e-3, rtol=1e-5)  # the header holds float32
    np.testing.assert_array_equal(again.array[0].numpy(), values)


@given(affine=affines(), shape=st.tuples(*[st.integers(2, 30)] * 3))
@QUICK
def test_frames_go_to_mm_and_back(affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    frame = Frame(shape, affine)
    corners = np.array([[0, 0, 0], [n - 1 for n in shape]], dtype=float)
    points = np.vstack([corners, corners.mean(0)])
    back = apply_affine(np.linalg.inv(affine), frame.to_mm(points))
    np.testing.assert_allclose(back, points, atol=1e-6)
    np.testing.assert_allclose(frame.spacing, np.linalg.norm(affine[:3, :3], axis=0))
