"""The affine map of a pair by gradient descent: known maps come back, and nothing becomes worse."""

import pytest
import torch

from shared_components.affine import affine_ddf, from_matrix, to_matrix
from shared_components.refine import AffineOptSettings, affine_opt
from shared_components.warp import affine_coords, sample

QUICK = AffineOptSettings(iterations=(80, 40), levels=(2, 1), rate=2e-3)


def texture(shape):
    """A sum of waves as a function of voxel positions (1, D, ...): exact, and something to see everywhere."""
    generator = torch.Generator().manual_seed(0)
    waves = 0.5 * torch.randn(16, len(shape), generator=generator)
    phases = 6.28 * torch.rand(16, generator=generator)

    def at(coords):
        angles = torch.einsum("wd,bd...->bw...", waves, coords) + phases.view(1, 16, *(1,) * len(shape))
        return angles.sin().mean(1, keepdim=True) + 0.5

    return at


def pair(shape):
    """Return fixed, moving and the matrix that takes fixed to moving voxels: some turn, scale, shear and shift."""
    ndim = len(shape)
    A = torch.tensor([[0.04, -0.06, 0.02], [0.05, -0.03, 0.03], [0.0, 0.03, 0.03]])[:ndim, :ndim]
    truth = to_matrix(A[None], torch.tensor([[1.0, -0.8, 0.6]])[:, :ndim], shape)
    image, grid = texture(shape), affine_coords(torch.eye(ndim + 1), shape)
    return image(affine_coords(truth, shape)), image(grid), truth


@pytest.mark.parametrize("shape", [(26, 30, 24), (48, 40)], ids=["3-D", "2-D"])
@pytest.mark.parametrize("similarity", ["mk_lncc", "lncc"])
def test_a_known_affine_is_recovered(shape, similarity):
    fixed, moving, truth = pair(shape)
    found = affine_opt(fixed, moving, settings=AffineOptSettings(**{**vars(QUICK), "similarity": similarity}))
    wanted = affine_ddf(*from_matrix(truth, shape), shape)
    error = (found.ddf - wanted).norm(dim=1)
    assert wanted.norm(dim=1).max() > 2 and error.max() < 0.4
    moved = sample(moving, affine_coords(found.matrix, shape))
    assert (moved - fixed).abs().mean() < 0.3 * (moving - fixed).abs().mean()
    assert found.numbers[0]["loss_after"] < 0.2 * found.numbers[0]["loss_before"]
    torch.testing.assert_close(found.ddf, affine_ddf(*from_matrix(found.matrix, shape), shape))


def test_the_start_is_where_the_descent_begins():
    fixed, moving, truth = pair((26, 30, 24))
    still = AffineOptSettings(iterations=(0, 0), levels=(2, 1))
    assert torch.equal(affine_opt(fixed, moving, truth, still).matrix, truth)
    at_rest = affine_opt(fixed, moving, truth, AffineOptSettings(iterations=(0, 20), levels=(2, 1)))
    assert (at_rest.matrix - truth).abs().max() < 0.05


def test_levels_see_the_same_map():
    """On grids whose axes shrink by different factors the truth is still the best map."""
    fixed, moving, truth = pair((27, 30, 25))
    coarse = AffineOptSettings(iterations=(60,), levels=(2,), rate=1e-3)
    found = affine_opt(fixed, moving, truth, coarse)
    error = found.ddf - affine_ddf(*from_matrix(truth, fixed.shape[2:]), fixed.shape[2:])
    assert error.norm(dim=1).max() < 0.4


def test_what_is_no_better_is_not_returned():
    fixed, moving, truth = pair((26, 30, 24))
    wild = affine_opt(fixed, moving, truth, AffineOptSettings(iterations=(3,), levels=(1,), rate=50.0))
    assert torch.equal(wild.matrix, truth) and wild.numbers[0]["loss_after"] == wild.numbers[0]["loss_before"]


def test_samples_do_not_see_each_other_and_two_runs_agree():
    fixed, moving, _ = pair((26, 30, 24))
    how = AffineOptSettings(iterations=(20,), levels=(2,), rate=2e-3)
    both = affine_opt(torch.cat([fixed, moving]), torch.cat([moving, fixed]), settings=how)
    alone = [affine_opt(*images, settings=how).matrix for images in ((fixed, moving), (moving, fixed))]
    assert torch.equal(both.matrix, torch.cat(alone)) and not torch.equal(*alone)


def test_constant_images_leave_the_identity():
    flat = torch.ones(1, 1, 16, 16, 16)
    found = affine_opt(flat, 0.5 * flat, settings=AffineOptSettings(iterations=(5,), levels=(1,)))
    assert torch.equal(found.matrix, torch.eye(4)[None])


def test_outside_the_mask_images_do_not_count():
    fixed, moving, truth = pair((26, 30, 24))
    spoilt = fixed.clone()
    spoilt[:, :, 20:] = torch.rand(spoilt[:, :, 20:].shape, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros_like(fixed)
    mask[:, :, :18] = 1
    how = AffineOptSettings(iterations=(10,), levels=(1,), similarity="mse")
    clean, other = (affine_opt(image, moving, None, how, mask).matrix for image in (fixed, spoilt))
    assert torch.equal(clean, other)
    assert not torch.equal(affine_opt(spoilt, moving, None, how).matrix, other)


def test_settings_are_checked():
    for wrong in ({"iterations": (1,)}, {"rate": 0.0}, {"momentum": 1.0}, {"iterations": (1, -1, 0)}):
        with pytest.raises(ValueError, match="iterations"):
            AffineOptSettings(**wrong)
