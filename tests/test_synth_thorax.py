"""How a thorax breathes: every field is exact, walls stand still, nothing folds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from thorax_case import EVEN, KINDS, SIZE, extremes, make_plain, make_thorax
from torch import Tensor

from shared_components.synth.thorax import (
    PLAIN,
    Breath,
    BreathingSeries,
    Motion,
    breathing_series,
)
from shared_components.synth.thorax.curves import Curve, curve_of_samples, curve_through
from shared_components.synth.thorax.motion import Compartment, Pulse, ramp
from shared_components.warp import coords_grid, jacobian_determinant, sample, warp_image


@pytest.fixture(params=KINDS)
def plain(request: pytest.FixtureRequest) -> BreathingSeries:
    return make_plain(request.param)


def away_from_walls(motion: Motion, margin: float) -> Tensor:
    """(H, W) bool: at least ``margin`` voxels from where the truth is discontinuous, and from the border."""
    good = ~(motion.contents(margin) & ~motion.contents(-margin))
    good[:2], good[-8:], good[:, :2], good[:, -2:] = False, False, False, False
    return good


# ------------------------------------------------------------------------------------------------------ the motion


def test_ramp_is_the_integral_of_its_slope():
    q = torch.linspace(-0.5, 1.5, 2001, dtype=torch.float64)
    value, slope = ramp(q)
    numeric = (value[2:] - value[:-2]) / (q[2:] - q[:-2])
    assert float((numeric - slope[1:-1]).abs().max()) < 4e-3  # of a slope with kinks, by differences of 0.002
    assert value[0] == 0 and float(value[-1]) == pytest.approx(1, abs=1e-12)
    assert bool((slope >= 0).all())


def test_curve_is_smooth_and_keeps_straight_lines():
    straight = curve_through([(0, 3.0), (10, 8.0), (40, 23.0)], 4.0)
    at = torch.linspace(6, 34, 57, dtype=torch.float64)
    torch.testing.assert_close(straight(at), 3 + at / 2, rtol=0, atol=1e-9)
    again = Curve.from_dict(json.loads(json.dumps(straight.to_dict())))
    assert torch.equal(again(at), straight(at))
    scaled = curve_through([(0, 3.0), (10, 8.0), (40, 23.0)], 4.0, (2.0, 10.0))
    torch.testing.assert_close(scaled(2 * at), 10 * straight(at))


def test_curve_of_samples_bridges_gaps():
    values = 2.0 + 0.5 * np.arange(40)
    values[10:20] = np.nan
    found = curve_of_samples(values, 0.0, 1.0, 4.0)(torch.arange(14.0, 26.0, dtype=torch.float64))
    np.testing.assert_allclose(found, 2.0 + 0.5 * np.arange(14, 26), atol=1e-3)  # its ends are rounded
    with pytest.raises(ValueError, match="at least two samples"):
        curve_of_samples(np.array([np.nan, 1.0, np.nan]), 0.0, 1.0, 4.0)


def test_every_frame_has_its_exact_inverse(plain):
    grid = coords_grid(SIZE, dtype=torch.float64)[0]
    for frame in range(12):
        there = plain.motion.forward(plain.motion.inverse(grid, frame), frame)
        assert float((there - grid).abs().max()) < 1e-6
        back = plain.motion.inverse(plain.motion.forward(grid, frame), frame)
        assert float((back - grid).abs().max()) < 1e-6
    moved = plain.motion.inverse(grid, extremes(plain)[1]) - grid
    assert float(moved.abs().max()) > 3


def test_points_on_a_wall_go_with_the_contents():
    """Walls on whole voxels: rounding must not drop a point on its way there and back."""
    left, right, dome = (
        curve_through([(a, v), (b, v)], s) for a, b, v, s in ((0, 80, 11, 9), (0, 80, 41, 9), (0, 1, 40, 0.1))
    )
    share = curve_through([(0, 0.7), (0.5, 1), (1, 0.8)], 0.1)
    part = Compartment(left, right, dome, share, 8.0, 55.0, 80.0, 0.4)
    motion = Motion((part,), None, torch.tensor([[5.0, 0.05, 0.0]], dtype=torch.float64), SIZE)
    grid = coords_grid(SIZE, dtype=torch.float64)[0]
    found = motion.inverse(grid, 0)
    assert float((motion.forward(found, 0) - grid).abs().max()) < 1e-6
    assert float((grid - found)[0, 40, 11]) > 2 and float((grid - found)[0, 40, 41]) > 2
    assert float((grid - found)[:, :, [10, 42]].abs().max()) == 0


def test_pulse_moves_within_its_ellipse_only():
    pulse = Pulse((30.0, 28.0), (12.0, 7.0), 0.6)
    grid = coords_grid(SIZE, dtype=torch.float64)[0]
    moved = pulse.forward(grid, -0.3) - grid
    assert float(moved.norm(dim=0).max()) > 0.8
    away = grid - torch.tensor([30.0, 28.0]).view(2, 1, 1)
    assert float((moved * away).sum(0).max()) <= 1e-12  # towards the middle
    assert float(moved[:, away.norm(dim=0) > 12].abs().max()) == 0
    assert float((pulse.inverse(pulse.forward(grid, -0.3), -0.3) - grid).abs().max()) < 1e-8


def test_contents_stay_between_their_walls(plain):
    """A point on a wall slides along it: sliding is tangential, nothing opens."""
    low, high = extremes(plain)
    for part in plain.motion.compartments:
        row = torch.linspace(part.top + 1, SIZE[0] - 12, 50, dtype=torch.float64)
        for wall, inward in ((part.left, 1e-9), (part.right, -1e-9)):
            moved = plain.motion.forward(torch.stack([row, wall(row) + inward]), high)
            assert float((moved[1] - wall(moved[0])).abs().max()) < 1e-6
            assert float((moved[0] - row).max()) > 2


def test_field_does_not_fold_within_a_compartment(plain):
    low, high = extremes(plain)
    inside = plain.motion.contents(-2.0)
    for pair in ((low, high), (high, low)):
        determinant = jacobian_determinant(plain.ddf(*pair))[0]
        assert float(determinant[inside].min()) > 0.2


def test_numbers_rebuild_the_same_motion(plain):
    again = Motion.from_dict(json.loads(json.dumps(plain.motion.to_dict())))
    assert torch.equal(again.ddf(0, 6), plain.ddf(0, 6))
    assert torch.equal(again.track(plain.thorax.landmarks), plain.landmarks)


def test_compartment_bound_is_the_slope():
    part: Compartment = make_thorax("right").compartments[0]
    row = torch.linspace(part.top, part.bottom, 4001, dtype=torch.float64)
    steepest = 0.0
    for w in torch.linspace(0, 1, 65, dtype=torch.float64):
        column = part.left(row) + w * (part.right(row) - part.left(row))
        moved = part.forward(torch.stack([row, column]), 4.0, 0.0)[0] - row
        steepest = max(steepest, float((moved.diff() / row.diff()).abs().max()))
    assert part.steepest(4.0) == pytest.approx(steepest, rel=0.02)


# --------------------------------------------------------------------------------------------------- the truth


def test_landmarks_agree_with_the_field(plain):
    low, high = extremes(plain)
    assert plain.landmarks.shape[0] == 12 and plain.landmarks.shape[1] >= 3
    for fixed, moving in ((low, high), (high, low), (3, 8)):
        points, ddf = plain.landmarks[fixed], plain.ddf(fixed, moving)
        exact = plain.motion.transport(points, fixed, moving)
        assert float((exact - plain.landmarks[moving]).norm(dim=1).max()) < 1e-6
        step = sample(ddf.double(), points.T[None, :, None])[0, :, 0].T
        assert float((points + step - plain.landmarks[moving]).norm(dim=1).max()) < 0.05
    assert float((plain.landmarks[high] - plain.landmarks[low]).norm(dim=1).max()) > 2


def test_frames_agree_under_the_true_field(plain):
    low, high = extremes(plain)
    good = away_from_walls(plain.motion, 2.0)
    for fixed, moving in ((low, high), (high, low)):
        still = plain.frames[fixed, 0]
        moved = warp_image(plain.frames[moving : moving + 1], plain.ddf(fixed, moving))[0, 0]
        before = (plain.frames[moving, 0] - still)[good].square().mean().sqrt()
        after = (moved - still)[good].square().mean().sqrt()
        assert float(after) < 0.2 * float(before)  # what is left is interpolation at 64 voxels
        wrong = warp_image(plain.frames[moving : moving + 1], -plain.ddf(fixed, moving))[0, 0]
        assert float((wrong - still)[good].square().mean().sqrt()) > 2 * float(after)


def test_smooth_contents_agree_to_a_thousandth():
    """Without interpolation errors nothing is left: the picture is a smooth function of the material point."""
    thorax = make_thorax("right")
    series = breathing_series(thorax, 12, torch.Generator().manual_seed(5), 5.0, EVEN, PLAIN)
    low, high = extremes(series)
    grid = coords_grid(SIZE, dtype=torch.float64)[0]

    def picture(frame: int) -> Tensor:
        y, x = series.motion.inverse(grid, frame)
        return (torch.sin(y / 9) + torch.cos(x / 8))[None, None]

    moved = warp_image(picture(high), series.ddf(low, high).double())
    error = (moved - picture(low))[0, 0][away_from_walls(series.motion, 2.0)].abs()
    assert float(error.max()) < 6e-3  # second differences of the sine: 1/8 / 81 twice


def test_walls_ribs_and_spine_do_not_move(plain):
    low, high = extremes(plain)
    ddf, labels = plain.ddf(low, high)[0], plain.labels(low)[0, 0]
    outside = ~plain.motion.contents()
    bone = (labels == 6) & outside
    assert int(bone.sum()) > 10 and int((labels == 6).sum()) == int(bone.sum())  # no bone among the contents
    assert float(ddf[:, outside].abs().max()) == 0
    still = plain.thorax.cover[0, 0] == 0
    assert int(still.sum()) > 0.9 * int((~plain.motion.contents(1.0)).sum())
    assert torch.equal(plain.frames[low, 0][still], plain.frames[high, 0][still])


def test_truth_is_steep_across_the_wall(plain):
    """Sliding: next to a wall at rest, the lung's contents move by voxels."""
    low, high = extremes(plain)
    part = plain.motion.compartments[0]
    row = torch.tensor([float(part.dome(torch.tensor(0.5)))], dtype=torch.float64)
    points = torch.stack([torch.cat([row, row]), torch.cat([part.left(row) + 0.01, part.left(row) - 0.01])], 1)
    moved = plain.motion.transport(points, low, high) - points
    assert float(moved[0, 0]) > 2 and float(moved[1].abs().max()) == 0


@pytest.mark.parametrize("amplitude", [2.5, 6.0])
def test_dome_moves_by_the_amplitude_asked_for(amplitude):
    for thorax in map(make_thorax, KINDS):
        breath = Breath(period=12, variation=0.0, drift=0.0, sway=0.0, pulsation=0.0)
        series = breathing_series(thorax, 13, torch.Generator().manual_seed(0), amplitude, breath, PLAIN)
        low, high = extremes(series)
        part = thorax.compartments[0]
        w = torch.linspace(0, 1, 201, dtype=torch.float64)
        row = part.dome(w)
        points = torch.stack([row, part.left(row) + w * (part.right(row) - part.left(row))], 1)
        lift = series.motion.track(points)[:, :, 0]
        dome = (lift[high] - lift[low])[row.argmin()]
        assert float(dome) == pytest.approx(amplitude, rel=0.005)


def test_motion_fades_towards_the_apex(plain):
    low, high = extremes(plain)
    part = plain.motion.compartments[0]
    middle = torch.tensor(0.4, dtype=torch.float64)
    row = torch.linspace(part.top, float(part.dome(middle)), 9, dtype=torch.float64)
    points = torch.stack([row, part.left(row) + middle * (part.right(row) - part.left(row))], 1)
    moved = plain.motion.transport(points, low, high)[:, 0] - row
    assert float(moved[0]) == 0 and bool((moved[1:] > moved[:-1]).all())


def test_too_large_a_breath_is_refused():
    with pytest.raises(ValueError, match="ask for at most"):
        breathing_series(make_thorax("right"), 12, torch.Generator().manual_seed(0), 40.0, EVEN)


def test_a_shallow_slice_breathes_as_deep_as_it_can():
    thorax = make_thorax("right")
    part = thorax.compartments[0]
    shallow = replace(part, bottom=part.rest + 4.0)  # nothing is known of what lies below
    series = breathing_series(
        replace(thorax, compartments=(shallow,)), 13, torch.Generator().manual_seed(0), breath=EVEN
    )
    assert float(series.motion.states[:, 0].max()) == pytest.approx(series.amplitude, rel=1e-6)
    assert shallow.steepest(series.amplitude) == pytest.approx(0.75)
    whole = breathing_series(thorax, 13, torch.Generator().manual_seed(0), breath=EVEN)
    assert series.amplitude < whole.amplitude
