"""scripts/reproduce.py r2n2: a whole reproduction in small, and wrong options."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_tools import ROOT, load_script

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import r2n2, r2n2_methods, r2n2_runs  # noqa: E402
from reproducing.r2n2_runs import ABLATION, PHASES  # noqa: E402
from reproducing.r2n2_sets import Plan  # noqa: E402

from shared_components.refine import BsplineSettings  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")
FRAMES, STEPS = 4, 3
TINY = {
    "channels": 2,
    "steps": STEPS,
    "pairs_per_epoch": 2,
    "batch_size": 1,
    "validation_pairs": 1,
    "val_interval": 1,
    "max_epochs": 1,
}


@dataclass(frozen=True)
class TinyPlan(Plan):
    """Few small frames."""

    training_slices: int = 2
    training_rows: int = 64
    training_frames: int = 3
    test_frames: int = FRAMES


def run(output: Path, *options: str, **settings: Any) -> int:
    """Run the script in this process, tiny."""
    tiny = [word for key, value in {**TINY, **settings}.items() for word in ("--set", f"{key}={value}")]
    named = ["--output_dir", str(output), "--subjects", "3", "--slices", "2", "--rows", "64", "--bspline_pairs", "3"]
    return load_script("reproduce").main(["r2n2", *named, "--ablation_epochs", "1", *tiny, "--verbose", *options])


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r2n2, "Plan", TinyPlan)
        patch.setattr(r2n2_methods, "BSPLINE", BsplineSettings(iterations=(2, 2, 2)))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished reproduction."""
    output = tmp_path_factory.mktemp("whole")
    files = [word for name in ("json", "markdown", "figures") for word in (f"--{name}", str(output / f"all.{name}"))]
    assert run(output, *files) == 0
    return output


def content(folder: Path) -> Any:
    return json.loads((folder / "all.json").read_text())


@pytest.mark.slow
def test_every_pair_of_every_method_is_there(whole: Path) -> None:
    found = content(whole)
    pairs = 2 * (FRAMES - 1)  # two slices of one patient
    assert {name: len(one["pairs"]) for name, one in found["table1"].items()} == {
        "identity": pairs,
        "bspline": 3,
        "proposed": pairs,
        "r2n2": pairs,
    }
    for one in [*found["table1"].values(), *found["ablation"].values()]:
        assert len(one["tre_mm"]) == len(one["folds_percent"]) == len(one["pairs"])
        assert all(0 <= mean <= worst for mean, worst in zip(one["tre_mm"], one["worst_mm"], strict=True))
    numbers = found["table1"]["r2n2"]
    assert np.shape(numbers["steps_mm"]) == (pairs, 2 * STEPS + 1) and np.shape(numbers["widths_mm"]) == (
        pairs,
        2 * STEPS,
    )
    assert numbers["parameters"] == 7 * STEPS and len(numbers["seconds"]) == pairs
    assert [row[0] for row in numbers["steps_mm"]] == pytest.approx(found["table1"]["identity"]["tre_mm"], rel=1e-4)
    proposed = found["table1"]["proposed"]
    assert [row[STEPS] for row in numbers["steps_mm"]] == pytest.approx(proposed["tre_mm"], abs=0.05)
    assert "steps_mm" not in proposed and numbers["tre_mm"] != proposed["tre_mm"]
    assert found["set"]["training_series"] == {"training": 2, "validation": 2}


@pytest.mark.slow
def test_each_phase_goes_on_from_the_last(whole: Path) -> None:
    place = whole / "networks"
    assert set(content(whole)["networks"]) == {*PHASES, *ABLATION}
    first, second = (torch.load(place / name / "model.pt", weights_only=True) for name in PHASES)
    fresh = torch.load(place / "whole" / "model.pt", weights_only=True)
    assert 0 < max(float((first[name] - second[name]).abs().max()) for name in first) < 0.05
    assert max(float((first[name] - fresh[name]).abs().max()) for name in first) < 0.05, "one epoch, the same seed"
    sizes = {name: content(whole)["networks"][name]["parameters"] for name in ABLATION}
    assert sizes["no_state"] < sizes["whole"] and sizes["no_certainty"] < sizes["whole"]


@pytest.mark.slow
def test_the_paper_stands_beside_and_figures_are_drawn(whole: Path) -> None:
    text = (whole / "all.markdown").read_text()
    cells = {cell.strip() for line in text.splitlines() for cell in line.split("|")}
    assert {"1.26 (1.85)", "1.16", "paper 1, R2N2", "B-spline (BS)", "without certainty weights"} <= cells
    assert "pretrain.json" in text and "pretrain_fine.json" in text and "python scripts/reproduce.py r2n2" in text
    assert "start_weights pretrain/model.pt" in text
    wanted = {"course.png", "strip_coronal.png", "strip_sagittal.png"}
    assert {path.name for path in (whole / "all.figures").iterdir()} == wanted


@pytest.mark.slow
def test_no_path_of_the_machine_is_in_the_report(whole: Path) -> None:
    typed = content(whole)["plan"].pop("command")
    for text in ((whole / "all.markdown").read_text(), (whole / "all.json").read_text()):
        left = text.replace(typed, "")
        assert str(whole) not in left and str(ROOT) not in left


@pytest.mark.slow
def test_nothing_is_done_twice(whole: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = content(whole)
    for module, name in ((r2n2_runs, "train"), (r2n2_methods, "bspline_opt"), (r2n2_methods, "keep_rows")):
        monkeypatch.setattr(module, name, lambda *args, **knobs: pytest.fail("something was done again"))
    assert run(whole, "--json", str(tmp_path / "all.json")) == 0
    after = content(tmp_path)
    assert all(after[key] == before[key] for key in ("table1", "ablation", "networks", "relations"))


@pytest.mark.parametrize(
    "options, said",
    [
        (["--bspline_pairs", "0"], "--bspline_pairs 0 is too small"),
        (["--subjects", "2"], "--subjects 2 is too small"),
        (["--peer_python", "no_such_python"], "is no program"),
        (["--set", "stepps=3"], "no configuration has 'stepps'"),
        (["--data_dir", "nowhere"], "is no folder"),
    ],
)
def test_bad_options_are_sentences(options: list[str], said: str, tmp_path: Path, capsys: Any) -> None:
    assert run(tmp_path, *options) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    hook, threads = sys.excepthook, torch.get_num_threads()
    yield
    sys.excepthook = hook
    torch.set_num_threads(threads)
