"""scripts/reproduce.py: a whole reproduction in small, going on after a kill, faults told in sentences."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from script_tools import ROOT, load_script

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import runs, vtn  # noqa: E402
from reproducing.hippocampus import TASK, find_hippocampi  # noqa: E402

from shared_components.errors import InputError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")
SIZE = (16, 16, 16)
TINY = {"size": "[16,16,16]", "channels": 2, "levels": 2, "affine_levels": 2, "pairs_per_epoch": 2, "spacing_mm": 1.0}
NETWORKS = ["D", "ADDD", "ADDD+inv"]


def write_subjects(images: Path, labels: Path, names: Sequence[tuple[str, str]]) -> None:
    """Ellipsoids of two labels, shifted a little from one to the next."""
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for image_name, label_name in names:
        center = 7.5 + generator.uniform(-1.5, 1.5, 3)
        x = np.stack(np.meshgrid(*(np.arange(n) for n in SIZE), indexing="ij"), -1) - center
        inside = np.linalg.norm(x / (4.5, 6.0, 5.0), axis=-1) < 1
        label = inside * (1 + (x[..., 1] > 0))
        image = 20 + 60 * inside + 20 * label + generator.normal(0, 2, SIZE)
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), images / image_name)
        nib.save(nib.Nifti1Image(label.astype(np.uint8), np.eye(4)), labels / label_name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hippocampi")
    write_subjects(folder, folder, [(f"s{i:02}_t1.nii.gz", f"s{i:02}_label.nii.gz") for i in range(15)])
    return folder


def run(data: Path, output: Path, *options: str, steps: int = 4) -> int:
    """Run the script in this process, tiny."""
    tiny = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    named = ["--dataset_dir", str(data), "--output_dir", str(output), "--networks", *NETWORKS]
    length = [] if "--budget" in options else ["--steps", str(steps)]
    script = load_script("reproduce")
    return script.main(["vtn", *named, *length, *tiny, "--pairs", "5", "--verbose", *options])


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a finished reproduction on two seeds."""
    output = tmp_path_factory.mktemp("whole")
    files = ["--json", str(output / "all.json"), "--markdown", str(output / "all.md")]
    assert run(data, output, "--seeds", "0", "1", *files) == 0
    return output


def content(folder: Path) -> Any:
    return json.loads((folder / "all.json").read_text())


def test_the_json_has_every_number_of_the_tables(whole):
    found = content(whole)
    assert list(found["networks"]) == ["identity", *NETWORKS]
    assert found["plan"]["steps"] == 4 and len(found["plan"]["pairs"]) == 5 and len(set(found["plan"]["pairs"])) == 5
    assert len(found["plan"]["subjects"]["training"]) == 12 and len(found["plan"]["subjects"]["validation"]) == 3
    for name in NETWORKS:
        network = found["networks"][name]
        assert network["seconds_a_pair"] > 0 and list(network["seeds"]) == ["0", "1"]
        assert {"mean", "std", "std_pairs", "seeds"} == network["metrics"]["iou"].keys()
        for one in network["seeds"].values():
            assert len(one["by_pair"]["iou"]) == 5 and one["train_seconds"] > 0 and "loss" in one["final_loss"]
            assert one["mean"]["iou"] == pytest.approx(np.mean(one["by_pair"]["iou"]), rel=1e-4)
    assert "inverse" in found["networks"]["ADDD+inv"]["seeds"]["0"]["final_loss"]
    assert "inverse" not in found["networks"]["ADDD"]["seeds"]["0"]["final_loss"]
    assert found["networks"]["identity"]["metrics"]["folds_percent"]["mean"] == 0
    assert {"torch", "monai", "processor", "threads"} <= found["environment"].keys()


def test_the_markdown_has_the_papers_numbers_beside_ours(whole):
    text = (whole / "all.md").read_text()
    assert {"0.8119", "0.8868", "0.8882", "0.787 (0.171)", "0.288 (0.240)"} <= {
        cell.strip() for line in text.splitlines() for cell in line.split("|")
    }
    ours = content(whole)["networks"]["ADDD"]["metrics"]["iou"]
    assert f"{ours['mean']:.3f} ± {ours['std']:.3f}" in text
    claims = [one["claim"] for one in content(whole)["relations"]]
    assert claims == ["inv lowers folds", "inv lowers std Jacobian", "inv does not cost IoU"]  # of the three networks
    assert "python scripts/reproduce.py vtn --dataset_dir" in text and "train.json','configs/reproduce.json" in text


def test_seeds_differ_and_are_trained_on_the_same_pairs(whole):
    losses = {
        (name, seed): one["final_loss"]["loss"]
        for name in NETWORKS
        for seed, one in content(whole)["networks"][name]["seeds"].items()
    }
    assert len(set(losses.values())) == len(losses)
    lines = [runs.read_epochs(whole / f"seed0/{name}/epochs.jsonl") for name in ("D", "ADDD_inv")]
    assert [[line["epoch"] for line in one] for one in lines] == [[1, 2], [1, 2]]


def test_finished_runs_are_skipped_and_give_the_same_table(whole, data, monkeypatch):
    before = content(whole)
    monkeypatch.setattr(vtn, "train", lambda *args, **knobs: pytest.fail("a finished run was trained again"))
    assert run(data, whole, "--seeds", "0", "1", "--json", str(whole / "all.json")) == 0
    assert content(whole)["networks"] == before["networks"]


def test_a_killed_reproduction_goes_on_to_the_same_numbers(whole, data, tmp_path, monkeypatch, capsys):
    write = runs.EpochRecorder._write

    def killed(recorder: runs.EpochRecorder, engine: Any) -> None:
        write(recorder, engine)
        if recorder.path.parent.name == "ADDD" and engine.state.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.EpochRecorder, "_write", killed)
    assert run(data, tmp_path) == 130
    assert runs.finished(tmp_path / "seed0/D") and not runs.finished(tmp_path / "seed0/ADDD")
    assert runs.epochs_done(tmp_path / "seed0/ADDD") == 1
    monkeypatch.setattr(runs.EpochRecorder, "_write", write)
    assert run(data, tmp_path, "--json", str(tmp_path / "all.json")) == 0
    assert "D, seed 0: done before" in capsys.readouterr().err
    for name in NETWORKS:
        ours, theirs = (content(folder)["networks"][name]["seeds"]["0"] for folder in (tmp_path, whole))
        assert ours["by_pair"] == theirs["by_pair"] and ours["final_loss"] == theirs["final_loss"]


def test_other_settings_do_not_mix_with_finished_runs(whole, data, capsys):
    assert run(data, whole, steps=8) == 2
    assert "other settings (steps: 4, now 8)" in capsys.readouterr().err


def test_a_budget_becomes_steps_and_stays(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(vtn, "_step_seconds", lambda recipe, network: {"D": 0.5, "ADDD": 2.0, "ADDD+inv": 2.0}[network])
    options = load_script("reproduce").arguments(
        ["vtn", "--dataset_dir", str(data), "--budget", "1", "--networks", *NETWORKS]
    )
    recipe = runs.Recipe(vtn.find_bundle("vtn"), vtn.CONFIGS, {"pairs_per_epoch": 2})
    assert vtn._length(options, recipe, tmp_path) == (6, 2)  # 0.9 x 60 s / 4.5 s
    assert "--steps 12" in capsys.readouterr().out
    runs.write_json(tmp_path / "plan.json", {"steps": 20})
    assert vtn._length(options, recipe, tmp_path) == (10, 2)


def test_a_step_of_a_bigger_network_is_timed_with_its_own_cascade(data, tmp_path):
    datalist = vtn.write_datalist(find_hippocampi(data), tmp_path / "subjects.json")
    settings = {**TINY, "size": [16, 16, 16], "datalist": datalist, "device#name": "cpu"}
    with vtn.bundle_code(vtn.find_bundle("vtn")):
        recipe = runs.Recipe(vtn.find_bundle("vtn"), vtn.CONFIGS, settings)
        assert 0 < vtn._step_seconds(recipe, "D") < vtn._step_seconds(recipe, "ADDD+inv") * 1.5


def test_the_invertibility_weight_follows_the_grid(tmp_path):
    recipes = [
        runs.Recipe(vtn.find_bundle("vtn"), vtn.CONFIGS, {"size": size}) for size in ([128, 128, 128], [16, 16, 16])
    ]
    weights = [vtn._knobs(recipe, "ADDD+inv", 0)["invertibility_weight"] for recipe in recipes]
    assert weights == pytest.approx([1e-3, 64e-3])
    assert vtn._knobs(recipes[0], "ADDD", 0) == {"cascade": "ADDD", "invertibility_weight": 0.0, "seed": 0}


def test_measures_of_a_known_shift():
    label = torch.zeros(1, 8, 8, 8, dtype=torch.int16)
    label[:, 2:6, 2:4, 2:6], label[:, 2:6, 4:6, 2:6] = 1, 2
    item = {"fixed_label": label, "moving_label": label}
    ddf = torch.zeros(1, 3, 8, 8, 8)
    still = vtn.measure(item, ddf)
    assert (still["iou"], still["label_iou"], still["dice"]) == (1, 1, 1)
    assert still["folds_percent"] == still["std_jacobian"] == 0
    ddf[:, 1] = 1.0  # along the axis of the two labels
    moved = vtn.measure(item, ddf)
    assert moved["iou"] == pytest.approx(3 / 5) and moved["label_iou"] == pytest.approx(1 / 3)
    assert moved["dice"] == pytest.approx(1 / 2)
    ddf[:, 1], ddf[:, 0] = 0.0, 0.25  # the mask is interpolated: a quarter of a voxel changes nothing
    assert vtn.measure(item, ddf)["iou"] == 1


def test_the_decathlons_own_folders_are_read(tmp_path):
    names = [(f"hippocampus_{i:03}.nii.gz",) * 2 for i in (1, 3, 4, 6, 7, 8, 10, 11, 14, 15)]
    task = tmp_path / TASK
    write_subjects(task / "imagesTr", task / "labelsTr", names)
    (task / "imagesTr" / "._hippocampus_001.nii.gz").write_bytes(b"not an image")
    for given in (tmp_path, task):
        split = find_hippocampi(given)
        assert [one["subject"] for one in split["validation"]] == ["hippocampus_007", "hippocampus_015"]
        assert len(split["training"]) == 8
        first = split["training"][0]
        assert Path(first["label"]) == task / "labelsTr" / "hippocampus_001.nii.gz" and Path(first["image"]).is_file()
    (task / "labelsTr" / "hippocampus_004.nii.gz").unlink()
    with pytest.raises(InputError, match="hippocampus_004 .* has no label"):
        find_hippocampi(tmp_path)


def test_a_missing_folder_is_a_sentence(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "there is no folder" in told and "nowhere" in told and "--download" in told
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_a_sentence(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError, match="has 0 subjects"):
        find_hippocampi(tmp_path)


def test_nothing_is_downloaded_unasked_or_twice(data, tmp_path, monkeypatch):
    import monai.apps

    asked: list[Any] = []
    monkeypatch.setattr(monai.apps, "DecathlonDataset", lambda *args, **options: asked.append((args, options)))
    vtn.download(data)
    assert asked == []
    vtn.download(tmp_path / "new")
    (args, options), *more = asked
    assert args[1] == "Task04_Hippocampus" and options["download"] is True and not more


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--pairs", "0"], "--pairs 0"), (["--seeds", "1", "1"], "twice"), (["--set", "channels"], "KEY=VALUE")],
)
def test_bad_options_are_sentences(options, said, data, tmp_path, capsys):
    assert run(data, tmp_path / "out", *options) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_json_has_short_lists_on_one_line_and_keeps_its_content(tmp_path):
    made = {"a": [1, 2.5, None], "b": [[1, 2], [3]], "c": [{"d": []}], "e": ["x\n  y", "[z"], "f": "[\n 1\n]"}
    runs.write_json(tmp_path / "a.json", made)
    assert json.loads((tmp_path / "a.json").read_text()) == made
    assert ' "a": [1, 2.5, null],' in (tmp_path / "a.json").read_text().splitlines()


def test_paths_are_taken_literally():
    assert runs.literal("/a/b c") == "/a/b c" and runs.literal(3) == 3
    odd = "/data/@home#1/50%"
    assert eval(runs.literal(odd)[1:]) == odd and not set(runs.literal(odd)) & set("@%#")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """The configurations' ``initialize`` sets the excepthook, the script sets the threads."""
    hook, threads = sys.excepthook, torch.get_num_threads()
    yield
    sys.excepthook = hook
    torch.set_num_threads(threads)
