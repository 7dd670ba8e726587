"""Pairs whose true transform is known: what it maps agrees, and it is what the file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from script_tools import blob

from shared_components.geometry import Frame
from shared_components.images import Image, read_image
from shared_components.itk_io import read_field
from shared_components.synth.known import Change, known_pair

AFFINE = np.diag([-3.0, 3.0, 3.0, 1.0])


def image_of(shape: tuple[int, ...]) -> Image:
    """A blob with a pattern, exactly 0 outside."""
    values = blob(shape)
    pattern = 1 + 0.3 * np.sin(np.indices(shape).sum(0) / 3) + 0.2 * np.cos(np.indices(shape)[0] / 2)
    affine = AFFINE[np.ix_([*range(len(shape)), 3], [*range(len(shape)), 3])]
    array = torch.from_numpy((values * pattern).astype(np.float32))[None]
    return Image(array, Frame(shape, affine), Path("made"), np.dtype("float32"))


QUIET = Change(((1.0, 2.0, 30.0),), 25.0, 8.0, 0.05, 0.03, bias=0.0, gamma=0.0, noise=0.0)


@pytest.mark.parametrize("shape", [(40, 36), (30, 28, 26)])
def test_the_truth_takes_the_moving_image_onto_the_fixed_one(shape: tuple[int, ...]) -> None:
    image = image_of(shape)
    pair = known_pair(image, image, torch.Generator().manual_seed(0), QUIET)
    moved = pair.truth.resample(torch.from_numpy(pair.moving)[None], pair.truth.frame)[0].numpy()
    inside = pair.fixed > 1
    assert np.corrcoef(pair.fixed[inside], moved[inside])[0, 1] > 0.97
    left, before = (np.abs(pair.fixed - other)[inside].mean() for other in (moved, pair.moving))
    assert left < 0.6 * before
    assert 1 < np.linalg.norm(pair.truth.ddf_mm, axis=0)[inside].mean() < 30


def test_noise_and_bias_leave_what_is_empty_empty() -> None:
    image = image_of((40, 36))
    pair = known_pair(image, image, torch.Generator().manual_seed(1), Change(noise=0.5))
    again = known_pair(image, image, torch.Generator().manual_seed(1), Change(noise=0.5))
    np.testing.assert_array_equal(pair.moving, again.moving)
    np.testing.assert_array_equal(pair.truth.ddf_mm, again.truth.ddf_mm)
    for values in (pair.fixed, pair.moving):
        assert values.min() == 0 and (values == 0).mean() > 0.15
    assert np.std(pair.fixed - known_pair(image, image, torch.Generator().manual_seed(1), QUIET).fixed) > 1


def test_two_contrasts_move_alike_and_come_back_from_the_files(tmp_path: Path) -> None:
    image = image_of((40, 36))
    other = Image(100 - image.array, image.frame, image.path, image.dtype)
    pair = known_pair(image, other, torch.Generator().manual_seed(2), QUIET)
    moved = pair.truth.resample(torch.from_numpy(pair.moving)[None], pair.truth.frame)[0].numpy()
    inside = pair.fixed > 20
    assert np.corrcoef(pair.fixed[inside], moved[inside])[0, 1] < -0.95
    item = pair.write(tmp_path, "one")
    assert item == {"fixed": "one_fixed.nii.gz", "moving": "one_moving.nii.gz", "ddf": "one_ddf.nii.gz", "name": "one"}
    np.testing.assert_allclose(read_field(tmp_path / item["ddf"]).ddf_mm, pair.truth.ddf_mm, atol=1e-4)
    np.testing.assert_allclose(read_image(tmp_path / item["moving"], ndim=2).array[0], pair.moving, atol=1e-4)
