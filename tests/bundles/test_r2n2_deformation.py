"""Local Gaussian deformations: values, symmetries, gradients, and the field that a sequence of them makes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from shared_components.warp import compose

SHAPES = [(17, 13), (9, 8, 11)]
PER_BUMP = {2: 7, 3: 12}


@pytest.fixture(scope="module")
def deformation(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("r2n2_registration", "deformation")


def make(ndim: int, steps: int = 4, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random bumps within the ranges of the network."""
    generator = torch.Generator().manual_seed(ndim)
    count = PER_BUMP[ndim] - 3 * ndim
    centre, width, turn, weight = (
        torch.rand(batch, steps, n, generator=generator, dtype=dtype) for n in (ndim, ndim, count, ndim)
    )
    parts = [1.6 * centre - 0.8, 0.1 + 0.2 * width, math.pi * turn, 0.2 * weight - 0.1]
    return torch.cat(parts, -1)


def one(centre: list[float], width: list[float], turn: list[float], weight: list[float]) -> Tensor:
    return torch.tensor([[[*centre, *width, *turn, *weight]]], dtype=torch.float64)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_bump_has_7_numbers_in_2d_and_12_in_3d(deformation: ModuleType, ndim: int) -> None:
    names = deformation.parameter_names(ndim)
    assert len(names) == len(set(names)) == PER_BUMP[ndim]
    parts = deformation.split(torch.arange(float(PER_BUMP[ndim])), ndim)
    assert [len(part) for part in parts] == [ndim, ndim, deformation.turn_numbers(ndim), ndim]


def test_a_bump_is_its_weight_at_its_centre(deformation: ModuleType) -> None:
    """Centre on pixel (4, 12) of 17 x 25; a unit is 8 and 12 voxels."""
    field = deformation.field_of(one([-0.5, 0.0], [0.2, 0.1], [0.7], [0.3, -0.2]), (17, 25))
    torch.testing.assert_close(field[0, :, 4, 12], torch.tensor([2.4, -2.4], dtype=torch.float64))
    assert field[0, 0].argmax() == 4 * 25 + 12


@pytest.mark.parametrize("variance", [False, True])
def test_one_width_from_the_centre_it_has_fallen_to_exp_of_minus_a_half(
    deformation: ModuleType, variance: bool
) -> None:
    """Turned by the angle of a (3, 4) triangle: the first axis of the bump points at (0.6, 0.8)."""
    angle, width = math.atan2(0.8, 0.6), 0.5
    bump = one([0.0, 0.0], [width**2, 0.01] if variance else [width, 0.1], [angle], [0.0, 0.0])
    found = deformation.bumps(bump, (41, 41), variance)[0, 0]
    assert float(found[20 + 6, 20 + 8]) == pytest.approx(math.exp(-0.5))  # 0.3, 0.4: at half a unit
    across = math.exp(-0.5 * (0.5 / 0.1) ** 2)
    assert float(found[20 + 8, 20 - 6]) == pytest.approx(across, rel=1e-6)


def test_in_3d_the_first_axis_follows_the_rotation_vector(deformation: ModuleType) -> None:
    """A quarter turn about the third axis takes the first one to the second; wide there, narrow elsewhere."""
    bump = one([0.0] * 3, [0.4, 0.1, 0.2], [0.0, 0.0, math.pi / 2], [0.0] * 3)
    found = deformation.bumps(bump, (11, 11, 11))[0, 0]
    for offset, width in (((0, 2, 0), 0.4), ((2, 0, 0), 0.1), ((0, 0, 2), 0.2)):
        value = found[tuple(5 + step for step in offset)]
        assert float(value) == pytest.approx(math.exp(-0.5 * (0.4 / width) ** 2), rel=1e-5)


def test_rotations_are_rotations_also_where_there_is_none(deformation: ModuleType) -> None:
    turns = torch.cat([torch.zeros(1, 3), torch.randn(20, 3, generator=torch.Generator().manual_seed(0))]).double()
    turns.requires_grad_()
    found = deformation.rotation(turns)
    wanted = torch.linalg.matrix_exp(
        torch.stack([torch.linalg.cross(turn.expand(3, 3), torch.eye(3).double()).T for turn in turns.detach()])
    )
    torch.testing.assert_close(found.detach(), wanted, atol=1e-9, rtol=0)
    (slope,) = torch.autograd.grad(found[0, 2, 1], turns)
    torch.testing.assert_close(slope[0], torch.tensor([1.0, 0, 0]).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_symmetries(deformation: ModuleType, shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    bumps, like = make(ndim), lambda x: deformation.bumps(x, shape)
    centre, width, turn, weight = deformation.split(bumps, ndim)
    here = like(bumps)
    if ndim == 2:
        assert not torch.allclose(like(torch.cat([centre, width, turn + 0.5, weight], -1)), here)
        torch.testing.assert_close(like(torch.cat([centre, width, turn + math.pi, weight], -1)), here)
        swapped = torch.cat([centre, width.flip(-1), turn + math.pi / 2, weight], -1)
        torch.testing.assert_close(like(swapped), here)
    else:
        full = turn * (1 + 2 * math.pi / turn.norm(dim=-1, keepdim=True))
        torch.testing.assert_close(like(torch.cat([centre, width, full, weight], -1)), here, atol=1e-7, rtol=1e-6)
    round_ = width[..., :1].expand_as(width)
    turned = [like(torch.cat([centre, round_, t, weight], -1)) for t in (turn, turn + 1.1)]
    torch.testing.assert_close(*turned, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("ndim", "variance", "composition"), [(2, False, "add"), (2, True, "compose"), (3, False, "add")]
)
def test_gradients_are_exact(deformation: ModuleType, ndim: int, variance: bool, composition: str) -> None:
    shape = (5, 4, 3)[:ndim]
    bumps = make(ndim, steps=2, batch=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: deformation.field_of(x, shape, variance, composition), bumps)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_field_is_the_sum_of_its_bumps(deformation: ModuleType, shape: tuple[int, ...]) -> None:
    bumps = make(len(shape))
    alone = sum(deformation.field_of(bumps[:, t : t + 1], shape) for t in range(4))
    torch.testing.assert_close(deformation.field_of(bumps, shape), alone, atol=1e-12, rtol=0)
    nothing = deformation.field_of(bumps[:, :0], shape)
    assert nothing.shape == (2, len(shape), *shape) and not nothing.any()


def test_composed_bumps_warp_what_is_already_moved(deformation: ModuleType) -> None:
    bumps, shape = make(2), (17, 13)
    ddf = torch.zeros(2, 2, *shape, dtype=torch.float64)
    for t in range(4):
        ddf = compose(ddf, deformation.field_of(bumps[:, t : t + 1], shape))
    found = deformation.field_of(bumps, shape, composition="compose")
    assert torch.equal(found, ddf) and not torch.allclose(found, deformation.field_of(bumps, shape), atol=1e-2)


@pytest.mark.parametrize("shape", [(128, 97), (33, 21, 18)], ids=str)
def test_written_numbers_give_the_same_bits(
    deformation: ModuleType, shape: tuple[int, ...], set_threads: Callable[[int], None]
) -> None:
    """Also on another number of threads, and pair by pair instead of in a batch."""
    bumps = make(len(shape), steps=12, dtype=torch.float32)
    field = deformation.field_of(bumps, shape)
    read = torch.tensor(json.loads(json.dumps(bumps.tolist())))
    for threads in (1, 2):
        set_threads(threads)
        assert torch.equal(deformation.field_of(read, shape), field)
        assert torch.equal(torch.cat([deformation.field_of(pair, shape) for pair in read.split(1)]), field)


@pytest.mark.parametrize("variance", [False, True])
@pytest.mark.parametrize("shape", [(24, 24), (12, 12, 12)])
def test_bumps_of_a_coarser_grid_are_the_same_on_a_finer_one(
    deformation: ModuleType, shape: tuple[int, ...], variance: bool
) -> None:
    """Voxel 3 i + 1 of the finer grid lies where voxel i of the coarser one does, and moves as many mm."""
    found, coarse = make(len(shape)), tuple(n // 3 for n in shape)
    same = deformation.of_finer_grid(found, shape, 3, variance)
    fine = deformation.field_of(same, shape, variance)[(..., *(slice(1, None, 3) for _ in shape))]
    torch.testing.assert_close(fine, 3 * deformation.field_of(found, coarse, variance))
    assert deformation.of_finer_grid(found, shape, 1, variance) is found
