"""Uniform cubic B-splines as products of one matrix an axis."""

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from shared_components.splines import evaluate_spline, spline_weights


@pytest.mark.parametrize(("length", "spans", "last"), [(33, 4, None), (20, 4, 3.8), (9, 1, None)])
def test_spline_weights_are_the_cubic_b_spline(length, spans, last):
    weights = spline_weights(length, spans, last, torch.float64).numpy()
    position = np.linspace(0, spans if last is None else last, length)
    basis = BSpline.basis_element(np.arange(-2, 3), extrapolate=False)
    for column, knot in enumerate(range(-1, spans + 2)):
        np.testing.assert_allclose(weights[:, column], np.nan_to_num(basis(position - knot)), atol=1e-12)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    assert weights.min() >= 0 and (weights > 0).sum(1).max() <= 4


@pytest.mark.parametrize("shape", [(40, 33), (24, 29, 21)])
def test_spline_of_equal_control_points_is_constant_and_of_a_ramp_a_ramp(shape):
    weights = [spline_weights(n, 4, dtype=torch.float64) for n in shape]
    control = torch.full((2, 3, *(7,) * len(shape)), 2.5, dtype=torch.float64)
    value = evaluate_spline(control, weights)
    assert value.shape == (2, 3, *shape)
    torch.testing.assert_close(value, torch.full_like(value, 2.5))
    for axis, n in enumerate(shape):  # also tells whether the axes come back in order
        view = [1] * (len(shape) + 2)
        view[axis + 2] = 7
        ramp = torch.arange(-1.0, 6.0, dtype=torch.float64).view(view).expand(control.shape)
        view[axis + 2] = n
        expected = torch.linspace(0, 4, n, dtype=torch.float64).view(view).expand(2, 3, *shape)
        torch.testing.assert_close(evaluate_spline(ramp, weights), expected)
