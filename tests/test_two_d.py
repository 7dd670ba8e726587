"""Pairs of 2-D images from files to files: read, framed, written, and applied by our script and by SimpleITK."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from ignite.engine import Engine
from PIL import Image as Picture
from report_case import Reader
from script_tools import load_script
from torch import Tensor, nn
from two_d_case import CASES, CENTER, LANDMARKS, SIZE, SPACING_MM, TRUE_SHIFT_MM, paint, write_pair

from shared_components.geometry import Frame, apply_affine
from shared_components.handlers import DiceHandler, HD95Handler, InverseConsistencyHandler, JacobianHandler, TREHandler
from shared_components.images import read_image
from shared_components.itk_io import read_affine, read_field
from shared_components.pairs import make_preprocessing
from shared_components.points import read_points
from shared_components.results import SaveRegistration
from shared_components.warp import invert, warp_labels

NUMBERS = "dice hd95_mm tre_mm folds_percent sdlogj ndv_percent ice_mm".split()


class Shifting(nn.Module):
    """Stands in for a network: the true shift in voxels of the network frame, and ripples."""

    matrix = torch.tensor([[1.0, 0.05, 1.5], [-0.03, 1.1, -2.0], [0, 0, 1]])

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, item: dict[str, Any]) -> Tensor:
        shift = np.linalg.inv(item["pair"].network.matrix) @ TRUE_SHIFT_MM
        x, y = torch.meshgrid(*[torch.arange(float(n)) for n in item["image"].shape[1:]], indexing="ij")
        ripples = torch.stack([1.5 * torch.sin(y / 6), torch.sin(x / 7)])
        return torch.from_numpy(shift).float()[:, None, None] + ripples

    def affine_matrix(self, image: Tensor) -> Tensor:
        assert image.shape == (1, 2, *SIZE)
        return self.matrix[None]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("apply_transform")


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of a pair, what became of it, and the folder of its results."""
    folder = tmp_path_factory.mktemp("pair")
    files = write_pair(folder, CASES[request.param])
    item = make_preprocessing(SIZE, SPACING_MM, initial_transform="header")(dict(files))
    network = Shifting()
    save = SaveRegistration(str(folder / "out"), network=network, report=False)
    done = save({**item, "pred": network(item)})
    return {"files": files, "item": item, "done": done, "out": folder / "out", "frames": CASES[request.param]}


def in_itk(folder: Path) -> sitk.Transform:
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(folder), sitk.sitkVectorFloat64))


def through_itk(transform: sitk.Transform, points_mm: np.ndarray) -> np.ndarray:
    return -np.array([transform.TransformPoint((-point).tolist()) for point in points_mm])


# ---- what is read and measured ---------------------------------------------------------------------------------------


def test_what_the_network_sees(case):
    item, pair = case["item"], case["item"]["pair"]
    assert item["image"].shape == (2, *SIZE) and item["moving_label"].shape == (1, *SIZE)
    assert item["image"].amax() > 0.9 and pair.network.ndim == 2
    expected = paint(pair.network, CENTER)
    expected = expected / np.percentile(expected[expected > 0], 99.5)
    assert np.abs(item["image"][0].numpy() - expected.clip(0, 1)).mean() < 0.01
    for side, center in (("fixed", CENTER), ("moving", CENTER + TRUE_SHIFT_MM)):
        np.testing.assert_allclose(pair.network.to_mm(item[f"{side}_points_vox"].numpy()), LANDMARKS + center)


def test_the_numbers(case):
    metrics = case["done"]["metrics"]
    assert metrics["points"]["header"]["mean"] == pytest.approx(5)
    assert metrics["points"]["after"]["max"] < 2
    dice = {stage: metrics["labels"][stage]["mean"]["dice"] for stage in ("header", "after")}
    assert dice["header"] < 0.6 < 0.8 < dice["after"]
    assert metrics["labels"]["after"]["mean"]["hd95_mm"] < 2.5
    assert metrics["similarity"]["correlation"]["after"] > 0.93
    assert metrics["field"]["folds_percent"] == 0 and metrics["field"]["inverse_residual_vox"] < 0.05
    assert metrics["field"]["displacement_mm"]["mean"] == pytest.approx(5, abs=0.4)


def test_the_records(case):
    records = json.loads((case["out"] / "transform.json").read_text())
    for side, frame in zip(("fixed", "moving"), case["frames"], strict=True):
        assert records[side]["shape"] == list(frame.shape)
        assert not set(records[side]["orientation"]) & set("LRAPSI")
    assert np.shape(records["affine_world_ras_mm"]) == (3, 3)
    np.testing.assert_array_equal(read_affine(case["out"] / "affine.tfm"), records["affine_world_ras_mm"])


def test_axes_are_named_without_the_body(case):
    """Array axis 0 of the turned grids points by less than 45 degrees off the axis that is named."""
    orientation = json.loads((case["out"] / "transform.json").read_text())["fixed"]["orientation"]
    for code, column in zip(orientation.split(), case["frames"][0].matrix.T, strict=True):
        axis = "xy".index(code[1])
        assert abs(column[axis]) > abs(column[1 - axis]) and code[0] == ("+" if column[axis] > 0 else "-")


def test_handlers_take_the_batch(case):
    """Mean over one pair on the network grid, as the evaluation of a bundle sees it."""
    item, ddf = case["item"], case["done"]["pred"]
    inverse, _ = invert(ddf[None])
    output = {
        "pred": ddf,
        "inverse_ddf": inverse[0],
        "moved_label": warp_labels(item["moving_label"][None], ddf[None])[0],
    }
    output |= {key: item[key] for key in ("fixed_label", "fixed_points_vox", "moving_points_vox")}
    step = (SPACING_MM, SPACING_MM)
    handlers = {"dice": DiceHandler(), "hd95_mm": HD95Handler(step), "tre": TREHandler(step), "det": JacobianHandler()}
    handlers["ice"] = InverseConsistencyHandler(step)
    engine = Engine(lambda engine, batch: batch)
    for name, handler in handlers.items():
        handler.attach(engine, name)
    engine.run([[output]])
    found = engine.state.metrics
    assert {name: bool(np.isfinite(found[name])) for name in NUMBERS} == dict.fromkeys(NUMBERS, True)
    native = case["done"]["metrics"]
    assert found["tre_mm"] == pytest.approx(native["points"]["after"]["mean"], abs=0.05)
    assert found["dice"] == pytest.approx(native["labels"]["after"]["mean"]["dice"], abs=0.08)
    assert found["folds_percent"] == 0 and found["ice_mm"] < 0.05


# ---- what others make of the files -----------------------------------------------------------------------------------


def test_layout_of_the_field(case):
    for name, frame in zip(("ddf.nii.gz", "inverse_ddf.nii.gz"), case["frames"], strict=True):
        stored = nib.load(case["out"] / name)
        assert stored.shape == (*frame.shape, 1, 1, 2) and int(stored.header["intent_code"]) == 1007
        image = sitk.ReadImage(str(case["out"] / name))
        assert image.GetDimension() == 2 and image.GetNumberOfComponentsPerPixel() == 2
        assert read_field(case["out"] / name).frame.same_grid(frame)


def test_itk_maps_points_as_we_do(case):
    for name, center in (("ddf.nii.gz", CENTER), ("inverse_ddf.nii.gz", CENTER + TRUE_SHIFT_MM)):
        points = LANDMARKS + center
        ours = read_field(case["out"] / name).map_points(points)
        assert np.linalg.norm(ours - points, axis=1).min() > 2
        assert np.abs(through_itk(in_itk(case["out"] / name), points) - ours).max() <= 1e-3
    world = read_affine(case["out"] / "affine.tfm")
    theirs = through_itk(sitk.ReadTransform(str(case["out"] / "affine.tfm")), LANDMARKS)
    assert np.abs(theirs - apply_affine(world, LANDMARKS)).max() <= 1e-9
    network = case["item"]["pair"].network
    expected = network.to_mm(apply_affine(Shifting.matrix.numpy(), network.to_vox(LANDMARKS)))
    np.testing.assert_allclose(apply_affine(world, LANDMARKS), expected, atol=1e-4)


@pytest.mark.parametrize("mode", ["image", "label"])
def test_itk_moves_images_as_we_do(case, mode):
    files, out = case["files"], case["out"]
    fixed, moving = files["fixed"], files["moving" if mode == "image" else "moving_label"]
    reference, source = (sitk.ReadImage(path, sitk.sitkFloat64) for path in (fixed, moving))
    interpolator = sitk.sitkLinear if mode == "image" else sitk.sitkNearestNeighbor
    theirs = sitk.GetArrayFromImage(sitk.Resample(source, reference, in_itk(out / "ddf.nii.gz"), interpolator)).T
    moved = read_image(out / ("moved.nii.gz" if mode == "image" else "moved_label.nii.gz"), ndim=2)
    assert moved.frame.same_grid(case["frames"][0])
    ours = moved.array[0].numpy()
    inner = (slice(6, -6),) * 2
    assert ours[inner].std() > 0.5
    if mode == "image":
        assert np.abs(ours - theirs)[inner].max() <= 1e-3 * ours.max()
    else:
        assert (ours != theirs)[inner].mean() < 1e-3


@pytest.mark.parametrize("inverse", [False, True])
def test_apply_transform_repeats_the_result(case, script, inverse, tmp_path):
    files, here, there = case["files"], *(("moving", "fixed") if inverse else ("fixed", "moving"))
    command = [f"--transform={case['out']}", f"--image={files[there]}", f"--label={files[f'{there}_label']}"]
    command += [f"--points={files[f'{here}_points']}", f"--output_dir={tmp_path}", *(["--inverse"] if inverse else [])]
    assert script.main(command) == 0
    field = read_field(case["out"] / ("inverse_ddf.nii.gz" if inverse else "ddf.nii.gz"))
    image = read_image(files[there], ndim=2)
    moved = read_image(tmp_path / f"{there}_moved.nii.gz", ndim=2)
    assert moved.frame.same_grid(case["frames"][int(inverse)])
    np.testing.assert_allclose(moved.array, field.resample(image.array, image.frame), atol=1e-3)
    if not inverse:
        np.testing.assert_allclose(moved.array, read_image(case["out"] / "moved.nii.gz", ndim=2).array, atol=1e-3)
        labels = (nib.load(path) for path in (tmp_path / "moving_seg_moved.nii.gz", case["out"] / "moved_label.nii.gz"))
        np.testing.assert_array_equal(*(np.asarray(label.dataobj) for label in labels))
    points = read_points(tmp_path / f"{here}_moved.csv", ndim=2).points_mm
    true = LANDMARKS + CENTER + (0 if inverse else 1) * TRUE_SHIFT_MM
    assert np.abs(points - true).max() < 2


def test_apply_transform_takes_the_affine_and_a_chain(case, script, tmp_path):
    files, out = case["files"], case["out"]
    command = [f"--transform={out}", f"--transform={out / 'affine.tfm'}", f"--points={files['fixed_points']}"]
    assert script.main([*command, f"--image={files['moving']}", f"--output_dir={tmp_path}"]) == 0
    ours = read_points(tmp_path / "fixed_moved.csv", ndim=2).points_mm
    chain = sitk.CompositeTransform([sitk.ReadTransform(str(out / "affine.tfm")), in_itk(out / "ddf.nii.gz")])
    assert np.abs(through_itk(chain, LANDMARKS + CENTER) - ours).max() <= 1e-3


# ---- the report ------------------------------------------------------------------------------------------------------


def test_the_report_shows_one_plane_and_no_body_axes(tmp_path):
    item = make_preprocessing(SIZE, SPACING_MM)(write_pair(tmp_path, CASES["turned"]))
    SaveRegistration(str(tmp_path))({**item, "pred": Shifting()(item)})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    assert {"metrics", "labels", "landmarks", "jacobian"} <= set(reader.sections)
    for word in ("Radiological", "axial", "sagittal", "slice", "voxels shown", "Volume", "Projected"):
        assert word not in reader.text, word
    assert "Area in the moving image" in reader.text and "pixels of" in reader.text
    assert len(reader.named("img")) == 10
    for picture in reader.named("img"):
        assert base64.b64decode(str(picture["src"]).split(",", 1)[1])[:4] == b"\x89PNG"


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_png_onto_a_jpeg(script, tmp_path):
    """Picture files from end to end; the pictures are applied by ITK from the very files."""
    grids = [Frame(shape, np.diag([-1.0, -1, 1])) for shape in ((60, 80), (70, 64))]
    files = {"image": str(tmp_path / "fixed.jpg"), "moving": str(tmp_path / "moving.png")}
    centers = np.array([-30.0, -38.0]), np.array([-30.0, -38.0]) + TRUE_SHIFT_MM
    for path, frame, center in zip(files.values(), grids, centers, strict=True):
        Picture.fromarray(paint(frame, center).T.astype(np.uint8)).save(path)
    files["label"] = str(tmp_path / "fixed_seg.png")
    Picture.fromarray((paint(grids[0], centers[0]) > 20).T.astype(np.uint8)).save(files["label"])
    points = "\n".join(["# space: VOX", "x,y", *(f"{x},{y}" for x, y in LANDMARKS * [-1, -1] + [30, 38])])
    (tmp_path / "pixels.csv").write_text(points + "\n")
    files |= {"fixed_points": str(tmp_path / "pixels.csv")}
    item = make_preprocessing(SIZE, SPACING_MM, initial_transform="header")(files)
    assert item["pair"].fixed.frame.same_grid(grids[0]) and item["name"] == "fixed<-moving"
    assert set(item["pair"].labels) == {"fixed"}
    np.testing.assert_allclose(item["pair"].points_mm["fixed"], LANDMARKS + centers[0])
    SaveRegistration(str(tmp_path / "out"), report=False)({**item, "pred": Shifting()(item)})
    assert not (tmp_path / "out" / "affine.tfm").exists()

    reference, source = (sitk.ReadImage(files[key], sitk.sitkFloat64) for key in ("image", "moving"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(source, reference, in_itk(tmp_path / "out" / "ddf.nii.gz"))).T
    ours = read_image(tmp_path / "out" / "moved.nii.gz", ndim=2).array[0].numpy()
    inner = (slice(8, -8),) * 2
    assert ours[inner].std() > 10 and np.abs(ours - theirs)[inner].max() < 0.2
    command = [f"--transform={tmp_path / 'out'}", f"--image={files['moving']}", f"--output_dir={tmp_path / 'again'}"]
    assert script.main(command) == 0
    again = read_image(tmp_path / "again" / "moving_moved.nii.gz", ndim=2)
    np.testing.assert_allclose(again.array[0], ours, atol=1e-3)
