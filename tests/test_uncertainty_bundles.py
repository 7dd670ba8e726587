"""Every bundle and every configuration of it tells the error to expect, by the pieces of its inference.json."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from script_tools import ROOT, blob, load_script, save
from sharing.tiny import dimensions, tiny

CONFIGS = [
    pytest.param(bundle, file.stem, id=f"{bundle.name}-{file.stem}")
    for bundle in sorted((ROOT / "bundles").iterdir())
    for file in sorted((bundle / "configs").glob("inference*.json"))
]
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")


@pytest.mark.parametrize(("bundle", "name"), CONFIGS)
def test_the_map_is_on_the_fixed_grid_finite_and_nowhere_negative(bundle: Path, name: str, tmp_path: Path) -> None:
    register = load_script("register")
    ndim = 3 if name.endswith("_3d") else dimensions(bundle)
    shape = (18, 20, 16)[:ndim]
    affine = np.diag([5.0] * ndim + [1.0] * (4 - ndim))
    pair = {
        side: save(tmp_path / f"{side}.nii.gz", blob(shape, shift), affine)
        for side, shift in (("fixed", 0.0), ("moving", 0.6))
    }
    parser = ConfigParser()
    parser.read_config([str(file) for file in register.config_files(bundle, None if name == "inference" else name)])
    changes = tiny(bundle, "inference") | {"size": [16] * ndim, "spacing_mm": 6.0, "refine_steps": 0, "report": False}
    changes |= {"bundle_root": str(bundle), "output_dir": str(tmp_path / "out"), "weights": None, "uncertainty": True}
    changes |= {"strides": [2, 2]} if bundle.name.startswith("meta_affine") else {}
    parser.update(changes | {"device#name": "cpu"})
    with register.bundle_code(bundle), torch.no_grad():
        torch.manual_seed(0)
        network = parser.get_parsed_content("network").eval()
        for weight in network.parameters():  # untrained, some do not move anything
            weight += 0.02 * torch.randn_like(weight)
        data = parser.get_parsed_content("preprocessing")(pair)
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], network)[0]
        for step in parser.get_parsed_content("postprocessing").transforms:
            data = step(data)
    errors = nib.load(tmp_path / "out" / "uncertainty_mm.nii.gz")
    assert errors.shape == shape
    np.testing.assert_allclose(np.diag(errors.affine)[:ndim], np.diag(affine)[:ndim])
    values = errors.get_fdata()
    assert np.isfinite(values).all() and values.min() >= 0 and values.max() > 0
    told = json.loads((tmp_path / "out" / "metrics.json").read_text())["expected_error_mm"]
    assert 0 < told["mean"] <= told["max"] <= values.max() * 1.001
