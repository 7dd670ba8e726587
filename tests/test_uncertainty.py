"""Signs of error, what they are worth, and the expected error they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import Image
from shared_components.pairs import Pair, make_preprocessing
from shared_components.results import SaveRegistration
from shared_components.synth.thorax import breathing_series, procedural_thorax, write_series
from shared_components.uncertainty import (
    SIGNS,
    Calibration,
    PredictUncertainty,
    draw_calibration,
    find_signs,
    fit_calibration,
    flip_axes,
    flip_back,
    reliability,
    spearman,
)
from shared_components.uncertainty.fit import known_items, known_pairs, pooled, signs_and_errors
from shared_components.uncertainty.signs import CONTRADICTIONS, shift_by

SHAPE, SPACING = (12, 10), (2.0, 0.5)


class Gradient(nn.Module):
    """Fixed minus moving, times the gradient of the fixed image: mirrored images give the mirrored field."""

    def forward(self, image: Tensor, return_stages: bool = False) -> Any:
        fixed, moving = image[:, :1], image[:, 1:2]
        ddf = (fixed - moving) * torch.cat(torch.gradient(fixed, dim=(2, 3)), 1)
        return {"ddf": [0.5 * ddf, 0.75 * ddf, ddf]} if return_stages else ddf


class Constant(nn.Module):
    """The same shift, whatever it sees."""

    def forward(self, image: Tensor, return_stages: bool = False) -> Any:
        ddf = torch.tensor([0.5, 2.0]).view(1, 2, 1, 1).expand(len(image), 2, *image.shape[2:])
        return {"ddf": [0 * ddf, 0.5 * ddf, ddf]} if return_stages else ddf


class Difference(nn.Module):
    """A shift along both axes by the difference of the images' means: the other order shifts back."""

    def forward(self, image: Tensor) -> Tensor:
        shift = (image[:, :1] - image[:, 1:2]).mean((2, 3), keepdim=True)
        return shift.expand(-1, 2, *image.shape[2:])


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 2, *SHAPE, generator=torch.Generator().manual_seed(0))


def test_flips_begin_with_single_axes() -> None:
    assert flip_axes(3, 4) == [(0,), (1,), (2,), (0, 1)] and len(flip_axes(3, 99)) == 7


def test_a_field_of_mirror_images_comes_back(image: Tensor) -> None:
    net = Gradient()
    for axes in flip_axes(2, 3):
        mirrored = net(image.flip([axis + 2 for axis in axes]))
        torch.testing.assert_close(flip_back(mirrored, axes), net(image))


def test_a_network_that_contradicts_itself_nowhere_shows_no_sign(image: Tensor) -> None:
    assert float(find_signs(Gradient(), image, SPACING, flip_axes(2, 3))["flips"].max()) < 1e-6
    assert float(find_signs(Difference(), image, SPACING, ())["inverse"].max()) < 1e-6


def test_signs_are_lengths_in_mm(image: Tensor) -> None:
    found = find_signs(Constant(), image, torch.tensor(SPACING), ((0,), (1,)), sequence=True, shifts=((1, -2),))
    assert {name: tuple(values.shape) for name, values in found.items()} == dict.fromkeys(SIGNS, (2, *SHAPE))
    twice = np.hypot(2 * 0.5 * 2.0, 2 * 2.0 * 0.5)
    torch.testing.assert_close(found["inverse"], torch.full((2, *SHAPE), float(twice)))
    both = np.sqrt((2.0**2 + 2.0**2) / 2)  # mirrored along one axis the shift along it turns round: twice 1 mm each
    torch.testing.assert_close(found["flips"], torch.full((2, *SHAPE), float(both)))
    torch.testing.assert_close(found["sequence"], torch.full((2, *SHAPE), float(np.hypot(0.5, 0.5))))
    torch.testing.assert_close(found["motion"], torch.full((2, *SHAPE), float(np.hypot(1, 1))))
    assert not found["shifts"].any()  # the same wherever the images lie
    assert set(find_signs(Constant(), image, SPACING, ())) == {"inverse", "motion", "drift", "wide_drift", "mismatch"}


class Position(nn.Module):
    """A network that holds on to the grid: its field is where a voxel lies, whatever it sees."""

    def forward(self, image: Tensor) -> Tensor:
        grid = torch.meshgrid(*(torch.arange(float(n)) for n in image.shape[2:]), indexing="ij")
        return torch.stack(grid)[None].expand(len(image), -1, -1, -1)


def test_shifted_images_show_who_holds_on_to_the_grid(image: Tensor) -> None:
    found = find_signs(Position(), image, (2.0, 0.5), (), shifts=((2, 0), (0, -4)))["shifts"]
    inner = found[:, 5:7, :3]  # of the window at the border, where what is shifted in is the border, not all is known
    torch.testing.assert_close(inner, torch.full_like(inner, ((4.0**2 + 0**2) / 2) ** 0.5), atol=1.5, rtol=0)
    values = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 1, 5, 2)
    assert shift_by(values, (2, 0))[0, 0, :, 0].tolist() == [0, 0, 0, 1, 2]
    assert shift_by(shift_by(values, (1, 1)), (-1, -1))[0, 0, :4, 0].tolist() == [0, 1, 2, 3]


def test_what_is_judged_moves_but_the_network_contradicts_itself_all_the_same(image: Tensor) -> None:
    plain = find_signs(Constant(), image, SPACING)
    other = find_signs(Constant(), image, SPACING, ddf=torch.zeros(2, 2, *SHAPE))
    for name in ("inverse", "flips"):
        torch.testing.assert_close(plain[name], other[name])
    assert plain["motion"].min() > 1 and not other["motion"].any()


def bumps(shift: float) -> Tensor:
    """Two waves across a slice of 2 mm voxels, moved along the first axis by so many voxels."""
    x, y = torch.meshgrid(torch.arange(40.0) - shift, torch.arange(36.0), indexing="ij")
    return (torch.sin(x / 4) + torch.sin(y / 5) + torch.sin((x + y) / 6))[None, None]


@pytest.mark.parametrize("modalities", [1, 2])
def test_the_drift_is_what_is_left_to_be_moved(modalities: int) -> None:
    still = lambda image: torch.zeros(len(image), 2, 40, 36)  # noqa: E731
    found = {}
    for shift in (0.0, 0.4, 0.8):
        image = torch.cat([bumps(0.0), -bumps(shift) if modalities == 2 else bumps(shift)], 1)  # inverted: another kind
        found[shift] = float(
            find_signs(still, image, (2.0, 2.0), (), modalities=modalities)["drift"][0, 8:-8, 8:-8].mean()
        )
    assert found[0.0] < 1e-3
    assert found[0.8] == pytest.approx(2 * found[0.4], rel=0.25)
    if modalities == 1:
        assert found[0.4] == pytest.approx(0.8, rel=0.2)


def test_a_network_for_two_kinds_of_images_is_told_when_they_are_in_the_other_order() -> None:
    class TwoKinds(nn.Module):
        swap = False
        asked: list[tuple[bool, float]] = []

        def forward(self, image: Tensor) -> Tensor:
            self.asked.append((self.swap, float(image[0, 0].mean())))
            return torch.zeros(len(image), 2, *image.shape[2:])

    network = TwoKinds()
    image = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)], 1)
    pair = pair_on(Frame((8, 8), np.eye(3)), Frame((8, 8), np.eye(3)))
    step = PredictUncertainty(network, flips=(), modalities=2)
    step({"image": image, "pred": torch.zeros(1, 2, 8, 8), "pair": pair, "name": "a"})
    assert network.asked == [(False, 0.0), (True, 1.0)] and network.swap is False


def test_the_mismatch_is_how_far_edges_are_apart() -> None:
    ramp = torch.arange(24.0).view(1, 1, 24, 1).expand(1, 1, 24, 20) / 24
    image = torch.cat([ramp, ramp + 1.5 / 24], 1)  # 1.5 voxels of 2 mm apart
    found = find_signs(lambda x: torch.zeros(len(x), 2, 24, 20), image, (2.0, 1.0), ())["mismatch"]
    torch.testing.assert_close(found, torch.full((1, 24, 20), 3.0 / 1.3**0.5), atol=1e-3, rtol=0)
    apart = find_signs(lambda x: torch.zeros(len(x), 2, 24, 20), image[:, :1].expand(-1, 2, -1, -1), (2.0, 1.0), ())
    assert float(apart["mismatch"].max()) < 1e-5


def samples(count: int = 6000) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A sign that tells of the error, one that does not, and errors that grow with the square of the first."""
    rng = np.random.default_rng(0)
    useful, useless = rng.uniform(0, 3, count), rng.uniform(0, 3, count)
    return {"inverse": useful, "flips": useless}, useful**2 * rng.uniform(0.8, 1.2, count) / 3


def test_a_calibration_expects_what_is_found() -> None:
    signs, errors = samples()
    known = fit_calibration(signs, errors)
    assert known.weights["inverse"] > 10 * known.weights["flips"]
    again = Calibration.of(json.loads(json.dumps(known.numbers())))
    fresh, truth = {name: torch.from_numpy(values[::2]) for name, values in signs.items()}, errors[::2]
    expected = again(fresh).numpy()
    groups = reliability(expected, truth)
    np.testing.assert_allclose(groups["expected"], groups["mean"], atol=0.12)
    assert (groups["low"] <= groups["mean"]).all() and (groups["mean"] <= groups["high"]).all()
    assert spearman(expected, truth) > 0.95 > 0.3 > abs(spearman(signs["flips"][::2], truth))


def test_the_curve_never_falls_and_goes_on_beyond_its_end() -> None:
    signs, errors = samples()
    known = fit_calibration(signs, errors)
    assert (np.diff(known.error_mm) >= 0).all() and len(known.score_mm) <= 10
    line = Calibration({"a": 2.0}, (1.0, 2.0), (0.5, 3.0))
    found = line({"a": torch.tensor([0.1, 0.75, 1.0, 2.0])})
    torch.testing.assert_close(found, torch.tensor([0.5, 1.75, 3.0, 6.0]))
    plain = Calibration()({name: torch.tensor([1.0]) for name in SIGNS})
    assert plain.tolist() == [len(CONTRADICTIONS)] == [4.0]  # what contradicts itself, nothing else


def test_rounding_is_not_magnified_into_an_error() -> None:
    """A sign of micrometres that follows the error exactly, as that of a method whose passes agree, gets no weight."""
    signs, errors = samples()
    known = fit_calibration({**signs, "sequence": 1e-4 * errors}, errors)
    assert known.weights["sequence"] == 0 < known.weights["inverse"]
    assert fit_calibration({**signs, "sequence": 0.1 * errors}, errors).weights["sequence"] == pytest.approx(10)
    with pytest.raises(InputError, match="no sign is above"):
        fit_calibration({"sequence": 1e-4 * errors}, errors)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"weights": {}, "score_mm": [2, 1], "error_mm": [1, 2]}, "scores rising"),
        ({"weights": {}, "score_mm": [1, 2], "error_mm": [2, 1]}, "no error falling"),
        ({"weights": {"a": -1}, "score_mm": [], "error_mm": []}, "negative"),
        ({"weights": [1]}, "a calibration is"),
    ],
)
def test_a_calibration_that_makes_no_sense_is_refused(numbers: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Calibration.of(numbers)


def test_a_sign_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="needs the sign 'flips'"):
        Calibration({"flips": 1.0})({"inverse": torch.ones(1)})
    with pytest.raises(InputError, match="too few"):
        fit_calibration({"a": np.ones(3)}, np.ones(3))


def test_the_plot_is_a_picture_with_its_numbers(tmp_path: Path) -> None:
    signs, errors = samples(500)
    told = draw_calibration(tmp_path / "plot.png", signs["inverse"], errors, "title")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert told["rho"] > 0.9 and told["mean_error_mm"] == pytest.approx(errors.mean()) and told["gap_mm"] > 0.1
    assert np.isnan(spearman(np.ones(5), np.arange(5)))


def pair_on(network: Frame, fixed: Frame) -> Pair:
    generator = torch.Generator().manual_seed(1)
    images = {
        side: Image(torch.rand(1, *fixed.shape, generator=generator), fixed, Path(__file__), np.dtype("float32"))
        for side in ("fixed", "moving")
    }
    return Pair(images, initial=np.eye(3), network=network)


def test_the_expected_error_comes_out_on_the_fixed_grid(tmp_path: Path) -> None:
    network = Frame((8, 8), np.diag([2.0, 2.0, 1.0]))
    pair = pair_on(network, Frame((16, 16), np.diag([1.0, 1.0, 1.0])))
    image = torch.rand(1, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    data = {"image": image, "pred": torch.zeros(1, 2, 8, 8), "pair": pair, "name": "a<-b"}
    assert "uncertainty_mm" not in PredictUncertainty(Constant(), active=False)(data)
    plain = PredictUncertainty(Constant(), flips=())
    double = PredictUncertainty(Constant(), flips=(), calibration={"weights": {}, "score_mm": [1], "error_mm": [2]})
    length = 2 * np.hypot(0.5, 2.0) * 2.0
    assert plain(data)["uncertainty_mm"].amax().item() == pytest.approx(length, rel=1e-5)
    found = double({**data, "image": image[0]})
    assert found["uncertainty_mm"].shape == (1, 8, 8)
    SaveRegistration(str(tmp_path / "out"), report=False)(found)
    written = nib.load(tmp_path / "out" / "uncertainty_mm.nii.gz")
    assert written.shape == (16, 16)
    np.testing.assert_allclose(written.get_fdata(), 2 * length, rtol=1e-5)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["expected_error_mm"]["mean"] == pytest.approx(2 * length, rel=1e-4)


def test_signs_and_true_errors_of_series_that_are_known(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    series = breathing_series(procedural_thorax(generator, (64, 64), "coronal"), 4, generator)
    write_series(tmp_path / "s1_1.nii.gz", series)
    listed = {"test": [{"series": "s1_1.nii.gz"}], "training": [{"image": "a.nii.gz"}]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    items = known_items(tmp_path / "list.json", "test")
    with pytest.raises(InputError, match="no breathing series under 'training'"):
        known_items(tmp_path / "list.json", "training")
    preprocessing = make_preprocessing((32, 32), "fit", initial_transform="header", center="grid")

    class Still(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.zeros(len(image), 2, *image.shape[2:])

    def register(data: dict) -> dict:
        return {**data, "pred": torch.zeros(2, *data["image"].shape[1:])}

    found = signs_and_errors(known_pairs(items, preprocessing, 1), register, PredictUncertainty(Still()).signs)
    assert [one.before_mm for one in found] == pytest.approx([float(one.errors_mm.mean()) for one in found])
    signs, errors = pooled(found)
    fixed = int(json.loads((tmp_path / "s1_1_truth.json").read_text())["fixed_frame"])
    moves_mm = [float((series.ddf(fixed, k) * 6.0).norm(dim=1).amax()) for k in range(4)]
    assert errors.shape == signs["inverse"].shape and not signs["inverse"].any()
    assert 0.5 * max(moves_mm) < errors.max() <= 1.05 * max(moves_mm)
