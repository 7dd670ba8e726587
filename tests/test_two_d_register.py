"""register.py with the configuration of a bundle whose network is 2-D."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from script_tools import BUNDLE, DONE, load_script
from two_d_case import CASES, CENTER, LANDMARKS, SIZE, SPACING_MM, TRUE_SHIFT_MM, make_grid, write_pair

from shared_components.geometry import Frame
from shared_components.images import write_image
from shared_components.itk_io import read_field
from shared_components.points import write_points

NETWORK = '''
import torch

class Shift(torch.nn.Module):
    """Two numbers for weights: the displacement in voxels."""

    def __init__(self, image_size, **unused):
        super().__init__()
        self.step = torch.nn.Parameter(torch.zeros(2))

    def forward(self, image):
        return self.step.view(1, 2, 1, 1).expand(len(image), 2, *image.shape[2:])

    def affine_matrix(self, image):
        matrix = torch.eye(3)[None]
        matrix[0, :2, 2] = self.step
        return matrix
'''


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a bundle with a 2-D network in its place."""
    folder = tmp_path_factory.mktemp("flat_registration")
    (folder / "configs").mkdir()
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "network.py").write_text(NETWORK)
    config = json.loads((BUNDLE / "configs" / "inference.json").read_text())
    config |= {"size": SIZE, "spacing_mm": SPACING_MM, "both_orders": False}  # a step that ignores the order
    config["network_def"] |= {"_target_": "scripts.network.Shift"}
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save({"step": torch.from_numpy(TRUE_SHIFT_MM).float()}, folder / "model.pt")
    return folder


@pytest.mark.parametrize(("refine", "steps"), [("field", 0), ("field", 3), ("vsvf", 3), ("bspline", 3)])
def test_register_with_a_bundle_for_2d(bundle, refine, steps, tmp_path, capsys):
    files, out = write_pair(tmp_path, CASES["turned"]), tmp_path / "out"
    # the network's axes are those of the fixed image, turned by 25 degrees: its shift is not the true one there
    step = np.linalg.inv(make_grid((2, 2), (1, 1), 25).matrix) @ TRUE_SHIFT_MM
    torch.save({"step": torch.from_numpy(step).float()}, tmp_path / "model.pt")
    command = [str(bundle), f"--output_dir={out}", f"--weights={tmp_path / 'model.pt'}", "--device=cpu"]
    command += [f"--refine={refine}", f"--refine_steps={steps}", "--initial_transform=header"]
    assert load_script("register").main([*command, *(f"--{key}={path}" for key, path in files.items())]) in DONE
    assert "landmark error" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["points"]["after"]["mean"] < (0.05 if steps == 0 else 1.5)
    assert {"affine.tfm", "report.html", "moved_label.nii.gz"} <= {path.name for path in out.iterdir()}
    points = read_field(out / "inverse_ddf.nii.gz").map_points(LANDMARKS + CENTER + TRUE_SHIFT_MM)
    assert np.abs(points - LANDMARKS - CENTER).max() < 1


def test_register_refuses_a_volume_where_the_bundle_is_flat(bundle, tmp_path, capsys):
    files = write_pair(tmp_path, CASES["plain"])
    write_image(tmp_path / "volume.nii.gz", np.random.default_rng(0).random((8, 9, 10)), Frame((8, 9, 10), np.eye(4)))
    command = [str(bundle), f"--output_dir={tmp_path / 'out'}", f"--weights={bundle / 'model.pt'}", "--device=cpu"]
    command += [f"--fixed={files['fixed']}", f"--moving={tmp_path / 'volume.nii.gz'}"]
    assert load_script("register").main(command) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "volume.nii.gz is 3-D" in told and "choose a bundle or configuration for volumes" in told


def test_hand_made_features_bring_two_slices_of_other_contrast_together(tmp_path):
    """SUITS without weights: a slice and its negative, moved by (6, -4) mm, with landmarks that say so."""
    frame, shift = Frame((64, 56), np.diag([1.0, 1.0, 1.0])), np.array([6.0, -4.0])
    noise = np.random.default_rng(0).standard_normal((64 + 32, 56 + 32))
    smooth = gaussian_filter(noise, 4.0)
    at = [slice(16, 80), slice(16, 72)]
    write_image(tmp_path / "fixed.nii.gz", smooth[tuple(at)], frame)
    moved_at = tuple(slice(s.start - int(d), s.stop - int(d)) for s, d in zip(at, shift, strict=True))
    write_image(tmp_path / "moving.nii.gz", -smooth[moved_at], frame)
    points = np.array([[x, y] for x in (20.0, 32.0, 44.0) for y in (20.0, 28.0, 36.0)])
    write_points(tmp_path / "fixed.csv", points)
    write_points(tmp_path / "moving.csv", points + shift)
    sides = [word for side in ("fixed", "moving") for word in (f"--{side}", str(tmp_path / f"{side}.nii.gz"))]
    marks = [word for side in ("fixed", "moving") for word in (f"--{side}_points", str(tmp_path / f"{side}.csv"))]
    grid = ["--set", "size=[64,56]", "--set", "spacing_mm=1.0", "--initial_transform", "header", "--no_report"]
    out = ["--output_dir", str(tmp_path / "out"), "--device", "cpu"]
    assert load_script("register").main(["suits", "--config", "inference_mind", *sides, *marks, *grid, *out]) in DONE
    errors = json.loads((tmp_path / "out" / "metrics.json").read_text())["points"]
    assert errors["initial"]["mean"] == pytest.approx(np.hypot(*shift), rel=1e-3)
    assert errors["after"]["mean"] < 0.2 * errors["initial"]["mean"]
