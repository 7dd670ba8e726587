"""What a breathing thorax looks like: tissues in their places, landmarks on them, noise, rhythm, seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from thorax_case import EVEN, KINDS, SIZE, extremes, make_plain, make_thorax

from shared_components.images.volumes import mean_frame
from shared_components.synth.thorax import (
    LABELS,
    PLAIN,
    Breath,
    BreathingSeries,
    Look,
    breathing_series,
    draw_breath,
    procedural_thorax,
)
from shared_components.synth.thorax.breath import respiratory_signal


@pytest.fixture(params=KINDS)
def plain(request: pytest.FixtureRequest) -> BreathingSeries:
    return make_plain(request.param)


# ------------------------------------------------------------------------------------------------- the pictures


def test_slices_show_what_belongs_in_them():
    for kind in KINDS:
        thorax = make_thorax(kind)
        series = breathing_series(thorax, 1, torch.Generator().manual_seed(0), 4.0, EVEN, PLAIN)
        picture, labels = series.frames[0, 0], series.labels(0)[0, 0]
        shown = {name: labels == value for value, name in LABELS.items()}
        mean = {name: float(picture[where].mean()) for name, where in shown.items() if where.any()}
        share = {name: float((labels == value).float().mean()) for value, name in LABELS.items()}
        assert 0.08 < share["lung"] < 0.4 and share["bone"] > 0.01
        assert (share["liver"] > 0.02) == (kind != "left")
        assert (share["heart and mediastinum"] > 0.03) == (kind in ("front", "left"))
        assert mean["lung"] < 0.5 * min(v for k, v in mean.items() if k != "lung")
        assert float(picture[labels == 0].max()) < 0.6  # air, but for voxels shared with the skin


def test_liver_lies_below_the_right_lung():
    labels = make_plain("front").labels(0)[0, 0]
    liver, lung = (np.argwhere(labels.numpy() == k) for k in (4, 2))
    assert liver[:, 1].mean() < 32 and liver[:, 0].mean() > lung[:, 0].mean() + 10


def test_landmarks_are_in_lung_and_liver(plain):
    low, high = extremes(plain)
    for frame in (low, high):
        index = plain.landmarks[frame].round().long()
        assert bool((index >= 0).all()) and bool((index < 64).all())
        found = plain.labels(frame)[0, 0][index[:, 0], index[:, 1]]
        agree = (found == torch.tensor(plain.landmark_labels)).float().mean()
        assert float(agree) > 0.8  # others lie on the voxel next to the border
    assert set(plain.landmark_labels) <= {2, 4}


def test_lung_darkens_when_it_fills():
    thorax = make_thorax("back")
    series = breathing_series(thorax, 13, torch.Generator().manual_seed(0), 4.0, EVEN, Look(0, 0, 0.5, 0))
    low, high = extremes(series)
    mean = [float(series.frames[k, 0][series.labels(k)[0, 0] == 2].median()) for k in (low, high)]
    assert mean[1] == pytest.approx(0.5 * mean[0], rel=0.25)
    liver = [float(series.frames[k, 0][series.labels(k)[0, 0] == 4].median()) for k in (low, high)]
    assert liver[1] == pytest.approx(liver[0], rel=0.05)


def test_noise_is_rician_and_in_range():
    series = breathing_series(make_thorax("left"), 6, torch.Generator().manual_seed(0), 4.0)
    assert series.frames.shape == (6, 1, *SIZE) and series.frames.dtype == torch.float32
    assert float(series.frames.min()) >= 0 and float(series.frames.max()) <= 1
    air = series.frames[:, 0, :20, :4]
    assert float(air.mean()) == pytest.approx(0.02 * np.sqrt(np.pi / 2), rel=0.15)


def test_seed_decides_and_nothing_global_is_drawn():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()

    def make(seed: int) -> BreathingSeries:
        generator = torch.Generator().manual_seed(seed)
        return breathing_series(procedural_thorax(generator, SIZE), 3, generator, breath=draw_breath(generator))

    first, again, other = make(3), make(3), make(4)
    assert torch.equal(first.frames, again.frames) and torch.equal(first.landmarks, again.landmarks)
    assert torch.equal(first.ddf(0, 2), again.ddf(0, 2))
    assert not torch.equal(first.frames, other.frames)
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])


def test_unknown_plane_is_refused():
    with pytest.raises(ValueError, match="plane must be one of coronal, sagittal"):
        procedural_thorax(torch.Generator(), SIZE, "axial")


# --------------------------------------------------------------------------------------------------- the rhythm


def test_even_breath_repeats_and_reaches_one():
    signal = respiratory_signal(25, EVEN, torch.Generator().manual_seed(0))
    torch.testing.assert_close(signal[:12], signal[12:24], rtol=0, atol=1e-12)
    assert float(signal.max()) == pytest.approx(1) and float(signal.min()) == pytest.approx(0, abs=1e-12)


def test_cycles_vary_and_drift():
    breath = Breath(period=20, variation=0.15, drift=0.5)
    signal = respiratory_signal(400, breath, torch.Generator().manual_seed(1)).numpy()
    slope = np.polyfit(np.arange(400), signal, 1)[0] * 400
    assert abs(slope) == pytest.approx(0.5, abs=0.2)
    flat = signal - slope * np.arange(400) / 400
    peaks = np.flatnonzero((flat[1:-1] > flat[:-2]) & (flat[1:-1] >= flat[2:]) & (flat[1:-1] > 0.5)) + 1
    assert 12 < len(peaks) < 28
    assert np.diff(peaks).std() > 1 and flat[peaks].std() > 0.05


def test_fixed_frame_is_between_the_extremes(plain):
    state = float(plain.signal[mean_frame(plain.frames)])
    assert 0.05 < state < 0.9
