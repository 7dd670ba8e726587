"""One stationary velocity for a pair: known maps come back, nothing folds, the inverse is the inverse."""

from dataclasses import replace

import pytest
import torch
from refine_case import scene

from shared_components.affine import affine_ddf, compose_affine, from_matrix, to_matrix
from shared_components.errors import InputError
from shared_components.flows import MultiGaussian
from shared_components.metrics import folded_cells, folds_percent, ndv_percent
from shared_components.refine import RefineField, RefineSettings, VsvfSettings, vsvf_opt
from shared_components.refine.vsvf import _Energy
from shared_components.similarity import KeepsStatistics, against, make_similarity
from shared_components.synth import bspline_field, diffeomorphism
from shared_components.warp import compose, coords_of, warp_image

QUICK = VsvfSettings(iterations=(12, 12), levels=(2, 1), similarity="lncc", radius=2, velocity_weight=0.5)
POLISH = RefineSettings(30, levels=(2, 1), shares=(0.5, 0.5))


def textured(shape, mean=1.5):
    """Waves, the same moved by a known diffeomorphism of the box onto itself, and that."""
    generator = torch.Generator().manual_seed(3)
    waves, phases = 0.45 * torch.randn(24, len(shape), generator=generator), 6.28 * torch.rand(24, generator=generator)
    truth, inverse = diffeomorphism(shape, generator, mean=mean, smoothness=18.0)

    def at(coords):
        angles = torch.einsum("wd,bd...->bw...", waves, coords) + phases.view(1, -1, *(1,) * len(shape))
        return angles.sin().mean(1, keepdim=True) + 0.5

    return at(coords_of(truth)), at(coords_of(torch.zeros_like(truth))), truth


def eye(shape):
    return torch.eye(len(shape) + 1)[None]


def inner(x, margin=4):
    """Cut ``margin`` voxels from every border."""
    for axis in range(2, x.ndim):
        x = x.narrow(axis, margin, x.shape[axis] - 2 * margin)
    return x


@pytest.mark.parametrize("shape", [(28, 30, 26), (40, 36)], ids=["3-D", "2-D"])
@pytest.mark.parametrize("similarity", ["lncc", "mk_lncc"])
def test_a_known_diffeomorphism_is_recovered(shape, similarity):
    fixed, moving, truth = textured(shape)
    found = vsvf_opt(fixed, moving, eye(shape), replace(QUICK, similarity=similarity))
    before, after = (inner(x).norm(dim=1) for x in (truth, found.ddf - truth))
    assert before.max() > 2.5 and after.mean() < 0.12 * before.mean() and after.max() < 0.7
    assert not folded_cells(found.ddf).any() and found.numbers[0]["folds_after"] == 0
    assert found.numbers[0]["loss_after"] < 0.5 * found.numbers[0]["loss_before"]


def test_the_inverse_is_the_inverse():
    fixed, moving, truth = textured((28, 30, 26))
    A, b = torch.tensor([[[0.03, -0.04, 0.0], [0.05, 0.0, 0.0], [0.0, 0.02, -0.03]]]), torch.tensor([[0.7, -0.4, 0.2]])
    for start in (to_matrix(A, b, fixed.shape[2:]), 0.5 * truth):
        found = vsvf_opt(fixed, moving, start, QUICK)
        assert found.dvf.abs().max() > 0.3 and inner(found.ddf).norm(dim=1).mean() > 1
        plain, back = found.inverse(corrections=0), found.inverse()
        assert inner(compose(found.ddf, plain)).norm(dim=1).mean() < 0.1  # the flow of -v alone
        assert inner(compose(found.ddf, back)).norm(dim=1).max() < 0.02
        other = inner(compose(back, found.ddf)).norm(dim=1)  # here the inverse is interpolated
        assert other.mean() < 0.05 and other.quantile(0.99) < 0.25


def test_an_affine_start_stays_in_the_map_and_is_exact_where_nothing_is_found():
    shape = (28, 30, 26)
    fixed, moving, truth = textured(shape)
    A, b = torch.tensor([[[0.03, -0.04, 0.0], [0.05, 0.0, 0.0], [0.0, 0.02, -0.03]]]), torch.tensor([[0.8, -0.5, 0.3]])
    matrix = to_matrix(A, b, shape)
    on = warp_image(moving, affine_ddf(*from_matrix(torch.linalg.inv(matrix), shape), shape))
    still = vsvf_opt(fixed, on, matrix, replace(QUICK, iterations=(0, 0)))
    torch.testing.assert_close(still.ddf, affine_ddf(A, b, shape))
    found = vsvf_opt(fixed, on, matrix, QUICK)
    wanted = compose_affine(A, b, truth)
    error, before = (inner(x - wanted).norm(dim=1).mean() for x in (found.ddf, still.ddf))
    assert error < 0.3 * before


def test_given_as_a_field_or_as_a_matrix_an_affine_start_gives_the_same():
    fixed, moving, _, inside = scene()
    A, b = torch.zeros(1, 3, 3), torch.tensor([[0.6, -0.3, 0.2]])
    starts = to_matrix(A, b, fixed.shape[2:]), affine_ddf(A, b, fixed.shape[2:])
    first, second = (vsvf_opt(fixed, moving, start, replace(QUICK, iterations=(4, 2))).ddf for start in starts)
    assert (first - second).norm(dim=1)[0][inside].max() < 0.05


@pytest.mark.parametrize("seed", range(2))
def test_loss_and_folds_are_never_worse(seed):
    fixed, moving, truth, _ = scene(seed=seed)
    wild = bspline_field(fixed.shape[2:], torch.Generator().manual_seed(seed), control_points=9, strength=2.0)
    assert folded_cells(wild).any()
    wanton = VsvfSettings(
        (10,), (1,), "lncc", 1, velocity_weight=0.0, sigmas=(0.03,), weights=(1.0,), first_step=2.0, coarsening=1
    )
    for start in (truth, torch.zeros_like(truth), wild):
        found = vsvf_opt(fixed, moving, start, wanton)
        assert found.numbers[0]["loss_after"] <= found.numbers[0]["loss_before"]
        assert folds_percent(found.ddf) <= folds_percent(start) and ndv_percent(found.ddf) <= ndv_percent(start)
        if not folded_cells(start).any():
            assert not folded_cells(found.ddf).any()
        assert not torch.equal(found.ddf, start), "mended, not dropped"


def test_constant_images_leave_the_start():
    flat = torch.ones(1, 1, 12, 14, 12)
    for similarity in ("mk_lncc", "lncc", "sharp_lncc", "cc", "mse", "mind"):
        found = vsvf_opt(flat, 0.5 * flat, eye(flat.shape[2:]), replace(QUICK, similarity=similarity))
        assert torch.equal(found.ddf, torch.zeros_like(found.ddf)), similarity
        mask = torch.ones_like(flat)
        energy = _Energy(flat, 0.5 * flat, eye(flat.shape[2:]), mask, 1, replace(QUICK, similarity=similarity))
        unknown = torch.randn(1, 3, *energy.grid, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (slope,) = torch.autograd.grad(energy(unknown), unknown)
        assert torch.isfinite(slope).all() and slope.any()  # of the regulariser


def test_two_runs_give_the_same_bytes_and_samples_do_not_see_each_other():
    fixed, moving, _, _ = scene()
    how = replace(QUICK, iterations=(4, 4))
    both = vsvf_opt(torch.cat([fixed, moving]), torch.cat([moving, fixed]), eye(fixed.shape[2:]).repeat(2, 1, 1), how)
    alone = [vsvf_opt(*pair, eye(fixed.shape[2:]), how).ddf for pair in ((fixed, moving), (moving, fixed))]
    assert both.ddf.numpy().tobytes() == torch.cat(alone).numpy().tobytes() and len(both.numbers) == 2


def test_a_heavier_regulariser_moves_less_and_narrow_gaussians_find_more():
    fixed, moving, _, _ = scene()
    runs = {
        weight: vsvf_opt(fixed, moving, eye(fixed.shape[2:]), replace(QUICK, velocity_weight=weight))
        for weight in (1, 100)
    }
    assert runs[100].ddf.norm(dim=1).mean() < 0.7 * runs[1].ddf.norm(dim=1).mean()
    narrow, wide = (
        vsvf_opt(fixed, moving, eye(fixed.shape[2:]), replace(QUICK, sigmas=(sigma,), weights=(1.0,)))
        for sigma in (0.05, 0.25)
    )
    assert narrow.numbers[0]["loss_after"] < wide.numbers[0]["loss_after"]


def test_the_root_of_the_smoother_applied_twice_is_the_smoother():
    x = torch.randn(1, 2, 12, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for method in ("fft", "separable"):
        whole, root = (MultiGaussian(method=method, power=power) for power in (1.0, 0.5))
        torch.testing.assert_close(root(root(x)), whole(x), atol=1e-9, rtol=1e-7)
        assert float((root(x) ** 2).sum()) == pytest.approx(float((x * whole(x)).sum()), rel=1e-7)  # |q|^2 = <m, v>


def test_what_the_fixed_image_gives_is_computed_once():
    generator = torch.Generator().manual_seed(0)
    fixed, moved = torch.rand(2, 1, 1, 14, 13, 12, generator=generator)
    mask = (torch.rand(1, 1, 14, 13, 12, generator=generator) > 0.3).float()
    for name in ("lncc", "mk_lncc", "cc"):
        similarity = make_similarity(name, 2)
        assert isinstance(similarity, KeepsStatistics) == (name != "cc")
        loss = against(similarity, fixed, mask)
        if name != "cc":
            similarity.fixed_statistics = None  # called by now, and no more
        torch.testing.assert_close(loss(moved), make_similarity(name, 2)(fixed, moved, mask))


@pytest.mark.parametrize("batched", [True, False])
def test_as_post_transform(batched):
    fixed, moving, truth, _ = scene()
    data = {"image": torch.cat([fixed, moving], 1), "pred": torch.zeros_like(truth), "name": "a"}
    if not batched:
        data |= {"image": data["image"][0], "pred": data["pred"][0]}
    out = RefineField(steps=12, method="vsvf", levels=(2, 1), shares=(0.5, 0.5))(data)
    assert out["pred"].shape == data["pred"].shape and out["name"] == "a"
    assert out["refine"]["loss_after"] < 0.9 * out["refine"]["loss_before"] and out["refine"]["seconds"] > 0
    assert out["refine"]["folds_after"] == out["refine"]["strict_folds_after"] == 0
    assert RefineField(steps=0, method="vsvf")(data)["pred"] is data["pred"]
    with pytest.raises(InputError, match="refine must be one of field, vsvf, bspline, not 'demons'"):
        RefineField(method="demons")


def test_a_field_is_polished():
    fixed, moving, truth = textured((28, 30, 26))
    rough = 0.5 * truth
    found = vsvf_opt(fixed, moving, rough, VsvfSettings.polishing(POLISH, fixed.shape[2:]))
    before, after = ((x - truth).norm(dim=1).mean() for x in (rough, found.ddf))
    assert after < 0.6 * before and not folded_cells(found.ddf).any()


def test_outside_the_mask_images_do_not_count():
    fixed, moving, _, _ = scene()
    mask = torch.zeros_like(fixed)
    mask[:, :, :12] = 1
    spoilt = fixed.clone()
    spoilt[:, :, 20:] = torch.rand(spoilt[:, :, 20:].shape, generator=torch.Generator().manual_seed(5))
    how = replace(QUICK, iterations=(4,), levels=(1,), similarity="mse")
    clean, other, free = (
        vsvf_opt(image, moving, eye(fixed.shape[2:]), how, where).ddf
        for image, where in ((fixed, mask), (spoilt, mask), (spoilt, None))
    )
    assert torch.equal(clean, other) and not torch.allclose(free, other, atol=1e-2)


def test_polishing_takes_over_what_the_images_need():
    how = VsvfSettings.polishing(RefineSettings(10, similarity="mind", diffusion_weight=0.1), (20, 30))
    other = VsvfSettings.polishing(RefineSettings(10, similarity="mind", diffusion_weight=0.2), (20, 30))
    assert how.similarity == "mind" and sum(how.iterations) == 10 and how.levels == (4, 2, 1)
    assert other.velocity_weight == pytest.approx(2 * how.velocity_weight)
    for wrong in ({"iterations": (1,)}, {"iterations": (1, 1, -1)}, {"coarsening": 0}, {"levels": (4, 2, 0)}):
        with pytest.raises(ValueError, match="velocity needs"):
            VsvfSettings(**wrong)
