"""Native grids worked through slab by slab: the same numbers and bytes as all at once, and little memory."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from memory_tools import peak_mb

from shared_components import slabs, transform
from shared_components.geometry import Frame
from shared_components.images import nifti_of
from shared_components.itk_io import write_field
from shared_components.metrics import field_statistics, folds_percent, ndv_percent, sdlogj, sdlogj_l2r, std_jacobian
from shared_components.metrics.surface import _codes, _values
from shared_components.similarity import correlation_loss, correlation_of_parts
from shared_components.transform import PhysicalField, carry
from shared_components.warp import jacobian_determinant

NETWORK = Frame((12, 14, 10), np.diag([4.0, 4, 4, 1]))
FIXED = Frame((37, 31, 23), np.array([[1.3, 0.1, 0, 2], [-0.1, 1.2, 0.2, 3], [0, 0.1, 1.7, 1], [0, 0, 0, 1]]))
VOXELS = (5000, 1500, 1)  # seven planes, two, one


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=VOXELS)
def small_slabs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut grids into small slabs from now on."""
    monkeypatch.setattr(transform, "slabs", lambda shape: slabs.slabs(shape, request.param))
    return request.param


def everything(hold: bool) -> list[np.ndarray]:
    """What a field of many slabs is used for."""
    field = carry(draw(1, 3, *NETWORK.shape), NETWORK, FIXED, hold=hold)
    image, labels = draw(1, 20, 20, 20), (100 * draw(1, 20, 20, 20)).to(torch.int32)
    moving = Frame((20, 20, 20), np.diag([2.0, 2, 2, 1]))
    points = np.random.default_rng(0).uniform(-3, 45, (200, 3))
    pulled = [field.resample(image, moving), field.resample(labels, moving, "nearest")]
    return [field.ddf_mm, *(x.numpy() for x in pulled), field.map_points(points), *field.components()]


def test_slabs_change_nothing_nor_does_making_a_field_anew(small_slabs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held, anew = everything(True), everything(False)
    monkeypatch.undo()
    for at_once, one, other in zip(everything(True), held, anew, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(one, at_once, rtol=0, atol=1e-12)  # points: in doubles of another origin


@pytest.mark.parametrize("voxels", VOXELS)
def test_statistics_of_slabs_are_those_of_the_whole_field(voxels: int) -> None:
    ddf = draw(1, 3, *FIXED.shape) * 0.5
    mask = torch.rand(FIXED.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    found = field_statistics((ddf[0][:, where] for where in slabs.slabs(FIXED.shape, voxels)), mask)
    inside = jacobian_determinant(ddf)[0][mask]
    deviation, folded = sdlogj(ddf, mask)
    expected = {"folds_percent": folds_percent(ddf, mask), "folded_voxels": folded, "sdlogj": deviation}
    expected |= {"ndv_percent": ndv_percent(ddf, mask), "sdlogj_l2r": sdlogj_l2r(ddf, mask)}
    expected |= {"det_min": inside.min(), "det_median": inside.median(), "det_max": inside.max()}
    expected |= {"std_jacobian": std_jacobian(ddf)}
    assert folded > 100 and found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-10), name


def test_correlation_of_parts_is_that_of_the_whole() -> None:
    fixed, moved = 1e4 + draw(1, 1, 30, 20, 10).double(), draw(1, 1, 30, 20, 10).double()
    moved = moved + torch.randn(moved.shape, generator=torch.Generator().manual_seed(2)).double()
    mask = draw(1, 1, 30, 20, 10) > 0

    def parts() -> Iterator[tuple[torch.Tensor, ...]]:
        for where in slabs.slabs((30, 20, 10), 800):
            yield tuple(x[0, :, where] for x in (fixed, moved, mask))

    whole = 1 - float(correlation_loss(fixed, moved, mask.double()))
    assert 0.5 < whole < 0.9 and correlation_of_parts(parts()) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6)])
def test_a_field_written_by_components_is_what_nibabel_writes(tmp_path, shape: tuple[int, ...]) -> None:
    ndim = len(shape)
    field = PhysicalField(Frame(shape, np.diag([2.0] * ndim + [1])), draw(ndim, *shape).numpy())
    write_field(tmp_path / "ddf.nii", field)
    vectors = np.moveaxis(field.ddf_mm, 0, -1) * np.array([-1, -1, 1], np.float32)[:ndim]
    image = nifti_of(vectors.reshape(*shape, *(1,) * (4 - ndim), ndim), field.frame)
    image.header.set_intent("vector", (), "")
    stream = io.BytesIO()
    image.to_stream(stream)
    assert (tmp_path / "ddf.nii").read_bytes() == stream.getvalue()


def test_labels_are_numbered_as_numpy_does() -> None:
    labels = np.random.default_rng(0).choice([-3, 0, 7, 70_000], (9, 8, 7)).astype(np.int32)
    values, codes = np.unique(labels, return_inverse=True)
    assert _values(labels).tolist() == values.tolist()
    assert (_codes(labels, values) == codes.reshape(labels.shape) + 1).all()


def test_warping_a_native_image_takes_little_more_than_the_result() -> None:
    """192^3: an array of it is 28 MB. At once it would take the field, positions and the grid, three arrays each."""
    setup = (
        "import numpy as np\nfrom shared_components.geometry import Frame\n"
        "from shared_components.transform import carry\n"
        "frame, net = Frame((192,) * 3, np.eye(4)), Frame((32,) * 3, np.diag([6.0, 6, 6, 1]))\n"
        "ddf, image = draw(1, 3, 32, 32, 32), draw(1, 192, 192, 192)"
    )
    assert peak_mb(setup, "carry(ddf, net, frame, hold=False).resample(image, frame)") < 7 * 28.3
