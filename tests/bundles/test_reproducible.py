"""The same input gives the same bytes: twice with one thread, and twice with two, for every bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import register
import torch
from bundle_tools import BUNDLES, dimensions, read_json, tiny, write_data
from monai.bundle import ConfigParser
from script_tools import DONE

VOLATILE = ("run.json", "report.html")  # hold seconds and memory
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("undo_config")]


def restless_weights(bundle: Path, path: Path) -> Path:
    """Weights of the tiny network that move something."""
    parser = ConfigParser(ConfigParser.load_config_file(str(bundle / "configs" / "inference.json")))
    parser.update({**tiny(bundle, "inference"), "bundle_root": str(bundle)})
    with register.bundle_code(bundle):
        network = parser.get_parsed_content("network_def")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.01 * torch.randn(value.shape, generator=generator)
    torch.save(network.state_dict(), path)
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in VOLATILE}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_two_runs_with_as_many_threads_give_the_same_bytes(
    bundle: Path, tmp_path: Path, set_threads: Callable[[int], None]
) -> None:
    (pair,) = read_json(write_data(tmp_path, dimensions(bundle)))["test"]
    weights = restless_weights(bundle, tmp_path / "weights.pt")
    options = [f"--set={key}={json.dumps(value).replace(' ', '')}" for key, value in tiny(bundle, "inference").items()]
    options += [f"--{role}={pair[role]}" for role in ("fixed", "moving", "fixed_label", "moving_label")]
    for name, threads in (("one", 1), ("one_again", 1), ("two", 2), ("two_again", 2)):
        more = [f"--weights={weights}", f"--output_dir={tmp_path / name}", f"--threads={threads}", "--device=cpu"]
        assert register.main([str(bundle), *options, *more, "--no_report"]) in DONE
        assert read_json(tmp_path / name / "run.json")["threads"] == threads
    one, two = bytes_of(tmp_path / "one"), bytes_of(tmp_path / "two")
    assert len(one) >= 6 and one == bytes_of(tmp_path / "one_again")
    assert two == bytes_of(tmp_path / "two_again")
    assert one["moved.nii.gz"] != Path(pair["moving"]).read_bytes()
