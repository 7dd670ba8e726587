"""The sets of cases for the verdict: two hundred each, evenly halved, every kind of them made. No real data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from script_tools import blob
from verdict_case import flat_image, image, values
from verdicts import abdomens, brains, cases, flat, thoraces

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import Image
from shared_components.synth import Patient


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
            assert kind not in SUBJECTS or {subject_of(case) for case in some} == SUBJECTS[kind], (name, half)
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


def some_of_each_kind(images: cases.CaseSet) -> list[cases.Case]:
    """Return four of each: either image, either subject, either sort of wrong anatomy."""
    return [case for case in cases.list_cases(images) if int(case.name[-2:]) < 4]


def test_every_kind_of_hands_and_slices_can_be_made() -> None:
    images = Flat()
    images.image = lambda name: flat_image(np.roll(blob((32, 30, 3))[:, :, 1], hash_of(name), (0, 1)))
    for case in some_of_each_kind(images):
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
    for case in some_of_each_kind(images):
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
