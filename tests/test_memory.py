"""--max_memory_gb: what is done to stay within it, what that does not change, the sentence where it cannot be."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from benchmarking.budget import make_pair
from benchmarking.child import run_child
from script_tools import DONE, ROOT, blob, good_options, load_script, run_register, save

from shared_components import memory
from shared_components.errors import InputError
from shared_components.memory import LADDER, MemoryBudget, Plan
from shared_components.results import page

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ITEM = {"fixed": "f.nii.gz", "moving": "m.nii.gz"}
VOLATILE = ("run.json", "report.html")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("register")


@pytest.fixture(autouse=True)
def _undo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say how large images are, without there being any, in a process of half a GB."""
    monkeypatch.setattr(memory, "resident_bytes", lambda: 0.5 * memory.GB)

    def set_to(*shape: int) -> None:
        monkeypatch.setattr(memory, "grid_of", lambda path: shape)

    return set_to


def least(budget: MemoryBudget) -> float:
    with pytest.raises(InputError) as caught:
        budget.plan(ITEM)
    return float(re.search(r"at least ([0-9.]+) GB are needed", str(caught.value)).group(1))


def test_the_cheapest_means_come_first_and_each_saves_memory(grids: Callable[..., None]) -> None:
    grids(512, 512, 400)
    needs = [MemoryBudget(1).needed(ITEM, means) for means in LADDER]
    assert needs == sorted(needs, reverse=True) and needs[0] > 1.8 * needs[-1]
    process = 0.5 * memory.GB + memory.SLACK
    for means, need in zip(LADDER, needs, strict=True):
        plan = MemoryBudget(max_gb=(process + need + 1) / memory.GB).plan(ITEM)
        assert plan.means == means
        assert plan.facts()["memory_means"] == (str(means) or "nothing had to be done")


def test_the_least_that_is_named_is_enough_and_a_little_less_is_not(grids: Callable[..., None]) -> None:
    grids(320, 320, 256)
    amount = least(MemoryBudget(max_gb=0.2))
    assert MemoryBudget(max_gb=amount).plan(ITEM).means == LADDER[-1]
    assert least(MemoryBudget(max_gb=amount - 0.02)) == amount


def test_small_images_take_what_the_network_takes(grids: Callable[..., None]) -> None:
    grids(32, 32, 32)
    size = (80, 112, 88)
    expected = 0.5 + (memory.SLACK + memory.NETWORK * math.prod(size)) / memory.GB
    assert least(MemoryBudget(0.1, size)) == pytest.approx(expected, abs=0.02)
    assert least(MemoryBudget(0.1, size, refine_steps=10)) > expected + 0.1


def test_pictures_of_large_slices_are_reckoned_with(grids: Callable[..., None]) -> None:
    """Of a slice the report draws every pixel, of a volume only slices."""
    grids(2048, 2048)
    free, thin = (MemoryBudget(1).needed(ITEM, LADDER[k]) for k in (1, 2))
    assert MemoryBudget(1, report=False).needed(ITEM, LADDER[1]) < free - 150 * 2048**2
    assert free - thin > 100 * 2048**2
    grids(128, 128, 256)
    free, without = (MemoryBudget(1, report=report).needed(ITEM, LADDER[1]) for report in (True, False))
    assert free - without < 30 * 128 * 128 * 256


def test_unfolding_and_labels_are_reckoned_with(grids: Callable[..., None]) -> None:
    grids(256, 256, 256)
    labels = {**ITEM, "fixed_label": "fl.nii.gz", "moving_label": "ml.nii.gz"}
    assert MemoryBudget(1).needed(labels, LADDER[-1]) > MemoryBudget(1).needed(ITEM, LADDER[-1])
    assert least(MemoryBudget(0.6, diffeomorphic=True)) > 1.5 * least(MemoryBudget(0.6))


def test_without_a_budget_nothing_is_looked_at() -> None:
    assert MemoryBudget().plan({}) == Plan() and Plan().facts() == {}


@pytest.mark.parametrize("amount", [0, -1, "much", True, math.nan])
def test_amounts_that_cannot_be(amount: object) -> None:
    with pytest.raises(InputError, match="max_memory_gb .* is not possible"):
        MemoryBudget(amount)


def test_headers_tell_the_grid(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16))
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    assert memory.grid_of(tmp_path / "a.nii.gz") == (3, 4, 5)
    assert memory.grid_of(tmp_path / "b.nii.gz") is None and memory.grid_of(tmp_path / "none.nii") is None


def test_too_little_is_a_sentence_before_an_image_is_read(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from shared_components.pairs import load

    monkeypatch.setattr(load, "read_image", lambda *_: pytest.fail("read"))
    options = good_options(tmp_path) | {"max_memory_gb": "0.01"}
    assert run_register(script, options, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "max_memory_gb 0.01 is too little" in err and "(12x13x14 and 12x13x14 voxels)" in err
    assert re.search(r"at least 0\.\d\d GB are needed", err) or re.search(r"at least \d\.\d\d GB are needed", err)
    assert "Traceback" not in err and not (tmp_path / "out").exists()


@pytest.fixture
def both(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Results without a budget, and with one that takes the last of the means, with labels and report."""
    options = good_options(tmp_path)
    for side, shift in (("fixed", 0.0), ("moving", 0.7)):
        label = (blob((12, 13, 14), shift) > 50).astype(np.uint8)
        options[f"{side}_label"] = save(tmp_path / f"{side}_seg.nii.gz", label)
    options |= {"set": "report=true"}
    assert run_register(script, options, tmp_path / "free") in DONE
    monkeypatch.setattr(memory, "LADDER", LADDER[2:3])
    assert run_register(script, options | {"max_memory_gb": "100"}, tmp_path / "kept") in DONE
    yield tmp_path / "free", tmp_path / "kept"


def test_a_budget_changes_no_byte_and_is_told(both: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    free, kept = both
    names = sorted(file.name for file in free.iterdir())
    assert names == sorted(file.name for file in kept.iterdir()) and "report.html" in names
    for name in set(names) - set(VOLATILE):
        assert (free / name).read_bytes() == (kept / name).read_bytes(), name
    run = json.loads((kept / "run.json").read_text())
    assert run["max_memory_gb"] == 100 and 0 < run["expected_memory_gb"] < 100
    for words in ("fields are made anew", "the report shows every second voxel"):
        assert words in run["memory_means"] and words in (kept / "report.html").read_text()
    assert "memory_means" not in json.loads((free / "run.json").read_text())


def test_the_thinner_report_shows_every_second_voxel(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    monkeypatch.setattr(page, "write_report", lambda path, data: shown.append(data))
    monkeypatch.setattr(memory, "LADDER", LADDER[2:3])
    options = good_options(tmp_path) | {"max_memory_gb": "100", "set": "report=true"}
    assert run_register(script, options, tmp_path / "out") in DONE
    (data,) = shown
    whole = nib.load(tmp_path / "out" / "ddf.nii.gz")
    vectors = np.moveaxis(np.asarray(whole.dataobj)[:, :, :, 0], -1, 0) * np.array([-1, -1, 1])[:, None, None, None]
    assert data.frame.shape == (6, 7, 7) and np.allclose(data.frame.spacing, 2 * 4.0)
    np.testing.assert_allclose(data.ddf_mm, vectors[:, ::2, ::2, ::2], atol=1e-4)
    moved = np.asarray(nib.load(tmp_path / "out" / "moved.nii.gz").dataobj)
    np.testing.assert_allclose(data.moved, moved[::2, ::2, ::2], atol=1e-3)


SIZES = ((128, 128, 128), (192, 192, 160), (256, 256, 256))


@pytest.mark.nightly
@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_budget_is_kept(tmp_path: Path, shape: tuple[int, ...], share: float) -> None:
    """At the least that the command names, and half way from there to what it takes without."""
    script = str(ROOT / "scripts" / "register.py")
    command = [sys.executable, script, "meta_affine", "--config", "inference_3d", *make_pair(tmp_path, shape)]
    command += ["--device", "cpu", "--threads", "2"]
    with pytest.raises(RuntimeError) as caught:
        run_child([*command, "--output_dir", str(tmp_path / "none"), "--max_memory_gb", "0.01"], allowed=())
    amount = float(re.search(r"at least ([0-9.]+) GB", str(caught.value)).group(1))
    free, _ = run_child([*command, "--output_dir", str(tmp_path / "free")], allowed=DONE)
    amount += share * max(0.0, free["peak_gb"] - amount)
    kept, _ = run_child([*command, "--output_dir", str(tmp_path / "kept"), "--max_memory_gb", str(amount)],
                        allowed=DONE)  # fmt: skip
    assert kept["peak_gb"] <= 1.1 * amount
    for name in ("moved.nii.gz", "ddf.nii.gz", "inverse_ddf.nii.gz", "metrics.json"):
        assert (tmp_path / "kept" / name).read_bytes() == (tmp_path / "free" / name).read_bytes()
