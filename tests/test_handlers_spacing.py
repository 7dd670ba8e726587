"""Metrics in mm where every pair has a voxel size of its own: spacing_mm="pair"."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared_components.engines import PrepareInference
from shared_components.handlers import HD95Handler, TREHandler
from shared_components.pairs import PairDataset


def labels(shift: int) -> Tensor:
    out = torch.zeros(1, 16, 16)
    out[:, 4:10, 4 + shift : 10 + shift] = 1
    return out


@pytest.mark.parametrize("spacing", [(1.0, 2.0), (3.0, 0.5)])
def test_distances_are_in_each_pairs_own_millimetres(spacing: tuple[float, float]) -> None:
    own = torch.tensor(spacing, dtype=torch.float64)
    surface = HD95Handler("pair").measure(labels(0), labels(2), own[None])
    assert list(surface) == list(HD95Handler(spacing).measure(labels(0), labels(2)))
    assert surface[0] == pytest.approx(2 * spacing[1])
    points = torch.tensor([[5.0, 5.0], [8.0, 7.0]])
    ddf = torch.zeros(2, 16, 16)
    error = TREHandler("pair").measure(ddf, points, points + torch.tensor([3.0, 0.0]), own[None])
    assert error[0] == pytest.approx(3 * spacing[0])
    assert list(error) == list(TREHandler(spacing).measure(ddf, points, points + torch.tensor([3.0, 0.0])))


def test_the_voxel_size_comes_along() -> None:
    def transform(item: dict) -> dict:
        size = torch.tensor([float(item["k"])] * 2, dtype=torch.float64)
        return {"image": torch.zeros(1, 4, 4), "name": "x", "spacing_mm": size}

    pair = PairDataset([{"image": "a", "k": 1}, {"image": "b", "k": 2}], transform)[1]
    assert pair["spacing_mm"].tolist() == [2, 2]  # of the fixed image
    batch = {key: value[None] if isinstance(value, Tensor) else [value] for key, value in pair.items()}
    _, targets = PrepareInference()(batch)
    assert targets["spacing_mm"].tolist() == [[2, 2]]
