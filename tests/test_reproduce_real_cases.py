"""Real images through register.py: landmarks of a known deformation, pictures, the table."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from reproducing import real_cases
from reproducing.real_cases import BEFORE, Case, deformed_landmarks, show_cases
from reproducing.tables import real_table

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import write_image
from shared_components.points import read_points

SHAPE = (20, 24, 18)


@pytest.fixture
def frame() -> Frame:
    affine = np.diag([2.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = (-10.0, 5.0, 3.0)
    return Frame(SHAPE, affine)


def test_landmarks_land_where_the_field_leads_back_from(tmp_path: Path, frame: Frame) -> None:
    """moving(y) = fixed(y + ddf(y)): a fixed landmark x lies in the moving image at the y with y + ddf(y) = x."""
    inside = np.zeros(SHAPE, dtype=bool)
    inside[4:-4, 4:-4, 4:-4] = True
    spacing = list(frame.spacing)
    ddf = deformed_landmarks(frame, inside, 5, tmp_path, mean=2.0, smoothness=16.0, spacing=spacing)
    fixed, moving = (frame.to_vox(read_points(tmp_path / f"{side}.csv").points_mm) for side in ("fixed", "moving"))
    assert len(fixed) == len(moving) > 10
    grid = torch.tensor(moving / (np.array(SHAPE) - 1) * 2 - 1, dtype=torch.float32)[:, [2, 1, 0]]
    found = torch.nn.functional.grid_sample(ddf, grid[None, :, None, None], align_corners=True, padding_mode="border")
    np.testing.assert_allclose(moving + found[0, :, :, 0, 0].T.numpy(), fixed, atol=0.1)
    assert np.linalg.norm((moving - fixed) * spacing, axis=1).mean() > 0.5


def test_cases_are_registered_in_all_states_and_drawn(tmp_path: Path, frame: Frame, monkeypatch) -> None:
    seen = []

    def register(arguments: list[str]) -> int:
        seen.append(arguments)
        out = Path(arguments[arguments.index("--output_dir") + 1])
        out.mkdir(parents=True)
        write_image(out / "moved.nii.gz", torch.rand(1, *SHAPE), frame)
        found = {"similarity": {"correlation": {"after": 0.5}}, "field": {"folds_percent": 0.25}}
        (out / "metrics.json").write_text(json.dumps(found))
        return 0

    monkeypatch.setattr(real_cases, "register", register)
    write_image(tmp_path / "fixed.nii.gz", torch.rand(1, *SHAPE), frame)
    options = ("--fixed", str(tmp_path / "fixed.nii.gz"), "--moving", "m.nii.gz")
    case = Case("knee", "a knee", options, {"before": BEFORE, "after": ("--refine_steps", "9")}, (0, 0.5))
    found = show_cases("avsm", [case], tmp_path / "out", tmp_path / "figures", 1)
    assert [arguments[0] for arguments in seen] == ["avsm", "avsm"]
    assert seen[0][-2:] == ["--set", "stage=identity"] and seen[1][-2:] == ["--refine_steps", "9"]
    assert json.loads((tmp_path / "out" / "real.json").read_text()) == found
    assert plt.imread(tmp_path / "figures" / "real_knee.png").std() > 0.05
    rows = real_table(found).splitlines()[2:]
    assert len(rows) == 2 and "knee, after" in rows[1] and "0.500" in rows[1] and "0.250" in rows[1]


def test_a_registration_that_fails_is_a_sentence(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(real_cases, "register", lambda arguments: 2)
    with pytest.raises(InputError, match="register.py avsm could not register knee"):
        show_cases("avsm", [Case("knee", "", (), {"before": ()})], tmp_path, tmp_path, 1)
