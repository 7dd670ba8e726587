"""The constructed cases: ways to spoil, halves, limits chosen on one, the table. No real data, no network."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from script_tools import ROOT, load_script
from verdict_case import flat_image, image, values
from verdicts import limits, spoil, table

from shared_components.results import Registration
from shared_components.results.registration import describe_field
from shared_components.verdict import Limits


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
    slice_ = values(image())[6]
    turned = values(spoil.turn(flat_image(slice_), 180, (1, 2, 3)))
    np.testing.assert_allclose(turned, slice_[::-1, ::-1], atol=1e-2)


def test_eighths_change_places() -> None:
    eight = [image(np.full((4, 4, 4), float(number))) for number in range(8)]
    found = values(spoil.shuffle_parts(eight, [*range(1, 8), 0]))
    assert found[0, 0, 0] == 7 and found[0, 0, 3] == 0 and found[3, 3, 3] == 6
    four = [flat_image(np.full((4, 4), float(number))) for number in range(4)]
    found = values(spoil.shuffle_parts(four, [1, 2, 3, 0]))
    assert found[0, 0] == 3 and found[0, 3] == 0 and found[3, 0] == 1
    order = spoil.derangement(8, np.random.default_rng(0))
    assert sorted(order) == list(range(8)) and all(k != place for k, place in enumerate(order))


def test_organs_are_filled_from_others() -> None:
    label = np.repeat([0, 1, 2], 4).reshape(12, 1, 1)
    grey = image(np.repeat([0.0, 10, 20], 4).reshape(12, 1, 1))
    other = image(np.repeat([0.0, 30, 40], 4).reshape(12, 1, 1))
    found = values(spoil.swap_organs(grey, label, other, label, [1, 2])).ravel()
    assert found.tolist() == [0] * 4 + [40] * 4 + [30] * 4


def record(name: str, nmi: float, spoilt: bool, half: int = 0) -> dict:
    agreement = {key: {"initial": 0.0, "after": nmi} for key in limits.AGREEMENT}
    metrics = {"agreement": agreement, "coverage": {"fixed_outside_percent": 10 * nmi, "moving_outside_percent": 0.0}}
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
    check, failed, gain = limits.choose_least(many(), "nmi")
    assert gain == 1 and check == pytest.approx((0.28 + 0.5) / 2) and failed == pytest.approx(0.19)
    sizes = [0 if one["spoilt"] else n for n, one in enumerate(many())]
    views = [{"moving": {"size": size}} for size in sizes]
    inputs = [{**one, "metrics": {**one["metrics"], "input": view}} for one, view in zip(many(), views, strict=True)]
    chosen = limits.choose_limits(inputs, {"statistics": {"size": [0, 5]}})
    assert chosen["least_correlation"] == [check, failed] and chosen["unlike"] == [1.0, None], "good ones go up to 9"
    others = [pair for name, pair in chosen.items() if name.startswith("least") and name != "least_correlation"]
    assert others == [[None, pytest.approx(0.19)]] * 4, "they add nothing, but what is worst has failed"
    assert chosen["outside_percent"] == [10.0, 40.0], "good ones lose less"
    assert limits.choose_outside([record("c", 2.1, False)]) == [25.0, 40.0]
    assert limits.choose_outside([record("c", 4.1, False), record("d", 9.0, True)]) == [45.0, None]
    swapped = [{**one, "spoilt": not one["spoilt"]} for one in many()]
    assert limits.choose_least(swapped, "nmi") is None, "a number that is high for spoilt pairs chooses nothing"


def test_two_kinds_of_images_are_not_judged_by_their_correlation() -> None:
    inputs = [{**one, "metrics": {**one["metrics"], "input": {"moving": {"size": 1}}}} for one in many()]
    before = {"similarity": "nmi", "least_local": [0.9, 0.8], "folds_percent": [0.5, 1.0]}
    chosen = limits.choose_limits(inputs, {"statistics": {"size": [0, 5]}}, before)
    assert chosen["folds_percent"] == [0.5, 1.0] and chosen["similarity"] == "nmi"
    assert {"least_nmi", "least_edges"} <= chosen.keys() and not {"least_local", "least_correlation"} & chosen.keys()


def test_numbers_are_chosen_that_add_to_one_another() -> None:
    """Half of the spoilt pairs lack edges, half overlap; what is flagged before needs no number."""
    records = many()
    for n, one in enumerate(records):
        low = ("edges", "overlap")[n % 2] if one["spoilt"] else None
        for name in limits.AGREEMENT:
            one["metrics"]["agreement"][name]["after"] = 0.1 if name == low else 0.8 + 0.01 * (7 * n % 10)
    chosen = limits.choose_together(records, limits.AGREEMENT, [False] * 20)
    assert chosen.keys() == {"least_edges", "least_overlap"}
    flagged = [one["spoilt"] and n % 2 == 0 for n, one in enumerate(records)]
    assert limits.choose_together(records, limits.AGREEMENT, flagged).keys() == {"least_overlap"}
    assert limits.choose_together(records, limits.AGREEMENT, [one["spoilt"] for one in records]) == {}


def test_the_table_tells_what_was_wrong_and_whether_it_was_enough() -> None:
    records = [*many(), {**record("no", 0, True, 1), "metrics": None, "refused": "empty"}, record("bad", 0.9, True, 1)]
    judged = table.judged(records, Limits.of({"least_nmi": [0.4, 0.2]}), None)
    assert {case["name"]: case["level"] for case in judged}["no"] == "failed"
    summary = table.summarise(judged, records)
    assert summary["halves"][0] == {"spoilt_flagged": 1, "good_not_flagged": 1}
    assert summary["halves"][1]["spoilt_flagged"] == pytest.approx(6 / 7)
    assert [case["name"] for case in summary["wrong"]] == ["bad"]
    text = table.to_markdown(summary, "vtn", "command", "about")
    assert "| **all spoilt** | 5 of 5 | 6 of 7 | 3 |" in text and "86% of the spoilt" in text and "not reached" in text
    assert "`bad` (spoilt), not flagged" in text


def test_a_page_a_bundle_and_a_row_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "verdict.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    summary = table.summarise(table.judged(many(), Limits.of({"least_nmi": [0.25, 0.2]}), None), many())
    for name in ("b", "a"):
        table.publish(name, summary, f"page of {name}", tmp_path)
    before, rows, after = (part.splitlines() for part in re.split("<!-- .*measured -->", page.read_text()))
    assert before == ["before"] and after == ["", "after"]
    assert rows[-2:] == [f"| [{name}](verdict/{name}.md) | 4 of 5 | 2 | 5 of 5 | 80%, 100% |" for name in "ab"]
    assert (tmp_path / "verdict" / "a.md").read_text() == "page of a"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        table.publish("a", summary, "new", tmp_path)


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


def test_a_look_on_the_way_writes_nothing(tmp_path, capsys) -> None:
    options = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--only_done"]
    for more in ("--write_limits", "--publish"):
        assert load_script("verdict_cases").main([*options, more]) == 2
        assert "--only_done is for a look" in capsys.readouterr().err


def test_a_bundle_without_cases_gets_a_sentence(tmp_path, capsys) -> None:
    root = tmp_path / "my_registration"
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "inference.json").write_text("{}")
    options = ["--bundle", str(root), "--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    assert load_script("verdict_cases").main(options) == 2
    assert "no cases for my_registration" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "verdict").glob("*.json")), ids=lambda file: file.stem)
def test_the_published_table_is_of_the_shipped_limits(file: Path) -> None:
    published = json.loads(file.read_text())
    metadata = json.loads((ROOT / "bundles" / f"{file.stem}_registration" / "configs" / "metadata.json").read_text())
    assert published["verdict"] == metadata["verdict"] and len(published["cases"]) == 200
    assert {"spacing_mm", "statistics"} <= metadata["trained_on"].keys()
    assert f"[{file.stem}](verdict/{file.stem}.md)" in (ROOT / "docs" / "verdict.md").read_text()
