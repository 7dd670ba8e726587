"""The parts of the R2N2 reproduction: pairs in a fair order, single measurements, what the relations say."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from script_tools import ROOT
from torch import Tensor

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import pair_peers, r2n2_methods, r2n2_paper  # noqa: E402
from reproducing.pair_rows import TestPairs  # noqa: E402
from reproducing.r2n2_methods import PEERS, bspline, measure, measured, network_fields, read_numbers  # noqa: E402
from reproducing.r2n2_relations import judge  # noqa: E402
from reproducing.r2n2_runs import ABLATION, recipes  # noqa: E402
from reproducing.r2n2_sets import Plan, share_of_motion, spread, test_pairs  # noqa: E402

from shared_components.refine import BsplineSettings  # noqa: E402

FRAMES, ROWS = 4, 64


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> TestPairs:
    plan = Plan(subjects=3, slices=2, rows=ROWS, test_frames=FRAMES)
    return test_pairs(tmp_path_factory.mktemp("table1"), plan)


# --- pairs --------------------------------------------------------------------------------------------------------


def test_every_beginning_is_spread_over_the_whole() -> None:
    for count in (1, 2, 6, 21):
        order = spread(count)
        assert sorted(order) == list(range(count))
    first = sorted(spread(21)[:4])
    assert max(np.diff([0, *first, 20])) <= 8


def test_the_first_pairs_come_from_all_slices(pairs: TestPairs) -> None:
    assert len(pairs.dataset) == 2 * (FRAMES - 1) and len({item["name"] for item in pairs.dataset}) == len(
        pairs.dataset
    )
    assert {pairs.dataset[k]["slice"] for k in range(2)} == {"subject03_1", "subject03_2"}
    for item in pairs.dataset:
        fixed, moving = item["pair"].points_mm["fixed"], item["pair"].points_mm["moving"]
        assert fixed.shape == moving.shape and len(fixed) > 3 and np.abs(fixed - moving).max() > 0.1
    assert pairs.spacing_mm == pytest.approx([6.0, 6.0])
    with pytest.raises(IndexError):
        pairs.dataset[len(pairs.dataset)]


def test_the_true_field_has_no_error_and_none_at_all_the_initial_one(pairs: TestPairs) -> None:
    for index in (0, 1):
        item = pairs.dataset[index]
        number, moving = pairs.dataset.order[index]
        series = pairs.dataset.series(number)
        ddf = series.motion.ddf(series.fixed, moving).flip(1).transpose(2, 3)  # rows and columns -> the file's axes
        still = measured(item, torch.zeros(1, 2, ROWS, ROWS))
        both = item["pair"].points_mm
        assert still["tre_mm"] == pytest.approx(np.linalg.norm(both["fixed"] - both["moving"], axis=1).mean(), rel=1e-4)
        assert measured(item, ddf)["tre_mm"] < 0.1 < still["tre_mm"] <= still["worst_mm"]
        length = ddf.norm(dim=1)[0]
        peak = np.array([np.unravel_index(int(length.argmax()), length.shape)])
        assert share_of_motion(item["truth"], peak.astype(float)) == pytest.approx([1.0])
        assert share_of_motion(item["truth"], np.zeros((1, 2)))[0] < 0.01


# --- methods ------------------------------------------------------------------------------------------------------


class OneBump(torch.nn.Module):
    """Stands for an R2N2: the first bump lies off the middle and moves by a tenth of the image; others do nothing."""

    steps = 2

    def forward(self, image: Tensor, return_stages: bool = False, steps: int | None = None) -> Any:
        total = steps or self.steps
        numbers = torch.tensor([-0.3, 0.4, 0.2, 0.3, 0.0, 0.0, 0.2]).expand(1, total, 7).clone()
        numbers[:, 1:, 5:] = 0
        y, x = (torch.linspace(-1, 1, n) for n in image.shape[2:])
        bump = torch.exp(-0.5 * (((y[:, None] + 0.3) / 0.2) ** 2 + ((x - 0.4) / 0.3) ** 2))
        ddf = torch.stack([0 * bump, 0.2 * (image.shape[3] - 1) / 2 * bump])[None]
        return {"ddf": [ddf] * total, "parameters": numbers} if return_stages else ddf


def test_a_network_is_measured_step_by_step(pairs: TestPairs) -> None:
    item = pairs.dataset[0]
    assert "steps_mm" not in network_fields(OneBump(), OneBump(), (32, 32), course=False)(item)[1]
    ddf, facts = network_fields(OneBump(), OneBump(), (32, 32))(item)
    assert ddf.shape == (1, 2, ROWS, ROWS) and facts["parameters"] == 14
    assert len(facts["steps_mm"]) == 5 and len(facts["motions"]) == len(facts["widths_mm"]) == 4
    assert facts["steps_mm"][0] == pytest.approx(measured(item, torch.zeros_like(ddf))["tre_mm"], rel=1e-4)
    assert facts["steps_mm"][1] == facts["steps_mm"][4] == pytest.approx(measured(item, ddf)["tre_mm"], abs=0.1)
    unit = 31 / 2 * 12.0  # 32 voxels of 12 mm
    assert facts["widths_mm"][0] == pytest.approx(unit * 0.06**0.5, rel=1e-3)
    assert facts["lengths_mm"] == pytest.approx([0.2 * unit, 0, 0, 0], rel=1e-3)
    length = ddf.norm(dim=1)[0]
    assert float(length.max()) == pytest.approx(0.2 * unit / 6.0, rel=0.05) and float(ddf[0, 0].abs().max()) < 1e-5
    peak = np.array([np.unravel_index(int(length.argmax()), length.shape)], dtype=float)
    assert facts["motions"][0] == pytest.approx(share_of_motion(item["truth"], peak)[0], abs=0.1)
    assert abs(facts["motions"][0] - share_of_motion(item["truth"], 63 - peak)[0]) > 0.2, "it can fail"


def test_rows_of_other_weights_are_measured_again_and_a_longer_list_goes_on(pairs: TestPairs) -> None:
    seen = []

    def fields(item: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        seen.append(item["name"])
        return torch.zeros(1, 2, ROWS, ROWS), {"seconds": 1.0}

    for version, count in (("a", 1), ("a", 1), ("a", 3), ("b", 1)):
        measure(pairs, "bspline", lambda: fields, version=version, count=count)
    assert seen == [pairs.dataset[k]["name"] for k in (0, 1, 2, 0)]
    found = read_numbers(pairs, "bspline", "b")
    assert found["pairs"] == [seen[0]] and found["seconds"] == [1.0] and read_numbers(pairs, "bspline", "a") is None


def test_the_baseline_is_the_papers_and_lowers_the_error(pairs: TestPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    how = r2n2_methods.BSPLINE
    assert (how.iterations, how.levels, how.stride) == ((250, 250, 250), (4, 2, 1), 8)
    assert (how.tv_weight, how.rate, how.similarity) == (0.01, 1e-3, "mse")
    monkeypatch.setattr(r2n2_methods, "BSPLINE", BsplineSettings(iterations=(60, 60, 60), rate=5e-3))
    errors = []
    for index in range(2):
        ddf, facts = bspline(pairs.dataset[index])
        before = measured(pairs.dataset[index], torch.zeros_like(ddf))["tre_mm"]
        errors.append(measured(pairs.dataset[index], ddf)["tre_mm"] / before)
        assert facts["parameters"] == 2 * 10**2 and facts["seconds"] > 0
    assert fmean(errors) < 0.8, errors


def test_tools_are_known_to_the_adapters() -> None:
    assert set(PEERS) <= set(pair_peers.ADAPTERS) and set(PEERS) <= set(pair_peers.NEEDS)


def test_networks_of_the_ablation_differ_in_one_knob(tmp_path: Path) -> None:
    known = recipes("list.json", tmp_path, "cpu", {}, epochs=5)
    base = dict(known["whole"].settings)
    assert base["max_epochs"] == 5
    changed = {name: {k: v for k, v in known[name].settings.items() if base.get(k) != v} for name in ABLATION}
    wanted = {"no_state": {"recurrent": False}, "no_certainty": {"certainty": False}}
    assert changed == {"whole": {}, **wanted}
    assert known["r2n2"].settings["start_weights"] == str(tmp_path / "pretrain" / "model.pt")
    assert "start_weights" not in known["pretrain"].settings and "pretrain.json" in known["pretrain"].configs


# --- what is said of it -------------------------------------------------------------------------------------------


def test_the_papers_means_are_those_of_its_slices() -> None:
    for method, patients in r2n2_paper.SLICES.items():
        means = [fmean(mean for mean, _ in slices) for slices in patients]
        assert means == pytest.approx(r2n2_paper.MEANS[method], abs=0.011), method


def numbers(errors: list[float], **more: Any) -> dict[str, Any]:
    names = [f"p{k}" for k in range(len(errors))]
    return {"pairs": names, "slices": names, "tre_mm": errors, "worst_mm": errors, "folds_percent": errors, **more}


GOOD = {
    "identity": numbers([6.0] * 8),
    "bspline": numbers([1.0] * 4, seconds=[4.0] * 4, parameters=2312),
    "proposed": numbers([1.3] * 8, parameters=84),
    "r2n2": numbers(
        [1.1] * 8,
        seconds=[0.2] * 8,
        parameters=84,
        steps_mm=[[6.0, 3.0, 2.0, 1.1, 1.1, 1.1, 1.15]] * 8,
        widths_mm=[[30, 20, 10, 10, 10, 10]] * 8,
        lengths_mm=[[5, 3, 1, 1, 1, 1]] * 8,
        motions=[[0.9, 0.6, 0.3, 0.3, 0.3, 0.3]] * 8,
    ),
}
PARTS = {
    "whole": numbers([2.0 + 0.01 * k for k in range(12)]),
    "no_state": numbers([2.5 + 0.02 * k for k in range(12)]),
    "no_certainty": numbers([2.1 + 0.02 * k for k in range(12)]),
}


def verdicts(table1: Mapping[str, Any], parts: Mapping[str, Any]) -> list[bool]:
    return [one["shows"] for one in judge(table1, parts) if one["required"]]


def test_good_numbers_show_all_relations() -> None:
    assert verdicts(GOOD, PARTS) == [True] * 10


@pytest.mark.parametrize(
    "index, change",
    [
        (0, {"tre_mm": [1.3] * 8}),  # not on par
        (0, {"tre_mm": [0.7] * 8}),
        (1, {"tre_mm": [1.6] * 8}),
        (2, {"parameters": 350}),
        (3, {"seconds": [0.3] * 8}),
        (4, {"steps_mm": [[6.0, 3.0, 3.0, 1.1, 1.1, 1.1, 1.1]] * 8}),
        (5, {"steps_mm": [[6.0, 3.0, 2.0, 1.1, 1.1, 1.1, 1.3]] * 8}),
        (6, {"widths_mm": [[5, 20, 30, 10, 10, 10]] * 8}),
        (7, {"motions": [[0.2, 0.6, 0.3, 0.3, 0.3, 0.3]] * 8}),
    ],
)
def test_each_relation_can_fail(index: int, change: dict[str, Any]) -> None:
    assert not verdicts(GOOD | {"r2n2": GOOD["r2n2"] | change}, PARTS)[index]


def test_parts_that_do_not_matter_and_what_was_not_measured_do_not_show() -> None:
    assert verdicts(GOOD, PARTS | {"no_state": PARTS["whole"]})[8:] == [False, True]
    assert verdicts({}, {}) == [False] * 10
    told = [one["found"] for one in judge({}, {})]
    assert told == ["not measured"] * 10
