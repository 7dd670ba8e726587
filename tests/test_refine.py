"""Refinement: the loss falls, folds never rise, and nothing happens where nothing was asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from refine_case import scene

from shared_components.metrics import dice, folded_cells, folds_percent, mean_over_labels, ndv_percent
from shared_components.pairs import PairDataset, find_subjects, make_preprocessing
from shared_components.refine import RefineField, RefineSettings, refine
from shared_components.synth import bspline_field
from shared_components.warp import compose, warp_image, warp_labels

QUICK = RefineSettings(steps=45, radius=2, levels=(2, 1), shares=(0.5, 0.5))


@pytest.mark.parametrize("shape", [(28, 30, 26), (40, 36)], ids=["3-D", "2-D"])
def test_a_known_deformation_is_recovered(shape):
    fixed, moving, truth, inside = scene(shape)
    found, numbers = refine(fixed, moving, torch.zeros_like(truth), QUICK)
    before, after = truth.norm(dim=1)[0][inside].mean(), (found - truth).norm(dim=1)[0][inside].mean()
    assert after < 0.4 * before
    assert numbers["loss_after"] < 0.5 * numbers["loss_before"]


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_folds_are_never_worse(seed):
    fixed, moving, truth, _ = scene(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    wild = bspline_field(fixed.shape[2:], generator, control_points=9, strength=2.0)  # folds already
    for start in (truth, torch.zeros_like(truth), wild):
        wanton = RefineSettings(
            20, radius=1, diffusion_weight=0.0, fold_weight=0.0, rate=4.0, levels=(1,), shares=(1.0,)
        )
        found, numbers = refine(fixed, moving, start, wanton)
        assert numbers["loss_after"] <= numbers["loss_before"]
        assert folds_percent(found) <= folds_percent(start)
        assert ndv_percent(found) <= ndv_percent(start)
        assert int(folded_cells(found).sum()) <= int(folded_cells(start).sum())


def test_a_wanton_update_is_mended_rather_than_dropped():
    fixed, moving, truth, _ = scene()
    wanton = RefineSettings(25, radius=1, diffusion_weight=0.0, fold_weight=0.0, rate=2.0, levels=(1,), shares=(1.0,))
    found, numbers = refine(fixed, moving, torch.zeros_like(truth), wanton)
    assert numbers["loss_after"] < 0.9 * numbers["loss_before"] and not folded_cells(found).any()


def test_nothing_to_gain_leaves_the_field_alone():
    fixed, _, truth, _ = scene()
    found, numbers = refine(
        fixed, fixed, torch.zeros_like(truth), RefineSettings(4, rate=3.0, levels=(1,), shares=(1,))
    )
    assert numbers["loss_after"] <= numbers["loss_before"]
    assert found.norm(dim=1).max() < 0.5


def test_zero_steps_is_the_input_itself():
    fixed, moving, truth, _ = scene()
    found, numbers = refine(fixed, moving, truth, RefineSettings())
    assert found is truth and numbers == {}


def test_outside_the_mask_images_do_not_count():
    fixed, moving, truth, _ = scene()
    mask = torch.zeros_like(fixed)
    mask[:, :, :12] = 1
    spoilt = moving.clone()
    spoilt[:, :, 22:] = torch.rand(spoilt[:, :, 22:].shape, generator=torch.Generator().manual_seed(5))
    how = RefineSettings(10, radius=1, levels=(1,), shares=(1.0,))
    clean, _ = refine(fixed, moving, torch.zeros_like(truth), how, mask)
    other, _ = refine(fixed, spoilt, torch.zeros_like(truth), how, mask)
    assert torch.allclose(clean[:, :, :12], other[:, :, :12], atol=1e-4)
    free, _ = refine(fixed, spoilt, torch.zeros_like(truth), how)
    assert not torch.allclose(free[:, :, :12], other[:, :, :12], atol=1e-2)


def test_two_runs_give_the_same_bytes():
    fixed, moving, truth, _ = scene()
    how = RefineSettings(8, levels=(2, 1), shares=(0.5, 0.5))
    first, second = (refine(fixed, moving, torch.zeros_like(truth), how)[0] for _ in range(2))
    assert first.numpy().tobytes() == second.numpy().tobytes()


@pytest.mark.parametrize("batched", [True, False])
def test_as_post_transform(batched):
    fixed, moving, truth, _ = scene()
    data = {"image": torch.cat([fixed, moving], 1), "pred": torch.zeros_like(truth), "name": "a"}
    if not batched:
        data |= {"image": data["image"][0], "pred": data["pred"][0]}
    out = RefineField(steps=6, levels=(1,), shares=(1.0,))(data)
    assert out["pred"].shape == data["pred"].shape and out["name"] == "a"
    assert out["refine"]["loss_after"] < out["refine"]["loss_before"] and out["refine"]["seconds"] > 0
    assert RefineField(steps=0)(data)["pred"] is data["pred"]
    asked = RefineField(steps=0, levels=(1,), shares=(1.0,))({**data, "refine_steps": 6})["pred"]
    assert torch.equal(asked, out["pred"]), "a request has its own number of steps"
    assert RefineField(steps=6)({**data, "refine_steps": 0})["pred"] is data["pred"]


def test_a_fixed_mask_in_the_data_is_used():
    fixed, moving, truth, _ = scene()
    mask = torch.zeros(fixed.shape, dtype=torch.int16)
    mask[:, :, :10] = 1
    data = {"image": torch.cat([fixed, moving], 1), "pred": torch.zeros_like(truth)}
    how = {"steps": 6, "levels": (1,), "shares": (1.0,)}
    masked, free = RefineField(**how)({**data, "fixed_mask": mask})["pred"], RefineField(**how)(data)["pred"]
    assert not torch.allclose(masked, free, atol=1e-3)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="share"):
        RefineSettings(levels=(2, 1), shares=(1.0,))
    with pytest.raises(ValueError, match="similarity"):
        refine(*scene()[:3], RefineSettings(1, similarity="x"))


@pytest.mark.slow
def test_real_brains_from_identity(data_dir):
    folder = data_dir / "brain_oasis_miccai2012_2mm"
    pairs = PairDataset(find_subjects(folder)["validation"], make_preprocessing([80, 112, 88], 2.0))
    item = pairs[0]
    image, start = item["image"][None], torch.zeros(1, 3, 80, 112, 88)
    found, numbers = refine(image[:, :1], image[:, 1:], start, RefineSettings(60))
    scores = [
        mean_over_labels(dice(item["fixed_label"], warp_labels(item["moving_label"][None], ddf)[0]))
        for ddf in (start, found)
    ]
    assert scores[1] > scores[0] + 0.1 and numbers["folds_after"] == 0


def test_refining_after_an_affine_keeps_the_affine():
    fixed, moving, truth, inside = scene()
    shift = torch.zeros_like(truth)
    shift[:, 0] = 1.5
    moved_on = warp_image(moving, -shift)
    found, _ = refine(fixed, moved_on, compose(shift, torch.zeros_like(shift)), QUICK)
    expected = compose(shift, truth)
    inner = inside & (torch.arange(28).view(-1, 1, 1) < 24)
    assert np.median((found - expected).norm(dim=1)[0][inner]) < 0.5


def test_a_moving_mask_leaves_its_outside_out():
    fixed, moving, truth, _ = scene()
    data = {"image": torch.cat([fixed, moving], 1), "pred": torch.zeros_like(truth)}
    how = {"steps": 6, "levels": (1,), "shares": (1.0,)}
    everywhere = torch.ones_like(fixed)
    nothing = torch.zeros_like(fixed)
    free = RefineField(**how)(data)["pred"]
    assert torch.equal(RefineField(**how)({**data, "moving_mask": everywhere})["pred"], free)
    assert RefineField(**how)({**data, "moving_mask": nothing})["pred"].abs().max() == 0


def test_a_rough_start_is_taken_in_the_large_only():
    """What a network gets right in the large is kept, its roughness is not."""
    fixed, moving, truth, _ = scene()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(0)) * 0.4
    found = {spacing: refine(fixed, moving, truth + noise, replace(QUICK, start_spacing=spacing)) for spacing in (1, 4)}
    errors = {spacing: float((ddf - truth)[..., 3:-3, 3:-3, 3:-3].abs().mean()) for spacing, (ddf, _) in found.items()}
    assert errors[4] < 0.8 * errors[1]
    assert all(numbers["loss_after"] < numbers["loss_before"] for _, numbers in found.values())
