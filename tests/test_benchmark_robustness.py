"""The robustness benchmark: poses that are known, maps judged by them, methods run and counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from benchmarking import robustness, robustness_peers
from benchmarking.results import page
from benchmarking.robustness_cases import (
    KINDS,
    MARGIN,
    Case,
    Judge,
    corner_error_mm,
    draw_cases,
    enlarged,
    posed,
    write_case,
)  # fmt: skip
from benchmarking.robustness_tables import PEERS, headline, summarise
from scipy.ndimage import center_of_mass

from shared_components.errors import InputError
from shared_components.geometry import Frame, apply_affine
from shared_components.images import read_image, write_image
from shared_components.pairs import find_subjects

TURN = np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, -1]])  # axes permuted and flipped


def frame() -> Frame:
    """An anisotropic grid whose axes are not those of the world."""
    affine = np.eye(4)
    affine[:3, :3] = TURN @ np.diag([8.0, 7.0, 9.0])
    affine[:3, 3] = [40.0, -60.0, 30.0]
    return Frame((24, 26, 20), affine)


def labels(size: float) -> np.ndarray:
    """An ellipsoid with two structures to one side."""
    middle = (np.array(frame().shape) - 1) / 2
    x = np.moveaxis(np.indices(frame().shape), 0, -1) - middle
    found = (((x / (8 * size, 9 * size, 6)) ** 2).sum(-1) < 1).astype(np.uint8)
    found[(np.abs(x - (3, -4, 1)) < (3, 3, 2)).all(-1)] = 2
    found[(np.abs(x - (-3, 3, 2)) < (2, 4, 2)).all(-1)] = 3
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten subjects, two of which are validation."""
    folder = tmp_path_factory.mktemp("brains")
    for number in range(10):
        structures = labels(1 - 0.01 * number)
        write_image(folder / f"s{number}_t1.nii.gz", structures.astype(np.float32) * 30, frame(), "float32")
        write_image(folder / f"s{number}_labels.nii.gz", structures, frame(), "uint8")
    return folder


@pytest.fixture
def cases(data: Path) -> list[Case]:
    return draw_cases(find_subjects(data)["validation"], 4, seed=3, angle=60, shift=0.2)


def test_cases_are_drawn_alike_and_within_their_bounds(data: Path, cases: list[Case]) -> None:
    subjects = find_subjects(data)["validation"]
    many = draw_cases(subjects, 60, seed=3, angle=60, shift=0.2)
    assert many[:4] == cases and draw_cases(subjects, 4, seed=4, angle=60, shift=0.2) != cases
    assert [case.kind for case in many] == list(KINDS) * 30 and len({case.name for case in many}) == 60
    assert all((case.fixed == case.moving) == (case.kind == "same") for case in many)
    angles, shifts = ([getattr(case, name) for case in many] for name in ("angle_deg", "shift_fov"))
    assert -60 <= min(angles) < -40 and 40 < max(angles) <= 60
    assert 0.15 < np.abs(shifts).max() <= 0.2 and np.allclose([np.linalg.norm(case.axis) for case in many], 1)


def test_a_pose_turns_about_the_middle_and_shifts_by_fields_of_view() -> None:
    case = Case("same_00", {}, {}, 90.0, (0.0, 0.0, 1.0), (0.25, 0.0, 0.0), (0, 0))
    pose, grid = case.pose(frame()), frame()
    assert np.allclose(apply_affine(pose, grid.center_mm), grid.center_mm + TURN[:, 0] * 8 * 24 / 4)
    assert np.allclose(pose[:3, :3], [[0, -1, 0], [1, 0, 0], [0, 0, 1]])


def test_an_image_is_posed_where_the_map_says(cases: list[Case]) -> None:
    values, grid = labels(1).astype(np.float32), frame()
    for case in cases:
        pose = case.pose(grid)
        there, room = posed(values, grid, pose, "x.nii.gz")
        before, after = grid.to_mm(np.array(center_of_mass(values))), room.to_mm(np.array(center_of_mass(there)))
        assert np.linalg.norm(apply_affine(pose, before) - after) < 0.3
        assert there.sum() == pytest.approx(values.sum(), rel=0.02)


def test_the_enlarged_grid_tells_nothing() -> None:
    grid, values = frame(), labels(1).astype(np.float32)
    there, room = posed(values, grid, np.eye(4), "x.nii.gz")
    extra = [int(np.ceil(MARGIN * n)) for n in grid.shape]
    assert room.shape == there.shape == tuple(n + 2 * e for n, e in zip(grid.shape, extra, strict=True))
    assert np.allclose(there, np.pad(values, [(e, e) for e in extra]), atol=1e-3)
    assert np.allclose(room.center_mm, grid.center_mm) and np.array_equal(room.matrix, enlarged(grid).matrix)
    away = np.eye(4)
    away[0, 3] = 150.0
    with pytest.raises(InputError, match=r"x.nii.gz leaves its grid"):
        posed(values, grid, away, "x.nii.gz")


def test_files_of_a_case(cases: list[Case], tmp_path: Path) -> None:
    same, across = (write_case(case, tmp_path) for case in cases[:2])
    assert list(same) == ["fixed", "posed"] and list(across) == ["fixed", "posed", "unposed"]
    images = {name: read_image(path, "image").array.numpy() for name, path in across.items()}
    moving = read_image(cases[1].moving["image"], "image").array.numpy()
    assert images["unposed"].sum() == pytest.approx(moving.sum() * 1000 / moving.max(), rel=1e-3)
    assert images["posed"].sum() == pytest.approx(images["unposed"].sum(), rel=0.02)
    noisy = read_image(same["posed"], "image").array[0].numpy()
    clean, _ = posed(moving[0], frame(), cases[0].pose(frame()), "x")
    assert np.median(noisy) == 0 and len(np.unique(noisy)) > 500 > len(np.unique(clean.round(1)))
    assert np.array_equal(noisy, read_image(write_case(cases[0], tmp_path)["posed"], "image").array[0].numpy())


def test_the_truth_is_perfect_and_its_inverse_is_not(cases: list[Case]) -> None:
    same, judge = cases[0], Judge(cases[0])
    pose = same.pose(frame())
    assert judge.numbers(pose, None) == {"corner_mm": 0.0, "dice": 1.0}
    wrong = judge.numbers(np.linalg.inv(pose), None)
    assert wrong["corner_mm"] > 30 and wrong["dice"] < 0.5


def test_across_the_reference_is_the_own_result_without_the_pose(cases: list[Case]) -> None:
    judge, pose = Judge(cases[1]), cases[1].pose(frame())
    unposed, slip = np.eye(4), np.eye(4)
    unposed[:3, 3], slip[:3, 3] = (9.0, 0, 0), (0, 0, 4.0)
    found = judge.numbers(slip @ pose @ unposed, unposed)
    assert found["corner_mm"] == 4.0 and found["dice_unposed"] < 0.95
    exact = judge.numbers(pose @ unposed, unposed)
    assert exact["corner_mm"] == 0 and exact["dice"] == exact["dice_unposed"]
    assert judge.numbers(pose, np.eye(4))["dice"] > exact["dice"]


def test_corner_error_is_a_mean_over_corners() -> None:
    turn = np.eye(4)
    turn[:3, 3] = (3.0, 4.0, 0.0)
    assert corner_error_mm(frame(), turn, np.eye(4)) == pytest.approx(5)


def test_a_matrix_of_itk_is_read_as_it_means() -> None:
    affine = sitk.AffineTransform(3)
    affine.SetMatrix([1.1, 0.2, -0.1, 0.0, 0.9, 0.3, -0.2, 0.1, 1.0])
    affine.SetCenter([10.0, -20.0, 5.0])
    affine.SetTranslation([4.0, 5.0, -6.0])
    numbers = affine.GetParameters()
    world = robustness_peers.to_world(numbers[:9], numbers[9:], np.array(affine.GetCenter()))
    point, lps = np.array([7.0, 8.0, 9.0]), np.array([-1, -1, 1])
    assert np.allclose(apply_affine(world, point), np.array(affine.TransformPoint((point * lps).tolist())) * lps)


FAKE = """
import json, sys
name, jobs, answers = sys.argv[1:]
if name == "elastix_affine":
    sys.exit("elastix_affine is skipped: No module named 'itk'; pip install itk-elastix")
truth = json.load(open({truth!r}))
for job in json.load(open(jobs)):
    if name == "greedy_affine" and "across_00_posed" in job["moving"]:
        sys.exit("segmentation fault")
    line = {{"world": truth[job["moving"].rsplit("/")[-1]], "seconds": 2.0, "version": "antspyx 0.0.1"}}
    with open(answers, "a") as file:
        file.write(json.dumps(line) + chr(10))
"""


@pytest.fixture
def fakes(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classical tools that know the truth; greedy dies of a case, elastix is not installed; our learned one too."""
    identity = np.eye(4).tolist()
    truth = {f"{case.name}_posed.nii": case.pose(frame()).tolist() for case in cases}
    truth |= {f"{case.name}_unposed.nii": identity for case in cases}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(truth=str(tmp_path / "truth.json")))
    monkeypatch.setattr(robustness_peers, "__file__", str(script))
    real = robustness.find

    def find(method: str, *pair: Any) -> np.ndarray:
        if method == "meta_affine":
            raise FileNotFoundError("no weights")
        return real("centre_of_mass" if method == "multistart:2" else method, *pair)

    monkeypatch.setattr(robustness, "find", find)


def run(data: Path, **options: Any) -> dict[str, Any]:
    how = {"cases": 4, "seed": 3, "shift": 0.2, "threads": 1, "peer_python": sys.executable}
    return robustness.robustness(str(data), **(how | options))


def test_the_command_counts_successes(
    data: Path, fakes: None, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "out" / "robustness_tiny.json"
    methods = "header,ants_affine,greedy_affine,elastix_affine,multistart:2,meta_affine"
    result = run(data, methods=methods, json=str(kept))
    assert json.loads(kept.read_text()) == result and result["versions"]["antspyx"] == "0.0.1"
    table = {row["method"]: row for row in result["summary"]}
    assert list(table) == ["header", "ants_affine", "greedy_affine", "multistart:2"]
    assert table["ants_affine"]["success"] == 100 and table["ants_affine"]["seconds"] == 2
    assert table["header"]["success"] == 0 and table["header"]["dice_same"] < 0.6
    assert table["greedy_affine"]["success_across"] == 50 and table["greedy_affine"]["failed"] == 1
    (broken,) = [row for row in result["rows"] if "error" in row]
    assert (broken["method"], broken["case"], broken["error"]) == ("greedy_affine", "across_00", "segmentation fault")
    assert "pip install itk-elastix" in result["skipped"]["elastix_affine"]
    assert result["skipped"]["meta_affine"] == "meta_affine is skipped: no weights"
    assert [case["case"] for case in result["cases"]] == ["same_00", "across_00", "same_01", "across_01"]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("multistart:2: 0.0 % succeed") and "times as fast as ants_affine (100.0 %)" in last
    text = page([kept])
    assert "## Robustness (robustness_tiny)" in text and "| ants_affine | 100.0 | 100.0 | 0.00 |" in text
    assert result["command"].startswith("python scripts/benchmark.py robustness --data DATA")


def test_a_file_is_completed(data: Path, fakes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, seen = str(tmp_path / "r.json"), []
    first = run(data, cases=2, methods="header", json=kept)
    known = robustness.own

    def own(method: str, jobs: list[dict[str, str]], threads: int) -> list[dict[str, Any]]:
        seen.append((method, len(jobs)))
        return known(method, jobs, threads)

    monkeypatch.setattr(robustness, "own", own)
    second = run(data, cases=4, methods="header,centre_of_mass", json=kept)
    assert seen == [("header", 3), ("centre_of_mass", 6)] and second["rows"][:2] == first["rows"]
    seen.clear()
    again = run(data, cases=4, methods="header", again=True, json=kept)
    assert seen == [("header", 6)] and len(again["rows"]) == 8 and len(again["cases"]) == 4
    for change in ({"seed": 4}, {"cases": 2}):
        with pytest.raises(InputError, match="other settings"):
            run(data, **({"methods": "header", "json": kept} | change))


def test_ratios_are_those_of_common_cases() -> None:
    def row(method: str, case: str, seconds: float, error: float) -> dict[str, Any]:
        return {"method": method, "case": case, "kind": "same", "seconds": seconds, "corner_mm": error, "dice": 1.0}

    slow, quick = PEERS[:2]
    rows = [row(slow, case, 20.0, 1.0) for case in "abc"] + [row(quick, case, 3.0, error) for case, error in
            (("a", 1.0), ("b", 4.99), ("c", 5.0))]  # fmt: skip
    rows += [row("meta_affine", "a", 0.5, 1.0), row("meta_affine", "b", 1.0, 1.0)]
    rows.append({"method": "meta_affine", "case": "c", "kind": "same", "error": "lost"})
    summary = summarise(rows, [slow, quick, "meta_affine"])
    assert summary[1]["success"] == pytest.approx(200 / 3, abs=1e-3) and summary[1]["success_across"] is None
    (found,) = headline(rows, summary)
    assert found["success"] == pytest.approx(200 / 3, abs=1e-3)
    assert (found["better"]["method"], found["better"]["ratio"]) == (slow, 30.0)
    assert (found["quickest"]["method"], found["quickest"]["ratio"]) == (quick, 4.5)
    assert headline(rows[-3:], summarise(rows[-3:], ["meta_affine"])) == []


@pytest.mark.parametrize("method", ["ant", "header:3", "multistart:x"])
def test_unknown_methods_get_a_sentence(method: str, data: Path) -> None:
    with pytest.raises(InputError, match=f"no method '{method}'"):
        run(data, methods=method)


def test_impossible_requests_get_a_sentence(data: Path) -> None:
    with pytest.raises(InputError, match="nowhere/python is no program"):
        run(data, peer_python="nowhere/python")
    with pytest.raises(InputError, match="at least 1"):
        run(data, cases=0)


def test_subjects_that_do_not_suffice(data: Path) -> None:
    one = find_subjects(data)["validation"][:1]
    with pytest.raises(InputError, match="fewer than two"):
        draw_cases(one, 2, 0, 60, 0.25)
    with pytest.raises(InputError, match="no labels"):
        draw_cases([*one, {"image": "bare.nii.gz"}], 2, 0, 60, 0.25)


@pytest.mark.slow
def test_classical_tools_find_an_easy_pose(data_dir: Path) -> None:
    """Direction and conventions of each adapter, where its tool is installed."""
    quick = [name for name in PEERS if name not in ("ants_initialiser", "greedy_search")]
    result = run(
        data_dir / "brain_oasis_miccai2012_2mm", cases=1, methods=",".join(quick), angle=5.0, shift=0.02, threads=2
    )
    assert len(result["skipped"]) + len(result["rows"]) == len(quick)
    for row in result["rows"]:
        assert "error" not in row and row["corner_mm"] < 3 and row["dice"] > 0.9, row
