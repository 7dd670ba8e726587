"""The verdict among the results: metrics.json, report, terminal, and what lies beside a result that failed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from script_tools import BUNDLE, SHAPE, TINY, blob, files_in, load_script, make_weights, save

from shared_components.itk_io import read_transform
from shared_components.pairs import make_preprocessing
from shared_components.report.tables import verdict_banner
from shared_components.results import PrintSummary, SaveRegistration
from shared_components.results.summary import format_verdict
from shared_components.series.numbers import verdict_of
from shared_components.verdict import collected

FALLBACK = {"fallback.tfm", "moved_fallback.nii.gz"}
NEVER = {"least_nmi": [1.1, 1.1]}  # an agreement that no pair has


class Affine(torch.nn.Linear):
    """A network whose affine stage moves by two voxels of its grid, 8 mm, and stretches the first axis."""

    def __init__(self, stretch: float = 1.0) -> None:
        super().__init__(1, 1)
        self.matrix = torch.eye(4)[None]
        self.matrix[0, 0, 0], self.matrix[0, 1, 3] = stretch, 2.0

    def affine_matrix(self, image: torch.Tensor) -> torch.Tensor:
        return self.matrix


@pytest.fixture
def item(tmp_path: Path) -> dict:
    files = {
        "fixed": save(tmp_path / "fixed.nii.gz", blob(SHAPE).astype(np.float32)),
        "moving": save(tmp_path / "moving.nii.gz", blob(SHAPE, 0.7).astype(np.float32)),
    }
    found = make_preprocessing([14, 14, 14], 4.0)(files)
    return {**found, "pred": torch.zeros(3, 14, 14, 14)}


def bundle(tmp_path: Path, **metadata) -> str:
    folder = tmp_path / "some_registration" / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps({"version": "1.0.0", **metadata}))
    return str(folder.parent)


def written(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["verdict"]


def test_metrics_hold_the_verdict_and_the_report_begins_with_it(item, tmp_path) -> None:
    out = tmp_path / "out"
    with collected() as levels:
        SaveRegistration(str(out), bundle(tmp_path))(dict(item))
    assert written(out) == {"level": "ok", "reasons": []} and levels == ["ok"]
    page = (out / "report.html").read_text()
    assert 'class="verdict ok"' in page and page.index("Verdict: ok") < page.index("<nav>")
    assert not FALLBACK & {path.name for path in out.iterdir()}


def test_a_folded_field_has_failed_and_the_initial_transform_lies_beside_it(item, tmp_path) -> None:
    item["pred"][0] = -2.5 * torch.arange(14.0).view(-1, 1, 1)
    out = tmp_path / "out"
    done = SaveRegistration(str(out), bundle(tmp_path), report=False)(dict(item))
    verdict = written(out)
    assert verdict["level"] == "failed" == done["metrics"]["verdict"]["level"]
    assert any("folded" in reason for reason in verdict["reasons"])
    assert "beside it" in verdict["fallback"] and "initial transform" in verdict["fallback"]
    np.testing.assert_allclose(read_transform(out / "fallback.tfm"), item["pair"].initial, atol=1e-9)
    moved, initial = nib.load(out / "moved_fallback.nii.gz"), done["pair"].fixed
    assert moved.shape == tuple(initial.frame.shape)
    assert not np.allclose(moved.get_fdata(), nib.load(out / "moved.nii.gz").get_fdata(), atol=1)
    first = {name: (out / name).read_bytes() for name in {"metrics.json", *FALLBACK}}
    SaveRegistration(str(out), bundle(tmp_path), report=False)(dict(item))
    assert first == {name: (out / name).read_bytes() for name in first}, "the same input, the same bytes"


def test_the_affine_stage_is_offered_where_there_is_one_that_can_be(item, tmp_path) -> None:
    root = bundle(tmp_path, verdict=NEVER)
    SaveRegistration(str(tmp_path / "a"), root, network=Affine(), report=False)(dict(item))
    world = read_transform(tmp_path / "a" / "fallback.tfm")
    np.testing.assert_allclose(world, read_transform(tmp_path / "a" / "affine.tfm"))
    assert "affine stage" in written(tmp_path / "a")["fallback"]
    SaveRegistration(str(tmp_path / "b"), root, network=Affine(stretch=9.0), report=False)(dict(item))
    assert "initial transform" in written(tmp_path / "b")["fallback"], "nobody needs an affine that is at fault itself"


def test_what_failed_before_leaves_nothing_beside_what_did_not(item, tmp_path) -> None:
    out = tmp_path / "out"
    SaveRegistration(str(out), bundle(tmp_path, verdict=NEVER), report=False)(dict(item))
    assert {path.name for path in out.iterdir()} >= FALLBACK
    SaveRegistration(str(out), bundle(tmp_path), report=False)(dict(item))
    assert not {path.name for path in out.iterdir()} & FALLBACK


def test_a_bundle_that_tells_its_training_images_judges_its_input(item, tmp_path) -> None:
    ranges = {"spacing_mm": [0.5, 2.0], "statistics": {"size": [1e4, 2e4]}}
    SaveRegistration(str(tmp_path / "out"), bundle(tmp_path, trained_on=ranges), report=False)(dict(item))
    verdict = written(tmp_path / "out")
    assert verdict["level"] == "check" and len(verdict["reasons"]) == 4
    assert "the fixed image has voxels of 4 mm" in " ".join(verdict["reasons"])


def test_another_configuration_has_limits_of_its_own_or_the_default_ones(item, tmp_path) -> None:
    changes = {"verdict": NEVER, "trained_on": {"spacing_mm": [0.1, 0.2]}}
    root = bundle(tmp_path, **changes, configurations={"coarse": {"verdict": {"least_nmi": [1.1, None]}}})
    levels = {}
    for name in ("", "coarse", "unheard_of"):
        SaveRegistration(str(tmp_path / "out"), root, report=False, configuration=name)(dict(item))
        levels[name] = written(tmp_path / "out")["level"]
    assert levels == {"": "failed", "coarse": "check", "unheard_of": "ok"}


def test_the_words_on_paper_and_on_the_terminal() -> None:
    verdict = {"level": "failed", "reasons": ["a < b"], "fallback": "beside it"}
    assert format_verdict(verdict) == "verdict: failed\n  - a < b\n  - beside it"
    banner = verdict_banner(verdict)
    assert "a &lt; b" in banner and "<p>beside it</p>" in banner and 'class="verdict failed"' in banner
    assert verdict_banner(None) == ""


def test_the_terminal_shows_it(item, tmp_path, capsys) -> None:
    done = SaveRegistration(str(tmp_path / "out"), bundle(tmp_path, verdict=NEVER), report=False)(dict(item))

    class State:
        output, batch, iteration, epoch_length = done, {"name": "pair"}, 1, 1

    PrintSummary()(type("Engine", (), {"state": State}))
    assert "verdict: failed\n  - the images agree little" in capsys.readouterr().out


def test_a_series_has_the_verdict_of_its_worst_frame() -> None:
    def frame(number: int, level: str, *reasons: str) -> dict:
        return {"frame": number, "verdict": {"level": level, "reasons": list(reasons)}}

    frames = [frame(0, "ok"), frame(1, "check", "0.2 % folded"), frame(2, "failed", "3 % folded", "far")]
    assert verdict_of(frames) == {"level": "failed", "reasons": ["frame 1 and 1 other: 0.2 % folded", "frame 2: far"]}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two images and a bundle with a tiny network that moves nothing."""
    root = tmp_path / "tiny_registration"
    (root / "configs").mkdir(parents=True)
    (root / "scripts").symlink_to(BUNDLE / "scripts")
    config = json.loads((BUNDLE / "configs" / "inference.json").read_text()) | TINY
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    (root / "models").mkdir()
    weights = torch.load(make_weights(root / "models" / "model.pt"), weights_only=True)
    torch.save({name: value * 0 for name, value in weights.items()}, root / "models" / "model.pt")
    save(tmp_path / "fixed.nii.gz", blob(SHAPE).astype(np.float32))
    save(tmp_path / "moving.nii.gz", blob(SHAPE, 0.7).astype(np.float32))
    noise = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    save(tmp_path / "noise.nii.gz", noise)
    return tmp_path


@pytest.mark.usefixtures("undo_config")
@pytest.mark.parametrize(
    ("moving", "changes", "code"),
    [
        ("moving", {}, 0),
        ("moving", {"verdict": {"least_nmi": [1.1, None]}}, 3),
        ("noise", {"verdict": {"least_nmi": [0.2, 0.15]}}, 4),
        ("moving", {"verdict": {"least_nmi": [0.2, 0.15]}}, 0),
    ],
)
def test_the_exit_code_of_register_tells_it(place, moving, changes, code) -> None:
    root, out = place / "tiny_registration", place / "out"
    (root / "configs" / "metadata.json").write_text(json.dumps({"version": "1", **changes}))
    options = [f"--fixed={place / 'fixed.nii.gz'}", f"--moving={place / f'{moving}.nii.gz'}", f"--output_dir={out}"]
    assert load_script("register").main([str(root), *options, "--device=cpu", "--no_report"]) == code
    assert written(out)["level"] == {0: "ok", 3: "check", 4: "failed"}[code]
    assert (set(files_in(out)) >= FALLBACK) is (code == 4) and "moved.nii.gz" in files_in(out)
    shutil.rmtree(out)
