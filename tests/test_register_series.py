"""register.py --series: a whole series by a bundle for 2-D images, from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from script_tools import DONE, ROOT, files_in, load_script
from test_series import FIXED, FRAMES, SIZE, cine, picture

from shared_components.geometry import Frame
from shared_components.itk_io import read_field
from shared_components.metrics import folded_cells
from shared_components.transform import carry

TINY = {"size": "[24,24]", "channels": "2"}
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("register")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, script: ModuleType) -> Path:
    """A folder with a coronal cine and weights of a tiny R2N2 that moves something."""
    folder = tmp_path_factory.mktemp("series")
    cine(folder / "cine.nii.gz")
    with script.bundle_code(ROOT / "bundles" / "r2n2_registration"):
        from scripts.network import R2N2
    torch.manual_seed(3)
    network = R2N2(channels=2, steps=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in network.shape_net.last.parameters():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    torch.save(network.state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(autouse=True)
def _undo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    yield


def command(place: Path, output: str, *more: str, series: str = "cine.nii.gz") -> list[str]:
    options = [f"--set={key}={value}" for key, value in TINY.items()]
    files = [f"--series={place / series}", f"--weights={place / 'model.pt'}", f"--output_dir={place / output}"]
    return ["r2n2", *files, f"--fixed_frame={FIXED}", "--steps=3", "--device=cpu", *options, *more]


def test_a_series_gives_frames_fields_and_a_film(script, place, capfd) -> None:
    assert script.main(command(place, "out", "--uncertainty")) in DONE
    fields = [f"{kind}/frame_{k}.nii.gz" for kind in ("ddf", "inverse_ddf") for k in range(FRAMES)]
    files = ["metrics.json", "moved.nii.gz", "report.html", "run.json", "transform.json", "uncertainty_mm.nii.gz"]
    assert files_in(place / "out") == sorted([*fields, *files, "ddf", "inverse_ddf"])
    out, err = capfd.readouterr()
    assert "5 frames onto frame 2 of cine.nii.gz" in out and "correlation, mean over frames" in out
    assert err == f"r2n2_registration: registering {place / 'cine.nii.gz'} ...\n"
    assert nib.load(place / "out" / "moved.nii.gz").header.get_zooms() == (2, 2, 6, 0.25)
    errors = nib.load(place / "out" / "uncertainty_mm.nii.gz").get_fdata()
    assert errors.shape == (*SIZE, 1, FRAMES) and errors[..., 0].max() > 0 and not errors[..., FIXED].any()


def test_the_numbers_of_a_frame_make_its_field(script, place) -> None:
    assert script.main(command(place, "numbers", "--no_report", "--steps=4")) in DONE
    kept = json.loads((place / "numbers" / "transform.json").read_text())
    with script.bundle_code(ROOT / "bundles" / "r2n2_registration"):
        from scripts.results import rebuild
    assert "bumps" not in kept["frames"][FIXED]
    record = kept["frames"][0]["bumps"]
    assert np.shape(record["parameters"]) == (4, 7)
    network, native = (
        Frame(kept[name]["shape"], np.array(kept[name]["affine_ras_mm"])) for name in ("network_frame", "fixed")
    )
    wanted = carry(rebuild(record), network, native).ddf_mm
    found = read_field(place / "numbers" / "ddf" / "frame_0.nii.gz").ddf_mm[..., 0]
    np.testing.assert_allclose(found, np.stack([wanted[0], 0 * wanted[0], wanted[1]]), atol=1e-4)
    assert np.abs(wanted).max() > 0.05


def test_a_series_without_folds(script, place, tmp_path) -> None:
    weights = torch.load(place / "model.pt", weights_only=True)
    wild = {  # narrow bumps that move by half the image
        "shape_net.last.weight": torch.zeros_like(weights["shape_net.last.weight"]),
        "shape_net.last.bias": torch.tensor([-1.0, -1.0, 0.5, 0.5, 0.0]),
    }
    torch.save(weights | wild, tmp_path / "wild.pt")
    options = ["--no_report", f"--weights={tmp_path / 'wild.pt'}", "--steps=12"]
    for name, more in (("folded", []), ("unfolded", ["--diffeomorphic"])):
        assert script.main(command(place, name, *options, *more)) in DONE
        ddfs = [read_field(path).ddf_mm[[0, 2], ..., 0] for path in sorted((place / name / "ddf").iterdir())]
        spacing = np.array([-2.0, -2.0])[:, None, None]  # both axes run against the world
        assert len(ddfs) == FRAMES and any(folded_cells(ddf / spacing).any() for ddf in ddfs) is not bool(more)
    told = [line for line in (place / "unfolded" / "metrics.json").read_text().splitlines() if '"frame": 0' in line]
    assert json.loads(told[0].rstrip(","))["diffeomorphic"]["fixed_grid"]["damping"] <= 1


@pytest.mark.parametrize(("polish", "most"), [(0, 1e-4), (6, 2e-3)])  # the polish turns rounding into 1e-3 of 200
def test_one_frame_at_a_time_gives_the_same(script, place, polish, most) -> None:
    how = ("--no_report", f"--set=polish={polish}")
    assert script.main(command(place, f"many{polish}", *how)) in DONE
    assert script.main(command(place, f"one{polish}", *how, "--set=frames_at_once=1")) in DONE
    many, one = (nib.load(place / f"{name}{polish}" / "moved.nii.gz").get_fdata() for name in ("many", "one"))
    np.testing.assert_allclose(many, one, atol=most)


def test_a_tolerance_ends_the_steps(script, place) -> None:
    assert script.main(command(place, "stop", "--no_report", "--steps=9", "--tolerance=1000")) in DONE
    frames = json.loads((place / "stop" / "transform.json").read_text())["frames"]
    assert np.shape(frames[0]["bumps"]["parameters"]) == (3, 7), "the patience of the rule"


def test_a_folder_of_pictures_in_the_order_of_their_numbers(script, place) -> None:
    folder = place / "pictures"
    folder.mkdir()
    for k in range(11):
        grey = (200 * picture(0.2 * k)).clip(0, 255).astype(np.uint8)
        Picture.fromarray(grey.T).save(folder / f"frame{k}.png")
    assert script.main(command(place, "flat", "--no_report", "--fixed_frame=10", series="pictures")) in DONE
    kept = json.loads((place / "flat" / "transform.json").read_text())
    assert len(kept["series"].pop("sha256")) == 64
    assert kept["fixed_frame"] == 10 and kept["series"] == {"folder": "pictures", "frames": 11, "seconds_a_frame": None}
    assert read_field(place / "flat" / "ddf" / "frame_00.nii.gz").frame.shape == SIZE
    moved = nib.load(place / "flat" / "moved.nii.gz").get_fdata()
    np.testing.assert_allclose(moved[:, :, 0, 10], (200 * picture(2.0)).clip(0, 255).astype(np.uint8), atol=1e-3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--fixed=a.nii.gz"], "--series and --fixed exclude each other"),
        (["--datalist=a.json"], "--series and --datalist exclude each other"),
        (["--fixed_frame=5"], "no frame 5 in series"),
        (["--series=missing.nii.gz"], "missing.nii.gz does not exist"),
        (["--tolerance=-1"], "--tolerance -1.0 is not possible; give 0 or more"),
        (["--set=frames_at_twice=2"], "has no 'frames_at_twice' to set"),
    ],
)
def test_bad_input_gets_a_sentence_and_leaves_nothing(script, place, capsys, monkeypatch, more, words) -> None:
    monkeypatch.chdir(place)
    assert script.main(command(place, "bad", *more)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (place / "bad").exists()


def test_a_bundle_for_volumes_says_so(script, place, capsys) -> None:
    options = [f"--series={place / 'cine.nii.gz'}", f"--output_dir={place / 'volumes'}", "--device=cpu"]
    assert script.main(["vtn", *options]) == 2
    assert "--series is for bundles of 2-D images" in capsys.readouterr().err
    assert script.main(["vtn", *options[1:], "--fixed_frame=1", "--fixed=a", "--moving=b"]) == 2
    assert "give it with --series" in capsys.readouterr().err
    assert not (place / "volumes").exists()
