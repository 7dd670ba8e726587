"""calibrate.py: the numbers that make signs an expected error, from series whose motion is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from script_tools import ROOT, load_script

from shared_components.synth.thorax import breathing_series, procedural_thorax, write_series
from shared_components.uncertainty import Calibration

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two short series and weights of a tiny R2N2."""
    for number in (1, 2):
        generator = torch.Generator().manual_seed(number)
        thorax = procedural_thorax(generator, (64, 64), "coronal")
        write_series(tmp_path / f"s{number}_1.nii.gz", breathing_series(thorax, 3, generator))
    lists = {"validation": [{"series": "s1_1.nii.gz"}], "test": [{"series": "s2_1.nii.gz"}]}
    (tmp_path / "datalist.json").write_text(json.dumps(lists))
    with load_script("register").bundle_code(ROOT / "bundles" / "r2n2_registration"):
        from scripts.network import R2N2
    network = R2N2(channels=2, steps=3)
    with torch.no_grad():
        network.shape_net.last.weight += 0.05 * torch.randn(
            network.shape_net.last.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    torch.save(network.state_dict(), tmp_path / "model.pt")
    return tmp_path


def test_a_calibration_is_fitted_drawn_and_told(place: Path, capsys: pytest.CaptureFixture) -> None:
    script = load_script("calibrate")
    options = [f"--datalist={place / 'datalist.json'}", f"--output_dir={place / 'out'}", "--every=1", "--device=cpu"]
    options += [f"--weights={place / 'model.pt'}", "--set=size=[24,24]", "--set=channels=2", "--set=steps=3"]
    assert script.main(["r2n2", *options]) == 0
    kept = json.loads((place / "out" / "calibration.json").read_text())
    known = Calibration.of(kept["calibration"])
    assert known.score_mm and known.error_mm[-1] > 0 and set(known.weights) >= {"inverse", "flips", "sequence"}
    assert kept["pixels"] > 100 and -1 <= kept["test"]["rho"] <= 1 and kept["test"]["mean_error_mm"] > 0
    assert (place / "out" / "calibration.png").is_file()
    out = capsys.readouterr().out
    assert '"calibration": {' in out and "rho_inverse" in out
    assert script.main(["vtn", *options[:4]]) == 2
    assert "vtn_registration has no 'calibration'" in capsys.readouterr().err
