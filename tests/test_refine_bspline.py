"""Cubic B-splines for a pair: exact evaluation and subdivision, known fields come back, nothing becomes worse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from refine_case import scene
from scipy.interpolate import BSpline
from test_refine_vsvf import inner, textured

from shared_components.affine import affine_ddf, to_matrix
from shared_components.metrics import folded_cells, folds_percent, ndv_percent
from shared_components.refine import BsplineSettings, RefineField, RefineSettings, bspline_opt
from shared_components.refine.basis import variation_gradient
from shared_components.refine.bspline import _Energy
from shared_components.refine.spline import Spline, control_points, subdivided
from shared_components.regularity import diffusion, isotropic_variation
from shared_components.similarity import mse_loss
from shared_components.synth import bspline_field
from shared_components.warp import warp_image

QUICK = BsplineSettings(iterations=(60, 60), levels=(2, 1), stride=4, rate=0.02, settle=True)
SHAPES = pytest.mark.parametrize("shape", [(28, 30, 26), (40, 36)], ids=["3-D", "2-D"])
DOUBLE = torch.zeros((), dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_paper_has_2312_parameters():
    assert control_points((256, 256), 8) == (34, 34)
    assert [control_points((256, 256), 8, halvings) for halvings in (1, 2)] == [(19, 19), (11, 11)]
    flat = torch.zeros(1, 1, 256, 256)
    found = bspline_opt(flat, flat, settings=replace(BsplineSettings(), iterations=(0, 0, 0)))
    assert found.parameters == 2312 == found.control[-1].numel() and not found.ddf.any()
    assert [tuple(level.shape[2:]) for level in found.control] == [(11, 11), (19, 19), (34, 34)]


@pytest.mark.parametrize("shape", [(17, 9), (8, 11, 6)], ids=["2-D", "3-D"])
def test_a_spline_is_what_scipy_evaluates(shape):
    """A sum over all control points of products of basis elements, on the image and on a coarser grid."""
    for halvings in (0, 1):
        grid = [-(-n // (1 + halvings)) for n in shape]
        spline = Spline(shape, 3, halvings, DOUBLE, grid)
        control = draw(1, len(shape), *spline.points)
        element = BSpline.basis_element(np.arange(-2, 3), extrapolate=False)
        weights = []
        for n, m, points in zip(shape, grid, spline.points, strict=True):
            spans = (control_points((n,), 3)[0] - 3) / 2**halvings
            away = np.linspace(0, spans, m)[:, None] - np.arange(-1, points - 1)
            weights.append(np.nan_to_num(element(away)))
        letters = "abc"[: len(shape)]
        terms = ",".join(f"{low.upper()}{low}" for low in letters)
        wanted = np.einsum(f"xy{letters},{terms}->xy{letters.upper()}", control.numpy(), *weights)
        np.testing.assert_allclose(spline.field(control).numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("halvings", [0, 1, 2])
@pytest.mark.parametrize("shape", [(21, 34), (9, 16, 12), (1, 20)], ids=str)
def test_constants_and_linear_functions_are_reproduced_everywhere(shape, halvings):
    spline = Spline(shape, 4, halvings, DOUBLE)
    places = torch.meshgrid(*(torch.arange(-1.0, n - 1, dtype=torch.float64) for n in spline.points), indexing="ij")
    slopes = torch.arange(1.0, 1 + len(shape), dtype=torch.float64)
    control = 0.7 + sum(slope * place for slope, place in zip(slopes, places, strict=True))
    spans = [(n - 3) / 2**halvings for n in control_points(shape, 4)]
    at = torch.meshgrid(
        *(torch.linspace(0, last, n, dtype=torch.float64) for last, n in zip(spans, shape, strict=True)), indexing="ij"
    )
    wanted = 0.7 + sum(slope * place for slope, place in zip(slopes, at, strict=True))
    torch.testing.assert_close(spline.field(control[None, None])[0, 0], wanted, atol=1e-12, rtol=0)
    ones = torch.ones(1, 1, *spline.points, dtype=torch.float64)
    torch.testing.assert_close(spline.field(ones), torch.ones(1, 1, *shape, dtype=torch.float64), atol=1e-14, rtol=0)


@pytest.mark.parametrize("shape", [(256, 250), (21, 16, 30), (9, 1)], ids=str)
@pytest.mark.parametrize("halvings", [0, 1])
def test_subdivision_is_exact(shape, halvings):
    coarse, fine = (Spline(shape, 5, h, DOUBLE) for h in (halvings + 1, halvings))
    control = draw(1, 2, *coarse.points)
    torch.testing.assert_close(fine.field(subdivided(control, fine.points)), coarse.field(control), atol=1e-12, rtol=0)


def test_gradients_are_right():
    spline = Spline((9, 7), 3, 0, DOUBLE)
    control = draw(1, 2, *spline.points).requires_grad_()
    assert torch.autograd.gradcheck(spline.field, control)
    slope = draw(1, 2, 9, 7, seed=1)
    (wanted,) = torch.autograd.grad(spline.field(control), control, slope)
    torch.testing.assert_close(spline.adjoint(slope), wanted)
    for shape in ((9, 7), (5, 6, 4)):
        ddf = draw(1, len(shape), *shape).requires_grad_()
        torch.testing.assert_close(
            variation_gradient(ddf.detach()), torch.autograd.grad(isotropic_variation(ddf), ddf)[0]
        )


@pytest.mark.parametrize("how", [QUICK, replace(QUICK, inside_only=False), replace(QUICK, similarity="lncc", radius=1)])
@pytest.mark.parametrize("factor", [1, 2])
def test_the_slope_of_the_energy_is_that_of_autograd(how, factor):
    fixed, moving, truth, _ = scene((20, 26))
    how = replace(how, tv_weight=0.3, diffusion_weight=0.2, fold_weight=5.0)
    mask = (fixed > 0.3).float()
    energy = _Energy(fixed, moving, truth, mask, factor, how)
    ddf = (energy.start + 2 * draw(*energy.start.shape).float()).requires_grad_()  # folds, and leaves the image
    (wanted,) = torch.autograd.grad(energy(ddf), ddf)
    torch.testing.assert_close(energy.slope(ddf.detach(), 0), wanted, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(energy.slope(ddf.detach()), wanted, atol=1e-4)


def test_the_energy_is_the_papers():
    """Mean squares where the map stays inside + lambda TV in halves of the axis, components apart."""
    fixed, moving, truth, _ = scene((20, 20))
    ddf = truth + 1.5
    energy = _Energy(fixed, moving, torch.zeros_like(ddf), torch.ones_like(fixed), 1, BsplineSettings(tv_weight=0.5))
    at = ddf[0] + torch.stack(torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij"))
    inside = ((at >= 0) & (at <= 19)).all(0)
    assert 0 < int((~inside).sum())
    data = mse_loss(fixed, warp_image(moving, ddf), inside[None, None].float())
    norm = ddf[0] * 2 / 19
    dx, dy = norm[:, 1:, :-1] - norm[:, :-1, :-1], norm[:, :-1, 1:] - norm[:, :-1, :-1]
    assert float(energy(ddf)) == pytest.approx(float(data + 0.5 * (dx**2 + dy**2).sqrt().mean()), rel=1e-5)


def test_total_variation_of_known_fields():
    ramp = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 2, 8, 5) * torch.tensor([3.0, 0.0]).view(1, 2, 1, 1)
    assert (
        float(isotropic_variation(ramp)) == pytest.approx(1.5)
        and float(isotropic_variation(torch.ones(1, 2, 4, 4))) == 0
    )
    assert torch.equal(variation_gradient(torch.ones(1, 3, 4, 5, 6)), torch.zeros(1, 3, 4, 5, 6))


@SHAPES
def test_a_known_deformation_is_recovered(shape):
    fixed, moving, truth = textured(shape)
    found = bspline_opt(fixed, moving, settings=QUICK)
    before, after = (inner(x).norm(dim=1) for x in (truth, found.ddf - truth))
    assert before.mean() > 1.2 and before.max() > 2.5 and after.mean() < 0.1 and after.max() < 0.3
    assert not folded_cells(found.ddf).any() and found.numbers[0]["loss_after"] < 0.1 * found.numbers[0]["loss_before"]
    spline = Spline(shape, 4, 0, fixed)
    torch.testing.assert_close(found.ddf, spline.field(found.control[-1]))


def test_the_last_level_may_be_coarser_than_the_images_and_axes_of_any_length_fit():
    for shape in ((40, 36), (2, 33), (9, 30, 5)):
        fixed, moving = draw(1, 1, *shape).float(), draw(1, 1, *shape, seed=1).float()
        found = bspline_opt(fixed, moving, None, replace(QUICK, iterations=(5, 5), levels=(4, 2)))
        half = [max(min(n, 8), -(-n // 2)) for n in shape]
        spline = Spline(half, 4, 0, fixed, shape)
        assert found.control[-1].shape[2:] == spline.points and torch.isfinite(found.ddf).all()
        torch.testing.assert_close(found.ddf, spline.field(found.control[-1]), atol=1e-5, rtol=1e-5)


def test_a_start_is_added_to_as_a_matrix_or_as_a_field():
    shape = (40, 36)
    fixed, moving, truth = textured(shape)
    A, b = torch.tensor([[[0.04, -0.05], [0.06, 0.03]]]), torch.tensor([[0.8, -0.5]])
    still = bspline_opt(fixed, moving, to_matrix(A, b, shape), replace(QUICK, iterations=(0, 0)))
    torch.testing.assert_close(still.ddf, affine_ddf(A, b, shape))
    assert still.numbers[0]["loss_after"] == still.numbers[0]["loss_before"]
    by_matrix = bspline_opt(fixed, moving, to_matrix(A, b, shape), QUICK)
    by_field = bspline_opt(fixed, moving, affine_ddf(A, b, shape), QUICK)
    torch.testing.assert_close(by_matrix.ddf, by_field.ddf)
    assert inner(by_matrix.ddf - truth).norm(dim=1).mean() < 0.2 * inner(still.ddf - truth).norm(dim=1).mean()
    half = bspline_opt(fixed, moving, 0.5 * truth, QUICK)
    assert inner(half.ddf - truth).norm(dim=1).mean() < 0.2 * inner(0.5 * truth).norm(dim=1).mean()
    spline = Spline(shape, 4, 0, fixed).field(half.control[-1])
    torch.testing.assert_close(half.ddf, 0.5 * truth + spline)


@SHAPES
@pytest.mark.parametrize("seed", range(2))
def test_loss_and_folds_are_never_worse(shape, seed):
    fixed, moving, truth, _ = scene(shape, seed=seed)
    wild = bspline_field(shape, torch.Generator().manual_seed(seed), control_points=9, strength=2.0)
    assert folded_cells(wild).any()
    wanton = BsplineSettings((12,), (1,), 2, tv_weight=0.0, rate=0.05)
    for start in (truth, torch.zeros_like(truth), wild):
        found = bspline_opt(fixed, moving, start, wanton)
        assert found.numbers[0]["loss_after"] <= found.numbers[0]["loss_before"]
        assert folds_percent(found.ddf) <= folds_percent(start) and ndv_percent(found.ddf) <= ndv_percent(start)
        if not folded_cells(start).any():
            assert not folded_cells(found.ddf).any()
    free = bspline_opt(fixed, moving, torch.zeros_like(truth), wanton)
    assert free.ddf.any() and free.numbers[0]["loss_after"] < 0.95 * free.numbers[0]["loss_before"], "mended"


def test_two_runs_give_the_same_bytes_and_samples_do_not_see_each_other():
    fixed, moving, _, _ = scene((28, 30))
    how = replace(QUICK, iterations=(6, 6))
    both = bspline_opt(torch.cat([fixed, moving]), torch.cat([moving, fixed]), None, how)
    alone = [bspline_opt(*pair, None, how).ddf for pair in ((fixed, moving), (moving, fixed))]
    assert both.ddf.numpy().tobytes() == torch.cat(alone).numpy().tobytes() and len(both.numbers) == 2
    assert both.ddf.any() and both.control[-1].shape[0] == 2 and both.parameters == both.control[-1][0].numel()


def test_constant_images_leave_the_start_and_a_map_to_the_outside_is_no_error():
    flat = torch.ones(1, 1, 12, 14)
    for similarity in ("mse", "lncc", "cc", "mk_lncc", "mind"):
        found = bspline_opt(flat, 0.5 * flat, None, replace(QUICK, iterations=(3, 3), similarity=similarity))
        assert torch.equal(found.ddf, torch.zeros_like(found.ddf)), similarity
    away = torch.full((1, 2, 12, 14), 100.0)
    assert torch.equal(bspline_opt(flat, flat, away, replace(QUICK, iterations=(2, 2))).ddf, away)


def test_outside_the_mask_images_do_not_count():
    fixed, moving, _, _ = scene((40, 30))
    mask = torch.zeros_like(fixed)
    mask[:, :, :12] = 1
    spoilt = fixed.clone()
    spoilt[:, :, 20:] = torch.rand(spoilt[:, :, 20:].shape, generator=torch.Generator().manual_seed(5))
    how = replace(QUICK, iterations=(4,), levels=(1,))
    clean, other, free = (
        bspline_opt(image, moving, None, how, where).ddf
        for image, where in ((fixed, mask), (spoilt, mask), (spoilt, None))
    )
    assert torch.equal(clean, other) and not torch.allclose(free, other, atol=1e-2)


@pytest.mark.parametrize("batched", [True, False])
@SHAPES
def test_as_post_transform(batched, shape):
    fixed, moving, truth, _ = scene(shape)
    data = {"image": torch.cat([fixed, moving], 1), "pred": torch.zeros_like(truth), "name": "a"}
    if not batched:
        data |= {"image": data["image"][0], "pred": data["pred"][0]}
    out = RefineField(steps=12, method="bspline", levels=(2, 1), shares=(0.5, 0.5))(data)
    assert out["pred"].shape == data["pred"].shape and out["name"] == "a"
    assert out["refine"]["loss_after"] < 0.9 * out["refine"]["loss_before"] and out["refine"]["seconds"] > 0
    assert out["refine"]["folds_after"] == out["refine"]["strict_folds_after"] == 0
    assert RefineField(steps=0, method="bspline")(data)["pred"] is data["pred"]


def test_a_field_is_polished():
    fixed, moving, truth = textured((28, 30, 26))
    polish = RefineSettings(30, levels=(2, 1), shares=(0.5, 0.5))
    found = bspline_opt(fixed, moving, 0.5 * truth, BsplineSettings.polishing(polish, fixed.shape[2:]))
    before, after = ((x - truth).norm(dim=1).mean() for x in (0.5 * truth, found.ddf))
    assert after < 0.6 * before and not folded_cells(found.ddf).any()


def test_polishing_takes_over_what_the_images_need():
    asked = RefineSettings(10, similarity="mind", diffusion_weight=0.1, fold_weight=3.0)
    how = BsplineSettings.polishing(asked, (20, 30))
    assert (how.similarity, how.diffusion_weight, how.fold_weight, how.tv_weight) == ("mind", 0.1, 3.0, 0.0)
    assert sum(how.iterations) == 10 and how.levels == (4, 2, 1)
    ones = BsplineSettings.polishing(asked, (30, 30)).rate * 29, BsplineSettings.polishing(asked, (59, 59)).rate * 58
    assert ones[0] == pytest.approx(ones[1])  # a step counts voxels


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"iterations": (1,)}, "iterations >= 0 for each level"),
        ({"iterations": (1, 1, -1)}, "iterations >= 0 for each level"),
        ({"levels": (), "iterations": ()}, "iterations >= 0 for each level"),
        ({"levels": (1, 2, 4)}, "from coarse to fine"),
        ({"levels": (2, 1, 0)}, "at least 1"),
        ({"stride": 0.5}, "stride >= 1"),
        ({"rate": 0.0}, "rate > 0"),
        ({"rate": float("nan")}, "rate > 0"),
        ({"tv_weight": -1.0}, "weights of a B-spline"),
    ],
)
def test_settings_are_checked(wrong, sentence):
    with pytest.raises(ValueError, match=sentence) as told:
        BsplineSettings(**wrong)
    assert "\n" not in str(told.value)


def test_shapes_are_checked():
    image = torch.zeros(1, 1, 12, 14)
    with pytest.raises(ValueError, match="differ in shape"):
        bspline_opt(image, image[..., :9])
    with pytest.raises(ValueError, match="does not fit images"):
        bspline_opt(image, image, torch.zeros(1, 2, 12, 13))
    with pytest.raises(ValueError, match="similarity must be one of"):
        bspline_opt(image, image, settings=BsplineSettings(similarity="x"))


def test_the_numbers_compare_the_energy_at_full_resolution():
    fixed, moving, truth, _ = scene((24, 26))
    found = bspline_opt(
        fixed, moving, 0.3 * truth, replace(QUICK, inside_only=False, tv_weight=0, diffusion_weight=0.1)
    )
    for key, ddf in (("loss_before", 0.3 * truth), ("loss_after", found.ddf)):
        wanted = float(mse_loss(fixed, warp_image(moving, ddf)) + 0.1 * diffusion(ddf))
        assert found.numbers[0][key] == pytest.approx(wanted, rel=1e-4)
