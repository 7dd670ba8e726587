"""scripts/reproduce.py suits: a whole reproduction in small, single measurements, the peer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_tools import ROOT, load_script

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import pair_peers, suits_methods, suits_runs  # noqa: E402
from reproducing.suits_methods import METHODS, TestPairs  # noqa: E402
from reproducing.suits_smoothness import CANDIDATES, choose_smoothness  # noqa: E402

from shared_components.geometry import Frame  # noqa: E402
from shared_components.images import write_image  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")
SIZE = (24, 20, 16)
SPACING_MM = 8.0
TINY = {
    "size": "[24,20,16]",
    "spacing_mm": SPACING_MM,
    "pretrain_epochs": 1,
    "max_epochs": 2,
    "pairs_per_epoch": 2,
    "batch_size": 1,
    "validation_pairs": 1,
    "val_interval": 1,
    "iterations": 3,
    "channels": 2,
    "levels": 3,
}
SECTIONS = ("training", "validation", "test")
PAIRS = 4


# --- a set of its own, tiny ---------------------------------------------------------------------------------------


def organs(seed: int) -> np.ndarray:
    """Six boxes, a little elsewhere for each seed."""
    labels = np.zeros(SIZE, np.uint8)
    start = np.random.default_rng(seed).integers(1, 4, 3)
    for value in range(1, 7):
        x, y = divmod(value - 1, 2)
        corner = start + (7 * x, 8 * y, 3)
        labels[corner[0] : corner[0] + 5, corner[1] : corner[1] + 6, corner[2] : corner[2] + 8] = value
    return labels


def write_tiny(folder: Path, modalities: tuple[str, str], first_seed: int) -> None:
    """Two patients of each modality in each section."""
    frame = Frame(SIZE, np.diag([SPACING_MM] * 3 + [1.0]))
    sections: dict[str, list[dict[str, str]]] = {section: [] for section in SECTIONS}
    for kind, modality in enumerate(modalities):
        for index in range(2 * len(SECTIONS)):
            seed, name = first_seed + 100 * kind + index, f"{modality}_{index}"
            labels = organs(seed)
            values = np.random.default_rng(kind).permutation(7) * 40.0 + 20
            image = values[labels] + np.random.default_rng(seed).normal(0, 3, SIZE)
            files = {"image": f"{name}_{modality}.nii.gz", "label": f"{name}_labels.nii.gz"}
            write_image(folder / files["image"], image.astype(np.float32), frame)
            write_image(folder / files["label"], labels, frame)
            sections[SECTIONS[index // 2]].append({**files, "subject": name, "modality": modality})
    (folder / "datalist.json").write_text(json.dumps(sections))


def run(output: Path, *options: str, **settings: Any) -> int:
    """Run the script in this process, tiny."""
    tiny = [word for key, value in {**TINY, **settings}.items() for word in ("--set", f"{key}={value}")]
    named = ["--data_dir", str(output), "--output_dir", str(output), "--sets", "abdomen", "brains"]
    return load_script("reproduce").main(["suits", *named, *tiny, "--verbose", *options])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished reproduction."""
    output = tmp_path_factory.mktemp("whole")
    for name, seed in (("abdomen", 0), ("brains", 1000)):
        one = suits_runs.SETS[name]
        write_tiny(output / "data" / name, (one.fixed, one.moving), seed)
    files = [word for name in ("json", "markdown", "figures") for word in (f"--{name}", str(output / f"all.{name}"))]
    assert run(output, *files) == 0
    return output


def content(folder: Path) -> Any:
    return json.loads((folder / "all.json").read_text())


@pytest.mark.slow
def test_the_json_has_every_pair_of_every_method(whole):
    found = content(whole)
    for name in ("abdomen", "brains"):
        methods = found["results"][name]
        assert set(methods) == set(METHODS) - set(suits_methods.PEERS) and found["sets"][name]["pairs"] == PAIRS
        for method, numbers in methods.items():
            assert len(numbers["dice"]) == len(numbers["hd95_mm"]) == len(numbers["folds_percent"]) == PAIRS
            assert all(0 <= value <= 1 for value in numbers["dice"]) and numbers["pairs"] == methods["suits"]["pairs"]
            if method in ("mind", "mind_cnn", "suits", "suits_first"):
                assert np.shape(numbers["iterations"]) == (PAIRS, 3)
                assert np.array(numbers["iterations"])[:, -1] == pytest.approx(numbers["dice"], rel=1e-4)
        organs_dice = [values for values in methods["initial"]["organs"]["dice"].values() if None not in values]
        assert len(organs_dice) == 6 and np.mean(organs_dice, axis=0) == pytest.approx(methods["initial"]["dice"])
    results = found["results"]
    assert results["abdomen"]["initial"]["dice"] != results["brains"]["initial"]["dice"]
    pairs = found["results"]["abdomen"]["suits"]["pairs"]
    assert all(fixed.startswith("mr") and moving.startswith("ct") for fixed, moving in (p.split("<-") for p in pairs))


@pytest.mark.slow
def test_a_first_step_on_hand_made_features_raises_dice(whole):
    methods = content(whole)["results"]["abdomen"]
    assert np.mean(methods["mind"]["iterations"], axis=0)[0] > np.mean(methods["initial"]["dice"]) + 0.05


@pytest.mark.slow
def test_both_second_phases_start_from_the_same_first_phase(whole):
    first, other = (whole / "networks" / "abdomen" / name for name in ("suits", "suits_first"))
    assert (first / "pretrained.pt").read_bytes() == (other / "pretrained.pt").read_bytes()
    epochs = [len((place / "epochs.jsonl").read_text().splitlines()) for place in (first, other)]
    assert epochs == [2, 1]  # the second one took the first epoch over
    knobs = [json.loads((place / "run.json").read_text())["settings"].get("max_steps") for place in (first, other)]
    assert knobs == [None, 1]
    networks = content(whole)["networks"]
    assert networks["abdomen/suits"]["parameters"] == 97_484 and networks["abdomen/suits_first"]["epochs"] == 2


@pytest.mark.slow
def test_the_paper_stands_beside_and_figures_are_drawn(whole):
    text = (whole / "all.markdown").read_text()
    cells = {cell.strip() for line in text.splitlines() for cell in line.split("|")}
    assert {"0.513", "36.4", "MIND-CNN + descent", "left psoas", "hippocampus and amygdala"} <= cells
    assert "not measured" in text and "voxelmorph_mind.json" in text and "python scripts/reproduce.py suits" in text
    wanted = {f"{kind}_{name}.png" for kind in ("features", "result") for name in ("abdomen", "brains")}
    assert {path.name for path in (whole / "all.figures").iterdir()} == {"iterations.png"} | wanted


@pytest.mark.slow
def test_no_path_of_the_machine_is_in_the_report(whole):
    typed = content(whole)["plan"].pop("command")
    for text in ((whole / "all.markdown").read_text(), (whole / "all.json").read_text()):
        left = text.replace(typed, "")
        assert str(whole) not in left and str(ROOT) not in left


@pytest.mark.slow
def test_nothing_is_done_twice(whole, monkeypatch, tmp_path):
    before = content(whole)
    for module, name in ((suits_runs, "train"), (suits_methods, "_say")):
        monkeypatch.setattr(module, name, lambda *args, **knobs: pytest.fail("something was done again"))
    assert run(whole, "--json", str(tmp_path / "all.json")) == 0
    assert content(tmp_path)["results"] == before["results"] and content(tmp_path)["networks"] == before["networks"]


@pytest.mark.slow
def test_a_folder_with_weights_is_read_and_nothing_is_trained(whole, tmp_path, monkeypatch):
    output = tmp_path / "out"
    (output / "data").mkdir(parents=True)
    for name in ("abdomen", "brains"):
        (output / "data" / name).symlink_to(whole / "data" / name)
    place = output / "networks" / "abdomen" / "suits"
    place.mkdir(parents=True)
    (place / "model.pt").symlink_to(whole / "networks" / "abdomen" / "suits" / "model.pt")
    monkeypatch.setattr(suits_runs, "train", lambda *args, **knobs: pytest.fail("something was trained"))
    assert run(output, "--trained_only", "--json", str(tmp_path / "all.json")) == 0
    found = content(tmp_path)
    assert found["results"]["abdomen"]["suits"]["dice"] == content(whole)["results"]["abdomen"]["suits"]["dice"]
    assert set(found["results"]["brains"]) == {"initial", "mind", "mind_chosen"}
    assert found["networks"] == {"abdomen/suits": {}}


@pytest.mark.parametrize(
    "options, said",
    [
        (["--peer_pairs", "0"], "--peer_pairs 0 is too small"),
        (["--peer_python", "no_such_python"], "is no program"),
        (["--set", "iteratoins=3"], "no configuration has 'iteratoins'"),
        (["--data_dir", "nowhere"], "is no folder"),
        (["--trained_only"], "brain_oasis_miccai2012_2mm"),
    ],
)
def test_bad_options_are_sentences(options, said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suits_runs, "write_abdomen", lambda *args, **knobs: None)
    assert run(tmp_path, *options) == 2
    assert said in capsys.readouterr().err


# --- one measurement, one pair ------------------------------------------------------------------------------------


def shifted(folder: Path) -> tuple[TestPairs, dict[str, Any]]:
    """A pair whose moving image is the fixed one, two voxels further along the first axis."""
    labels = torch.from_numpy(organs(0).astype(np.int64))[None]
    smooth = torch.nn.functional.avg_pool3d((labels > 0).float()[None], 3, 1, 1)[0]
    image = torch.cat([smooth, smooth.roll(2, 1)])
    item = {"image": image, "fixed_label": labels, "moving_label": labels.roll(2, 1), "name": "a<-b"}
    return TestPairs("set", folder, [item], range(1, 7), [SPACING_MM] * 3, "v"), item


def test_a_field_is_measured_as_it_should_be(tmp_path):
    pairs, item = shifted(tmp_path)
    ddf = torch.zeros(1, 3, *SIZE)
    before = suits_methods.measured(pairs, item, ddf)
    assert before["dice"]["1"] == pytest.approx(0.6) and before["hd95_mm"]["1"] == pytest.approx(16.0)
    ddf[:, 0] = 2.0
    after = suits_methods.measured(pairs, item, ddf)
    assert after["dice"]["1"] == 1.0 and after["hd95_mm"]["1"] == 0.0 and after["folds_percent"] == 0.0
    ddf[:, 0] = 100.0  # everything is pushed out
    lost = suits_methods.measured(pairs, item, ddf)
    assert lost["dice"]["1"] == 0.0 and lost["hd95_mm"] == {}


def test_rows_of_other_weights_are_measured_again(tmp_path):
    pairs, _ = shifted(tmp_path)
    calls = []

    def make() -> suits_methods.Fields:
        calls.append(1)
        return suits_methods.still

    for version, again in (("a", False), ("a", False), ("b", False), ("b", True)):
        suits_methods.measure(pairs, "initial", make, again, version)
    assert len(calls) == 3
    found = suits_methods.read_numbers(pairs, "initial")
    assert found["dice"] == pytest.approx([0.6]) and len(found["seconds"]) == 1 and len(found["iterations"][0]) == 1
    elsewhere = TestPairs("set", tmp_path, pairs.dataset, pairs.labels, pairs.spacing_mm, "other images")
    assert suits_methods.read_numbers(elsewhere, "initial") is None


def test_the_smoothness_of_the_best_field_that_does_not_fold_is_chosen_once(tmp_path):
    pairs, _ = shifted(tmp_path)
    tried = []

    def make(lam: float) -> suits_methods.Fields:
        tried.append(lam)
        ddf = torch.zeros(1, 3, *SIZE)
        if lam == 1.5:
            ddf[:, 0] = 1.0  # better than nothing
        elif lam == 0.6:
            ddf[:, 0] = 2.0  # best, but a border folds
            ddf[:, 1, :, 0] = 5.0
        return lambda image, every: [ddf]

    assert choose_smoothness(pairs, "mind_chosen", make, "w") == 1.5 and tried == list(CANDIDATES)
    assert choose_smoothness(pairs, "mind_chosen", make, "w") == 1.5 and len(tried) == len(CANDIDATES)
    assert choose_smoothness(pairs, "mind_chosen", make, "other weights") == 1.5 and len(tried) == 2 * len(CANDIDATES)


class Tool:
    """Stands for the package of a tool; ``pair`` in, a field out."""

    def __call__(self, fixed: np.ndarray, moving: np.ndarray, spacing_mm: Any, threads: int) -> pair_peers.Found:
        if fixed.max() > 1:
            raise RuntimeError("ITK ERROR\ntoo many samples outside")
        field = np.zeros((3, *fixed.shape))
        field[2] = 12.0
        return field, 1.5, 1.4


def test_a_tool_answers_in_voxels_or_gives_up():
    images = np.zeros((2, 4, 5, 6))
    ddf, facts = pair_peers.register(Tool(), images, [2.0, 3.0, 4.0], 1)
    assert ddf.shape == (3, 4, 5, 6) and np.all(ddf[2] == 3.0) and not ddf[:2].any()
    assert facts == {"seconds": 1.5, "cpu_seconds": 1.4, "failed": False, "message": ""}
    ddf, facts = pair_peers.register(Tool(), images + 2, [2.0, 3.0, 4.0], 1)
    assert ddf is None and facts["failed"] and facts["message"] == "too many samples outside"


@pytest.mark.skipif(bool(list(distributions(name="itk-elastix"))), reason="itk-elastix is installed here")
def test_a_missing_tool_is_skipped_with_a_word(tmp_path, capsys):
    pairs, _ = shifted(tmp_path)
    suits_methods.measure_peer(pairs, "elastix", sys.executable, 1, 1)
    assert "pip install itk-elastix" in capsys.readouterr().err
    assert suits_methods.read_numbers(pairs, "elastix") is None


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    hook, threads = sys.excepthook, torch.get_num_threads()
    yield
    sys.excepthook = hook
    torch.set_num_threads(threads)
