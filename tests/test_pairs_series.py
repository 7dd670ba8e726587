"""Series over time: read from a file or a folder, split by subject, paired for training."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Picture

from shared_components.errors import InputError
from shared_components.pairs import SeriesPairs, find_series, make_preprocessing, mean_frame, read_datalist, read_series

SHAPE, FRAMES = (12, 10), 5
# Frame k has a bar at row k + 2; frame 1 has the mean intensity (2) that is nearest the mean of all (2.2).
LEVELS = (1.0, 2.0, 4.0, 3.0, 1.0)


def frames() -> np.ndarray:
    array = np.zeros((*SHAPE, FRAMES), np.float32)
    for number, level in enumerate(LEVELS):
        array[number + 2, :, number] = 12 * level
    return array


def write_nifti(path: Path, array: np.ndarray, spacing: float = 2.0) -> Path:
    nib.save(nib.Nifti1Image(array, np.diag([spacing, spacing, 1, 1])), path)
    return path


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_nifti(tmp_path / "p1_slice0.nii.gz", frames())


def dataset(items: list[dict], **options: object) -> SeriesPairs:
    transform = make_preprocessing(
        SHAPE, 2.0, initial_transform="header", center="grid", keep_native=False, window=(0, 48)
    )
    return SeriesPairs(items, transform, **options)


def number_of(image: torch.Tensor) -> int:
    """Which frame an image is, by its bar."""
    return int(image.mean(1).argmax()) - 2


@pytest.mark.parametrize("extra", [(), (1,)], ids=["x y t", "x y 1 t"])
def test_a_file_of_frames(tmp_path: Path, extra: tuple[int, ...]) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", frames().reshape(*SHAPE, *extra, FRAMES))
    found = read_series(path)
    assert found.array.shape == (FRAMES, *SHAPE) and found.frame.spacing.tolist() == [2.0, 2.0]
    assert torch.equal(found.array, torch.from_numpy(frames()).movedim(-1, 0))


def test_a_folder_of_frames_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 2, 1):
        Picture.fromarray(np.pad(np.full((4, 4), number, np.uint8), 1)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    assert read_series(tmp_path).array.amax((1, 2)).tolist() == [1, 2, 9, 10]


def test_volumes_over_time(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", np.random.default_rng(0).random((4, 5, 6, 3)).astype(np.float32))
    assert read_series(path, ndim=3).array.shape == (3, 4, 5, 6)


def test_what_is_no_series_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 1 frame; give a file or a folder with two or more"):
        read_series(write_nifti(tmp_path / "one.nii.gz", frames()[..., 0]))
    folder = tmp_path / "mixed"
    folder.mkdir()
    with pytest.raises(InputError, match="has 0 frames"):
        read_series(folder)
    for number, spacing in enumerate((2.0, 2.5)):
        write_nifti(folder / f"{number}.nii.gz", frames()[..., number], spacing)
    with pytest.raises(InputError, match="1.nii.gz lies on another grid"):
        read_series(folder)
    with pytest.raises(InputError, match="does not exist"):
        read_series(tmp_path / "none.nii.gz")


def test_the_fixed_frame_has_the_mean_nearest_that_of_all() -> None:
    assert mean_frame(torch.tensor(LEVELS).view(-1, 1, 1).expand(-1, 3, 3)) == 1
    assert mean_frame(torch.tensor([1.0, 3.0]).view(-1, 1)) == 0, "ties: the first"


def test_subjects_are_kept_together(tmp_path: Path) -> None:
    for subject in (1, 2, 10, 11, 12, 13):
        for part in ("a", "b"):
            write_nifti(tmp_path / f"p{subject}_{part}.nii.gz", frames())
    (tmp_path / "p13_b.nii.gz").unlink()
    (tmp_path / "p13_c").mkdir()
    (tmp_path / "readme.txt").write_text("no series")
    found = find_series(tmp_path, every=3)
    assert [Path(item["series"]).name for item in found["validation"]] == [
        *("p10_a.nii.gz", "p10_b.nii.gz", "p13_a.nii.gz", "p13_c"),
    ]
    assert [item["subject"] for item in found["training"]] == ["p1"] * 2 + ["p2"] * 2 + ["p11"] * 2 + ["p12"] * 2
    assert find_series(tmp_path / "missing") == {"training": [], "validation": []}


def test_a_datalist_names_series(tmp_path: Path, series: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"series": series.name}], "validation": [{"series": series.name}]}))
    assert read_datalist(path, "training") == [{"series": str(series)}]
    assert find_series("nowhere", datalist=str(path))["validation"] == [{"series": str(series)}]


def test_every_frame_meets_the_fixed_one_once(series: Path) -> None:
    data = dataset([{"series": str(series)}])
    items = [data[index] for index in range(len(data))]
    assert [(number_of(item["image"][0]), number_of(item["image"][1])) for item in items] == [
        (1, 0),
        (1, 2),
        (1, 3),
        (1, 4),
    ]
    assert items[0]["name"] == "p1_slice0#1<-p1_slice0#0"
    assert items[0]["image"].shape == (2, *SHAPE) and items[0]["spacing_mm"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("mode", ["mean", "random"])
def test_drawn_pairs_are_two_frames_of_one_series_and_repeatable(tmp_path: Path, series: Path, mode: str) -> None:
    other = write_nifti(tmp_path / "p2.nii.gz", frames()[..., ::-1].copy())
    items = [{"series": str(series)}, {"series": str(other)}]
    data, again = (dataset(items, length=60, mode=mode, seed=3) for _ in range(2))
    found = [data[index] for index in range(60)]
    numbers = [(number_of(item["image"][0]), number_of(item["image"][1])) for item in found]
    assert len(data) == 60 and all(a != b for a, b in numbers)
    names = [[part.split("#")[0] for part in item["name"].split("<-")] for item in found]
    assert all(a == b for a, b in names) and 15 < sum(a == "p2" for a, _ in names) < 45
    fixed = {number for (name, _), (number, _) in zip(names, numbers, strict=True) if name != "p2"}
    assert fixed == ({1} if mode == "mean" else set(range(FRAMES)))
    moving = {number for (name, _), (_, number) in zip(names, numbers, strict=True) if name != "p2"}
    assert moving == ({0, 2, 3, 4} if mode == "mean" else set(range(FRAMES)))
    assert torch.equal(again[37]["image"], found[37]["image"]) and data[37]["name"] == found[37]["name"]
    assert any(dataset(items, length=60, mode=mode, seed=4)[k]["name"] != found[k]["name"] for k in range(5))


def test_single_images_of_a_group_are_a_series_and_pairs_stay_pairs(tmp_path: Path) -> None:
    files = [str(write_nifti(tmp_path / f"{k}.nii.gz", frames()[..., k])) for k in range(FRAMES)]
    items = [{"image": files[k], "group": "ab"[k % 2]} for k in range(4)] + [{"fixed": files[3], "moving": files[4]}]
    data = dataset(items)
    names = [data[index]["name"] for index in range(len(data))]
    assert names == ["0<-2", "1<-3", "3<-4"]
    drawn = dataset(items, length=40)
    assert {drawn[index]["name"] for index in range(40)} == set(names)
    with pytest.raises(InputError, match="0.nii.gz is alone"):
        dataset(items[:1], length=1)[0]
    with pytest.raises(ValueError, match="mode must be one of mean, random"):
        dataset(items, mode="first")
    assert len(dataset([], length=5)) == 0


def test_augmentation_draws_from_the_samples_own_generator(series: Path) -> None:
    def draw(item: dict, generator: torch.Generator) -> dict:
        return {**item, "draw": torch.rand((), generator=generator)}

    data = dataset([{"series": str(series)}], length=4, augment=draw)
    values = [float(data[index]["draw"]) for index in range(8)]
    assert len(set(values)) == 8 and values == [float(data[index]["draw"]) for index in range(8)]


def test_one_damaged_series_in_a_hundred_is_left_out_and_two_are_not(
    tmp_path: Path, series: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p2_slice0.nii.gz").write_bytes(series.read_bytes()[:90])
    (tmp_path / "p3_slice0.nii.gz").write_bytes(series.read_bytes()[:80])
    good = [{"series": str(series)}] * 100
    damaged = [{"series": str(tmp_path / f"p{number}_slice0.nii.gz")} for number in (2, 3)]
    drawn = dataset([*good[1:], damaged[0]], length=300)
    assert all(drawn[index]["image"].shape == (2, *SHAPE) for index in range(300))
    told = [record.getMessage() for record in caplog.records if "left out of the training" in record.getMessage()]
    assert len(told) == 1 and "p2_slice0.nii.gz" in told[0]
    assert drawn.groups[99] == [damaged[0]] and 99 not in drawn._cache and len(drawn._cache) > 80
    with pytest.raises(InputError, match="slice0.nii.gz is damaged"):
        both = dataset([*good[2:], *damaged], length=1000)
        [both[index] for index in range(1000)]
    with pytest.raises(InputError, match="p2_slice0.nii.gz is damaged"):
        dataset([good[0], damaged[0]], length=None)[0]
