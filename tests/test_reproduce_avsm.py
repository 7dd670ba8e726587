"""scripts/reproduce.py avsm: a whole reproduction in small, going on and being read again, faults told in sentences."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_tools import ROOT, load_script

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import avsm_ablation, avsm_methods  # noqa: E402
from reproducing.avsm_ablation import COLUMNS, ROWS, coarser  # noqa: E402
from reproducing.avsm_methods import AFFINE_STEPS, METHODS, PEERS, STEPS  # noqa: E402
from reproducing.runs import Recipe  # noqa: E402
from reproducing.suits_sets import BRAINS  # noqa: E402

from shared_components.geometry import Frame  # noqa: E402
from shared_components.images import write_image  # noqa: E402
from shared_components.refine import AffineOptSettings, VsvfSettings  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")
SIZE, SPACING_MM = (16, 16, 16), 8.0
SMALL = ("--ablation_factor", "1", "--ablation_width", "2")
TINY = {
    "size": "[16,16,16]",
    "spacing_mm": SPACING_MM,
    "width": 2,
    "affine_width": 2,
    "phase_epochs": "[1,1,1,1]",
    "pairs_per_epoch": 1,
    "validation_pairs": 1,
    "val_interval": 1,
    "num_workers": 0,
    "training_affine_steps": 2,
    "identity_bias": "true",
    "precision": "float32",
}
EPOCHS = ("1", "1", "1", "1")
REGISTRATIONS = {"longitudinal": 4, "cross": 2}  # two brains are held out


def write_brains(folder: Path) -> None:
    """Ten ellipsoids of three shells, a little different each, the labels beside them."""
    folder.mkdir(parents=True)
    frame = Frame(SIZE, np.diag([SPACING_MM] * 3 + [1.0]))
    axes = np.stack(np.meshgrid(*(np.arange(n) - 7.5 for n in SIZE), indexing="ij"), -1)
    for index in range(10):
        generator = np.random.default_rng(index)
        x = (axes + generator.uniform(-0.6, 0.6, 3)) / generator.uniform((4.5, 5.5, 5.0), (5.5, 6.5, 6.0))
        radius = np.linalg.norm(x, axis=-1)
        labels = (radius < 1).astype(np.uint8) + (radius < 0.7) + (radius < 0.4)
        image = 100.0 * labels + 10 * generator.uniform(0, 1, SIZE) * (labels > 0)
        write_image(folder / f"{index:02}_t1.nii.gz", image.astype(np.float32), frame)
        write_image(folder / f"{index:02}_labels.nii.gz", labels, frame)


def run(data: Path, output: Path, *options: str, **settings: Any) -> int:
    """Run the script in this process, tiny."""
    tiny = [word for key, value in {**TINY, **settings}.items() for word in ("--set", f"{key}={value}")]
    named = ["--data_dir", str(data), "--output_dir", str(output), "--seeds", "0", "--repeats", "1"]
    return load_script("reproduce").main(
        ["avsm", *named, *SMALL, "--ablation_epochs", *EPOCHS, *tiny, "--verbose", *options]
    )


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Few iterations of what iterates."""
    changes = {
        "AFFINE_OPT": AffineOptSettings((2, 1), (2, 1)),
        "VSVF_OPT": VsvfSettings((2, 1), (2, 1)),
        "FREE_ITERATIONS": 3,
        "REFINE_STEPS": 3,
        "AFFINE_STEPS": AFFINE_STEPS,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in changes.items():
            patch.setattr(avsm_methods, name, value)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_brains(folder / BRAINS)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished reproduction."""
    output = tmp_path_factory.mktemp("whole")
    files = [word for name in ("json", "markdown", "figures") for word in (f"--{name}", str(output / f"all.{name}"))]
    assert run(data, output, *files) == 0
    return output


def content(folder: Path) -> Any:
    return json.loads((folder / "all.json").read_text())


@pytest.mark.slow
def test_table_1_has_every_registration_of_every_method(whole: Path) -> None:
    found = content(whole)["table1"]
    steps = {f"affine_net_{n}" for n in range(1, AFFINE_STEPS + 1)} | {f"avsm_{n}" for n in range(1, STEPS + 1)}
    for name, count in REGISTRATIONS.items():
        assert set(found[name]) == set(METHODS) - set(PEERS) - {"vtn"} | steps
        for method, one in found[name].items():
            assert len(one["dice"]) == len(one["folds"]) == len(one["symmetry"]) == count
            assert all(0 <= value <= 1 for value in one["dice"]) and one["pairs"] == found[name]["avsm_2"]["pairs"]
            assert ("error_mm" in one) == (name == "longitudinal")
            if method not in ("affine_opt", "vsvf_opt"):  # which may well give up after so few iterations
                assert (None in one["symmetry"]) == (method == "identity")
        first, second = found[name]["identity"]["pairs"][:2]
        assert first == "<-".join(reversed(second.split("<-")))
        for shown in ("avsm_4", "affine_net_7", "vsvf_opt", "free", "refined"):
            assert len(found[name][shown]["cpu_seconds"]) == count
        different = ("affine_net_1", "affine_net_7", "avsm_1", "avsm_2", "free", "refined")
        assert len({tuple(found[name][method]["symmetry"]) for method in different}) == len(different)


@pytest.mark.slow
def test_rows_of_table_2_see_as_many_pairs_and_share_their_affine_parts(whole: Path) -> None:
    results = content(whole)["table2"]
    for name, count in REGISTRATIONS.items():
        assert {row: len(by["0"]["dice"]) for row, by in results[name].items()} == dict.fromkeys(ROWS, count)
    place = whole / "networks" / "ablation" / "seed0"
    epochs = {row: content(whole)["networks"][f"{row}, seed 0"]["epochs"] for row in ROWS}
    assert epochs == {row: 2 if "vSVF" not in how.parts else 4 for row, how in ROWS.items()}
    own = {row: len((place / row / "epochs.jsonl").read_text().splitlines()) for row in ROWS}
    assert set(own.values()) == {2}  # the affine epochs of VI to IX are those of IV and V
    for row, start in (("VI", "IV"), ("VIII", "V"), ("IX", "V")):
        one, other = (torch.load(place / name / "phase2.pt", weights_only=True) for name in (row, start))
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_going_on_from_another_row_gives_the_weights_of_a_training_from_the_start(
    whole: Path, data: Path, quick: None, tmp_path: Path
) -> None:
    assert run(data, tmp_path, "--parts", "table2", "--rows", "IX") == 0
    one, other = (
        torch.load(folder / "networks/ablation/seed0/IX/phase4.pt", weights_only=True) for folder in (whole, tmp_path)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_the_paper_stands_beside_and_figures_are_drawn(whole: Path) -> None:
    text = (whole / "all.markdown").read_text()
    cells = {cell.strip() for line in text.splitlines() for cell in line.split("|")}
    assert {"0.676 (0.045)", "5.5 [0.39]", "AVSM (2-step)", "vSVF-opt", "0.691", "Af-Multi", "VIII"} <= cells
    assert "not measured" not in text and "python scripts/reproduce.py avsm" in text and "configs/train.json" in text
    names = {path.name for path in (whole / "all.figures").iterdir()}
    assert names == {"symmetry.png", "velocity_steps.png", "affine_steps.png"}
    typed = content(whole)["plan"]["command"]
    for name in ("all.markdown", "all.json"):
        left = (whole / name).read_text().replace(json.dumps(typed)[1:-1], "").replace(typed, "")
        assert str(whole) not in left and str(ROOT) not in left


@pytest.mark.slow
def test_nothing_is_done_twice_and_weights_alone_are_read(
    whole: Path, data: Path, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(avsm_ablation, "train", lambda *args, **knobs: pytest.fail("something was trained"))
    place = tmp_path / "out" / "networks" / "avsm"
    place.mkdir(parents=True)
    (place / "model.pt").symlink_to(whole / "networks" / "avsm" / "model.pt")
    assert run(data, tmp_path / "out", "--trained_only", "--json", str(tmp_path / "all.json")) == 0
    before, found = content(whole), content(tmp_path)
    for metric in ("dice", "symmetry", "folds"):
        methods = ("affine_net_1", "avsm_1", "avsm_2", "refined")
        one, other = ([now["table1"]["cross"][name][metric] for name in methods] for now in (before, found))
        assert one == other
    assert found["networks"] == {"AVSM": {}} and not any(found["table2"].values())
    monkeypatch.setattr(avsm_methods, "_say", lambda *args: pytest.fail("something was measured again"))
    assert run(data, whole, "--json", str(tmp_path / "all.json")) == 0
    assert all(content(tmp_path)[key] == before[key] for key in ("table1", "table2", "networks"))


@pytest.mark.parametrize(
    "options, said",
    [
        (["--peer_pairs", "0"], "--peer_pairs 0 is too small"),
        (["--peer_python", "no_such_python"], "is no program"),
        (["--set", "widht=3"], "no configuration has 'widht'"),
        (["--seeds", "1", "1"], "names a seed twice"),
        (["--ablation_epochs", "1", "0", "1", "1"], "at least one epoch"),
        (["--ablation_factor", "0.5"], "--ablation_factor 0.5 is below 1"),
        (["--ablation_width", "0"], "--ablation_width 0 is too small"),
        ([], BRAINS),
    ],
)
def test_bad_options_are_sentences(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err


# --- rows of Table 2 ----------------------------------------------------------------------------------------------


def test_rows_are_those_of_the_paper() -> None:
    parts = {row: [name for name in COLUMNS if name in how.parts] for row, how in ROWS.items()}
    assert parts["I"] == [] and parts["V"] == list(COLUMNS[:4]) and parts["IX"] == list(COLUMNS)
    assert parts["VI"] == ["Af-Reg", "Af-Multi", "Af-Sym", "vSVF"]  # the only one that is no step on
    order = ["I", "II", "III", "IV", "V", "VII", "VIII", "IX"]
    grown = [len(parts[b]) - len(parts[a]) for a, b in zip(order, order[1:], strict=False)]
    assert grown == [1, 1, 1, 1, 2, 1, 1]


def test_a_row_sets_what_it_lacks() -> None:
    epochs = (8, 6, 5, 10)
    knobs = {row: how.knobs(epochs) for row, how in ROWS.items()}
    lengths = {row: one["phase_epochs"] for row, one in knobs.items()}
    assert lengths["I"] == lengths["II"] == [14, 0, 0, 0] and lengths["III"] == lengths["V"] == [8, 6, 0, 0]
    assert lengths["VI"] == lengths["VII"] == [8, 6, 15, 0] and lengths["VIII"] == lengths["IX"] == [8, 6, 5, 10]
    assert [row for row in knobs if knobs[row]["affine_similarity"] == "mk_lncc"] == ["V", "VII", "VIII", "IX"]
    assert [row for row in knobs if knobs[row]["similarity"] == "mk_lncc"] == ["VII", "VIII", "IX"]
    assert all({"cc", "mk_lncc"} >= {one["similarity"], one["affine_similarity"]} for one in knobs.values())
    assert [row for row in knobs if knobs[row]["loss#affine_constant"] == 0] == ["I"]
    assert [row for row in knobs if knobs[row]["loss#affine_symmetry_weight"] == 0] == ["I", "II", "III"]
    assert [row for row in knobs if knobs[row]["symmetry_weight"] > 0] == ["IX"]
    assert [one["velocity_steps"] for one in knobs.values()] == [0] * 5 + [1, 1, 2, 2]
    assert [one["affine_steps"] for one in knobs.values()] == [1, 1] + [7] * 7


def test_a_row_reaches_the_loss_of_the_bundle() -> None:
    recipe = Recipe(ROOT / "bundles" / "avsm_registration", ("train.json",), {"size": [16, 16, 16]})
    with avsm_ablation.code_of(recipe):
        losses = {
            row: avsm_ablation.row_recipe(recipe, row, 3, (1, 1, 1, 1)).parser().get_parsed_content("loss")
            for row in ("I", "V", "VI", "IX")
        }
    assert [one.affine_schedule["constant"] for one in losses.values()] == [0.0, 10.0, 10.0, 10.0]
    assert [one.affine_symmetry_weight for one in losses.values()] == [0.0, 10.0, 10.0, 10.0]
    assert [one.symmetry_weight for one in losses.values()] == [0.0, 0.0, 0.0, 1e-4]
    assert all(one.symmetric for one in losses.values())
    ncc, kernels = "GlobalNCC", "MultiKernelLNCC"
    assert [type(one.affine_similarity).__name__ for one in losses.values()] == [ncc, kernels, ncc, kernels]
    assert [type(one.similarity).__name__ for one in losses.values()] == [ncc, ncc, ncc, kernels]


def test_a_coarser_grid_has_the_same_extent() -> None:
    assert coarser((80, 112, 88), 2.0, 2) == {"size": [40, 56, 44], "spacing_mm": 4.0}
    assert coarser((80, 112, 88), 2.0, 1) == {"size": [80, 112, 88], "spacing_mm": 2.0}
    assert coarser((80, 112, 88), 2.0, 1.5)["size"] == [54, 74, 58]


def test_a_training_that_diverges_is_told_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datalist = tmp_path / "subjects.json"
    datalist.write_text(json.dumps({"training": [{"image": "a.nii.gz", "subject": "a"}]}))
    recipe = Recipe(ROOT / "bundles" / "avsm_registration", ("train.json",), {"datalist": str(datalist)})
    calls = []

    def train(*args: Any) -> None:
        calls.append(args)
        raise FloatingPointError("training stopped in epoch 1, iteration 2, before the optimizer step: the loss is nan")

    monkeypatch.setattr(avsm_ablation, "train", train)
    for _ in range(2):
        avsm_ablation.train_row(recipe, tmp_path, "I", 0, (1, 1, 1, 1))
    assert len(calls) == 1
    assert "the loss is nan" in json.loads((tmp_path / "seed0" / "I" / "result.json").read_text())["failed"]
    assert avsm_ablation.last_weights(tmp_path / "seed0" / "I", "I", (1, 1, 1, 1)) is None


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    hook, threads = sys.excepthook, torch.get_num_threads()
    yield
    sys.excepthook = hook
    torch.set_num_threads(threads)
