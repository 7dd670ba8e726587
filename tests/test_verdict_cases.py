"""The constructed cases: ways to spoil, halves, limits chosen on one, the table. No real data, no network."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from script_tools import ROOT, blob, load_script
from verdicts import abdomens, brains, cases, flat, limits, spoil, table, thoraces

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import Image
from shared_components.results import Registration
from shared_components.results.registration import describe_field
from shared_components.synth import Patient
from shared_components.verdict import Limits

AFFINE = np.array([[0.0, 0, 2, 0], [-2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]])  # array axes run along -A, S and R


def image(values: np.ndarray | None = None) -> Image:
    values = blob((12, 14, 16)) if values is None else values
    tensor = torch.from_numpy(values.astype(np.float32))[None]
    return Image(tensor, Frame(tensor.shape[1:], AFFINE), Path("made"), np.dtype("float32"))


def flat_image(values: np.ndarray) -> Image:
    return cases.made_image(values, Frame(values.shape, np.diag([2.0, 2.0, 1.0])))


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


class Brains(brains.Brains):
    held_out, trained = [f"h{n}" for n in range(5)], [f"t{n}" for n in range(20)]

    def __init__(self) -> None: ...

    def native(self) -> list[str]:
        return list("abcde")


class Flat(flat.FlatImages):
    trained, held_out = ({name: [f"{name}/{n}" for n in range(9)] for name in flat.PATTERNS} for _ in range(2))

    def __init__(self) -> None: ...


class Thoraces(thoraces.Thoraces):
    def __init__(self) -> None: ...


class Abdomens(abdomens.Abdomens):
    def __init__(self) -> None: ...


BAD_OF_ALL = ("wrong anatomy", "one half empty", "saturated", "heavy noise")


def subject_of(case: cases.Case) -> str:
    fixed = str(case.what.get("fixed", ""))
    return "heart" if "slice" in case.what else fixed.split("/")[0] if "/" in fixed else "body"


SUBJECTS = {Flat: {flat.HANDS, flat.OTHERS}, Thoraces: {"body", "heart"}}


@pytest.mark.parametrize("kind", [Brains, Flat, Thoraces, Abdomens])
def test_two_hundred_cases_in_two_halves_from_one_seed(kind: type[cases.CaseSet]) -> None:
    found = cases.list_cases(kind())
    assert Counter((case.spoilt, case.half) for case in found) == Counter(
        {(spoilt, half): 50 for spoilt in (False, True) for half in (0, 1)}
    )
    assert len({case.name for case in found}) == 200
    halves = Counter((case.kind, case.half) for case in found)
    assert all(abs(halves[kind, 0] - halves[kind, 1]) <= 1 for kind, _ in halves), "every kind is in both"
    assert found == cases.list_cases(kind()) != cases.list_cases(kind(), seed=1)
    assert all(case.what["degrees"] >= 60 for case in found if case.kind.startswith("turned by 60"))
    side = [case.what["side"] for case in found if case.spoilt]
    assert 35 <= side.count("fixed") <= 65, "either image may be spoilt"
    for name in BAD_OF_ALL:
        for half in (0, 1):
            some = [case for case in found if case.kind == name and case.half == half]
            assert {case.what["side"] for case in some} == {"fixed", "moving"}, (name, half)
            assert {subject_of(case) for case in some} == SUBJECTS.get(kind, {"body"}), (name, half)
    ways = {case.kind.split(" ")[0] for case in found if case.spoilt}
    assert ways <= kind.SPOILERS.keys() | cases.COMMON.keys(), "there is a way to make each"


@pytest.fixture
def hearts(tmp_path: Path) -> Thoraces:
    """A folder with files of the names that must be there; only synthetic chests are looked at."""
    hearts = (f"{thoraces.HEART}/{phase}.nii.gz" for phase in ("ed", "es"))
    for name in (*thoraces.CINE, *hearts, thoraces.ABDOMEN, *thoraces.WRONG):
        with pytest.raises(InputError, match="lacks"):
            thoraces.Thoraces(tmp_path)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return thoraces.Thoraces(tmp_path)


def test_frames_are_of_one_person_and_spoilt_ones_of_others(hearts: thoraces.Thoraces) -> None:
    chosen = {}
    for case in cases.list_cases(hearts):
        if "slice" not in case.what:
            chosen.setdefault(case.kind, case)
    fixed, moving = (values(one) for one in cases.make(chosen["two frames of a synthetic chest"], hearts))
    other = values(cases.make(chosen["another person's frame"], hearts)[1])
    same = values(hearts.breathing(chosen["another person's frame"].what["person"])[0])

    def alike(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    assert alike(fixed, moving) > 0.9 > alike(same, other)
    for kind in ("quarters of four chests shuffled", "one half empty", "heavy noise"):
        case = chosen[kind]
        side = ("fixed", "moving").index(case.what["side"])
        whole = hearts.breathing(case.what["person"])[case.what["frames"][side]]
        assert alike(values(cases.make(case, hearts)[side]), values(whole)) < 0.9, kind


def first_of_each_kind(images: cases.CaseSet) -> list[cases.Case]:
    chosen: dict[str, cases.Case] = {}
    for case in cases.list_cases(images):
        chosen.setdefault(case.kind, case)
    return list(chosen.values())


def test_every_kind_of_hands_and_slices_can_be_made() -> None:
    images = Flat()
    images.image = lambda name: flat_image(np.roll(blob((32, 30, 3))[:, :, 1], hash_of(name), (0, 1)))
    for case in first_of_each_kind(images):
        pair = dict(zip(("fixed", "moving"), cases.make(case, images), strict=True))
        if case.spoilt:
            whole, side = images.image(case.what[case.what["side"]]), case.what["side"]
            assert not np.array_equal(values(pair[side]), values(whole)), case.kind
        assert all(np.isfinite(values(image)).all() for image in pair.values())


def hash_of(name: str) -> int:
    return sum(map(ord, name)) % 7


def boxes(size: tuple[int, ...], number: int, ct: bool) -> Patient:
    """A patient of one body and three organs, which takes no time."""
    labels = np.zeros(size, np.uint8)
    labels[4:20, 4:16, 4:16] = 1
    for organ in (2, 3):
        labels[5 * organ - 4 :, 6:10, 5 + number % 4 :][:4, :, :4] = organ
    grey = labels * (1.0 + ct) + np.random.default_rng([number, ct]).random(size) * (labels > 0)
    return Patient(grey.astype(np.float32), labels, labels, Frame(size, np.diag([16.0, 16, 16, 1])))


def test_every_kind_of_abdomens_can_be_made() -> None:
    images = Abdomens()
    size = (24, 20, 20)
    images.patient = lambda number, modality: boxes(size, number, modality == "ct")
    images.image = lambda name: image(np.ones((5, 5, 5)))
    for case in first_of_each_kind(images):
        pair = dict(zip(("fixed", "moving"), cases.make(case, images), strict=True))
        sides = {side: images.view(case.what[side], abdomens.MODALITIES[side]) for side in pair}
        changed = {side for side in pair if not np.array_equal(values(pair[side]), values(sides[side]))}
        expected = {case.what["side"]} if case.spoilt else set() if case.kind == "two patients" else {"fixed", "moving"}
        assert changed == expected, case.kind
        assert all(np.isfinite(values(image)).all() for image in pair.values())


def test_wrong_anatomy_fills_the_place_of_the_image(hearts: thoraces.Thoraces) -> None:
    wrong = flat_image(np.ones((64, 32), np.float32))
    hearts.image = lambda name: wrong
    chest = hearts.breathing(0)[0]
    found = hearts.stranger({"file": "a hand"}, chest).frame
    np.testing.assert_allclose(found.center_mm, chest.frame.center_mm, atol=1e-9)
    assert (found.spacing * found.shape).max() == pytest.approx(float((chest.frame.spacing * 128).max()))


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
    inputs = [{**one, "metrics": {**one["metrics"], "input": {"moving": {"size": n}}}} for n, one in enumerate(many())]
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


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pair_that_is_refused_is_recorded_as_that(wrapped: bool, hearts: thoraces.Thoraces) -> None:
    from verdicts.run import _register

    class Refusing:
        def measure(self, *pair: Image) -> dict:
            try:
                raise InputError("they do not overlap")
            except InputError as error:
                if wrapped:  # as MONAI does
                    raise RuntimeError("applying transform") from error
                raise

    found = _register(cases.list_cases(hearts)[0], hearts, Refusing())
    assert found["metrics"] is None and found["refused"] == "they do not overlap"
    broken = type("Broken", (), {"measure": lambda *_: 1 / 0})()
    with pytest.raises(ZeroDivisionError):
        _register(cases.list_cases(hearts)[0], hearts, broken)


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
