"""Spoilt files: an image or a sentence, nothing else."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from script_tools import run_python

from shared_components.errors import InputError
from shared_components.images import read_image

COUNT, SEED = 500, 2  # this seed has a header of -32768 x 6 x -32768 voxels, which nibabel alone sets 6 GB aside for


def test_spoilt_files_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    done = run_python([Path(__file__).with_name("fuzz_files.py"), tmp_path, COUNT, SEED], cwd=tmp_path)
    assert done.returncode == 0, f"crashed or hung: {done.stderr[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] == []
    assert sum(found["told"].values()) == COUNT and found["told"]["refused"] > COUNT / 2 and found["told"]["read"] > 20
    assert found["slowest_seconds"] < 60 and found["peak_gb"] < 4


@pytest.mark.parametrize(
    ("count", "seed"), [pytest.param(40, 1, marks=pytest.mark.slow), pytest.param(500, 3, marks=pytest.mark.nightly)]
)
def test_commands_with_spoilt_files_end_with_results_or_a_sentence(tmp_path: Path, count: int, seed: int) -> None:
    """Whole commands: register.py (pairs, lists, series, --replay), apply_transform.py, cohort.py."""
    done = run_python([Path(__file__).with_name("fuzz_commands.py"), tmp_path, count, seed], cwd=tmp_path)
    assert done.returncode == 0, f"crashed or hung: {done.stderr[-2000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] == []
    assert sum(found["told"].values()) == count and found["told"]["refused"] > count / 3 and found["told"]["done"] > 2
    assert found["slowest_seconds"] < 60 and found["peak_gb"] < 4


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("size", "sentence"),
    [
        ((-32768, 6, -32768), "claims a size of -32768 x 6 x -32768 voxels"),
        ((0, 6, 5), "claims a size of 0 x 6 x 5 voxels"),
        ((32767, 32767, 32767), "asks for 140724603846652 bytes, there are 1192"),
    ],
)
def test_a_header_that_lies_about_the_size(
    tmp_path: Path, suffix: str, size: tuple[int, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = nib.Nifti1Image(np.zeros((7, 6, 5), "float32"), np.eye(4))
    content = bytearray(image.to_bytes())
    content[42:48] = struct.pack("<3h", *size)
    path = tmp_path / f"a{suffix}"
    with nib.openers.Opener(path, "wb") as stream:
        stream.write(bytes(content))
    with pytest.raises(InputError, match=f"{path.name} is damaged or cut short .*{sentence}"):
        read_image(path)
