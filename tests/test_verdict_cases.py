"""The constructed cases: ways to spoil, halves, limits chosen on one, the table. No real data, no network."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from script_tools import BUNDLE, blob, load_script
from verdicts import cases, limits, spoil, table

from shared_components.geometry import Frame
from shared_components.images import Image
from shared_components.results import Registration
from shared_components.results.registration import describe_field
from shared_components.verdict import Limits

AFFINE = np.array([[0.0, 0, 2, 0], [-2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])  # array axes run along -A, S and R


def image(values: np.ndarray | None = None) -> Image:
    values = blob((12, 14, 16)) if values is None else values
    tensor = torch.from_numpy(values.astype(np.float32))[None]
    return Image(tensor, Frame(tensor.shape[1:], AFFINE), Path("made"), np.dtype("float32"))


def values(found: Image) -> np.ndarray:
    return found.array[0].numpy()


def test_a_flip_is_along_the_axis_of_the_body() -> None:
    ramp = image(np.arange(6.0).reshape(1, 2, 3))
    assert values(spoil.flip(ramp, 0)).ravel().tolist() == [2, 1, 0, 5, 4, 3], "left and right: the third array axis"
    assert values(spoil.flip(ramp, 2)).ravel().tolist() == [3, 4, 5, 0, 1, 2]


def test_half_of_the_content_goes_and_the_other_stays() -> None:
    whole = values(image())
    found = values(spoil.cut_half(image(), 1, upper=True))
    assert (found > 0).sum() == pytest.approx((whole > 0).sum() / 2, rel=0.05)
    np.testing.assert_array_equal(found[:, :7], whole[:, :7])


def test_saturation_clips_and_noise_drowns() -> None:
    whole = values(image())
    clipped = values(spoil.saturate(image(), 20))
    assert clipped.max() == pytest.approx(np.percentile(whole[whole > 0], 20), rel=1e-3)
    assert (clipped == clipped.max()).sum() == pytest.approx(0.8 * (whole > 0).sum(), rel=0.05)
    noisy = [values(spoil.drown(image(), 0.7, torch.Generator().manual_seed(seed))) for seed in (0, 0, 1)]
    assert np.corrcoef(noisy[0].ravel(), whole.ravel())[0, 1] < 0.8
    assert np.array_equal(noisy[0], noisy[1]) and not np.array_equal(noisy[0], noisy[2])


def test_a_turn_keeps_the_content_and_moves_it() -> None:
    found = values(spoil.turn(image(), 180, (0, 0, 1)))
    np.testing.assert_allclose(found, values(image())[::-1, :, ::-1], atol=1e-2)


def test_eighths_change_places() -> None:
    eight = [image(np.full((4, 4, 4), float(number))) for number in range(8)]
    found = values(spoil.shuffle_octants(eight, [*range(1, 8), 0]))
    assert found[0, 0, 0] == 7 and found[0, 0, 3] == 0 and found[3, 3, 3] == 6


def test_organs_are_filled_from_others() -> None:
    label = np.repeat([0, 1, 2], 4).reshape(12, 1, 1)
    grey = image(np.repeat([0.0, 10, 20], 4).reshape(12, 1, 1))
    other = image(np.repeat([0.0, 30, 40], 4).reshape(12, 1, 1))
    found = values(spoil.swap_organs(grey, label, other, label, [1, 2])).ravel()
    assert found.tolist() == [0] * 4 + [40] * 4 + [30] * 4


class Subjects:
    held_out, trained = [f"h{n}" for n in range(5)], [f"t{n}" for n in range(20)]

    def native(self) -> list[str]:
        return list("abcde")


def test_two_hundred_cases_in_two_halves_from_one_seed() -> None:
    found = cases.list_cases(Subjects())
    assert Counter((case.spoilt, case.half) for case in found) == Counter(
        {(spoilt, half): 50 for spoilt in (False, True) for half in (0, 1)}
    )
    assert len({case.name for case in found}) == 200
    halves = Counter((case.kind, case.half) for case in found)
    assert all(abs(halves[kind, 0] - halves[kind, 1]) <= 1 for kind, _ in halves), "every kind is in both"
    assert found == cases.list_cases(Subjects()) != cases.list_cases(Subjects(), seed=1)
    assert all(case.what["degrees"] >= 60 for case in found if case.kind.startswith("turned"))
    side = [case.what["side"] for case in found if case.spoilt]
    assert 35 <= side.count("fixed") <= 65, "either image may be spoilt"


def record(name: str, nmi: float, spoilt: bool, half: int = 0) -> dict:
    agreement = {key: {"initial": 0.0, "after": nmi} for key in limits.AGREEMENT}
    metrics = {"agreement": agreement}
    return {
        "name": name,
        "kind": "k" + str(spoilt),
        "spoilt": spoilt,
        "half": half,
        "metrics": metrics,
        "refused": None,
    }


def many() -> list[dict]:
    spread = [(0.5 + 0.01 * n, False) for n in range(10)] + [(0.1 + 0.02 * n, True) for n in range(10)]
    return [record(f"c{n}", value, spoilt, n % 2) for n, (value, spoilt) in enumerate(spread)]


def test_limits_lie_between_good_and_spoilt() -> None:
    check, failed = limits.choose_least(many(), "nmi")
    assert check == pytest.approx((0.28 + 0.5) / 2) and failed == pytest.approx(0.19)
    inputs = [{**one, "metrics": {**one["metrics"], "input": {"moving": {"size": n}}}} for n, one in enumerate(many())]
    chosen = limits.choose_limits(inputs, {"statistics": {"size": [0, 5]}})
    assert chosen["least_edges"] == [check, failed] and chosen["unlike"] == [1.0, None], "good ones go up to 9"
    swapped = [{**one, "spoilt": not one["spoilt"]} for one in many()]
    assert limits.choose_least(swapped, "nmi") is None, "a number that is high for spoilt pairs chooses nothing"


def test_the_table_tells_what_was_wrong_and_whether_it_was_enough() -> None:
    records = [*many(), {**record("no", 0, True, 1), "metrics": None, "refused": "empty"}, record("bad", 0.9, True, 1)]
    judged = table.judged(records, Limits.of({"least_nmi": [0.4, 0.2]}), None)
    assert {case["name"]: case["level"] for case in judged}["no"] == "failed"
    summary = table.summarise(judged, records)
    assert summary["halves"][0] == {"spoilt_flagged": 1, "good_not_flagged": 1}
    assert summary["halves"][1]["spoilt_flagged"] == pytest.approx(6 / 7)
    assert [case["name"] for case in summary["wrong"]] == ["bad"]
    text = table.to_markdown(summary, "command")
    assert "| **all spoilt** | 5 of 5 | 6 of 7 | 3 |" in text and "86% of the spoilt" in text and "not reached" in text
    assert "`bad` (spoilt), not flagged" in text


def test_the_table_goes_between_the_markers(tmp_path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    table.publish("new\n", page)
    assert page.read_text() == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        table.publish("new", page)


def test_the_field_is_judged_by_the_numbers_of_the_metrics(smooth_ddf) -> None:
    from verdicts.run import judged_field

    from shared_components.pairs.load import Pair

    fixed = image()
    pair = Pair({"fixed": fixed, "moving": fixed}, initial=np.eye(4), network=fixed.frame)
    result = Registration(pair, smooth_ddf((12, 14, 16), 3.0, dtype=torch.float32))
    whole, found = describe_field(result), judged_field(result)
    assert found["folds_percent"] == whole["folds_percent"]
    assert found["inverse_consistency_mm"] == whole["inverse_consistency_mm"]
    assert found["displacement_mm"]["max"] > 0


def test_without_data_there_is_a_sentence(tmp_path, capsys) -> None:
    script = load_script("verdict_cases")
    assert script.main(["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 2
    assert "holds too few brains" in capsys.readouterr().err


def test_the_published_table_is_of_the_shipped_limits() -> None:
    published = json.loads((BUNDLE.parents[1] / "docs" / "verdict.json").read_text())
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text())
    assert published["verdict"] == metadata["verdict"] and len(published["cases"]) == 200
    assert {"spacing_mm", "statistics"} <= metadata["trained_on"].keys()
