"""--diffeomorphic: whatever a network says, the fields that are written have no folded cell on their own grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose
from scipy.spatial.transform import Rotation
from torch import Tensor

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import write_image
from shared_components.itk_io import read_field, write_affine
from shared_components.metrics import folded_cells, folds_percent, ndv_percent
from shared_components.pairs import make_preprocessing
from shared_components.refine import RefineField
from shared_components.results import SaveRegistration
from shared_components.transform import affine_field, carry
from shared_components.unfold import UnfoldField, unfold, unfold_field

SPACING = {2: (0.7, 2.6), 3: (0.8, 1.3, 5.0)}
SIZE = {2: (20, 24), 3: (16, 18, 14)}


def frames(ndim: int) -> tuple[Frame, Frame]:
    """A fixed grid with long voxels, turned, and a moving one with others, mirrored, whose origin lies elsewhere."""
    turn = Rotation.from_rotvec([0.0, 0.0, 0.4] if ndim == 2 else [0.2, -0.3, 0.4]).as_matrix()[:ndim, :ndim]
    found = []
    for shape, linear, origin in (
        ((44, 17, 9)[:ndim], turn @ np.diag(SPACING[ndim]), -15.0),
        ((23, 31, 19)[:ndim], np.diag((-1.5, 1.1, 2.0)[:ndim]), 20.0),
    ):
        affine = np.eye(ndim + 1)
        affine[:-1, :-1], affine[:-1, -1] = linear, origin
        found.append(Frame(shape, affine))
    return found[0], found[1]


def prepared(folder: Path, ndim: int, **options: Any) -> dict[str, Any]:
    files = {}
    for side, frame in zip(("fixed", "moving"), frames(ndim), strict=True):
        files[side] = str(folder / f"{side}.nii.gz")
        index = np.stack(np.meshgrid(*[np.arange(n) for n in frame.shape], indexing="ij"), -1)
        away_mm = frame.to_mm(index) - frame.center_mm
        write_image(files[side], np.exp(-(away_mm**2).sum(-1) / 60).astype(np.float32), frame)
    return make_preprocessing(SIZE[ndim], 2.0, **options)(files)


def noise(ndim: int, amplitude: float, seed: int = 0) -> Tensor:
    return amplitude * torch.randn(1, ndim, *SIZE[ndim], generator=torch.Generator().manual_seed(seed))


def folded(folder: Path, name: str) -> int:
    """Folded cells of a field as a reader of the file sees it."""
    ddf = read_field(folder / f"{name}.nii.gz").voxel_ddf()
    assert bool(folded_cells(ddf).any()) == bool(folded_cells(ddf.double()).any())
    assert ndv_percent(ddf) > 0 or folds_percent(ddf) == 0
    return int(folded_cells(ddf.double()).sum())


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("amplitude", [1.0, 15.0])
@pytest.mark.parametrize("refine_steps", [0, 2])
def test_a_wild_field_is_written_without_a_fold(tmp_path: Path, ndim: int, amplitude: float, refine_steps: int) -> None:
    start = np.eye(ndim + 1)
    start[:-1, :-1] = np.diag((0.8, 1.2, 0.9)[:ndim])
    start[:-1, -1] = frames(ndim)[1].center_mm - start[:-1, :-1] @ frames(ndim)[0].center_mm
    write_affine(tmp_path / "start.tfm", start)
    item = prepared(tmp_path, ndim, initial_transform=str(tmp_path / "start.tfm"))
    for active in (False, True)[refine_steps > 0 :]:  # refinement may unfold by itself
        out = tmp_path / f"{active}"
        steps = Compose([RefineField(refine_steps), UnfoldField(active), SaveRegistration(str(out), report=False)])
        metrics = steps({**item, "pred": noise(ndim, amplitude)})["metrics"]
        assert ("diffeomorphic" in metrics) is active
        for name in ("ddf", "inverse_ddf"):
            assert (folded(out, name) == 0) is active, name
        assert (metrics["field"]["folds_percent"] == 0 and metrics["field"]["ndv_percent"] == 0) is active
    facts = json.loads((out / "metrics.json").read_text())["diffeomorphic"]
    assert set(facts) == {"network_grid", "fixed_grid", "moving_grid"} and "seconds" not in str(facts)
    assert facts["network_grid"]["folded_voxels"] > 0 or refine_steps
    largest = facts["network_grid"]
    assert largest["largest_change_mm"] == pytest.approx(2 * largest["largest_change_vox"], rel=1e-4), "2 mm voxels"


def test_a_field_that_folds_only_where_it_is_written_is_unfolded_there(tmp_path: Path) -> None:
    """The network's own grid is not enough: another grid brings folds back. What does not fold stays bit for bit."""
    item, found = prepared(tmp_path, 3), 0
    pair = item["pair"]
    for seed in (2, 4, 6):
        generator = torch.Generator().manual_seed(seed)
        wild = 8 * torch.randn(1, 3, *SIZE[3], generator=generator)
        ddf, _ = unfold(wild * (torch.rand(1, 1, *SIZE[3], generator=generator) < 0.02))
        carried = carry(ddf, pair.network, pair.fixed.frame, after=pair.initial)
        after, facts = unfold_field(carried, pair.initial)
        assert not folded_cells(after.voxel_ddf()).any()
        found += bool(folded_cells(carried.voxel_ddf()).any())
        change_mm = np.linalg.norm(after.ddf_mm - carried.ddf_mm, axis=0)
        assert facts["largest_change_mm"] == pytest.approx(float(change_mm.max()), abs=1e-4)
        assert int((change_mm > 0).sum()) <= facts["changed_voxels"] < change_mm.size
    assert found, "there was nothing to be done in any of these cases: choose other ones"


@pytest.mark.parametrize("ndim", [2, 3])
def test_strong_starts_stay_whole(ndim: int) -> None:
    """An affine that shrinks a lot is no fold, nor is one that goes metres away; the field is the same one."""
    frame = frames(ndim)[0]
    for base in (np.diag([*(0.1,) * ndim, 1.0]), np.eye(ndim + 1)):
        base[0, -1] = 3000.0
        field = affine_field(base, frame)
        after, facts = unfold_field(field, base)
        assert after is field and facts["largest_change_mm"] == 0 == facts["changed_voxels"]


def test_what_folds_everywhere_is_refused() -> None:
    frame = frames(3)[0]
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="mirrors the image"):
        unfold_field(affine_field(mirror, frame), mirror)
    far = np.diag([0.5, 0.5, 0.5, 1.0])
    far[0, -1] = 3e7  # mm: float32 goes in steps of 2 mm there
    with pytest.raises(InputError, match="cannot be written without folds"):
        unfold_field(affine_field(far, frame), far)


def test_a_prediction_keeps_its_layout_and_is_left_alone_unless_asked(tmp_path: Path) -> None:
    item = prepared(tmp_path, 2)
    pred = noise(2, 3.0)
    assert UnfoldField()({**item, "pred": pred})["pred"] is pred
    batched = UnfoldField(True)({**item, "pred": pred})
    alone = UnfoldField(True)({**item, "pred": pred[0]})
    assert torch.equal(batched["pred"][0], alone["pred"]) and batched["unfolded"] == alone["unfolded"]
    assert not folded_cells(alone["pred"]).any()
