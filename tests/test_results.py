"""From a network's field to native files: the numbers, and all or nothing."""

import json

import numpy as np
import pytest
import torch

from shared_components.engines import AutocastInferer
from shared_components.errors import InputError
from shared_components.geometry import Frame, apply_affine
from shared_components.images import read_image, write_image
from shared_components.itk_io import read_transform, write_field
from shared_components.pairs import AugmentPair, make_preprocessing
from shared_components.points import write_points
from shared_components.results import Registration, SaveRegistration, check_output_dir, measure
from shared_components.results.save import all_or_nothing
from shared_components.results.summary import format_table
from shared_components.transform import PhysicalField

MOVING_SHAPE = (42, 36, 40)
SHIFT_MM = np.array([3.0, -2.0, 4.0])


def oblique() -> np.ndarray:
    affine = np.diag([2.0, 2.5, 2.0, 1.0])
    c, s = np.cos(0.2), np.sin(0.2)
    turn = np.eye(4)
    turn[:2, :2] = [[c, -s], [s, c]]
    affine = turn @ affine @ np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = np.array([28.0, 24.0, 27.0]) - affine[:3, :3] @ ((np.array(MOVING_SHAPE) - 1) / 2)
    return affine


def blob(frame: Frame, center_mm: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in frame.shape], indexing="ij"), -1)
    away = (frame.to_mm(grid) - center_mm) / np.array([14.0, 18.0, 12.0])
    return 100 * np.exp(-0.5 * (away**2).sum(-1))


@pytest.fixture
def pair_files(tmp_path):
    """Fixed and moving blob, the moving one shifted by SHIFT_MM and on another, oblique grid; labels and points."""
    fixed, moving = Frame((26, 28, 24), np.diag([2.0, 2, 2, 1.0])), Frame(MOVING_SHAPE, oblique())
    center = fixed.center_mm
    files = {"fixed": "f.nii.gz", "moving": "m.nii.gz", "fixed_label": "fl.nii.gz", "moving_label": "ml.nii.gz"}
    files |= {"fixed_points": "f.csv", "moving_points": "m.csv"}
    files = {key: str(tmp_path / name) for key, name in files.items()}
    for side, frame, middle in (("fixed", fixed, center), ("moving", moving, center + SHIFT_MM)):
        image = blob(frame, middle)
        write_image(files[side], image.astype(np.float32), frame)
        write_image(files[f"{side}_label"], (image > 40).astype(np.uint8) + (image > 70), frame)
        write_points(files[f"{side}_points"], np.array([[0, 0, 0], [5, -4, 3]]) + middle)
    return files


def prepared(files, **options):
    return make_preprocessing([24, 26, 22], 2.0, **options)(dict(files))


def test_the_true_shift_by_header_is_measured_as_such(pair_files):
    item = prepared(pair_files, initial_transform="header")
    ddf = torch.zeros(1, 3, *item["image"].shape[1:]) + torch.tensor(SHIFT_MM / 2.0).float().view(1, 3, 1, 1, 1)
    result = Registration(item["pair"], ddf)
    inner = result.field.ddf_mm[:, 4:-4, 4:-4, 4:-4]
    assert np.allclose(inner, SHIFT_MM[:, None, None, None], atol=1e-4)
    metrics = measure(result)
    assert metrics["points"]["after"]["max"] < 1e-3 and metrics["points"]["header"]["mean"] == pytest.approx(29**0.5)
    assert metrics["labels"]["after"]["mean"]["dice"] > metrics["labels"]["header"]["mean"]["dice"] + 0.1
    assert metrics["similarity"]["correlation"]["after"] > 0.99
    assert metrics["field"]["folds_percent"] == 0
    assert metrics["field"]["displacement_mm"]["mean"] == pytest.approx(29**0.5, rel=1e-3)
    back = result.inverse_field.map_points(item["pair"].points_mm["moving"])
    assert np.allclose(back, item["pair"].points_mm["fixed"], atol=1e-2)


def test_centre_of_mass_alone_does_it_and_displacement_counts_from_there(pair_files):
    item = prepared(pair_files)
    metrics = measure(Registration(item["pair"], torch.zeros(1, 3, *item["image"].shape[1:])))
    assert metrics["points"]["initial"]["max"] < 0.5
    assert metrics["field"]["displacement_mm"]["max"] < 1e-3


def test_a_target_field_reaches_the_network_frame(pair_files, tmp_path):
    fixed = read_image(pair_files["fixed"])
    path = tmp_path / "target.nii.gz"
    field = np.broadcast_to(SHIFT_MM[:, None, None, None], (3, *fixed.frame.shape)).astype(np.float32)
    write_field(path, PhysicalField(fixed.frame, field.copy()))
    for initial in ("header", "centre_of_mass"):
        item = prepared({**pair_files, "ddf": str(path)}, initial_transform=initial)
        rest = apply_affine(np.linalg.inv(item["pair"].initial), SHIFT_MM)
        inner = item["ddf"][:, 6:-6, 6:-6, 6:-6].numpy()
        assert np.allclose(inner, (rest / 2.0)[:, None, None, None], atol=1e-3)
        carried = Registration(item["pair"], item["ddf"][None]).field.ddf_mm[:, 6:-6, 6:-6, 6:-6]
        assert np.allclose(carried, SHIFT_MM[:, None, None, None], atol=1e-2)
    with pytest.raises(InputError, match="target field"):
        AugmentPair()(item, torch.Generator())


class Shifted(torch.nn.Linear):
    """A network with an affine stage: the true shift, in voxels of the network grid."""

    def affine_matrix(self, image):
        matrix = torch.eye(4)[None]
        matrix[0, :3, 3] = torch.tensor(SHIFT_MM / 2.0)
        return matrix


def test_every_file_is_written_and_says_the_same(pair_files, tmp_path):
    item = prepared(pair_files, initial_transform="header")
    item["pred"] = torch.zeros(3, *item["image"].shape[1:]) + torch.tensor(SHIFT_MM / 2.0).float().view(3, 1, 1, 1)
    out = tmp_path / "out"
    done = SaveRegistration(str(out), "some_bundle", network=Shifted(1, 1))(item)
    expected = {"moved.nii.gz", "moved_label.nii.gz", "ddf.nii.gz", "inverse_ddf.nii.gz", "affine.tfm"}
    expected |= {"transform.json", "metrics.json", "run.json", "report.html"}
    assert {path.name for path in out.iterdir()} == expected
    assert np.allclose(read_transform(out / "affine.tfm")[:3, 3], SHIFT_MM, atol=1e-4)
    assert np.allclose(read_transform(out / "ddf.nii.gz").ddf_mm[:, 12, 12, 12], SHIFT_MM, atol=1e-4)
    records = json.loads((out / "transform.json").read_text())
    assert records["bundle"] == "some_bundle" and records["moving"]["orientation"] == "LAS"
    assert len(records["fixed"]["sha256"]) == 64
    assert json.loads((out / "metrics.json").read_text()) == done["metrics"]
    first = {name: (out / name).read_bytes() for name in expected - {"run.json", "report.html"}}
    SaveRegistration(str(out), "some_bundle", network=Shifted(1, 1))(item)
    assert first == {name: (out / name).read_bytes() for name in first}, "the same input, the same bytes"


def test_the_affine_part_is_asked_of_the_network_that_ran(pair_files, tmp_path):
    """Not of the configuration's own, which MONAI Label leaves without weights."""
    item = prepared(pair_files, initial_transform="header")
    item["pred"] = torch.zeros(3, *item["image"].shape[1:])
    inferer = AutocastInferer()
    save = SaveRegistration(str(tmp_path), inferer=inferer, report=False)
    save(dict(item))
    assert not (tmp_path / "affine.tfm").exists(), "nothing ran"
    inferer(torch.zeros(1, 1), Shifted(1, 1))
    save(dict(item))
    assert np.allclose(read_transform(tmp_path / "affine.tfm")[:3, 3], SHIFT_MM, atol=1e-4)


def test_the_bundle_is_named_with_its_version(tmp_path):
    folder = tmp_path / "some_registration"
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text('{"version": "1.2.3"}')
    assert SaveRegistration(str(tmp_path), str(folder)).bundle == "some_registration 1.2.3"


def test_a_failure_leaves_the_old_results_alone(tmp_path):
    (tmp_path / "moved.nii.gz").write_bytes(b"good")
    with pytest.raises(RuntimeError), all_or_nothing(tmp_path) as place:
        (place / "moved.nii.gz").write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "moved.nii.gz").read_bytes() == b"good"
    assert [path.name for path in tmp_path.iterdir()] == ["moved.nii.gz"]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        check_output_dir(tmp_path / "file")


def test_an_output_folder_is_looked_at_and_not_made(tmp_path):
    assert check_output_dir(tmp_path / "new" / "deep") == tmp_path / "new" / "deep"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), all_or_nothing(tmp_path / "out") as place:
        (place / "moved.nii.gz").write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_table_names_units_and_leaves_gaps():
    text = format_table(
        {"TRE": {"before": 2.0, "after": 1.0, "unit": "mm"}, "folds": {"before": None, "after": 0.0, "unit": "%"}}
    )
    assert "TRE [mm]" in text and text.splitlines()[2].split() == ["folds", "[%]", "0.0000"]


def test_a_record_of_the_method_goes_into_the_transform(pair_files, tmp_path):
    data = prepared(pair_files)
    data["pred"] = torch.zeros(1, 3, *data["image"].shape[1:])
    save = SaveRegistration(str(tmp_path / "out"), report=True)
    save({**data, "record": {"bumps": {"parameters": [[0.1, 0.2]]}}})
    written = json.loads((tmp_path / "out" / "transform.json").read_text())
    assert written["bumps"] == {"parameters": [[0.1, 0.2]]} and "network_frame" in written
    assert "bumps" not in (tmp_path / "out" / "report.html").read_text(), "numbers for programs, not for readers"
