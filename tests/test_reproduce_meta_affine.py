"""scripts/reproduce.py meta_affine: a whole reproduction in small, what is kept between starts, the classical tools."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from script_tools import ROOT, load_script

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import meta_affine, meta_affine_methods, meta_affine_peers, runs  # noqa: E402
from reproducing.meta_affine_sets import Cases, find_split  # noqa: E402

from shared_components.affine_search import AffineSSD, initial_guess, join  # noqa: E402
from shared_components.errors import InputError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")
TINY = {"size": "[32,32]", "pairs_per_epoch": 10, "batch_size": 5, "validate#dataset#length": 5}
NAMES = ("identity", "plain", "multistart", "ours")


def picture(size: int, seed: int = 0) -> np.ndarray:
    """A few soft blobs without symmetry, in [0, 255]."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    blobs = ((0.3, 0.25, 1.0), (-0.35, 0.1, 0.7), (0.0, -0.45, 0.5))
    total = np.zeros((size, size))
    for row, column, height in blobs:
        row, column = (row, column) + generator.uniform(-0.05, 0.05, 2)
        total += height * np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 0.05)
    return 255 * total / total.max()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("hands_xray", 2), ("brain2d_oasis100", 6)):
        (folder / name).mkdir()
        for index in range(count):
            Image.fromarray(picture(32, index).astype(np.uint8)).save(folder / name / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the shipped network as it starts."""
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    bundle = meta_affine.find_bundle("meta_affine")
    with meta_affine.bundle_code(bundle):
        network = (
            runs.Recipe(bundle, ("inference.json",), {"size": [32, 32]}).parser().get_parsed_content("network_def")
        )
    torch.save(network.state_dict(), path)
    return path


def run(data: Path, weights: Path, output: Path, *options: str, cases: int = 3) -> int:
    """Run the script in this process, tiny."""
    tiny = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    named = [
        "--data_dir",
        str(data),
        "--output_dir",
        str(output),
        "--weights",
        str(weights),
        "--sets",
        "hands",
        "oasis",
    ]
    length = ["--epochs_per_step", "1", "--cases", str(cases)]
    return load_script("reproduce").main(["meta_affine", *named, *length, *tiny, "--verbose", *options])


@pytest.fixture(scope="module")
def whole(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished reproduction."""
    output = tmp_path_factory.mktemp("whole")
    files = [word for name in ("json", "markdown", "figures") for word in (f"--{name}", str(output / f"all.{name}"))]
    assert run(data, weights, output, *files) == 0
    return output


def content(folder: Path) -> Any:
    return json.loads((folder / "all.json").read_text())


def test_the_json_has_every_case_of_every_method(whole):
    found = content(whole)
    single = [f"{method}@{name}/single" for name in ("hands", "oasis") for method in ("learn", "comb")]
    for name in ("hands", "oasis"):
        levels = [f"{method}@{name}/levels" for method in ("learn", "comb")]
        full = [f"{method}@{name}/affine" for method in ("learn", "comb")]
        assert set(found["results"][name]) == {*NAMES, *single, *levels}
        assert set(found["results"][f"{name}_full"]) == {*NAMES, *full}
    for methods in found["results"].values():
        for numbers in methods.values():
            assert all(len(numbers[key]) == 3 for key in ("mse", "epsilon_a", "epsilon_b"))
            assert min(numbers["mse"]) > 0 and numbers["cpu_seconds"] >= 0 and numbers["seconds"] > 0
    assert found["identity"]["draws"] == 10_000 and found["identity"]["mean"] == pytest.approx(1.59, abs=0.02)
    assert found["plan"]["images"]["hands"] == {"training": 2, "validation": 2}
    assert found["plan"]["images"]["oasis"] == {"training": 5, "validation": 1}
    assert {"torch", "monai", "processor", "threads"} <= found["environment"].keys()


def test_each_network_has_its_own_settings(whole):
    networks = content(whole)["networks"]
    assert {name: one["epochs"] for name, one in networks.items() if "hands" in name} == {
        "hands/single": 5,
        "hands/levels": 4,
        "hands/affine": 5,
    }
    assert networks["hands/single"]["parameters"] == 24_000 and networks["oasis/levels"]["parameters"] == 4 * 4800
    knobs = [runs.read_json(whole / "networks" / f"hands-{kind}" / "run.json")["knobs"] for kind in meta_affine.KINDS]
    assert knobs[1]["strides"] == [8, 4, 2, 1] and knobs[2]["shear"] == 0.15 and set(knobs[0]) == {"max_epochs"}


def test_the_paper_stands_beside_and_figures_are_drawn(whole):
    text = (whole / "all.markdown").read_text()
    assert (
        all(f"Table {number}" in text for number in range(1, 7)) and "python scripts/reproduce.py meta_affine" in text
    )
    cells = {cell.strip() for line in text.splitlines() for cell in line.split("|")}
    assert {"8.28", "94.30", "0.40 / 0.13 / 2.17", "Hands → Oasis", "Oasis (paper: fastMRI)"} <= cells
    assert [path.name for path in sorted((whole / "all.figures").iterdir())] == [f"figure_{n}.png" for n in (3, 4, 6)]


def test_full_affine_cases_are_sheared_and_the_others_turned(whole):
    for name, turned in (("hands", True), ("hands_full", False)):
        with np.load(whole / "cases3" / name / "cases.npz") as arrays:
            A = arrays["truth"][:, :4].reshape(-1, 2, 2)
        assert np.allclose(A @ A.transpose(0, 2, 1), np.eye(2), atol=1e-5) == turned


def test_nothing_is_done_twice(whole, data, weights, monkeypatch, tmp_path):
    before = content(whole)
    for module, name in ((meta_affine, "train"), (meta_affine_methods, "_say")):
        monkeypatch.setattr(module, name, lambda *args, **knobs: pytest.fail("something was done again"))
    assert run(data, weights, whole, "--json", str(tmp_path / "all.json")) == 0
    assert content(tmp_path)["results"] == before["results"] and content(tmp_path)["networks"] == before["networks"]


def test_other_weights_are_measured_anew(whole, data, weights, monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(meta_affine_methods, "_say", lambda cases, name, *rest: said.append((cases.folder.name, name)))
    torch.save({k: v + 0.01 for k, v in torch.load(weights).items()}, tmp_path / "model.pt")
    assert run(data, tmp_path / "model.pt", whole) == 0
    assert sorted(said) == [(name, "ours") for name in ("hands", "hands_full", "oasis", "oasis_full")]


def test_a_killed_training_goes_on(whole, data, weights, tmp_path, monkeypatch):
    write = runs.EpochRecorder._write

    def killed(recorder: runs.EpochRecorder, engine: Any) -> None:
        write(recorder, engine)
        if recorder.path.parent.name == "oasis-single" and engine.state.epoch == 2:
            raise KeyboardInterrupt

    only = ("--sets", "oasis", "--tests", "oasis")
    monkeypatch.setattr(meta_affine, "DRAWS", 10)
    monkeypatch.setattr(runs.EpochRecorder, "_write", killed)
    assert run(data, weights, tmp_path, *only) == 130
    assert runs.epochs_done(tmp_path / "networks/oasis-single") == 2
    monkeypatch.setattr(runs.EpochRecorder, "_write", write)
    assert run(data, weights, tmp_path, *only, "--json", str(tmp_path / "all.json")) == 0
    for method in ("comb@oasis/single", "comb@oasis/levels"):
        assert content(tmp_path)["results"]["oasis"][method]["mse"] == content(whole)["results"]["oasis"][method]["mse"]


def test_a_report_of_what_is_there_trains_nothing(data, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(meta_affine, "DRAWS", 10)
    options = ["--trained_only", "--tests", "hands", "--json", str(tmp_path / "all.json")]
    assert run(data, weights, tmp_path, *options) == 0
    assert content(tmp_path)["networks"] == {} and set(content(tmp_path)["results"]["hands"]) == set(NAMES)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cases", "0"], "--cases 0"),
        (["--peer_python", "no_such_python"], "no_such_python"),
        (["--sets", "brain"], "brain2d_mindboggle_trt20 has fewer than 5"),
        (["--data_dir", "nowhere", "--sets", "hands"], "none of the folders"),
    ],
)
def test_bad_options_are_sentences(options, said, data, weights, tmp_path, capsys):
    assert run(data, weights, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_every_fifth_image_is_kept_for_tests(data):
    split = find_split(data, "oasis")
    assert [Path(item["image"]).name for item in split["validation"]] == ["04.png"]
    assert not {item["image"] for item in split["training"]} & {split["validation"][0]["image"]}
    hands = find_split(data, "hands")
    assert hands["training"] == hands["validation"] and len(hands["training"]) == 2
    with pytest.raises(InputError, match="leave out brain"):
        find_split(data, "brain")


def test_distances_are_those_of_the_paper():
    truth = torch.tensor([[1.0, 0, 0, 1, 0, 0]])
    x = torch.tensor([[1.1, 0, 0, 1, 0.3, 0.4]])
    found = {name: value[0] for name, value in meta_affine_methods.distances(x, truth).items()}
    assert found == pytest.approx({"mse": 4 * (0.01 / 3 + 0.25), "epsilon_a": 0.1, "epsilon_b": 0.5}, rel=1e-5)
    with meta_affine.bundle_code(meta_affine.find_bundle("meta_affine")):
        from scripts.losses import table_mse  # the bundle's
    assert float(table_mse(x, truth)) == pytest.approx(found["mse"], rel=1e-5)


def turned_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A pair (1, 2, 64, 64) and its true map: 8 degrees, a shift of a few pixels that differs between the axes."""
    angle = torch.tensor(0.14)
    A = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    truth = join(A, torch.tensor([0.12, -0.05]))[None]
    moving = torch.from_numpy(picture(64)).float()[None, None]
    return torch.cat([AffineSSD(moving, moving).moved(truth), moving], 1), truth


def test_methods_find_a_small_turn():
    image, truth = turned_pair()
    for method in (meta_affine_methods.plain, meta_affine_methods.multistart):
        assert meta_affine_methods.distances(method(image), truth)["mse"][0] < 1e-3
    assert torch.equal(meta_affine_methods.identity(image), torch.tensor([[1.0, 0, 0, 1, 0, 0]]))


def test_comb_goes_on_from_the_network():
    image, truth = turned_pair()

    class Far:
        def parameters_of(self, image: torch.Tensor) -> torch.Tensor:
            x = initial_guess(image.shape[2:], 1, image)
            x[:, 4] = 30.0  # where the images do not meet there is no way back
            return x

    class Near:
        def parameters_of(self, image: torch.Tensor) -> torch.Tensor:
            return truth + 0.02

    far, near = (meta_affine_methods.comb(network())(image) for network in (Far, Near))
    assert meta_affine_methods.distances(near, truth)["mse"][0] < 1e-4
    assert meta_affine_methods.distances(far, truth)["mse"][0] > 100


def test_simpleitk_gives_the_map_in_our_coordinates(tmp_path, capsys):
    pytest.importorskip("SimpleITK")
    image, truth = turned_pair()
    np.savez(tmp_path / "cases.npz", image=image.numpy().repeat(2, 0), truth=truth.numpy())
    cases = Cases(tmp_path, image.repeat(2, 1, 1, 1), truth.repeat(2, 1))
    meta_affine_methods.measure_peer(cases, "simpleitk", sys.executable, 1)
    found = meta_affine_methods.read_result(cases, "simpleitk")
    assert len(found["mse"]) == 1 and found["mse"][0] < 1e-3 and found["failed"] == 0 and found["cpu_seconds"] > 0
    assert found["tool"].startswith("SimpleITK 2")
    meta_affine_methods.measure_peer(cases, "simpleitk", "no_such_python", 1)  # is not asked again
    assert "1 cases" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ants") is not None, reason="ANTsPy is installed here")
def test_a_missing_tool_is_skipped_with_a_word(tmp_path, capsys):
    image, truth = turned_pair()
    np.savez(tmp_path / "cases.npz", image=image.numpy(), truth=truth.numpy())
    cases = Cases(tmp_path, image, truth)
    meta_affine_methods.measure_peer(cases, "ants_initialiser", sys.executable, 1)
    assert "pip install antspyx" in capsys.readouterr().err
    assert meta_affine_methods.read_result(cases, "ants_initialiser") is None


def test_a_pair_on_which_a_tool_fails_gets_no_map():
    def adapter(fixed: np.ndarray, moving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if fixed.max() > 1:
            raise RuntimeError("ITK ERROR\nthe images do not meet")
        return np.eye(2), np.array([3.0, 0.0])

    images = np.zeros((2, 2, 10, 10))
    images[1] = 2
    rows = meta_affine_peers.register(adapter, images)
    assert rows["x"] == [pytest.approx([1, 0, 0, 1, 0.6, 0]), None] and rows["failures"] == ["the images do not meet"]
    assert len(rows["seconds"]) == len(rows["cpu_seconds"]) == 2


def test_a_centred_map_becomes_a_plain_one():
    A, b = meta_affine_peers.about([0, -1, 1, 0], [5, 6], [2, 3])  # a quarter turn about (2, 3), then a shift
    assert A @ (2, 3) + b == pytest.approx([7, 9]) and A @ (3, 3) + b == pytest.approx([7, 10])


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    hook, threads = sys.excepthook, torch.get_num_threads()
    yield
    sys.excepthook = hook
    torch.set_num_threads(threads)
