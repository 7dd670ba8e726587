"""unfold: no fold is left, nothing moves elsewhere, and the cost is told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from shared_components.metrics import folded_cells, folds_percent, ndv_percent
from shared_components.unfold import LEAST, unfold
from shared_components.warp import compose, invert

SHAPES = [(40, 36), (24, 20, 22)]


def noisy(shape: tuple[int, ...], amplitude: float, seed: int = 0) -> Tensor:
    return amplitude * torch.randn(1, len(shape), *shape, generator=torch.Generator().manual_seed(seed))


def with_one_fold(shape: tuple[int, ...], smooth_ddf: Callable[..., Tensor]) -> Tensor:
    ddf = smooth_ddf(shape, 1.5).float()
    ddf[(0, slice(None), *(n // 2 for n in shape))] += 4.0
    return ddf


@pytest.mark.parametrize("shape", SHAPES)
def test_one_fold_is_taken_out_and_the_rest_stays(shape: tuple[int, ...], smooth_ddf: Callable[..., Tensor]) -> None:
    ddf = with_one_fold(shape, smooth_ddf)
    assert folded_cells(ddf).any()
    after, facts = unfold(ddf)
    assert not folded_cells(after, LEAST).any() and ndv_percent(after) == folds_percent(after) == 0
    changed = (after != ddf).any(1)[0]
    assert 0 < changed.double().mean() < 0.5 and int(changed.sum()) == facts["changed_voxels"]
    assert not changed[(0,) * len(shape)] and facts["damping"] == 1 and facts["rounds"] >= 1
    assert facts["largest_change_vox"] == pytest.approx(float((after - ddf).norm(dim=1).max()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("amplitude", [0.5, 2.0, 20.0])
def test_no_field_keeps_a_fold(shape: tuple[int, ...], amplitude: float) -> None:
    for seed in range(3):
        ddf = noisy(shape, amplitude, seed)
        after, facts = unfold(ddf)
        assert facts["folded_voxels"] == int(folded_cells(ddf, LEAST).sum()) > 0
        assert not folded_cells(after, LEAST).any()
        assert not folded_cells(after.double()).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_field_without_folds_stays_bit_for_bit(shape: tuple[int, ...], smooth_ddf: Callable[..., Tensor]) -> None:
    ddf = smooth_ddf(shape, 1.0)
    after, facts = unfold(ddf)
    assert torch.equal(after, ddf) and after.dtype == ddf.dtype
    assert facts == {"folded_voxels": 0, "changed_voxels": 0, "rounds": 0, "damping": 1.0, "largest_change_vox": 0.0}


@pytest.mark.parametrize("shape", SHAPES)
def test_damping_alone_does_it_and_keeps_an_affine_map(shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    index = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"))
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.3, 0.1], [0.3, 0.0, 0.0], [-0.1, 0.0, 0.05]])[:ndim, :ndim])
    affine = (torch.einsum("ij,j...->i...", turn, index) - index)[None]
    after, facts = unfold(affine + noisy(shape, 3.0), rounds=0)
    assert 0 < facts["damping"] < 1 and facts["rounds"] == 0 and not folded_cells(after, LEAST).any()
    inner = (0, slice(None), *(slice(4, -4),) * ndim)
    assert float((after - affine)[inner].abs().mean()) < 0.4, "the turn is kept, it has no folds"


def test_a_mirrored_image_ends_at_no_motion() -> None:
    ddf = torch.zeros(1, 2, 12, 12)
    ddf[:, 0] = 11.0 - 2 * torch.arange(12.0)[:, None]
    after, facts = unfold(ddf, rounds=3)
    assert not folded_cells(after, LEAST).any() and facts["damping"] < 0.6


def test_the_unfolded_field_can_be_inverted(smooth_ddf: Callable[..., Tensor]) -> None:
    ddf = smooth_ddf((24, 20, 22), 1.5, vanish=True).float()
    ddf[0, :, 12, 10, 11] += 4.0
    after, _ = unfold(ddf)
    errors = []
    for field in (ddf, after):
        inverse, _ = invert(field)
        errors.append(float(compose(field, inverse).abs().max()))  # to and fro: two branches meet where it folds
    assert errors[1] < 0.1 < 1 < errors[0]


def test_layouts_and_faults() -> None:
    array = noisy((12, 12, 12), 1.0)[0].numpy()
    after, _ = unfold(array)
    assert after.shape == array.shape and not folded_cells(after).any()
    array[0, 3, 3, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        unfold(array)
    with pytest.raises(ValueError, match="a field must be"):
        unfold(np.zeros((5, 6, 7)))
