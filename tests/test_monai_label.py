"""Requests of MONAI Label: which pair they name, how they are answered, what the client is told."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from shared_components.errors import InputError
from shared_components.monai_label import asked_pair, is_request, model_file, tells_client
from shared_components.pairs import LoadPair, make_preprocessing
from shared_components.refine import RefineField
from shared_components.results import SaveRegistration

AFFINE = np.array([[-2.0, 0, 0, 20], [0, 2, 0, -22], [0, 0, 2.5, -25], [0, 0, 0, 1]])


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two subjects as MONAI Label keeps them, of which the second has a final label."""
    (tmp_path / "labels" / "final").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, shape in (("a", (20, 22, 18)), ("b", (18, 20, 20))):
        grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
        inside = (grid**2).sum(0) < 0.7
        image = inside * (100 + generator.normal(0, 5, shape))
        nib.save(nib.Nifti1Image(image.astype(np.float32), AFFINE), tmp_path / f"{name}.nii.gz")
    label = nib.Nifti1Image(inside.astype(np.int32) * 300, AFFINE)
    nib.save(label, tmp_path / "labels" / "final" / "b.nii.gz")
    return tmp_path


def request_of(studies: Path, **params: object) -> dict:
    """What the preprocessing gets: the request, with the defaults of displayable_configs."""
    image = str(studies / "a.nii.gz")
    defaults = {"moving": "", "moving_label": "", "wanted": ["auto", "moved_label", "moved"], "refine_steps": 0}
    return {"model": "m", "image": image, "image_path": image, "device": "cpu", **defaults, **params}


def registered(studies: Path, output: Path, **params: object) -> dict:
    """A request through the blocks of a configuration, with a network that does not move anything."""
    item = make_preprocessing([16, 16, 16], 3.0)(request_of(studies, **params))
    item["pred"] = 0 * item["image"][:1].expand(3, 16, 16, 16)
    return SaveRegistration(str(output), weights=None)(RefineField()(item))


def test_the_pair_is_named_by_path_or_by_name(studies, monkeypatch):
    request = request_of(studies, moving="b")
    found = asked_pair(request)
    assert (found["fixed"], found["moving"]) == (request["image"], str(studies / "b.nii.gz"))
    assert found["moving_label"] == str(studies / "labels" / "final" / "b.nii.gz")
    assert found["device"] == "cpu" and found["refine_steps"] == 0
    for name in (str(studies / "b.nii.gz"), "b.nii.gz", " b "):
        assert asked_pair(request_of(studies, moving=name))["moving"] == found["moving"]
    uploaded = request | {"image": str(studies.parent / "upload.nii.gz")}
    with pytest.raises(InputError, match="moving image 'b' is not in .*; give a path on the server"):
        asked_pair(uploaded)
    monkeypatch.setenv("MONAI_LABEL_STUDIES", str(studies))
    assert asked_pair(uploaded)["moving"] == found["moving"]


def test_labels_and_steps_are_what_the_client_asked_for(studies):
    assert asked_pair(request_of(studies, moving="b", wanted="moved"))["moving_label"] is None
    given = asked_pair(request_of(studies, moving="b", moving_label=str(studies / "a.nii.gz"), refine_steps="90"))
    assert given["moving_label"] == str(studies / "a.nii.gz") and given["refine_steps"] == 90
    assert asked_pair(request_of(studies, moving="b", refine_steps=""))["refine_steps"] is None


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({}, "the moving image is missing; give its path on the server"),
        ({"moving": "c"}, "moving image 'c' is not in"),
        ({"moving": "/none/b.nii.gz"}, "moving image '/none/b.nii.gz' is not there"),
        ({"moving": "b", "moving_label": "c"}, "moving label 'c' is not in"),
        ({"moving": "b", "wanted": "ddf"}, "'wanted' must be one of auto, moved_label, moved, not 'ddf'"),
        ({"moving": "b", "refine_steps": "many"}, "'refine_steps' must be a whole number from 0 on, not 'many'"),
        ({"moving": "b", "refine_steps": -1}, "'refine_steps' must be a whole number"),
        ({"moving": "a"}, "fixed and moving are the same file"),
    ],
)
def test_what_cannot_be_done_is_told_to_the_client(studies, monkeypatch, params, sentence):
    class Refusal(Exception):
        def __init__(self, status_code: int, detail: str) -> None:
            super().__init__(f"{status_code}: {detail}")

    with pytest.raises(InputError, match=sentence):  # no server: the sentence itself
        LoadPair(3)(request_of(studies, **params))
    monkeypatch.setitem(sys.modules, "fastapi", SimpleNamespace(HTTPException=Refusal))
    with pytest.raises(Refusal, match=f"400: {sentence}"):
        LoadPair(3)(request_of(studies, **params))


def test_only_faults_of_requests_become_answers(monkeypatch):
    class Step:
        @tells_client
        def __call__(self, item: dict) -> dict:
            raise item["error"]

    monkeypatch.setitem(sys.modules, "fastapi", SimpleNamespace(HTTPException=None))
    with pytest.raises(InputError, match="a fault"):
        Step()({"error": InputError("a fault")})
    with pytest.raises(KeyError):
        Step()({"error": KeyError("x"), "model": "m", "image_path": "p"})
    assert not is_request({"image": "a", "moving": "b", "model": "m"})


def test_the_label_without_asking_for_it_is_the_final_one(studies, tmp_path):
    done = registered(studies, tmp_path / "out", moving="b")
    written = nib.load(tmp_path / "out" / "a_from_b" / "moved_label.nii.gz")
    assert done["pred"].dtype == np.int16 and done["pred"].shape == (1, 20, 22, 18)
    np.testing.assert_array_equal(done["pred"][0], np.asarray(written.dataobj))
    np.testing.assert_array_equal(np.unique(done["pred"]), [0, 300])
    np.testing.assert_allclose(done["image_meta_dict"]["original_affine"], AFFINE)
    np.testing.assert_array_equal(done["image_meta_dict"]["spatial_shape"], (20, 22, 18))
    assert done["result"]["returned"] == "moved_label" and done["result_extension"] == ".nii.gz"
    assert Path(done["result"]["transform"]).is_file() and Path(done["result"]["inverse_transform"]).is_file()
    assert done["result"]["numbers"]["correlation in the fixed foreground"]["after"] > 0
    assert not (tmp_path / "out" / "a_from_b" / "report.html").exists()


def test_the_image_if_it_is_wanted(studies, tmp_path):
    done = registered(studies, tmp_path / "out", moving="b", wanted="moved", result_extension=".nrrd")
    written = nib.load(tmp_path / "out" / "a_from_b" / "moved.nii.gz")
    assert done["pred"].dtype == np.float32 and done["result"]["returned"] == "moved"
    np.testing.assert_allclose(done["pred"][0], np.asarray(written.dataobj), atol=1e-5)
    assert done["result_extension"] == ".nrrd"


def test_a_flat_image_comes_back_as_a_slice_with_its_place(tmp_path):
    for name, turn in (("a", 0.0), ("b", 0.3)):
        grid = np.meshgrid(np.linspace(-1, 1, 20), np.linspace(-1, 1, 16), indexing="ij")
        image = 100.0 * (np.hypot(grid[0] - turn, grid[1]) < 0.6)
        nib.save(nib.Nifti1Image(image.astype(np.float32), AFFINE), tmp_path / f"{name}.nii.gz")
    item = make_preprocessing([16, 16], "fit")(request_of(tmp_path, moving="b"))
    done = SaveRegistration(str(tmp_path / "out"))({**item, "pred": 0 * item["image"]})
    assert done["pred"].shape == (1, 20, 16, 1)
    affine = done["image_meta_dict"]["original_affine"]
    np.testing.assert_allclose(affine[:2, [0, 1, 3]], AFFINE[:2, [0, 1, 3]])
    np.testing.assert_allclose(affine[2], [0, 0, 1, 0])


def test_records_name_the_weights_that_ran(studies, tmp_path):
    weights = tmp_path / "models" / "model.pt"
    weights.parent.mkdir()
    for name in ("model.pt", "mine.pt"):
        weights.with_name(name).write_text(name)
    assert model_file({"model_filename": "mine.pt"}, weights).name == "mine.pt"
    for other in ({}, {"model_filename": ["model.pt", "mine.pt"]}, {"model_filename": "../../none.pt"}):
        assert model_file(other, weights) == weights
