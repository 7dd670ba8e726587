"""The verdict from numbers alone: each reason at its limit, the limits of a bundle, exit codes."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from shared_components.errors import InputError
from shared_components.verdict import Limits, collected, exit_code, judge, tell, worst

SIDE = {"spacing": [1.0, 1.0, 2.0], "size": 1000.0, "noise": 0.1}
GOOD: dict[str, Any] = {
    "field": {"displacement_mm": {"max": 9.0}, "folds_percent": 0.05, "inverse_consistency_mm": {"mean": 0.2}},
    "agreement": {name: {"initial": 0.4, "after": 0.8} for name in ("correlation", "nmi", "edges", "local", "overlap")},
    "coverage": {"fixed_outside_percent": 1.0, "moving_outside_percent": 2.0},
    "volume": {"affine": 1.1, "low": 0.3, "middle": 1.0, "high": 3.0},
    "expected_error_mm": {"mean": 2.0},
    "input": {"fixed": {**SIDE}, "moving": {**SIDE}},
}
LIMITS = Limits(least_nmi=(0.2, 0.1), least_edges=(0.5, 0.3))
TRAINED = {"spacing_mm": [0.5, 3.0], "statistics": {"size": [800.0, 1200.0], "noise": [0.05, 0.2]}}


def changed(*path: str, value: Any) -> dict[str, Any]:
    metrics = copy.deepcopy(GOOD)
    place = metrics
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return metrics


def test_a_good_registration_is_ok() -> None:
    assert judge(GOOD, LIMITS, TRAINED) == {"level": "ok", "reasons": []}


# path, value just within, value for check, value for failed (None: there is none), words of the sentence
CASES = [
    (("agreement", "correlation", "after"), 0.4, 0.39, 0.34, "not agree better .* correlation 0.3"),
    (("agreement", "nmi", "after"), 0.21, 0.19, 0.09, "agree little: normalised mutual information 0.[01]9"),
    (("agreement", "edges", "after"), 0.51, 0.49, 0.29, "agree little: agreement of edges 0.[24]9; less than 0.[35]"),
    (("field", "folds_percent"), 0.1, 0.11, 2.5, "(0.11|2.5) % of the content is folded; more than (0.1|2) %"),
    (("field", "inverse_consistency_mm", "mean"), 1.0, 1.01, 5.1, "through the inverse .* (1.01|5.1) mm"),
    (("coverage", "fixed_outside_percent"), 10.0, 10.5, 41.0, "of the fixed image's content lies outside the moving"),
    (("coverage", "moving_outside_percent"), 10.0, 10.5, 41.0, "of the moving image's content lies outside the fixed"),
    (("volume", "affine"), 2.0, 2.1, 4.1, "affine stage changes volumes by a factor of (2.1|4.1); more than [24]"),
    (("volume", "affine"), 0.5, 0.45, 0.2, "affine stage changes volumes by a factor of 0.(45|2); more than [24]"),
    (("volume", "low"), 0.1, 0.09, 0.01, "a hundredth of the content is stretched by a factor of (11.1|100)"),
    (("volume", "high"), 10.0, 11.0, 51.0, "a hundredth of the content is shrunk by a factor of (11|51)"),
    (("expected_error_mm", "mean"), 5.0, 5.1, 15.1, "the expected error is (5.1|15.1) mm"),
    (("input", "fixed", "size"), 1400.0, 1401.0, None, "fixed image is unlike .* size .* 1401 ml, theirs 800 to 1200"),
    (("input", "moving", "size"), 600.0, 599.0, None, "the moving image is unlike .* size .* 599 ml"),
    (("input", "moving", "noise"), 0.27, 0.28, None, "the moving image is unlike .* noise is 0.28, theirs 0.05 to 0.2"),
    (("input", "fixed", "spacing"), [0.5, 3.0], [3.1, 1.0], None, "the fixed image has voxels of 3.1 mm"),
]


@pytest.mark.parametrize(("path", "within", "check", "failed", "words"), CASES)
def test_each_reason_has_its_limits_and_its_sentence(path, within, check, failed, words) -> None:
    assert judge(changed(*path, value=within), LIMITS, TRAINED)["level"] == "ok"
    for level, value in (("check", check), ("failed", failed)):
        if value is None:
            continue
        verdict = judge(changed(*path, value=value), LIMITS, TRAINED)
        assert verdict["level"] == level
        (sentence,) = verdict["reasons"]
        assert re.search(words, sentence), sentence


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("field", "displacement_mm", "max"), None, "not finite"),
        (("volume", "affine"), -1.0, "mirrors the image"),
        (("volume", "low"), -0.2, "stretched beyond folding"),
    ],
)
def test_what_cannot_be_has_failed(path, value, words) -> None:
    verdict = judge(changed(*path, value=value), LIMITS, TRAINED)
    assert verdict["level"] == "failed" and words in verdict["reasons"][0]


def test_an_image_that_is_unlike_in_many_ways_gets_one_sentence() -> None:
    metrics = changed("input", "fixed", "size", value=5000.0)
    metrics["input"]["fixed"]["noise"] = 0.5
    (sentence,) = judge(metrics, LIMITS, TRAINED)["reasons"]
    assert "size of its content is 5000 ml" in sentence and sentence.endswith("1200 ml, and 1 more of its numbers")


def test_slices_have_areas_and_no_feet() -> None:
    numbers = {"spacing": [1.0, 1.0], "size": 50.0, "spread_1": 30.0}
    for name, ranges, words in (
        ("size", [100, 110], "the size of its content is 50 cm², theirs 100 to 110 cm²"),
        ("spread_1", [60, 65], "the extent of its content along y is 30 mm, theirs 60 to 65 mm"),
    ):
        (sentence,) = judge({"input": {"moving": numbers}}, LIMITS, {"statistics": {name: ranges}})["reasons"]
        assert sentence.endswith(words)


def test_what_is_not_there_is_not_judged() -> None:
    assert judge({}) == {"level": "ok", "reasons": []}
    assert judge(changed("input", "fixed", "size", value=1e9), LIMITS)["level"] == "ok", "nothing known of training"
    assert judge(changed("volume", "affine", value=None), LIMITS)["level"] == "ok", "no affine stage"


def test_images_that_agree_from_the_start_cannot_get_better() -> None:
    nearly = {"initial": 0.995, "after": 0.99}
    assert judge({**GOOD, "agreement": {"correlation": nearly}})["level"] == "ok"
    assert judge({**GOOD, "agreement": {"correlation": {"initial": 0.95, "after": 0.948}}})["level"] == "check"


def test_the_similarity_that_counts_can_be_another_one() -> None:
    metrics = changed("agreement", "correlation", "after", value=-0.5)
    assert judge(metrics)["level"] == "failed" and judge(metrics, Limits(similarity="nmi"))["level"] == "ok"


def test_the_worst_comes_first() -> None:
    metrics = changed("field", "folds_percent", value=0.2)
    metrics["volume"]["affine"] = 5.0
    verdict = judge(metrics)
    assert verdict["level"] == "failed" and len(verdict["reasons"]) == 2 and "affine" in verdict["reasons"][0]


def test_a_bundle_replaces_limits_by_name() -> None:
    limits = Limits.of({"folds_percent": [0.5, None], "least_nmi": 0.3, "similarity": "edges"})
    assert limits == Limits(folds_percent=(0.5, None), least_nmi=(0.3, None), similarity="edges")
    assert Limits.of(None) == Limits()
    assert judge(changed("field", "folds_percent", value=50.0), limits)["level"] == "check"


@pytest.mark.parametrize("changes", [{"fold_percent": 1}, {"folds_percent": "1"}, {"unlike": [1]}, {"similarity": "x"}])
def test_limits_that_there_are_not_are_a_sentence(changes) -> None:
    with pytest.raises(InputError, match="metadata.json has"):
        Limits.of(changes)


def test_the_worst_level_is_the_exit_code() -> None:
    assert [exit_code([level]) for level in ("ok", "check", "failed")] == [0, 3, 4]
    with collected() as levels:
        tell("check")
        with collected() as inner:
            tell("failed")
        tell("ok")
    tell("failed")
    assert levels == ["check", "ok"] and inner == ["failed"]
    assert exit_code(levels) == 3 and worst([]) == "ok"
