"""calibrate.py: the numbers that make signs an expected error, from pairs whose transform is known."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from script_tools import ROOT, blob, load_script, make_weights, tiny_options

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import Image
from shared_components.synth.known import Change, known_pair
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
    assert known.score_mm and known.error_mm[-1] > 0 and set(known.weights) >= {"inverse", "flips", "sequence", "drift"}
    assert kept["pixels"] > 100 and -1 <= kept["test"]["rho_worst"] <= kept["test"]["rho_mean"] <= 1
    assert kept["test"]["mean_error_mm"] == pytest.approx(sum(row["error_mm"] for row in kept["rows"]) / 2, rel=0.05)
    assert (place / "out" / "calibration.png").is_file()
    out = capsys.readouterr().out
    assert '"calibration": {' in out and "rho_inverse" in out
    assert script.main(["vtn", "--datalist=nowhere.json", *options[1:2]]) == 2
    assert "nowhere.json" in capsys.readouterr().err


def write_pairs(folder: Path, shape: tuple[int, ...], change: Change) -> str:
    """Two pairs of a part, of a blob with a pattern; return the options that name them."""
    listed: dict[str, list] = {"validation": [], "test": []}
    ndim = len(shape)
    affine = np.diag([4.0] * ndim + [1.0])
    values = (blob(shape) * (1 + 0.3 * np.sin(np.indices(shape).sum(0) / 2))).astype(np.float32)
    image = Image(torch.from_numpy(values)[None], Frame(shape, affine), Path("made"), np.dtype("float32"))
    for number, part in enumerate([*listed] * 2):
        pair = known_pair(image, image, torch.Generator().manual_seed(number), change)
        listed[part].append(pair.write(folder, f"{part}{number}"))
    (folder / "datalist.json").write_text(json.dumps(listed))
    return f"--datalist={folder / 'datalist.json'}"


def test_volumes_with_known_fields_calibrate_a_network_for_volumes(tmp_path: Path) -> None:
    listed = write_pairs(tmp_path, (20, 22, 18), Change(((1.0, 3.0, 30.0),), 4.0, 3.0))
    weights = make_weights(tmp_path / "model.pt")
    options = [listed, f"--output_dir={tmp_path / 'out'}", "--device=cpu", f"--weights={weights}", *tiny_options()]
    assert load_script("calibrate").main(["vtn", *options]) == 0
    kept = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert len(kept["rows"]) == kept["test"]["pairs"] == kept["fitted_on"] == 2
    for row in kept["rows"]:  # random weights: whatever it expects, it is a length of the order of the truth
        assert 0.2 * row["error_mm"] < row["expected_mm"] < 5 * row["error_mm"] and row["before_mm"] > 1


def test_an_affine_network_is_calibrated_and_its_numbers_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = write_pairs(tmp_path, (40, 36), Change(((0.3, 1.0, 40.0),), 20.0, 4.0))
    root = tmp_path / "meta_affine_registration"
    shutil.copytree(ROOT / "bundles" / "meta_affine_registration", root)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "uncertainty.md").write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n")
    script = load_script("calibrate")
    page = importlib.import_module("calibrating.page")
    monkeypatch.setattr(page, "DOCS", docs)
    options = [listed, f"--output_dir={tmp_path / 'out'}", "--device=cpu", "--set=size=[32,32]", "--write"]
    assert script.main([str(root), *options]) == 0
    config = json.loads((root / "configs" / "inference.json").read_text())
    kept = json.loads((docs / "uncertainty" / "meta_affine.json").read_text())
    assert config["calibration"] == kept["calibration"] and Calibration.of(config["calibration"]).score_mm
    assert (docs / "uncertainty" / "meta_affine.png").is_file()
    text = (docs / "uncertainty.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert f"| {kept['test']['rho_mean']:.2f} |" in text and "calibrate.py meta_affine" in text


def test_only_the_calibration_of_a_configuration_is_replaced(tmp_path: Path) -> None:
    load_script("calibrate")
    page = importlib.import_module("calibrating.page")
    file = tmp_path / "inference.json"
    file.write_text('{\n    "a": 1, "calibration": null,\n    "b": [1,  2]\n}\n')
    numbers = {"weights": {"flips": 0.5}, "score_mm": [0.1, 1.0], "error_mm": [0.2, 2.0]}
    for scale in (1, 2):
        page.set_calibration(file, numbers | {"score_mm": [0.1 * scale, 1.0]})
        assert json.loads(file.read_text())["calibration"]["score_mm"][0] == 0.1 * scale
    text = file.read_text()
    assert text.startswith('{\n    "a": 1, "calibration": {\n') and text.endswith(']},\n    "b": [1,  2]\n}\n')
    assert len(text.splitlines()) == 7
    file.write_text("{}")
    with pytest.raises(InputError, match="has no 'calibration'"):
        page.set_calibration(file, numbers)


def test_every_configuration_knows_its_set() -> None:
    load_script("calibrate")
    sets, page = (importlib.import_module(f"calibrating.{name}") for name in ("sets", "page"))
    for bundle in sorted((ROOT / "bundles").iterdir()):
        for file in sorted((bundle / "configs").glob("inference*.json")):
            config = json.loads(file.read_text())
            assert "calibration" in config, f"{file} would take over numbers that are not its own"
            name = None if file.stem == "inference" else file.stem
            assert page.kind_of(bundle.name, name) in sets.TITLES
    with pytest.raises(InputError, match="no set is known for other"):
        page.kind_of("other", None)
