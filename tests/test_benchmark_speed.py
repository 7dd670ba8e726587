"""The speed and memory benchmarks: fair timing, counted operations, memory of single processes, tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarking import blocks, machine, memory, networks, speed, tables
from benchmarking.child import run_child
from benchmarking.timing import Timing, interleave, ratio
from script_tools import BUNDLE, TINY, blob, make_weights, save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shared_components.errors import InputError

CPU = torch.device("cpu")


class FakeClock:
    """Time that passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: Iterator[float]) -> Callable[[], None]:
        def part() -> None:
            self.now += next(seconds)

        return part


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    """A folder like the VTN bundle whose configurations build a tiny network."""
    root = tmp_path / "tiny_registration"
    (root / "configs").mkdir(parents=True)
    (root / "scripts").symlink_to(BUNDLE / "scripts")
    for name in ("inference", "train", "metadata"):
        config = json.loads((BUNDLE / "configs" / f"{name}.json").read_text())
        if "size" in config:
            config |= TINY
        if "loss" in config:
            config["loss"] |= {"weights": [1.0, 1.0]}
            config["precision"] = "float32"  # torch's bfloat16 gradients are wrong on the 2^3 grid where this one ends
        (root / "configs" / f"{name}.json").write_text(json.dumps(config))
    (root / "models").mkdir()
    make_weights(root / "models" / "model.pt")
    return root


def images(folder: Path) -> tuple[str, str]:
    """Write a small pair."""
    made = {name: blob((12, 13, 14), move).astype("float32") for name, move in (("fixed", 0.0), ("moving", 0.7))}
    fixed, moving = (save(folder / f"{name}.nii.gz", array) for name, array in made.items())
    return fixed, moving


@pytest.fixture(scope="module")
def network() -> ModuleType:
    with networks.bundle_code(BUNDLE):
        return networks.pydoc.locate("scripts.network")


def test_parts_take_turns_and_the_median_counts() -> None:
    clock, order = FakeClock(), []
    spend = {"a": clock.spend(iter([9.0, 1.0, 2.0, 30.0])), "b": clock.spend(iter([9.0, 4.0, 4.0, 60.0]))}
    parts = {name: lambda name=name: (order.append(name), spend[name]()) for name in "ab"}
    found = interleave(parts, repeats=3, warm_up=1, clock=clock)
    assert "".join(order) == "abababab"
    assert found["a"].samples == (1.0, 2.0, 30.0) and found["b"].samples == (4.0, 4.0, 60.0)
    assert found["a"].facts() == {"seconds": 2.0, "low": 1.0, "high": 30.0, "rounds": 3}
    assert ratio(found["b"], found["a"]) == {"ratio": 2.0, "low": 2.0, "high": 4.0}


def test_no_rounds_and_unequal_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        interleave({"a": lambda: None}, repeats=0)
    with pytest.raises(ValueError, match="one interleave"):
        ratio(Timing((1.0,)), Timing((1.0, 2.0)))


def test_operations_of_known_layers() -> None:
    layers = nn.Sequential(
        nn.Conv3d(2, 5, 3, padding=1), nn.ConvTranspose3d(5, 3, 4, 2, 1), nn.Flatten(), nn.LazyLinear(7)
    )
    image = torch.rand(2, 2, 4, 5, 6)
    layers(image)
    counted = networks.flops(layers, image)
    voxels = 2 * 4 * 5 * 6
    assert counted["0"] == 2 * voxels * 27 * 2 * 5
    assert counted["1"] == 2 * voxels * 64 * 5 * 3
    assert counted["3"] == 2 * 2 * (3 * 8 * voxels // 2) * 7
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layers(image)
    assert sum(counted.values()) == counter.get_total_flops()


def test_the_paper_is_53_gflop(network: ModuleType) -> None:
    """Counted without computing: meta tensors have shapes only."""
    with torch.device("meta"):
        made, image = network.VTN(), torch.empty(1, 2, 128, 128, 128)
    counted = [sum(networks.flops(part, image).values()) for part in networks.stages(made).values()]
    assert len(counted) == 4 and sum(counted) == pytest.approx(52.932e9, rel=1e-4)


def test_rates_are_work_over_time() -> None:
    assert machine.Probe(lambda: None, 6e9).rate(Timing((1.0, 2.0, 100.0))) == 3.0
    assert machine.matmul_probe(8, CPU).amount == 2 * 8**3
    assert machine.convolution_probe(4, CPU, channels=2).amount == 2 * 27 * 2 * 2 * 4**3
    assert {name: probe.amount for name, probe in machine.memory_probes(2, CPU).items()} == {"copy": 4e6, "add": 6e6}
    found = machine.limits(CPU, 2, (16, 32), 8, 1)
    assert found["matmul_size"] in (16, 32) and all(value > 0 for value in found.values())


def test_facts_of_the_machine(set_threads: Callable[[int], None]) -> None:
    set_threads(1)
    found = machine.facts(CPU)
    assert found["threads"] == 1 and found["cores"] >= 1 and found["memory_gb"] > 0.5 and found["cpu"]
    assert machine.versions()["torch"] == torch.__version__


def test_the_shipped_network_has_its_weights_and_the_papers_moves_things(tiny_bundle: Path) -> None:
    network, image = networks.shipped_network(tiny_bundle, CPU)
    state = torch.load(tiny_bundle / "models" / "model.pt", weights_only=True)
    assert image.shape == (1, 2, 16, 16, 16) and all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    larger, image = networks.shipped_network(tiny_bundle, CPU, (24, 16, 20))
    assert image.shape == (1, 2, 24, 16, 20) and larger(image).shape == (1, 3, 24, 16, 20)
    assert list(networks.stages(network)) == ["affine", "dense.0"]


def test_stages_and_the_rest_add_up_to_the_whole() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Identity(), nn.Identity()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts[1](self.parts[0](self.parts[0](x)))

    network = Twice()
    found = networks.time_stages(network, torch.rand(1, 2, 4, 4, 4), 2)
    assert list(found) == ["parts.0", "parts.1", "between the stages"]
    assert all(len(timing.samples) == 2 and min(timing.samples) > 0 for timing in found.values())
    assert not network.parts[0]._forward_hooks and not network.parts[0]._forward_pre_hooks


def test_rows_of_a_network(tiny_bundle: Path) -> None:
    whole, *parts = speed.network_rows("shipped", tiny_bundle, CPU, 2, 32)
    assert whole["name"] == "AD, 16 x 16 x 16" and whole["rounds"] == 2 and "target" not in whole
    assert whole["times_limit"] > 0
    assert [row["name"] for row in parts] == ["- affine", "- dense.0", "- between the stages"]
    assert sum(row["gflop"] or 0 for row in parts) == pytest.approx(whole["gflop"], abs=2e-3)


def test_targets_are_judged(tmp_path: Path) -> None:
    root = tmp_path / "vtn_registration"
    row = {"seconds": 1.6, "times_limit": 2.4}
    assert speed._judge(root, "paper", CPU, row) == {"target": "2.5 times the limit", "met": True}
    assert speed._judge(root, "shipped", CPU, row) == {"target": "1.5 s", "met": False}
    assert speed._judge(root, "paper", torch.device("cuda"), row) == {"target": "0.03 s", "met": False}
    assert speed._judge(tmp_path / "other", "shipped", CPU, row) == {}


def test_blocks_compute_what_monai_computes() -> None:
    rows = blocks.block_rows(CPU, 1, sizes=(12, 24), window=5)
    mk = "mk-LNCC, 24³; MONAI's local correlation in windows of"
    assert [row["name"] for row in rows] == [
        f"{name}, {how}"
        for name in ("warp, 12³", "warp, 24³", "local correlation, 24³, window 5³", f"{mk} 5³", f"{mk} 13³")
        for how in ("forward", "with gradient")
    ]
    assert all(row["speed_up"] > 0 and row["monai_seconds"] > 0 for row in rows)
    limits = (1e-5, 1e-5, 1e-3)
    assert all(row["difference"] < limit for row, limit in zip(rows[:6:2], limits, strict=True))
    assert not any("difference" in row for row in rows[6:])  # two different losses


def test_between_the_stages_is_judged_as_a_share(tmp_path: Path) -> None:
    judge, root = speed._judge_rest, tmp_path / "avsm_registration"
    whole = {"seconds": 10.0}
    assert judge(root, "paper", {"seconds": 1.9}, whole) == {"share": 0.19, "target": "20% of the whole", "met": True}
    assert judge(root, "paper", {"seconds": 2.1}, whole)["met"] is False
    assert judge(root, "shipped", {"seconds": 2.1}, whole) == {}


def test_parts_of_memory_follow_the_network() -> None:
    assert "recompute" in networks.knobs(BUNDLE.parent / "avsm_registration")
    assert "recompute" not in networks.knobs(BUNDLE.parent / "suits_registration")
    assert [spec["recompute"] for _, spec in memory._parts("training", (), ["recompute"])] == [True, False]
    assert memory._parts("training", (), [])[0][1] == {"part": "training"}
    assert [spec["window"] for _, spec in memory._parts("similarity", (), [])] == [0, 9, 63]


def test_result_file_and_tables(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(machine, "limits", lambda *args: {
        "matmul_gflops": 100.0, "matmul_size": 32, "convolution_gflops": 150.0, "memory_gb_s": 10.0,
    })  # fmt: skip
    path = tmp_path / "out" / "speed.json"
    result = speed.speed(str(tiny_bundle), "cpu", json=str(path), only="shipped", repeats=1)
    assert json.loads(path.read_text()) == result
    assert list(result) == ["command", "versions", "machine", "rows"]
    assert result["command"] == (
        f"python scripts/benchmark.py speed --bundle {tiny_bundle} --device cpu --only shipped --repeats 1"
    )
    assert {"group", "name", "seconds", "low", "high", "rounds", "gflop"} <= set(result["rows"][0])
    assert "AD, 16 x 16 x 16" in capsys.readouterr().out
    page = speed.to_markdown(result)
    assert result["command"] in page and "matrix product 100.0 GFLOP/s" in page and torch.__version__ in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(result["rows"]) and len({line.count("|") for line in table}) == 1


def test_empty_columns_are_left_out() -> None:
    rows = [{"name": "a", "x": 1.234, "met": True}, {"name": "b|c", "met": False}]
    table = tables.cells(rows, {"name": ("", ""), "x": ("X", ".1f"), "y": ("Y", ".1f"), "met": ("met", "")})
    assert table == [["", "X", "met"], ["a", "1.2", "yes"], ["b|c", "", "no"]]
    assert tables.markdown(table).splitlines() == [
        "|  | X | met |",
        "|---|---:|---:|",
        "| a | 1.2 | yes |",
        "| b\\|c |  | no |",
    ]


@pytest.mark.parametrize("function", [speed.speed, memory.memory])
def test_faults_of_the_user_are_sentences(function: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="--only nonsense is not known; give some of"):
        function("vtn", "cpu", only="nonsense")
    with pytest.raises(InputError, match="both --fixed and --moving"):
        function("vtn", "cpu", fixed="a.nii.gz")
    with pytest.raises(InputError, match="there is no bundle"):
        function("nobody", "cpu")


def allocating(megabytes: int) -> list[str]:
    return [sys.executable, "-S", "-c", f"x = bytearray({megabytes * 10**6}); x[::4096] = b'1' * len(x[::4096])"]


def test_memory_of_a_process_is_its_own() -> None:
    """200 MB are seen, and neither the 600 MB of the process that measures nor those of the child before."""
    ballast = bytearray(600 * 10**6)
    ballast[::4096] = b"1" * len(ballast[::4096])
    peaks = {size: run_child(allocating(size))[0]["peak_gb"] * 2**30 / 1e6 for size in (400, 200, 0)}
    assert peaks[200] - peaks[0] == pytest.approx(200, rel=0.15)
    assert peaks[400] - peaks[0] == pytest.approx(400, rel=0.15)
    assert peaks[0] < 60


def test_a_failing_part_is_a_sentence() -> None:
    with pytest.raises(RuntimeError, match="ValueError: too much"):
        run_child([sys.executable, "-S", "-c", "raise ValueError('too much')"])


def test_a_training_step_follows_train_json(tiny_bundle: Path, monkeypatch: Any) -> None:
    seen: list[torch.Tensor] = []

    def step(self: torch.optim.Adam) -> None:
        seen.extend(weight.grad for group in self.param_groups for weight in group["params"])

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    memory.training_step(tiny_bundle, CPU)
    weights = len(list(networks.shipped_network(tiny_bundle, CPU)[0].parameters()))
    assert len(seen) == 2 * weights and all(grad.isfinite().all() for grad in seen)
    assert sum(bool(grad.any()) for grad in seen) >= 6  # the last layers, which start at zero


@pytest.mark.slow
def test_memory_of_every_part(tiny_bundle: Path, tmp_path: Path) -> None:
    fixed, moving = images(tmp_path)
    path = tmp_path / "memory.json"
    result = memory.memory(str(tiny_bundle), "cpu", 1, str(path), sizes=[(32, 32, 32)], fixed=fixed, moving=moving,
                           only="process,command,network,training")  # fmt: skip
    assert json.loads(path.read_text()) == result
    groups = [row["group"] for row in result["rows"]]
    assert groups == ["process"] + ["command"] * 3 + ["network"] * 3 + ["training"]
    paper = next(row for row in result["rows"] if row["name"].startswith("paper"))
    assert all(paper["peak_gb"] >= row["peak_gb"] >= 0.1 for row in result["rows"])  # 354 MB of weights, 128^3
    assert len([line for line in memory.to_markdown(result).splitlines() if line.startswith("| ")]) == 8 + 4


@pytest.mark.slow
def test_the_command_is_timed(tiny_bundle: Path, tmp_path: Path) -> None:
    fixed, moving = images(tmp_path)
    rows = speed.command_rows(tiny_bundle, CPU, 0, (fixed, moving), 1)
    assert [row["name"] for row in rows] == ["refine 0, with report", "refine 0, without report"]
    assert all(0 < row["inside"] < row["seconds"] for row in rows)
    with pytest.raises(InputError, match="registration to be timed failed: error: "):
        speed.register(tiny_bundle, (fixed, "missing.nii.gz"), tmp_path / "out", CPU, 0, False)
