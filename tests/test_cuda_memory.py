"""A GPU without memory: half precision, then the CPU, and it is said. There is no GPU here: allocations are refused."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from script_tools import DONE, good_options, load_script, tiny_options, wrapped

from shared_components import engines
from shared_components.cuda_memory import fallback_facts, is_cuda_out_of_memory, rungs, with_less_memory

HALF, CPU = {"precision": "bfloat16"}, {"device#name": "cpu"}
OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
CONFIG = {"precision": "float32"}


def test_out_of_memory_is_known_however_it_is_wrapped() -> None:
    assert is_cuda_out_of_memory(wrapped(OUT))
    assert is_cuda_out_of_memory(wrapped(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")))
    assert not is_cuda_out_of_memory(wrapped(RuntimeError("size mismatch")))


def test_half_precision_is_tried_where_there_is_such_an_id() -> None:
    assert [changes for changes, _ in rungs(CONFIG)] == [HALF, CPU]
    assert [changes for changes, _ in rungs({"precision": "bfloat16"})] == [CPU]
    assert [changes for changes, _ in rungs({})] == [CPU]


@pytest.mark.parametrize(("failures", "tried"), [(0, [{}]), (1, [{}, HALF]), (2, [{}, HALF, CPU])])
def test_rungs_are_taken_one_by_one_and_told(failures: int, tried: list[dict], caplog) -> None:
    seen: list[dict[str, Any]] = []

    def run(changes: dict[str, Any]) -> dict[str, str]:
        seen.append(changes)
        if len(seen) <= failures:
            raise wrapped(OUT)
        return fallback_facts()

    with caplog.at_level(logging.WARNING):
        facts = with_less_memory(run, CONFIG)
    words = ["CUDA out of memory: features in half precision", "CUDA out of memory: registered on the CPU"]
    assert seen == tried and [record.getMessage() for record in caplog.records] == words[:failures]
    assert facts == ({"fallback": words[failures - 1]} if failures else {}) and fallback_facts() == {}


@pytest.mark.parametrize("error", [OUT, ValueError("another fault")])
def test_other_faults_and_the_last_one_are_raised(error: Exception) -> None:
    seen = []

    def run(changes: dict[str, Any]) -> None:
        seen.append(changes)
        raise error

    with pytest.raises(type(error)):
        with_less_memory(run, CONFIG)
    assert len(seen) == (3 if error is OUT else 1)


def refuse_above(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let convolutions fail whose features take more bytes than that, until a configuration asks for the CPU."""
    on_gpu, resolve, convolve = [True], engines.resolve_device, torch.nn.Conv3d.forward

    def resolved(name: str) -> torch.device:
        on_gpu[0] = name != "cpu"
        return resolve("cpu")

    def convolved(self: torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
        features = convolve(self, x)
        if on_gpu[0] and features.numel() * features.element_size() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return features

    monkeypatch.setattr(engines, "resolve_device", resolved)
    monkeypatch.setattr(torch.nn.Conv3d, "forward", convolved)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_register_falls_back_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    script, options = load_script("register"), good_options(tmp_path)
    named = [f"--{name}={value}" for name, value in options.items()]
    told, largest = {}, 0

    def features(self: torch.nn.Module, arguments: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(self, torch.nn.Conv3d):
            largest = max(largest, output.numel() * output.element_size())

    hook = torch.nn.modules.module.register_module_forward_hook(features)
    for name, share in (("plain", 9.0), ("half", 0.75), ("cpu", 0.1)):
        with monkeypatch.context() as patch:
            refuse_above(int(share * largest) if largest else 1 << 40, patch)
            arguments = ["vtn", *named, "--no_report", *tiny_options(), f"--output_dir={tmp_path / name}"]
            assert script.main([*arguments, "--device=auto"]) in DONE
        hook.remove()
        told[name] = json.loads((tmp_path / name / "run.json").read_text()).get("fallback")
    assert told == {
        "plain": None,
        "half": "CUDA out of memory: features in half precision",
        "cpu": "CUDA out of memory: registered on the CPU",
    }
    assert "CUDA out of memory: registered on the CPU" in caplog.text
    for file in ("ddf.nii.gz", "moved.nii.gz", "metrics.json"):
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "cpu" / file).read_bytes()
    assert (tmp_path / "plain" / "ddf.nii.gz").read_bytes() != (tmp_path / "half" / "ddf.nii.gz").read_bytes()
