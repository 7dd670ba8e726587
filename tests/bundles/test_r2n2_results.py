"""The result of R2N2 as numbers: what transform.json keeps gives the same field again, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sharing.tiny import write_subject

from shared_components.geometry import Frame
from shared_components.itk_io import read_transform
from shared_components.pairs import make_preprocessing, single_collate
from shared_components.results import SaveRegistration
from shared_components.transform import carry

SIZE = (24, 32)


@pytest.fixture(scope="module")
def load(bundle_module: Callable[[str, str], ModuleType]) -> Callable[[str], ModuleType]:
    return lambda name: bundle_module("r2n2_registration", name)


@pytest.fixture(scope="module")
def network(load: Callable[[str], ModuleType]) -> torch.nn.Module:
    torch.manual_seed(0)
    net = load("network").R2N2(channels=4, steps=5, blocks=1).eval()
    for value in net.shape_net.last.parameters():
        torch.nn.init.normal_(value, 0, 0.05)
    return net


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    files = [write_subject(tmp_path, name, 2, generator)["image"] for name in ("a", "b")]
    preprocessing = make_preprocessing(SIZE, 2.0, initial_transform="header", center="grid")
    return single_collate([preprocessing({"fixed": files[0], "moving": files[1]})])


def predict(load: Callable[[str], ModuleType], network: torch.nn.Module, data: dict, stage: Any = "final") -> dict:
    inferer = load("results").BumpInferer(stage)
    with torch.no_grad():
        return {**data, "pred": inferer(data["image"], network)}


def test_the_field_of_the_bumps_is_that_of_the_network(load: Callable[[str], ModuleType], network, data) -> None:
    with torch.no_grad():
        wanted = network(data["image"])
    found = load("results").FieldOfBumps(network)(predict(load, network, data))
    assert torch.equal(found["pred"], wanted) and float(wanted.abs().max()) > 0.2
    assert predict(load, network, data)["pred"].shape == (1, 5, 7 + 3)


def test_written_numbers_give_the_written_field_bit_for_bit(
    load: Callable[[str], ModuleType], network: torch.nn.Module, data: dict, tmp_path: Path
) -> None:
    found = load("results").FieldOfBumps(network)(predict(load, network, data))
    SaveRegistration(str(tmp_path / "out"), report=False)(found)
    kept = json.loads((tmp_path / "out" / "transform.json").read_text())
    bumps = kept["bumps"]
    assert np.shape(bumps["parameters"]) == (5, 7) == (5, len(bumps["names"])) and bumps["shape"] == list(SIZE)
    assert np.shape(bumps["certainty"]) == (5, 3) and bumps["composition"] == "add"
    field = load("results").rebuild(bumps)
    assert torch.equal(field, found["pred"])
    frames = [
        Frame(tuple(kept[key]["shape"]), np.array(kept[key]["affine_ras_mm"])) for key in ("network_frame", "fixed")
    ]
    carried = carry(field, *frames, after=np.array(kept["initial_world_ras_mm"]))
    written = read_transform(tmp_path / "out" / "ddf.nii.gz", "field", 2)
    np.testing.assert_array_equal(carried.ddf_mm, written.ddf_mm)
    assert np.abs(written.ddf_mm).max() > 0.2


@pytest.mark.parametrize(("stage", "steps"), [("final", 5), ("identity", 0), (0, 1), (2, 3), (7, 8)])
def test_stages(load: Callable[[str], ModuleType], network, data, stage: str | int, steps: int) -> None:
    found = load("results").FieldOfBumps(network)(predict(load, network, data, stage))
    assert len(found["record"]["bumps"]["parameters"]) == steps
    assert bool(found["pred"].any()) == (steps > 0) and found["pred"].shape == (1, 2, *SIZE)


def test_predictions_without_a_batch_axis(load: Callable[[str], ModuleType], network, data) -> None:
    """As MONAI Label hands them over."""
    whole = predict(load, network, data)
    one = {**whole, "image": data["image"][0], "pred": whole["pred"][0]}
    make = load("results").FieldOfBumps(network)
    assert torch.equal(make(one)["pred"], make(whole)["pred"][0])
    assert make(one)["record"] == make(whole)["record"]


@pytest.mark.parametrize("options", [{"variance": True}, {"composition": "compose"}, {"ndim": 3}], ids=str)
def test_every_kind_of_bump_is_kept(load: Callable[[str], ModuleType], options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    net = load("network").R2N2(channels=4, steps=3, blocks=1, **options).eval()
    torch.nn.init.normal_(net.shape_net.last.bias, 0, 0.1)
    data = {"image": torch.rand(1, 2, *(16, 18, 12)[: net.ndim])}
    found = load("results").FieldOfBumps(net)(predict(load, net, data))
    with torch.no_grad():
        assert torch.equal(
            load("results").rebuild(json.loads(json.dumps(found["record"]["bumps"]))), net(data["image"])
        )
