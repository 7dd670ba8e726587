"""register.py --replay of a series: the same bytes, or a sentence on what is not the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image as Picture
from script_tools import DONE, files_in
from test_register_series import command, place, script  # noqa: F401  fixtures
from test_series import picture

VOLATILE = ("run.json", "report.html")
pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file", "ignore:Not all config files"),
    pytest.mark.usefixtures("undo_config"),
]


@pytest.fixture
def mine(place: Path, script: ModuleType, tmp_path: Path) -> Path:  # noqa: F811
    """A cine, weights, and ``out``, its registration onto the frame that the program chose."""
    for name in ("cine.nii.gz", "model.pt"):
        shutil.copy(place / name, tmp_path)
    argv = [text for text in command(tmp_path, "out", "--uncertainty", "--no_report") if "fixed_frame" not in text]
    assert script.main([*argv, "--threads=1"]) in DONE
    return tmp_path


def bytes_of(folder: Path) -> dict[str, bytes]:
    names = [name for name in files_in(folder) if name not in VOLATILE and (folder / name).is_file()]
    return {name: (folder / name).read_bytes() for name in names}


def test_a_series_is_repeated_byte_by_byte(mine: Path, script: ModuleType, capsys) -> None:  # noqa: F811
    record = json.loads((mine / "out" / "transform.json").read_text())
    assert {"ddf/frame_0.nii.gz", "moved.nii.gz", "uncertainty_mm.nii.gz"} <= set(record["results"])
    assert str(mine) not in json.dumps(record)
    assert script.main([f"--replay={mine / 'out'}", f"--output_dir={mine / 'again'}", "--device=cpu"]) in DONE
    assert bytes_of(mine / "again") == bytes_of(mine / "out") and len(bytes_of(mine / "out")) > 10
    assert "the same bytes as" in capsys.readouterr().out


def test_a_series_that_changed_or_went_is_named(mine: Path, script: ModuleType, capsys) -> None:  # noqa: F811
    with (mine / "cine.nii.gz").open("ab") as stream:
        stream.write(b"more")
    assert script.main([f"--replay={mine / 'out'}"]) == 2
    assert f"series {mine / 'cine.nii.gz'} is not the file that" in capsys.readouterr().err
    (mine / "cine.nii.gz").unlink()
    assert script.main([f"--replay={mine / 'out'}"]) == 2
    assert "give its path with --series" in capsys.readouterr().err
    assert script.main([f"--replay={mine / 'out'}", "--fixed_frame=1"]) == 2
    assert "leave --fixed_frame out" in capsys.readouterr().err
    assert script.main([f"--replay={mine / 'out'}", "--fixed=a.nii.gz"]) == 2
    assert "took no file as --fixed" in capsys.readouterr().err


def test_a_folder_of_frames_counts_by_its_images(mine: Path, script: ModuleType, capsys) -> None:  # noqa: F811
    frames = mine / "frames"
    frames.mkdir()
    for k in range(3):
        Picture.fromarray((200 * picture(0.3 * k)).clip(0, 255).astype(np.uint8).T).save(frames / f"{k}.png")
    argv = command(mine, "flat", "--no_report", "--fixed_frame=-1", "--threads=1", series="frames")
    assert script.main(argv) in DONE
    elsewhere = Path(shutil.move(frames, mine / "moved_away"))
    (elsewhere / "notes.txt").write_text("no image")
    again = [f"--replay={mine / 'flat'}", f"--series={elsewhere}", f"--output_dir={mine / 'twice'}"]
    assert script.main(again) in DONE, "its name and what else lies in it do not count"
    Picture.fromarray((200 * picture(0.5)).clip(0, 255).astype(np.uint8).T).save(elsewhere / "1.png")
    assert script.main(again) == 2
    assert "moved_away is not the file that" in capsys.readouterr().err
