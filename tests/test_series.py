"""A series registered to one of its frames: pairs, files in space, numbers, film."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images.slices import SlicePlane, read_slice_series
from shared_components.images.volumes import mean_frame
from shared_components.itk_io import read_field
from shared_components.pairs import make_preprocessing, pair_collate
from shared_components.results import SaveRegistration
from shared_components.series import SaveSeries, SeriesFrames
from shared_components.series import report as report_module
from shared_components.series.fields import in_space
from shared_components.series.film import film
from shared_components.series.numbers import plot_rows, summarise, table
from shared_components.series.report import SeriesReport, write_series_report
from shared_components.series.screen import Screen
from shared_components.transform import PhysicalField

SIZE, FRAMES, FIXED = (20, 24), 5, 2
CORONAL = np.array([[-2.0, 0, 0, 20], [0, 0, 6, -35], [0, -2.0, 0, 30], [0, 0, 0, 1]])
FLAT = np.diag([-2.0, -2.0, 1, 1])


def picture(shift: float) -> np.ndarray:
    """Smooth blobs, lower by ``shift`` pixels along the second axis."""
    x, y = np.meshgrid(*map(np.arange, SIZE), indexing="ij")
    y = y - shift
    one = np.exp(-((x - 8) ** 2 + (y - 9) ** 2) / 12.0) + 0.7 * np.exp(-((x - 13) ** 2 + (y - 14) ** 2) / 8.0)
    return (one + 0.3).astype(np.float32)


def cine(path: Path, affine: np.ndarray = CORONAL, frames: int = FRAMES) -> Path:
    """Frame k lies k - FIXED pixels lower than the fixed one."""
    array = np.stack([picture(k - FIXED) for k in range(frames)], -1)[:, :, None]
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_zooms((2, 2, float(np.linalg.norm(affine[:3, 2])), 0.25))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return path


def preprocessing(size: tuple[int, ...] = SIZE) -> Any:
    return make_preprocessing(size, 2.0, initial_transform="header", center="grid")


def exact(data: dict) -> Tensor:
    """The true field: the network's grid runs against the second axis of the file."""
    field = torch.zeros(len(data["number"]), 2, *SIZE)
    for row, number in zip(field, data["number"], strict=True):
        row[1] = -(number - FIXED)
    return field


class Runner:
    """An evaluator in small: batches, prediction, post transform."""

    def __init__(self, save: SaveSeries, predict: Callable[[dict], Any], batch: int = 2) -> None:
        self.save, self.predict = save, predict
        self.loader = DataLoader(save.frames, batch_size=batch, collate_fn=pair_collate)

    def run(self) -> None:
        for data in self.loader:
            self.save({**data, "pred": self.predict(data)})


def registered(path: Path, output: Path, predict: Callable[[dict], Any] = exact, report: bool = False) -> SaveSeries:
    frames = SeriesFrames(path, preprocessing(), FIXED)
    save = SaveSeries(frames, [SaveRegistration(str(output), report=False)], str(output), report)
    save.run(Runner(save, predict))
    return save


def test_pairs_share_their_fixed_frame(tmp_path: Path) -> None:
    frames = SeriesFrames(cine(tmp_path / "a.nii.gz"), preprocessing(), -FRAMES + FIXED)
    items = [frames[k] for k in range(len(frames))]
    assert frames.fixed == FIXED and [item["number"] for item in items] == list(range(FRAMES))
    plain = preprocessing()
    for k, item in enumerate(items):
        alone = plain({"pair": type(item["pair"])(dict(item["pair"].images)), "name": "x"}, start=1)
        assert torch.equal(item["image"], alone["image"]), k
        assert item["pair"].network is items[0]["pair"].network
    assert torch.equal(items[FIXED]["image"][0], items[FIXED]["image"][1])
    chosen = SeriesFrames(tmp_path / "a.nii.gz", plain)
    assert chosen.fixed == mean_frame(chosen.series.array)


def test_what_is_no_series_to_register_is_refused(tmp_path: Path) -> None:
    path = cine(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="no frame 5 in series .* from 0 to 4"):
        SeriesFrames(path, preprocessing(), 5)
    with pytest.raises(InputError, match="for bundles of 2-D images"):
        SeriesFrames(path, preprocessing((8, 8, 8)))
    with pytest.raises(InputError, match="series is missing"):
        SeriesFrames(None, preprocessing())
    image = nib.load(path)
    array = image.get_fdata().astype(np.float32)
    array[..., 3] = 7
    nib.save(nib.Nifti1Image(array, CORONAL), tmp_path / "b.nii.gz")
    with pytest.raises(InputError, match="frame 3 of series .* is constant"):
        SeriesFrames(tmp_path / "b.nii.gz", preprocessing())


def test_frames_land_on_the_fixed_one_with_the_header_of_the_series(tmp_path: Path) -> None:
    path = cine(tmp_path / "a.nii.gz")
    registered(path, tmp_path / "out")
    old, new = nib.load(path), nib.load(tmp_path / "out" / "moved.nii.gz")
    assert new.shape == (*SIZE, 1, FRAMES) and new.header.get_zooms() == old.header.get_zooms()
    np.testing.assert_array_equal(new.affine, old.affine)
    fixed = old.get_fdata()[:, 3:-3, 0, FIXED]
    for k in range(FRAMES):
        np.testing.assert_allclose(new.get_fdata()[:, 3:-3, 0, k], fixed, atol=0.02, err_msg=str(k))
    before = np.abs(old.get_fdata()[:, 3:-3, 0] - fixed[..., None]).max()
    assert before > 0.3, "there was something to do"


def test_fields_are_right_in_space(tmp_path: Path) -> None:
    registered(cine(tmp_path / "a.nii.gz"), tmp_path / "out")
    field = read_field(tmp_path / "out" / "ddf" / "frame_4.nii.gz")
    assert field.frame.shape == (*SIZE, 2)
    np.testing.assert_allclose(field.ddf_mm[:, 5, 5, 0], [0, 0, -4.0], atol=1e-4)  # 2 pixels of 2 mm towards the feet
    middle = field.frame.to_mm(np.array([0, 0, 0.5]))
    np.testing.assert_allclose(middle, CORONAL[:3, 3], atol=1e-4)
    back = read_field(tmp_path / "out" / "inverse_ddf" / "frame_4.nii.gz")
    np.testing.assert_allclose(back.ddf_mm[:, 5, 15, 1], [0, 0, 4.0], atol=1e-3)
    still = read_field(tmp_path / "out" / "ddf" / f"frame_{FIXED}.nii.gz")
    assert not still.ddf_mm.any(), "the fixed frame stays"


def test_itk_resamples_a_frame_to_what_was_written(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    path = cine(tmp_path / "a.nii.gz")
    registered(path, tmp_path / "out")
    field = sitk.ReadImage(str(tmp_path / "out" / "ddf" / "frame_3.nii.gz"), sitk.sitkVectorFloat64)
    series = sitk.ReadImage(str(path), sitk.sitkFloat32)
    moved = sitk.Resample(series[..., 3], series[..., FIXED], sitk.DisplacementFieldTransform(field), sitk.sitkLinear)
    ours = nib.load(tmp_path / "out" / "moved.nii.gz").get_fdata()[2:-2, 3:-3, 0, 3]
    np.testing.assert_allclose(sitk.GetArrayFromImage(moved)[0].T[2:-2, 3:-3], ours, atol=1e-4)


def test_a_flat_series_has_flat_fields(tmp_path: Path) -> None:
    registered(cine(tmp_path / "a.nii.gz", FLAT), tmp_path / "out")
    field = read_field(tmp_path / "out" / "ddf" / "frame_0.nii.gz")
    assert field.frame.shape == SIZE
    np.testing.assert_allclose(field.ddf_mm[:, 5, 12], [0, 4.0], atol=1e-4)


def test_records_have_a_line_a_frame(tmp_path: Path) -> None:
    registered(cine(tmp_path / "a.nii.gz"), tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "transform.json").read_text())
    assert kept["fixed_frame"] == FIXED and kept["series"]["frames"] == FRAMES
    assert kept["series"]["seconds_a_frame"] == 0.25 and kept["series"]["file"] == "a.nii.gz"
    assert [frame["ddf"] for frame in kept["frames"]] == [f"ddf/frame_{k}.nii.gz" for k in range(FRAMES)]
    plane = kept["plane"]
    origin = np.array(plane["basis"]) @ np.array(kept["fixed"]["affine_ras_mm"])[:2, 2] + plane["origin_mm"]
    np.testing.assert_allclose(origin, CORONAL[:3, 3], atol=1e-4)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["frames"][FIXED]["similarity"]["correlation"]["after"] == pytest.approx(1, abs=1e-3)
    assert metrics["summary"]["field"]["displacement_mm"]["max"]["max"] == pytest.approx(4.0, abs=0.01)


def test_a_failure_leaves_nothing_and_a_new_run_leaves_no_old_frames(tmp_path: Path) -> None:
    def fails(data: dict) -> Tensor:
        if 4 in data["number"]:
            raise RuntimeError("out of memory")
        return exact(data)

    with pytest.raises(RuntimeError):
        registered(cine(tmp_path / "a.nii.gz"), tmp_path / "out", fails)
    assert not (tmp_path / "out").exists()
    registered(cine(tmp_path / "a.nii.gz"), tmp_path / "out")
    with pytest.raises(RuntimeError):
        registered(tmp_path / "a.nii.gz", tmp_path / "out", fails)
    assert len(list((tmp_path / "out" / "ddf").iterdir())) == FRAMES
    registered(cine(tmp_path / "a.nii.gz", frames=4), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("ddf", "inverse_ddf", "metrics.json", "moved.nii.gz", "run.json", "transform.json"),
    ]
    assert len(list((tmp_path / "out" / "ddf").iterdir())) == 4


def test_predictions_may_be_dictionaries_and_errors_become_a_series(tmp_path: Path) -> None:
    class FromNumbers:
        def __call__(self, data: dict) -> dict:
            shift = data["pred"]["shift"].view(1, 1, 1, 1)
            field = torch.cat([0 * shift, shift], 1).expand(1, 2, *SIZE)
            return {
                **data,
                "pred": field,
                "record": {"shift": float(shift)},
                "uncertainty_mm": shift.abs()[0] + 0 * field[0, :1],
            }

    frames = SeriesFrames(cine(tmp_path / "a.nii.gz"), preprocessing(), FIXED)
    output = tmp_path / "out"
    save = SaveSeries(frames, [FromNumbers(), SaveRegistration(str(output), report=False)], str(output), False)
    save.run(Runner(save, lambda data: {"shift": torch.tensor(data["number"]).float() * -1 + FIXED}, 3))
    kept = json.loads((output / "transform.json").read_text())["frames"]
    assert [frame.get("shift") for frame in kept] == [2.0, 1.0, None, -1.0, -2.0]
    errors = nib.load(output / "uncertainty_mm.nii.gz").get_fdata()
    np.testing.assert_allclose(errors.mean((0, 1, 2)), [2, 1, 0, 1, 2], atol=1e-5)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["summary"]["expected_error_mm"]["mean"]["mean"] == pytest.approx(1.5, abs=1e-4)


def test_the_summary_leaves_out_the_fixed_frame() -> None:
    rows = [{"frame": k, "field": {"folds_percent": value, "sdlogj": None}} for k, value in enumerate((1.0, 50.0, 3.0))]
    assert summarise(rows, 1)["field"]["folds_percent"] == {"mean": 2.0, "min": 1.0, "max": 3.0}
    assert table(summarise(rows, 1))["folds (central J <= 0) [%]".split(" [")[0]]["after"] == 2.0
    assert plot_rows([{"expected_error_mm": {"mean": 2}}, {}])["expected error"][0] == 2.0


def test_a_field_of_an_oblique_plane_stays_in_the_plane() -> None:
    oblique = np.eye(4)
    oblique[:3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] * (2.0, 2.0, 5.0)
    plane = SlicePlane.of(oblique)
    field = PhysicalField(plane.frame(SIZE), np.full((2, *SIZE), 3.0, np.float32))
    there = in_space(field, plane)
    vector = there.ddf_mm[:, 0, 0, 0]
    assert abs(vector @ oblique[:3, 2]) < 1e-4 and np.linalg.norm(vector) == pytest.approx(3 * np.sqrt(2), rel=1e-5)
    assert isinstance(there.frame, Frame) and there.frame.spacing[2] == pytest.approx(5)


@pytest.fixture
def page(tmp_path: Path) -> SeriesReport:
    series = read_slice_series(cine(tmp_path / "a.nii.gz"))
    rows = {name: [0.5] * FRAMES for name in ("correlation before", "correlation after", "displacement mean")}
    metrics = {"correlation": {"before": 0.5, "after": 0.9, "unit": ""}}
    rows["displacement p95"] = [4.0, 2.0, 0.0, 2.0, 4.0]
    return SeriesReport(series, FIXED, series.array, rows, metrics, {"bundle": "<b>"})


def test_the_report_is_one_offline_file_with_a_film(tmp_path: Path, page: SeriesReport) -> None:
    text = write_series_report(tmp_path / "report.html", page).read_text()
    assert text.count("<canvas") == 5 and 'data-shows="fixed moved"' in text and "requestAnimation" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "://" not in text and "&lt;b&gt;" in text
    assert "right is on the left, superior on top" in text
    facts = json.loads(re.search(r'data-film="([^"]*)"', text).group(1).replace("&quot;", '"'))
    assert facts["numbers"] == list(range(FRAMES)) and facts["fixed"] == FIXED and facts["rate"] == 4
    again = write_series_report(tmp_path / "again.html", page).read_text()
    assert text == again


def test_the_report_gets_coarser_until_it_fits(tmp_path: Path, page: SeriesReport, monkeypatch) -> None:
    fine = write_series_report(tmp_path / "fine.html", page).stat().st_size
    monkeypatch.setattr(report_module, "LARGEST_BYTES", fine - 1)
    assert write_series_report(tmp_path / "coarse.html", page).stat().st_size < fine


def test_pictures_stand_upright_and_the_busiest_line_is_found(page: SeriesReport) -> None:
    screen = Screen(page.series, FIXED, page.moved)
    assert screen.letters == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    assert screen.moving.shape == (FRAMES, SIZE[1], SIZE[0])
    rows = [int(frame[:, 8].argmax()) for frame in screen.moving]
    assert rows == [7, 8, 9, 10, 11], "lower in the file is lower on the screen"
    assert abs(screen.busiest_column() - 8) <= 2
    assert screen.frames_of_strip(np.array([0, 0, 0, 9, 0.0]), 3, 3) == [2, 3, 4]
    assert screen.frames_of_strip(np.zeros(FRAMES)) == list(range(FRAMES))


def test_a_long_series_shows_every_nth_frame(page: SeriesReport, monkeypatch) -> None:
    monkeypatch.setattr("shared_components.series.film.MOST_FRAMES", 3)
    text = film(Screen(page.series, FIXED, page.moved), 16, 50)
    assert "&quot;numbers&quot;: [0, 2, 4]" in text and 'max="2"' in text
