"""Real slices that breathe, and sets of series on disk: split by subject, continued, read with their truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from thorax_case import EVEN, SIZE, extremes

from shared_components.errors import InputError
from shared_components.images import write_image
from shared_components.images.volumes import mean_frame, read_volumes
from shared_components.pairs import SeriesPairs, make_preprocessing, read_datalist
from shared_components.synth.thorax import (
    PLAIN,
    breathing_series,
    make_breathing_set,
    read_breathing,
    thorax_from_slice,
    true_fields,
)
from shared_components.synth.thorax.folder import find_scans, read_slices
from shared_components.warp import sample, warp_image

# --------------------------------------------------------------------------------------------------- real slices


def drawn_slice(gap: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Two lungs on a body, 128 rows of 3 mm, ``gap`` voxels apart."""
    y, x = np.mgrid[:128, :128]
    mask = np.zeros((128, 128), bool)
    for side in (-1, 1):
        lung = (np.abs(x - 63.5 - side * (gap / 2 + 15)) < 15) & (y > 25) & (y < 75 + 0.02 * (x - 63.5) ** 2 / 3)
        mask |= lung
    body = (np.abs(x - 63.5) < 58) & (y > 5)
    image = np.where(mask, 5.0, 100.0 + 10 * np.sin(x / 3) * np.cos(y / 4)) * body
    return image, mask


@pytest.mark.parametrize("gap, parts", [(40, 1), (14, 2)])
def test_real_slice_breathes(gap, parts):
    image, mask = drawn_slice(gap)
    generator = torch.Generator().manual_seed(0)
    thorax = thorax_from_slice(image, mask, generator, 3.0, size=SIZE)
    assert len(thorax.compartments) == parts and thorax.spacing_mm == pytest.approx(6.0)
    assert (thorax.pulse is None) == (parts == 2)
    series = breathing_series(thorax, 13, generator, 4.0, EVEN, PLAIN)
    low, high = extremes(series)
    still = thorax.render(thorax.still(), 0)
    shown = series.frames[high] / series.frames[high].max() - still[0] / still.max()
    assert float(shown[0, :40].abs().mean()) < 0.02  # inspiration is the slice itself
    labels = [int((series.labels(k) == 2).sum()) for k in (low, high)]
    assert labels[1] > 1.08 * labels[0]
    points, ddf = series.landmarks[low], series.ddf(low, high)
    step = sample(ddf.double(), points.T[None, :, None])[0, :, 0].T
    assert float((points + step - series.landmarks[high]).norm(dim=1).max()) < 0.05
    middle = ddf[0, :, 20:50, 32]
    assert (float(middle.abs().max()) == 0) == (parts == 2)  # the spine stays, the heart moves


def test_real_slice_keeps_its_picture():
    image, mask = drawn_slice()
    thorax = thorax_from_slice(image, mask, torch.Generator().manual_seed(0), 3.0, size=(128, 128), vessels=False)
    shown = thorax.render(thorax.still(), 0)[0, 0].numpy()
    expected = np.clip(0.85 * image / np.percentile(image, 99.5), 0, 1)
    np.testing.assert_allclose(shown[:-1, :-1], expected[:-1, :-1], atol=2e-3)


def test_empty_or_small_mask_is_refused():
    image, mask = drawn_slice()
    with pytest.raises(ValueError, match="mask of the slice is empty"):
        thorax_from_slice(image, mask & False, torch.Generator(), 3.0)
    small = np.zeros_like(mask)
    small[50:53, 60:63] = True
    with pytest.raises(ValueError, match="no lung of at least 25 mm"):
        thorax_from_slice(image, small, torch.Generator(), 3.0, size=SIZE)
    with pytest.raises(ValueError, match="mode one of"):
        thorax_from_slice(image, mask, torch.Generator(), 3.0, mode="top")


def test_real_scans_of_the_data_folder(data_dir, tmp_path):
    scans = data_dir / "lung_mr_proton3d"
    if not scans.is_dir():
        pytest.skip(f"no thorax scans at {scans}")
    datalist = json.loads(Path(make_breathing_set(tmp_path, 3, 2, 2, 0, SIZE, scans)).read_text())
    real = [item for section in datalist.values() for item in section if item["subject"].startswith("real")]
    assert {item["plane"] for item in real} == {"coronal", "sagittal"} and len(real) == 8
    held = {item["subject"] for item in datalist["validation"]}
    assert held.isdisjoint(item["subject"] for item in datalist["training"])
    assert any(name.startswith("real") for name in held)


# -------------------------------------------------------------------------------------------------- sets on disk


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("breathing")
    make_breathing_set(folder, subjects=3, slices=2, frames=5, seed=7, size=SIZE)
    return folder


def test_set_is_split_by_subject(written):
    datalist = json.loads((written / "datalist.json").read_text())
    subjects = {section: {item["subject"] for item in items} for section, items in datalist.items()}
    assert subjects == {"training": {"subject01"}, "validation": {"subject02"}, "test": {"subject03"}}
    assert all({item["plane"] for item in items} == {"coronal", "sagittal"} for items in datalist.values())


def test_one_section_alone_is_the_same(written, tmp_path):
    datalist = json.loads(Path(make_breathing_set(tmp_path, 3, 2, 5, 7, SIZE, sections=("test",))).read_text())
    assert datalist == json.loads((written / "datalist.json").read_text()) | {"training": [], "validation": []}
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == ["subject03_1.nii.gz", "subject03_2.nii.gz"]
    for item in datalist["test"]:
        assert (tmp_path / item["truth"]).read_text() == (written / item["truth"]).read_text()
    with pytest.raises(InputError, match="other settings"):
        make_breathing_set(tmp_path, 3, 2, 5, 7, SIZE)


def test_series_comes_back_with_its_truth(written):
    item = json.loads((written / "datalist.json").read_text())["training"][0]
    series = read_breathing(written / item["series"])
    assert series.frames.shape == (5, 1, *SIZE)
    np.testing.assert_allclose(series.frame.spacing, 6.0)
    assert 0 <= float(series.frames.min()) and 0.5 < float(series.frames.max()) <= 1
    assert series.fixed == item["fixed_frame"]
    again = mean_frame(series.frames)
    means = series.frames.flatten(1).mean(1)
    assert abs(float(means[again] - means[series.fixed])) < 1e-3  # rounding to 255 steps may change a tie
    ddf = series.motion.ddf(series.fixed, 0)
    points = series.landmarks[series.fixed]
    step = sample(ddf.double(), points.T[None, :, None])[0, :, 0].T
    assert float((points + step - series.landmarks[0]).norm(dim=1).max()) < 0.05
    assert bool((series.frames[0, 0, 40:] > 0.2).float().mean() > (series.frames[0, 0, :8] > 0.2).float().mean())


def test_truth_in_millimetres_is_that_in_voxels(written):
    series = read_breathing(written / "subject01_1.nii.gz")
    volumes = read_volumes(written / "subject01_1.nii.gz", ndim=2)
    found, expected = series.truth(1, 3).map_points(series.landmarks_mm(1)), series.landmarks_mm(3)
    assert np.linalg.norm(found - expected, axis=1).max() < 0.05 * 6
    assert np.linalg.norm(series.landmarks_mm(1) - expected, axis=1).max() > 0.3 * 6
    row, column = series.landmarks[3].round().long().T
    index = np.rint(volumes.frame.to_vox(expected)).astype(int)
    np.testing.assert_array_equal(volumes.array[3].numpy()[tuple(index.T)], series.frames[3, 0, row, column])


def test_set_trains_as_it_is(written):
    items = read_datalist(written / "datalist.json", "training")
    transform = make_preprocessing((32, 32), 12.0, initial_transform="header", center="grid", keep_native=False)
    pairs = SeriesPairs(items, transform)
    assert len(pairs) == 2 * 4 and pairs[0]["image"].shape == (2, 32, 32)
    assert pairs[0]["name"].startswith(f"subject01_1#{items[0]['fixed_frame']}<-")


def test_pairs_of_the_set_can_have_their_true_field(written):
    items = read_datalist(written / "datalist.json", "training")
    transform = make_preprocessing((48, 48), "fit", initial_transform="header", center="grid", keep_native=False)
    pairs = SeriesPairs(items, transform, truth=true_fields)
    shares, errors = (0.0, 0.5, 1.0, 1.5), [0.0] * 4
    for item in (pairs[index] for index in range(len(pairs))):
        image, ddf = item["image"][None], item["ddf"][None]
        assert ddf.shape == (1, 2, 48, 48)
        for k, share in enumerate(shares):
            errors[k] += float((image[:, :1] - warp_image(image[:, 1:], share * ddf)).square().mean())
    still, half, whole, more = errors
    assert whole < 0.8 * min(half, more) < half < still, errors  # noise and the lung's brightness are left


def test_stopped_run_is_continued_to_the_same_bytes(written, tmp_path):
    names = sorted(path.name for path in written.iterdir())
    before = {name: (written / name).read_bytes() for name in names}
    (written / "subject02_1_truth.json").unlink()
    kept = (written / "subject01_1.nii.gz").stat().st_mtime_ns
    make_breathing_set(written, subjects=3, slices=2, frames=5, seed=7, size=SIZE)
    assert {name: (written / name).read_bytes() for name in sorted(p.name for p in written.iterdir())} == before
    assert (written / "subject01_1.nii.gz").stat().st_mtime_ns == kept


def test_other_settings_and_missing_truth_are_told(written, tmp_path):
    with pytest.raises(InputError, match="other settings"):
        make_breathing_set(written, subjects=3, slices=2, frames=6, seed=7, size=SIZE)
    with pytest.raises(InputError, match="needs 3 subjects"):
        make_breathing_set(tmp_path, subjects=2)
    with pytest.raises(InputError, match="no thorax scan"):
        make_breathing_set(tmp_path, subjects=3, real=tmp_path)
    lonely = tmp_path / "alone.nii.gz"
    lonely.write_bytes((written / "subject01_1.nii.gz").read_bytes())
    with pytest.raises(InputError, match="no truth"):
        read_breathing(lonely)


def test_orientation_of_real_volumes(tmp_path, make_frame):
    """A scan in any orientation gives slices with the head up, the right of the patient, or the face, on the left."""
    for codes in ("RAS", "LSP"):
        shape = {"R": 40, "L": 40, "A": 24, "P": 24, "S": 60, "I": 60}
        frame = make_frame(codes, tuple(shape[c] for c in codes), (4.0, 4.0, 4.0), (0, 0, 0), (0, 0, 0))
        index = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), -1)
        away = frame.to_mm(index) - frame.center_mm
        image = (away @ [1.0, 0.5, 2.0] + 300).astype(np.float32)  # grows to the right, to the front, to the head
        mask = (np.abs(away) < [60, 36, 80]).all(-1).astype(np.uint8)
        write_image(tmp_path / f"{codes}.nii.gz", image, frame)
        write_image(tmp_path / f"{codes}_mask.nii.gz", mask, frame)
    for image_path, mask_path in find_scans(tmp_path).values():
        for part in read_slices(image_path, mask_path, ["coronal", "sagittal"]):
            assert part.image.shape == (60, 40 if part.plane == "coronal" else 24)
            down, across = np.diff(part.image, axis=0), np.diff(part.image, axis=1)
            np.testing.assert_allclose(down, -8, atol=1e-3)
            np.testing.assert_allclose(across, -4 if part.plane == "coronal" else -2, atol=1e-3)
            assert part.mask.any() and part.spacing_mm == pytest.approx((4, 4))
