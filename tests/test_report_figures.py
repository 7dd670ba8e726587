"""The pictures of a report: the right way round, in true proportion, with what they are to show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from report_case import DPI, blob, make_data, pixels

from shared_components import warp
from shared_components.geometry import Frame
from shared_components.images import read_image
from shared_components.report import ReportData, figures
from shared_components.report.page import build_page
from shared_components.report.planes import Display, Plane, choose_planes, window
from shared_components.report.sheet import nice_length

ORIENTATIONS = [("RAS", (0, 0, 0)), ("LAS", (0, 0, 0)), ("LPS", (0, 0, 0)), ("PIR", (0, 0, 0)), ("SLA", (0, 0, 0))]
ORIENTATIONS += [("LAS", (20, -10, 15)), ("AIL", (-12, 8, 25))]


@pytest.fixture(scope="module")
def frame() -> Frame:
    return Frame((24, 30, 18), np.diag([-2.0, 2.0, 3.0, 1.0]))


@pytest.mark.parametrize(("codes", "oblique"), ORIENTATIONS)
def test_a_bright_corner_ends_on_the_sides_that_its_letters_say(make_frame, codes, oblique) -> None:
    grid = make_frame(codes, (20, 26, 32), (1.0, 1.5, 2.0), oblique)
    direction = grid.matrix / grid.spacing
    toward = np.sign(direction[np.abs(direction).argmax(0), range(3)])  # does each array axis run to R, A or S?
    corner = np.where(toward > 0, np.array(grid.shape) - 4, 3)  # near the right anterior superior corner
    image = np.zeros(grid.shape, np.float32)
    image[tuple(slice(c - 2, c + 3) for c in corner)] = 1.0
    display = Display(grid)
    where = display.frame.to_vox(grid.to_mm(corner))
    for across, up, normal, letters in ((0, 1, 2, "RLAP"), (0, 2, 1, "RLSI"), (1, 2, 0, "APSI")):
        plane = Plane(display.frame, across, up, normal, round(where[normal]))
        row, column = (axis.mean() for axis in np.nonzero(plane.picture(display(image))))
        rows, columns = plane.picture(display(image)).shape
        assert row < rows / 3 and column < columns / 3
        assert "".join(plane.letters[side] for side in ("left", "right", "top", "bottom")) == letters
        seen, away = plane.project(grid.to_mm(corner))  # the landmark of the corner lies where its picture is
        np.testing.assert_allclose(seen, (column * plane.step_mm[0], row * plane.step_mm[1]), atol=1e-6)
        assert abs(away) < 1e-6


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PSR"])
def test_a_drawn_picture_has_true_proportions_and_the_corner_in_its_place(make_frame, codes) -> None:
    grid = make_frame(codes, (20, 20, 20), (1.0, 2.0, 3.0))
    right_front_top = np.array([19 if code in "RAS" else 0 for code in codes])
    image = np.zeros(grid.shape, np.float32)
    near = tuple(slice(max(c - 5, 0), c + 6) for c in right_front_top)
    image[near] = 1.0
    data = make_data(grid, full=False, fixed=image)
    views = figures.Views.of(data, 100)
    drawing = figures.image_row(views, "fixed")
    picture = pixels(drawing.png)[..., 0]
    for (left, right), plane in zip(drawing.spans, views.planes, strict=True):
        panel = picture[:, round(left * picture.shape[1]) + 1 : round(right * picture.shape[1]) - 1]
        height = (panel[:, 1] == 0).nonzero()[0].max() + 1 - (panel[:, -2] == 0).nonzero()[0].min()
        assert panel.shape[1] / height == pytest.approx(plane.size_mm[0] / plane.size_mm[1], rel=0.06)
        top = (panel[:, -2] == 0).nonzero()[0].min()
        panel = panel[top : top + height]
        bright = panel > 128
        quarter = bright[: height // 4, : panel.shape[1] // 4].mean()
        assert quarter > 0.6 > 0.2 > bright[height // 2 :, panel.shape[1] // 2 :].mean()


def test_pixels_project_onto_themselves(make_frame) -> None:
    display = Display(make_frame("LIP", oblique=(10, 20, 30)))
    for plane in choose_planes(display, blob(display.frame.shape)):
        seen, away = plane.project(plane.pixels_mm())
        rows, columns = seen.shape[:2]
        np.testing.assert_allclose(
            seen[..., 0], np.arange(columns)[None] * plane.step_mm[0] + 0 * seen[..., 0], atol=1e-9
        )
        np.testing.assert_allclose(
            seen[..., 1], np.arange(rows)[:, None] * plane.step_mm[1] + 0 * seen[..., 1], atol=1e-9
        )
        assert np.abs(away).max() < 1e-9


@pytest.mark.parametrize("index", [0, 7, 17])
def test_jacobian_of_a_slice_is_that_of_the_volume(make_frame, smooth_ddf, index: int) -> None:
    grid = make_frame("LPS", (18, 18, 18), oblique=(5, 10, 15))
    ddf = smooth_ddf(grid.shape, 4.0)
    whole = warp.jacobian_determinant(ddf)[0].numpy()
    ddf_mm = np.einsum("ij,j...->i...", grid.matrix, ddf[0].numpy())
    display = Display(grid)
    for across, up, normal in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        plane = Plane(display.frame, across, up, normal, index)
        np.testing.assert_allclose(plane.jacobian(display(ddf_mm)), plane.picture(display(whole)), atol=1e-9)


def test_slices_go_through_what_there_is_to_see() -> None:
    image = np.zeros((60, 70, 80), np.float32)
    image[10:20, 40:50, 60:70] = blob((10, 10, 10))
    display = Display(Frame(image.shape, np.eye(4)))
    planes = choose_planes(display, image)
    assert [plane.name for plane in planes] == ["axial", "coronal", "sagittal"]
    assert all(plane.picture(image).max() > 0 for plane in planes)
    middle = [plane.index for plane in choose_planes(display, np.zeros_like(image))]
    np.testing.assert_allclose(middle, [39.5, 34.5, 29.5], atol=0.5)


def test_folds_are_red_and_counted(frame: Frame) -> None:
    def red(data: ReportData) -> int:
        drawing, _ = figures.jacobian(figures.Views.of(data, 100))
        return int((np.abs(pixels(drawing.png) - [0xE6, 0, 0]).max(-1) < 12).sum())

    smooth = make_data(frame, jacobian=np.full(frame.shape, 1.2))
    assert red(smooth) == 0
    determinant = np.full(frame.shape, 1.2)
    determinant[11:14, 14:17, 8:11] = -0.1
    folded = replace(smooth, jacobian=determinant)
    assert red(folded) > 100
    assert "27 of 12,960 in the whole image" in build_page(folded, DPI)
    lost = replace(smooth, jacobian=np.where(determinant < 0, np.nan, determinant))
    assert figures.jacobian(figures.Views.of(lost, DPI))[1] >= 9


def test_a_single_fold_shows_on_a_large_slice() -> None:
    determinant = np.ones((1500, 1500))
    determinant[701, 333] = -1
    flat = Frame(determinant.shape, np.eye(3))
    data = make_data(flat, full=False, jacobian=determinant)
    drawing, count = figures.jacobian(figures.Views.of(data, 100))
    assert count == 1
    assert (np.abs(pixels(drawing.png) - [0xE6, 0, 0]).max(-1) < 60).any()


def test_difference_after_is_blank_where_the_pair_matches(frame: Frame) -> None:
    """Both states share one scale: a perfect result is white although the misfit before is not."""
    picture = pixels(figures.difference(figures.Views.of(make_data(frame), 100)).png)
    picture = picture[:, : int(0.9 * picture.shape[1])]  # without the colour bar
    colour = picture.max(-1) - picture.min(-1) > 60
    half = picture.shape[0] // 2
    assert colour[:half].sum() > 500
    assert colour[half:].sum() == 0


def test_movement_is_shown_beyond_the_initial_transform(frame: Frame) -> None:
    initial = np.eye(4)
    initial[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    initial[:3, 3] = [300.0, -50.0, 20.0]
    grid_mm = frame.to_mm(np.moveaxis(np.indices(frame.shape), 0, -1))
    rigid = np.moveaxis(grid_mm @ initial[:3, :3].T + initial[:3, 3] - grid_mm, -1, 0)
    extra = initial[:3, :3] @ [3.0, 0.0, 4.0]  # 5 mm, of which 3 to the right and 4 up in the fixed image
    ddf_mm = (rigid + extra[:, None, None, None]).astype(np.float32)
    fixed_points = frame.to_mm(np.array([[5.0, 6, 7], [10, 11, 12]]))
    moving = fixed_points @ initial[:3, :3].T + initial[:3, 3] + extra
    points = {"fixed_points_mm": fixed_points, "moving_points_mm": moving, "mapped_points_mm": moving}
    data = make_data(frame, ddf_mm=ddf_mm, initial_world=initial, **points)
    views = figures.Views.of(data, DPI)
    assert figures.displacement(views)[1] == pytest.approx(5.0, abs=1e-3)
    coronal = views.planes[1]
    landed, _ = coronal.project(views.landing(coronal))
    start, _ = coronal.project(coronal.pixels_mm())
    np.testing.assert_allclose(landed - start, np.broadcast_to([-3.0, -4.0], start.shape), atol=1e-3)
    page = build_page(data, DPI)
    assert "Mean distance 5 mm before, 0 mm after." in page
    assert "The initial transform is taken out" in page


def test_a_picture_file_stands_as_in_a_viewer(tmp_path: Path) -> None:
    shown = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
    Picture.fromarray(shown).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", ndim=2)
    display = Display(image.frame)
    (plane,) = choose_planes(display, display(image.array[0].numpy()))
    np.testing.assert_array_equal(plane.picture(display(image.array[0].numpy())), shown)


@pytest.mark.parametrize(("width", "length"), [(200, 50), (170, 50), (67, 20), (3.4, 1), (0.7, 0.2)])
def test_scale_bars_have_round_lengths(width: float, length: float) -> None:
    assert nice_length(width) == pytest.approx(length)


def test_window_ignores_what_is_not_a_number() -> None:
    assert window(np.array([np.nan, np.inf, 1.0, 3.0]))[0] >= 1.0
    assert window(np.full(5, 2.0)) == (2.0, 3.0)
    assert window(np.full(3, np.nan)) == (0.0, 1.0)
    spot = np.zeros(10_000)
    spot[5] = 9
    assert window(spot.reshape(100, 100))[1] > 0


def test_the_real_brain_stands_upright(data_dir: Path, tmp_path: Path) -> None:
    """LAS brain: the cerebellum is posterior and inferior, so the sagittal slice is empty in its lower left corner."""
    nib = pytest.importorskip("nibabel")
    path = data_dir / "brain_oasis_miccai2012" / "1000_t1.nii.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the data")
    image = nib.load(path)
    array = np.asarray(image.dataobj, dtype=np.float32)
    display = Display(Frame(array.shape, image.affine))
    sagittal = choose_planes(display, display(array))[2]
    picture = sagittal.picture(display(array)) > 0
    rows, columns = picture.shape
    lower = picture[3 * rows // 4 :]
    assert lower[:, columns // 2 :].sum() > 3 * lower[:, : columns // 2].sum()
