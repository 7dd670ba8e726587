"""The pair of hands, end to end: the landmarks' own affine fit, and the shipped weights on the real pair."""

from __future__ import annotations

import numpy as np
import pytest
from reproducing import meta_affine_hands as hands


def test_an_affine_map_of_the_landmarks_leaves_nothing_of_an_affine_difference():
    fixed = np.array([[0.0, 0], [10, 0], [0, 10], [7, 5]])
    moving = fixed @ np.array([[0.8, 0.3], [-0.4, 1.1]]) + (3, -2)
    assert hands.best_affine(fixed, moving) == pytest.approx(0, abs=1e-9)
    moving[0] += (4.0, 0)
    assert 0.1 < hands.best_affine(fixed, moving) < 4


def test_nothing_is_done_where_the_pair_is_not_there(tmp_path):
    assert hands.hands_pair(tmp_path) is None


def test_shipped_weights_register_the_real_pair(data_dir, tmp_path, capsys):
    found = hands.hands_pair(data_dir, tmp_path / "figures" / "hands.png")
    assert found["before"]["mean"] == pytest.approx(21.7, abs=0.05)
    assert found["best_affine"] == pytest.approx(3.5, abs=0.1)
    assert found["best_affine"] <= found["after"]["mean"] < 5
    assert found["correlation"]["after"] > found["correlation"]["header"] + 0.4
    assert (tmp_path / "figures" / "hands.png").stat().st_size > 5000
