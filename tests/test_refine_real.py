"""Refinement after each bundle's shipped weights on ten real pairs: the loss falls, and no fold is added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from script_tools import DONE, load_script

PAIRS, STEPS = 10, 20
VOLUMES, SLICES = "brain_oasis_miccai2012_2mm/*_t1.nii.gz", "brain2d_oasis100/*.png"
CASES = {  # a bundle's options, and what images it is given
    "vtn": ((), VOLUMES),
    "avsm": ((), VOLUMES),
    "suits": (("--config", "inference_mind"), VOLUMES),
    "r2n2": ((), SLICES),
    "r2n2 by B-splines": (("--refine", "bspline"), SLICES),
    "meta_affine": ((), SLICES),
    "meta_affine in 3-D": (("--config", "inference_3d"), VOLUMES),
}


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_refinement_lowers_the_loss_and_adds_no_fold(name: str, data_dir: Path, tmp_path: Path) -> None:
    options, pattern = CASES[name]
    files = sorted(data_dir.glob(pattern))[: PAIRS + 1]
    assert len(files) == PAIRS + 1, f"too few images {pattern}"
    pairs = [
        {"name": f"pair{k}", "fixed": str(a), "moving": str(b)}
        for k, (a, b) in enumerate(zip(files, files[1:], strict=False))
    ]
    (tmp_path / "pairs.json").write_text(json.dumps({"test": pairs}))
    command = [name.split()[0], "--datalist", str(tmp_path / "pairs.json"), "--output_dir", str(tmp_path / "out")]
    command += ["--refine_steps", str(STEPS), "--no_report", "--device", "cpu", *options]
    assert load_script("register").main(command) in DONE
    found = {pair["name"]: json.loads((tmp_path / "out" / pair["name"] / "metrics.json").read_text()) for pair in pairs}
    for pair, numbers in found.items():
        refined = numbers["refine"]
        print(name, pair, {key: float(f"{value:.4g}") for key, value in refined.items()})
        assert refined["loss_after"] < refined["loss_before"], (pair, refined)
        assert refined["folds_after"] <= refined["folds_before"], (pair, refined)
        assert refined["strict_folds_after"] <= refined["strict_folds_before"], (pair, refined)
