"""Every bundle in a real MONAI Label: listed, asked to register, asked for nonsense, trained.

Made and run by scripts/test_monailabel.sh, in an environment of its own; skipped where there is none. What the server
answers is held against what register.py writes with this environment's packages, which are newer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai_label_case import PYTHON, ROOT, TINY, Server, environment, make_app, running, write_studies
from script_tools import DONE
from sharing.tiny import dimensions, read_json

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(not PYTHON.is_file(), reason="no MONAI Label; scripts/test_monailabel.sh makes its environment"),
]
CHOSEN = os.environ.get("MONAI_LABEL_BUNDLES", "").split()  # part of the bundles, for a quick look
BUNDLES = [
    path
    for path in sorted((ROOT / "bundles").iterdir())
    if (path / "configs").is_dir() and (not CHOSEN or path.name in CHOSEN)
]
FIXED, MOVING = "s0_t1", "s1_t1"
DDF_MM = 1e-2  # largest difference of two fields; the packages differ, and iterative methods amplify it
ITK_GREY = 0.01  # of 160 grey values: the file holds single precision
LABEL_SHARE = 1e-3  # of voxels whose label may differ: those that lie half-way between two


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_app(tmp_path_factory.mktemp("app"), BUNDLES)


@pytest.fixture(scope="module", params=sorted({dimensions(bundle) for bundle in BUNDLES}), ids=lambda n: f"{n}D")
def server(request: pytest.FixtureRequest, app: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose datastore has images of that many dimensions; it serves all bundles."""
    folder = tmp_path_factory.mktemp(f"served_{request.param}")
    studies = write_studies(folder / "studies", request.param)
    models = [name for bundle in BUNDLES for name in (bundle.name, f"{bundle.name}{TINY}")]
    with running(app, studies, models, folder / "server.log") as started:
        yield started


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def bundle(request: pytest.FixtureRequest, server: Server) -> Path:
    """A bundle for images of the dimensions that the server has."""
    flat = nib.load(server.studies / f"{FIXED}.nii.gz").ndim == 2
    if flat != (dimensions(request.param) == 2):
        pytest.skip("for images of other dimensions")
    return request.param


def register(bundle: Path, server: Server, output: Path) -> Path:
    """What register.py makes of the same pair."""
    command = [sys.executable, str(ROOT / "scripts" / "register.py"), str(bundle), "--device=cpu", "--no_report"]
    pair = {"fixed": f"{FIXED}.nii.gz", "moving": f"{MOVING}.nii.gz", "moving_label": f"labels/final/{MOVING}.nii.gz"}
    command += [f"--{role}={server.studies / name}" for role, name in pair.items()] + [f"--output_dir={output}"]
    env = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, check=False, capture_output=True, timeout=1800)
    assert done.returncode in DONE, done.stderr
    return output


def values(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj).squeeze()


def written(folder: Path, content: bytes) -> Path:
    file = folder / "answer.nii.gz"
    file.write_bytes(content)
    return file


def test_all_bundles_are_listed(server):
    info = server.get("/info/")
    for bundle in BUNDLES:
        model = info["models"][bundle.name]
        assert model["version"] == read_json(bundle / "configs" / "metadata.json")["version"]
        assert model["dimension"] == dimensions(bundle)
        assert {"moving", "moving_label", "wanted", "refine_steps"} <= model["config"].keys()
        assert bundle.name in info["trainers"]


def test_the_answer_is_what_register_writes(bundle, server, tmp_path):
    wanted = register(bundle, server, tmp_path / "registered")
    status, told, file = server.infer(bundle.name, FIXED, moving=MOVING)
    assert status == 200 and told["returned"] == "moved_label"
    label, fixed = nib.load(written(tmp_path, file)), nib.load(server.studies / f"{FIXED}.nii.gz")
    assert label.shape[: fixed.ndim] == fixed.shape
    plane = [*range(fixed.ndim), 3]
    np.testing.assert_allclose(label.affine[plane][:, plane], fixed.affine[plane][:, plane], atol=1e-4)
    differing = values(tmp_path / "answer.nii.gz") != values(wanted / "moved_label.nii.gz")
    assert differing.mean() <= LABEL_SHARE and np.unique(label.dataobj).tolist() == [0, 1, 2]
    folder = Path(told["folder"])
    difference = np.abs(values(folder / "ddf.nii.gz") - values(wanted / "ddf.nii.gz")).max()
    print(f"{bundle.name}: fields differ by {difference:.2g} mm, labels in {differing.sum()} voxels")
    assert difference <= DDF_MM
    assert (folder / "affine.tfm").is_file() == (wanted / "affine.tfm").is_file()
    versions = read_json(folder / "transform.json")["versions"]
    assert versions["shared_components"] == read_json(wanted / "transform.json")["versions"]["shared_components"]


def test_the_moved_image_on_demand_is_what_itk_makes_with_the_transform(bundle, server, tmp_path):
    """As 3D Slicer, which reads the transform by ITK: the moving image through it is the moved image."""
    sitk = pytest.importorskip("SimpleITK")
    paths = [str(server.studies / f"{name}.nii.gz") for name in (FIXED, MOVING)]
    status, told, file = server.infer(bundle.name, FIXED, moving=paths[1], wanted="moved")
    assert status == 200 and told["returned"] == "moved"
    mine, kept = values(written(tmp_path, file)), values(Path(told["folder"]) / "moved.nii.gz")
    assert mine.max() > 50
    np.testing.assert_allclose(mine, kept, atol=1e-3)
    if dimensions(bundle) == 2:
        return  # Slicer has transforms in three dimensions only
    fixed, moving = (sitk.ReadImage(path, sitk.sitkFloat64) for path in paths)
    ones = sitk.Image(moving.GetSize(), sitk.sitkFloat64) + 1
    ones.CopyInformation(moving)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(told["transform"], sitk.sitkVectorFloat64))
    moved, seen = (
        sitk.GetArrayFromImage(sitk.Resample(image, fixed, transform, sitk.sitkLinear, 0.0)).T
        for image in (moving, ones)
    )
    assert (seen > 0.999).mean() > 0.5
    difference = np.abs(moved - kept)[seen > 0.999].max()
    print(f"{bundle.name}: ITK differs by {difference:.2g} of {kept.max():.0f} grey values")
    assert difference < ITK_GREY


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({}, "the moving image is missing; give its path on the server"),
        ({"moving": "s9_t1"}, "moving image 's9_t1' is not in"),
        ({"moving": FIXED}, "fixed and moving are the same file"),
        ({"moving": MOVING, "wanted": "ddf"}, "'wanted' must be one of"),
    ],
)
def test_faults_are_told_in_a_sentence(server, params, sentence):
    ndim = nib.load(server.studies / f"{FIXED}.nii.gz").ndim
    bundle = next(path for path in BUNDLES if dimensions(path) == ndim)
    status, told, _ = server.infer(f"{bundle.name}{TINY}", FIXED, **params)
    assert status == 400 and sentence in told["detail"]


def test_an_image_that_is_none_is_told_in_a_sentence(bundle, server, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    status, told, _ = server.infer(f"{bundle.name}{TINY}", FIXED, moving=str(broken))
    assert status == 400 and str(broken) in told["detail"]


def test_trains_on_single_images_and_runs_with_what_it_learned(bundle, server):
    model = server.app / "model" / f"{bundle.name}{TINY}"
    task = server.train(model.name, max_epochs=1, val_split=0.5)
    assert task["status"] == "DONE", server.log.read_text()[-3000:]
    before, after = (torch.load(model / name / "model.pt", weights_only=True) for name in ("models", "runs"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    shutil.copy(model / "runs" / "model.pt", model / "models" / "learned.pt")
    status, told, _ = server.infer(model.name, FIXED, moving=MOVING, model_filename="learned.pt")
    assert status == 200
    assert read_json(Path(told["folder"]) / "transform.json")["weights"]["file"] == "learned.pt"


def test_one_image_alone_cannot_be_validated_on_and_the_log_says_so(bundle, server):
    if "PairDataset" not in read_json(bundle / "configs" / "train.json")["validate"]["dataset"]["_target_"]:
        pytest.skip("validates on single images")
    task = server.train(f"{bundle.name}{TINY}", max_epochs=1)  # MONAI Label's val_split is 0.2
    assert task["status"] == "ERROR" and "one subject alone makes no pair" in " ".join(task["details"])
