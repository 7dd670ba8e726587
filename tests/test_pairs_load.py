"""What an item may name, and the sentences where files do not fit it or each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shared_components.errors import InputError, find_input_error
from shared_components.geometry import Frame
from shared_components.images import write_image
from shared_components.itk_io import write_affine, write_field
from shared_components.pairs import AugmentPair, FramePair, LoadPair, PairDataset, make_preprocessing
from shared_components.points import write_points
from shared_components.transform import PhysicalField, affine_field

SHAPE = (14, 16, 18)


def grid(ndim: int) -> Frame:
    return Frame(SHAPE[:ndim], np.diag([-2.0, 2.0, 1.5][:ndim] + [1.0]))


def write(folder: Path, ndim: int, name: str = "") -> dict[str, str]:
    """A pair of ``ndim`` dimensions with all that can come with it."""
    frame = grid(ndim)
    middle = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), -1) - (np.array(frame.shape) - 1) / 2
    files = {}
    for side, shift in (("fixed", 0.0), ("moving", 1.0)):
        image = np.clip(40 - ((middle - shift) ** 2).sum(-1), 0, None)
        for kind in ("", "_label", "_mask"):
            files[side + kind] = str(folder / f"{name}{side}{kind}{ndim}.nii.gz")
        write_image(files[side], image.astype(np.float32), frame)
        write_image(files[f"{side}_label"], (image > 10).astype(np.uint8) + (image > 25), frame)
        write_image(files[f"{side}_mask"], (image > 0).astype(np.uint8), frame)
        files[f"{side}_points"] = str(folder / f"{name}{side}{ndim}.csv")
        write_points(files[f"{side}_points"], frame.center_mm + np.eye(ndim))
    files["ddf"] = str(folder / f"{name}ddf{ndim}.nii.gz")
    write_field(files["ddf"], affine_field(np.eye(ndim + 1), frame))
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, str]]:
    folder = tmp_path_factory.mktemp("files")
    return {ndim: write(folder, ndim) for ndim in (2, 3)}


def refused(call: Callable[[], object], *parts: object) -> None:
    """MONAI wraps what a transform raises; the sentence is among the causes."""
    with pytest.raises((InputError, RuntimeError)) as info:
        call()
    sentence = str(find_input_error(info.value))
    assert "\n" not in sentence and ";" in sentence, sentence
    for part in parts:
        assert str(part) in sentence, sentence


@pytest.mark.parametrize("ndim", [2, 3])
def test_everything_is_read_in_its_dimension(files, ndim) -> None:
    pair = LoadPair(ndim)(files[ndim])["pair"]
    images = [*pair.images.values(), *pair.labels.values(), *pair.masks.values()]
    assert len(images) == 6 and {image.frame.ndim for image in images} == {ndim}
    assert {points.shape for points in pair.points_mm.values()} == {(ndim, ndim)}
    assert isinstance(pair.target, PhysicalField) and pair.target.frame.ndim == ndim
    size = [8, 10, 12][:ndim]
    item = make_preprocessing(size, 3.0)(dict(files[ndim]))
    assert item["image"].shape == (2, *size) and item["ddf"].shape == (ndim, *size)
    for key in ("fixed_label", "moving_label", "fixed_mask", "moving_mask"):
        assert item[key].shape == (1, *size)
    assert item["fixed_points_vox"].shape == (ndim, ndim)


SENTENCES = {
    ("fixed", 2): "is 3-D (shape 14x16x18) where a 2-D image is needed; save one slice of it or choose a bundle",
    ("fixed", 3): "is 2-D (shape 14x16) where a volume is needed; give a 3-D image or choose a bundle",
    ("moving_label", 2): "is 3-D (shape 14x16x18) where a 2-D image is needed; save one slice",
    ("moving_label", 3): "is 2-D (shape 14x16) where a volume is needed; give a 3-D image",
    ("fixed_mask", 2): "is 3-D (shape 14x16x18) where a 2-D image is needed; save one slice",
    ("fixed_mask", 3): "is 2-D (shape 14x16) where a volume is needed; give a 3-D image",
    ("moving_points", 2): "cannot be understood (three coordinates where two are needed); give x_mm,y_mm in a .csv",
    (
        "moving_points",
        3,
    ): "cannot be understood (no columns x_mm,y_mm,z_mm in the header x_mm,y_mm); give x_mm,y_mm,z_mm",
    ("ddf", 2): "is 3-D and the images are 2-D; give a 2-D transform",
    ("ddf", 3): "is 2-D and the images are 3-D; give a 3-D transform",
}


@pytest.mark.parametrize(("key", "ndim"), SENTENCES)
def test_a_file_of_another_dimension(files, key, ndim) -> None:
    wrong = files[5 - ndim][key]
    refused(lambda: LoadPair(ndim)({**files[ndim], key: wrong}), key.split("_")[-1], wrong, SENTENCES[key, ndim])


@pytest.mark.parametrize("ndim", [2, 3])
def test_an_initial_transform_of_another_dimension(files, ndim, tmp_path) -> None:
    for number in (2, 3):
        world = np.eye(number + 1)
        world[0, -1] = 2.5
        write_affine(tmp_path / f"{number}.tfm", world)
    wrong, right = (str(tmp_path / f"{number}.tfm") for number in (5 - ndim, ndim))
    size = SHAPE[:ndim]
    call = make_preprocessing(size, 2.0, initial_transform=wrong)
    refused(lambda: call(dict(files[ndim])), "initial transform", wrong, f"{5 - ndim}-D", f"give a {ndim}-D transform")
    pair = make_preprocessing(size, 2.0, initial_transform=right)(dict(files[ndim]))["pair"]
    assert pair.initial.shape == (ndim + 1, ndim + 1) and pair.initial[0, -1] == 2.5
    field = make_preprocessing(size, 2.0, initial_transform=files[ndim]["ddf"])
    refused(lambda: field(dict(files[ndim])), "displacement field", files[ndim]["ddf"])


@pytest.mark.parametrize("ndim", [2, 3])
def test_names_of_monai_label(files, ndim) -> None:
    """{"image", "moving"} is a pair, {"image", "label"} a subject; fixed comes from "image", its label from "label"."""
    given, prepare = files[ndim], make_preprocessing(SHAPE[:ndim], 2.0)
    ours = prepare({key: given[key] for key in ("fixed", "moving", "fixed_label", "moving_label")})
    theirs = {"image": given["fixed"], "moving": given["moving"], "label": given["fixed_label"]}
    asked = dict(theirs)
    found = prepare(asked | {"moving_label": given["moving_label"]})
    assert asked == theirs, "what was asked stays as it was"
    assert found["name"] == ours["name"] and found["pair"].fixed.path == Path(given["fixed"])
    for key in ("image", "fixed_label", "moving_label"):
        torch.testing.assert_close(found[key], ours[key])
    other = prepare({**theirs, "fixed_label": given["fixed_mask"]})  # the name that says more counts
    assert other["fixed_label"].max() == 1 and found["fixed_label"].max() == 2
    subject = prepare({"image": given["fixed"], "label": given["fixed_label"]})
    assert subject["image"].shape == (1, *SHAPE[:ndim]) and "pair" not in subject
    refused(lambda: prepare({"image": given["fixed"], "moving": given["fixed"]}), "the same file")
    refused(lambda: prepare({"moving": given["moving"]}), "the fixed image is missing")
    refused(lambda: prepare({"image": files[5 - ndim]["fixed"]}), files[5 - ndim]["fixed"], "choose a bundle")


@pytest.mark.parametrize("ndim", [2, 3])
def test_datasets_take_the_same_names_for_pairs(files, ndim, tmp_path) -> None:
    given, prepare = files[ndim], make_preprocessing(SHAPE[:ndim], 2.0, keep_native=False)
    pairs = PairDataset([{"image": given["fixed"], "moving": given["moving"], "label": given["fixed_label"]}], prepare)
    assert not pairs.single and len(pairs) == 1
    assert pairs[0]["image"].shape == (2, *SHAPE[:ndim]) and "fixed_label" in pairs[0]
    other = write(tmp_path, ndim, "other")
    subjects = [{"image": one["moving"], "label": one["moving_label"]} for one in (given, other)]
    augment = AugmentPair(
        rotation=5, scaling=0.1, translation=0.02, pose_rotation=5, contrast=0.3, bias=0.2, noise=0.02
    )
    singles = PairDataset(subjects, prepare, augment=augment)
    assert singles.single and len(singles) == 2
    item = singles[0]
    assert item["image"].shape == (2, *SHAPE[:ndim]) and item["moving_label"].shape == (1, *SHAPE[:ndim])
    assert (item["image"][0] - item["image"][1]).abs().max() > 0.05


def test_options_reach_the_frame(files) -> None:
    load, frame = make_preprocessing([8, 9], 2.5, center="grid", window=(0, 40), keep_native=False).transforms
    assert isinstance(load, LoadPair) and load.ndim == 2 and isinstance(frame, FramePair)
    item = frame(load(dict(files[2])))
    assert "pair" not in item and item["image"].max() == pytest.approx(1, abs=0.1)
    assert make_preprocessing([8, 9], 2.5, initial_transform=None).transforms[1].initial == "centre_of_mass"
    with pytest.raises(TypeError, match="centre"):
        make_preprocessing([8, 9], 2.5, centre="grid")
