"""The network of VTN: sizes, cascades, composition of the stages."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared_components.affine import affine_ddf
from shared_components.warp import compose, coords_of, warp_image

F64 = torch.float64
CASCADES = ["A", "D", "DD", "DDD", "AD", "ADD", "ADDD"]


@pytest.fixture(scope="module")
def network(bundle_module: Callable[[str, str], ModuleType]) -> ModuleType:
    return bundle_module("vtn_registration", "network")


@pytest.fixture
def tiny(network: ModuleType) -> Callable[..., nn.Module]:
    """``make(cascade, size, **kwargs)`` -> a small network with random weights everywhere."""

    def make(cascade: str = "ADD", size: tuple[int, ...] = (16, 16, 16), **kwargs: Any) -> nn.Module:
        kwargs = {"channels": 2, "levels": 3, "affine_levels": 2, "identity_start": False} | kwargs
        return network.VTN(cascade, size, **kwargs)

    return make


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_defaults_are_the_paper(network: ModuleType) -> None:
    with torch.device("meta"):
        whole = network.VTN()
        public_code = network.AffineSubnetwork((128, 128, 128), levels=6)
    assert whole.cascade == "ADDD" and whole.image_size == (128, 128, 128)
    assert parameters(whole) == 88_452_497
    assert parameters(whole.affine) == 3_695_888
    assert [parameters(d) for d in whole.dense] == [28_252_203] * 3
    assert parameters(public_code) == 14_166_288
    assert whole.scale == pytest.approx(20 / 3)
    assert whole.affine.head_matrix.in_features == 256 * 4**3


def test_channels_and_levels_are_arguments(network: ModuleType) -> None:
    image = draw(1, 2, 16, 16, 16)
    for levels, affine_levels, channels in ((1, 1, 3), (2, 3, 2), (4, 4, 1)):
        made = network.VTN("AD", (16, 16, 16), channels, levels, affine_levels)
        assert made(image).shape == (1, 3, 16, 16, 16)
        strided = [m for m in made.dense[0].encoder.modules() if isinstance(m, nn.Conv3d) and m.stride == (2, 2, 2)]
        assert [m.out_channels for m in strided] == [channels * 2**level for level in range(levels)]
        assert len(made.affine.encoder) == affine_levels
        assert made.affine.head_shift.in_features == channels * 2 ** (affine_levels - 1) * (16 // 2**affine_levels) ** 3


@pytest.mark.parametrize("cascade", CASCADES)
def test_an_untrained_network_is_the_identity(network: ModuleType, cascade: str) -> None:
    image = draw(2, 2, 12, 10, 14)
    stages = network.VTN(cascade, (12, 10, 14), 2, 2, 2)(image, return_stages=True)
    assert [len(stages[key]) for key in ("ddf", "moved", "flow")] == [len(cascade), len(cascade), cascade.count("D")]
    for ddf, moved in zip(stages["ddf"], stages["moved"], strict=True):
        assert ddf.shape == (2, 3, 12, 10, 14) and ddf.abs().max() == 0
        torch.testing.assert_close(moved, image[:, 1:], atol=2e-6, rtol=0)
    for key, shape in (("A", (2, 3, 3)), ("b", (2, 3))):
        if cascade.startswith("A"):
            assert stages[key].shape == shape and stages[key].abs().max() == 0
        else:
            assert stages[key] is None


@pytest.mark.parametrize("cascade", ["A", "D", "ADD"])
def test_an_untrained_network_can_learn(network: ModuleType, cascade: str) -> None:
    """Zero weights in the last layers must not stop the gradient from reaching those layers."""
    made = network.VTN(cascade, (12, 12, 12), 2, 2, 2)
    made(draw(1, 2, 12, 12, 12)).mul(draw(1, 3, 12, 12, 12, seed=1)).sum().backward()
    last = [d.last.weight for d in made.dense]
    if made.affine is not None:
        last += [made.affine.head_matrix.weight, made.affine.head_shift.weight]
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in last)


@pytest.mark.parametrize("cascade", ["", "AA", "DA", "ADA", "add", "ADX", "D D", "DAD", "D\n"])
def test_other_cascades_are_refused(network: ModuleType, cascade: str) -> None:
    with pytest.raises(ValueError, match="optional A followed by Ds"):
        network.VTN(cascade, (8, 8, 8), 2, 2, 2)


@pytest.mark.parametrize("size", [(17, 23, 9), (9, 8, 31), (5, 6, 7), (1, 2, 3)])
def test_any_size_goes_through(tiny: Callable[..., nn.Module], size: tuple[int, ...]) -> None:
    ddf = tiny("ADD", size)(draw(2, 2, *size))
    assert ddf.shape == (2, 3, *size) and ddf.isfinite().all() and ddf.abs().max() > 0


def test_dense_stages_take_sizes_they_were_not_built_for(tiny: Callable[..., nn.Module]) -> None:
    made = tiny("DD", (16, 16, 16))
    assert made(draw(1, 2, 11, 20, 13)).shape == (1, 3, 11, 20, 13)


@pytest.mark.parametrize("cascade", CASCADES)
def test_every_parameter_receives_a_gradient(tiny: Callable[..., nn.Module], cascade: str) -> None:
    made = tiny(cascade)
    made(draw(2, 2, 16, 16, 16)).mul(draw(2, 3, 16, 16, 16, seed=1)).sum().backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert not silent


@pytest.mark.parametrize("autocast", [False, True])
def test_stages_are_composed_exactly(tiny: Callable[..., nn.Module], autocast: bool) -> None:
    """ddf = (I + A) (flow1 * flow2) + A (x - c) + b in double precision, border included, also under autocast."""
    image = draw(2, 2, 16, 12, 14)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        stages = tiny("ADD", (16, 12, 14), flow_scale=60.0)(image, return_stages=True)
    A, b = stages["A"].to(F64), stages["b"].to(F64)
    first, second = (flow.to(F64) for flow in stages["flow"])
    assert A.abs().max() > 0.01 and first.abs().max() > 0.5 and second.abs().max() > 0.5
    eye = torch.eye(3, dtype=F64)
    for found, dense in zip(stages["ddf"][1:], (first, compose(first, second)), strict=True):
        exact = torch.einsum("bij,bjxyz->bixyz", eye + A, dense) + affine_ddf(A, b, (16, 12, 14))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.to(F64), exact, atol=2e-5, rtol=0)
    torch.testing.assert_close(stages["ddf"][0].to(F64), affine_ddf(A, b, (16, 12, 14)), atol=2e-5, rtol=0)


def test_the_original_moving_image_is_resampled_at_each_stage(tiny: Callable[..., nn.Module]) -> None:
    image = draw(1, 2, 16, 16, 16)
    made = tiny("ADDD", flow_scale=40.0)
    seen: list[Tensor] = []
    for subnetwork in (made.affine, *made.dense):
        subnetwork.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    stages = made(image, return_stages=True)
    assert torch.equal(seen[0], image)
    for before, ddf, moved in zip(seen[1:], stages["ddf"], stages["moved"], strict=False):
        assert torch.equal(before[:, :1], image[:, :1]) and torch.equal(before[:, 1:], moved)
        assert torch.equal(moved, warp_image(image[:, 1:], ddf))
    assert torch.equal(stages["moved"][-1], warp_image(image[:, 1:], stages["ddf"][-1]))
    assert torch.equal(made(image), stages["ddf"][-1])


def test_affine_matrix_is_the_affine_stage_alone(tiny: Callable[..., nn.Module]) -> None:
    image, made = draw(2, 2, 16, 16, 16), tiny("AD")
    matrix = made.affine_matrix(image)
    index = torch.cartesian_prod(*(torch.arange(16.0),) * 3)
    expected = coords_of(made(image, return_stages=True)["ddf"][0]).flatten(2)
    torch.testing.assert_close(matrix[:, :3, :3] @ index.T + matrix[:, :3, 3:], expected, atol=1e-4, rtol=0)
    assert torch.equal(tiny("D").affine_matrix(image), torch.eye(4).expand(2, 4, 4))


def test_flow_scale_is_shared_among_the_dense_stages(tiny: Callable[..., nn.Module]) -> None:
    assert [tiny(c, flow_scale=12.0).scale for c in ("A", "D", "ADD", "DDD")] == [12, 12, 6, 4]
    image, small, large = draw(1, 2, 16, 16, 16), tiny("D", flow_scale=1.0), tiny("D", flow_scale=7.0)
    large.load_state_dict(small.state_dict())
    torch.testing.assert_close(large(image), 7 * small(image))


def test_the_same_seed_gives_the_same_network_and_field(tiny: Callable[..., nn.Module]) -> None:
    image, fields = draw(1, 2, 16, 16, 16), []
    for _ in range(2):
        torch.manual_seed(5)
        made = tiny("ADD")
        fields += [made.train()(image), made.eval()(image)]
    assert all(torch.equal(fields[0], other) for other in fields[1:])
    torch.manual_seed(6)
    assert not torch.equal(fields[0], tiny("ADD")(image))


def test_pairs_of_a_batch_do_not_see_each_other(tiny: Callable[..., nn.Module]) -> None:
    image, made = draw(3, 2, 16, 16, 16), tiny("ADD")
    alone = torch.cat([made(image[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(made(image), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 5, 4, 5, 6), (2, 7, 3, 1, 2)])
def test_doubling_is_the_transposed_convolution(network: ModuleType, shape: tuple[int, ...]) -> None:
    fast = network._Doubling(shape[1], 3, 4, 2, 1, bias=False).double()
    plain = nn.ConvTranspose3d(shape[1], 3, 4, 2, 1, bias=False).double()
    plain.load_state_dict(fast.state_dict())
    results = []
    for layer in (fast, plain):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
        y = layer(x)
        weight = torch.rand(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        results.append([y, *torch.autograd.grad((y * weight).sum(), (x, layer.weight))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    assert results[0][0].is_contiguous()


@pytest.mark.parametrize(("stride", "size"), [(1, 5), (2, 6), (2, 5)])
def test_small_convolutions_are_convolutions(network: ModuleType, stride: int, size: int) -> None:
    fast, plain = network._Conv(6, 4, 3, stride, 1), nn.Conv3d(6, 4, 3, stride, 1)
    plain.load_state_dict(fast.state_dict())
    x = torch.rand(1, 6, size, size, size, requires_grad=True)
    found, expected = fast(x), plain(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    parts = [
        torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
        for layer, y in ((fast, found), (plain, expected))
    ]
    for a, b in zip(*parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
