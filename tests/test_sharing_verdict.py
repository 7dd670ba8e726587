"""What MONAI answers about a bundle becomes a verdict: good answers pass, each bad one fails its check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sharing.verdict import RULES, ask_monai, judge
from sharing_case import configure, copy_bundle, replace


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path)


GOOD: dict[str, Any] = {
    "schema": True,
    "net_in_out": None,
    "properties": {"train": [], "inference": []},
    "workflows": {"train": []},
    "parameters": 6_388_941,
    "weights": {"mb": 12.8, "plain": True, "finite": True},
    "load": True,
    "trace": {"difference": 1e-6, "motion": 5.0},
    "script": False,
    "logging": None,
}


def judged(bundle: Path, **changes: Any) -> dict[str, list[str] | None]:
    found = judge(bundle, {key: {"answer": value} for key, value in (GOOD | changes).items()})
    return {name: sentences for name, sentences in found.items() if sentences != []}


def test_good_answers_pass(bundle):
    assert judged(bundle) == {}
    assert judged(bundle, schema=None) == {"verify_metadata": None}


@pytest.mark.parametrize(
    ("question", "answer", "sentence"),
    [
        ("properties", {"train": ["train::inferer"]}, "train lacks or misnames train::inferer"),
        ("workflows", {"train": ["device"]}, "train lacks or misnames device"),
        ("parameters", 12_345, "does not tell the 12,345 parameters"),
        ("weights", {"mb": 25.1, "plain": True, "finite": True}, "25.1 MB, more than 25"),
        ("weights", {"mb": 1.0, "plain": False, "finite": True}, "no plain dictionary"),
        ("weights", {"mb": 1.0, "plain": True, "finite": False}, "not finite"),
        ("load", False, "other weights"),
        ("trace", {"difference": 2e-4, "motion": 5.0}, "differs by 0.0002 voxels"),
        ("trace", {"difference": float("nan"), "motion": 5.0}, "differs by nan"),
        ("trace", {"difference": 0.0, "motion": 0.01}, "moves nothing"),
    ],
)
def test_bad_answer_fails_its_check_alone(bundle, question, answer, sentence):
    found = judged(bundle, **{question: answer})
    assert list(found) == [RULES[question][0]]
    assert sentence in found[RULES[question][0]][0]


def test_scripting_must_work_or_be_disclaimed(bundle):
    replace("docs/README.md", "--use_trace", "--no_trace")(bundle)
    assert "export by scripting fails" in judged(bundle)["ckpt_export, scripted"][0]
    assert judged(bundle, script=True) == {}


@pytest.mark.parametrize("question", RULES)
def test_fault_and_silence_fail(bundle, question):
    answers = {key: {"answer": value} for key, value in GOOD.items()}
    answers[question] = {"fault": "ValueError: a\n  b"}
    assert judge(bundle, answers)[RULES[question][0]] == ["ValueError: a b"]
    del answers[question]
    assert judge(bundle, answers)[RULES[question][0]] == ["was not answered"]


@pytest.mark.slow
def test_monai_notices_what_cannot_be_seen_in_files(bundle, tmp_path):
    """Weights that are none, an output of other channels, a property amiss: all at once."""
    configure("metadata", "network_data_format/outputs/pred/num_channels", 2)(bundle)
    configure("train", "train/inferer", None)(bundle)
    configure("train", "train/trainer/inferer", {"_target_": "SimpleInferer"})(bundle)
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["colour"]}')
    found = judge(bundle, ask_monai(bundle, schema))
    failed = {name: sentences[0] for name, sentences in found.items() if sentences}
    assert "'colour' is a required property" in failed["verify_metadata"]
    assert "channel" in failed["verify_net_in_out"]
    assert "train::inferer" in failed["properties"]
    assert {"weights", "load", "ckpt_export, traced"} <= failed.keys()
    assert found["size of the network"] == []
    assert found["logging"] == []


@pytest.mark.slow
def test_monai_notices_a_log_that_would_run_code(bundle):
    replace("configs/logging.conf", "(sys.stdout,)", "(__import__('os').system('true'),)")(bundle)
    found = judge(bundle, ask_monai(bundle))
    assert "refusing to apply logging config" in found["logging"][0]
    assert found["verify_net_in_out"] == []
