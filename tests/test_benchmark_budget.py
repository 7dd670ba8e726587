"""The table of seconds and memory by size: which commands it runs, and what it makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from benchmarking import budget, results

from shared_components.errors import InputError

SENTENCE = "error: max_memory_gb 0.001 is too little to register ...: at least 0.70 GB are needed; give that much"


class Commands:
    """Stands for the processes; keeps what they were asked."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, command: list[str], allowed: tuple[int, ...] = (0,)) -> tuple[dict[str, float], str]:
        words = command[2:]
        options = dict(zip(words[1::2], words[2::2], strict=True))
        self.seen.append(words)
        asked = float(options.get("--max_memory_gb", "inf"))
        if asked < 0.7:
            raise RuntimeError(SENTENCE)
        output = Path(options["--output_dir"])
        output.mkdir(parents=True)
        (output / "run.json").write_text(json.dumps({"seconds": 1.5}))
        (output / "ddf.nii.gz").write_bytes(nib.load(options["--fixed"]).get_fdata().tobytes())
        return {"command_seconds": 4.0, "peak_gb": 0.9 if asked > 1 else 0.68}, ""


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(budget, "run_child", found)
    return found


def test_each_bundle_takes_the_sizes_of_its_dimension(commands: Commands, tmp_path: Path, capsys) -> None:
    file, sizes = tmp_path / "budget.json", [(12, 10, 8), (14, 14)]
    names = "r2n2,meta_affine+inference_3d"
    found = budget.budget(names, device="cpu", threads=1, json=str(file), sizes=sizes)
    assert json.loads(file.read_text()) == json.loads(json.dumps(found))
    assert [(row["name"], row["size"]) for row in found["rows"]] == [
        ("r2n2", "14 x 14"),
        ("meta_affine+inference_3d", "12 x 10 x 8"),
    ]
    for row in found["rows"]:
        measured = {"seconds": 4.0, "inside": 1.5, "peak_gb": 0.9, "least_gb": 0.7, "least_peak_gb": 0.68, "same": True}
        assert measured.items() <= row.items()
    assert "--bundles r2n2,meta_affine+inference_3d" in found["command"] and "--threads 1" in found["command"]
    assert len(commands.seen) == 6 and commands.seen[3][1:3] == ["--config", "inference_3d"]
    assert "0.68" in capsys.readouterr().out
    text = results.page([file])
    assert "## Seconds and memory by size (budget)" in text and "| r2n2 | 14 x 14 | 4.0 | 1.5 | 0.90 | 0.70 |" in text


def test_a_stopped_run_goes_on_where_it_was(commands: Commands, tmp_path: Path, monkeypatch) -> None:
    file, sizes = tmp_path / "budget.json", [(12, 12), (14, 14)]
    asked = {"device": "cpu", "threads": 1, "json": str(file), "sizes": sizes}

    def stopped(name: str, **options: object) -> None:
        def stop(command: list[str], folder: Path, least: bool) -> dict:
            if "14 x 14" in str(folder):
                raise RuntimeError("stopped")
            return measured(command, folder, least)

        measured = budget._measured
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
            patch.setattr(budget, "_measured", stop)
            budget.budget(name, **options)

    stopped("r2n2", **asked)
    assert len(json.loads(file.read_text())["rows"]) == 1 and len(commands.seen) == 3
    found = budget.budget("r2n2", **asked)
    assert [row["size"] for row in found["rows"]] == ["12 x 12", "14 x 14"] and len(commands.seen) == 6
    assert "unfinished" not in json.loads(file.read_text())
    budget.budget("r2n2", **asked)
    assert len(commands.seen) == 12, "what was finished begins anew"
    stopped("r2n2", **asked)
    budget.budget("r2n2", **asked | {"refine_steps": 1})
    assert len(commands.seen) == 12 + 3 + 6, "and so does another command"


def test_without_the_least_a_command_runs_once(commands: Commands) -> None:
    (row,) = budget.budget("r2n2", device="cpu", threads=1, sizes=[(12, 12)], least=False)["rows"]
    assert len(commands.seen) == 1 and "least_gb" not in row


def test_unknown_bundles_are_a_sentence() -> None:
    with pytest.raises(InputError, match="there is no bundle 'none'"):
        budget.budget("none")


@pytest.mark.parametrize("shape", [(20, 24, 16), (20, 24)])
def test_the_pair_has_the_size_asked_for_and_differs(tmp_path: Path, shape: tuple[int, ...]) -> None:
    fixed, moving = (nib.load(path) for path in budget.make_pair(tmp_path / "a", shape)[1::2])
    again, _ = (nib.load(path) for path in budget.make_pair(tmp_path / "b", shape)[1::2])
    assert fixed.shape[: len(shape)] == shape and fixed.get_data_dtype() == np.int16
    assert np.allclose(fixed.header.get_zooms()[: len(shape)], 190 / max(shape))
    values = fixed.get_fdata()
    assert (values == again.get_fdata()).all() and np.abs(values - moving.get_fdata()).mean() > 20 and values.min() == 0
