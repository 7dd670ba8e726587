"""The accuracy benchmark: fields judged from their files, methods run in processes of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from benchmarking.accuracy import accuracy, find_pairs
from benchmarking.child import run_child
from benchmarking.measure import measure, summarise
from benchmarking.results import accuracy_markdown, accuracy_text, page
from script_tools import make_weights, tiny_options

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import write_image
from shared_components.itk_io import write_affine, write_field
from shared_components.points import write_points
from shared_components.transform import PhysicalField

SHIFT_MM = np.array([4.0, -6.0, 5.0])  # whole voxels of the oblique, anisotropic grid below


def _frame() -> Frame:
    turn = np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, -1]])  # axes permuted and flipped
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.0, 4.0, 5.0])
    affine[:3, 3] = [10.0, -20.0, 30.0]
    return Frame((24, 20, 16), affine)


def _labels(frame: Frame) -> np.ndarray:
    labels = np.zeros(frame.shape, np.uint8)
    labels[5:12, 6:12, 4:10] = 1
    labels[13:16, 6:9, 5:8] = 2
    return labels


@pytest.fixture
def shifted_pair(tmp_path: Path) -> dict[str, str]:
    """A pair whose moving image is the fixed one moved by whole voxels, with labels and points."""
    frame = _frame()
    steps = np.rint(np.linalg.solve(frame.affine[:3, :3], SHIFT_MM)).astype(int)
    assert np.allclose(frame.affine[:3, :3] @ steps, SHIFT_MM)
    fixed = _labels(frame)
    moving = np.roll(fixed, steps, (0, 1, 2))
    pair = {}
    for side, labels in (("fixed", fixed), ("moving", moving)):
        pair[side], pair[f"{side}_label"] = str(tmp_path / f"{side}.nii.gz"), str(tmp_path / f"{side}_seg.nii.gz")
        write_image(pair[side], labels.astype(np.float32) * 100, frame, "float32")
        write_image(pair[f"{side}_label"], labels, frame, "uint8")
    points = frame.to_mm(np.array([[6.0, 7, 5], [9, 8, 6], [14, 7, 6]]))
    for side, offset in (("fixed", 0), ("moving", SHIFT_MM)):
        pair[f"{side}_points"] = str(tmp_path / f"{side}.csv")
        write_points(pair[f"{side}_points"], points + offset)
    return pair


def _field(path: Path, ddf_mm: np.ndarray) -> Path:
    write_field(path, PhysicalField(_frame(), ddf_mm.astype(np.float32)))
    return path


def test_true_field_is_perfect_and_identity_is_not(shifted_pair: dict[str, str], tmp_path: Path) -> None:
    constant = np.broadcast_to(SHIFT_MM[:, None, None, None], (3, *_frame().shape))
    found = measure(shifted_pair, _field(tmp_path / "ddf.nii.gz", constant))
    assert found["dice"] == found["dice_large"] == 1 and found["hd95_mm"] == 0 and found["labels_large"] == 2
    assert found["tre_mm"] < 1e-5 and found["folds_percent"] == found["ndv_percent"] == found["lost"] == 0
    before = measure(shifted_pair, None)
    assert before["dice"] < 0.7 and before["tre_mm"] == pytest.approx(np.linalg.norm(SHIFT_MM))


def test_affine_file_is_measured_too(shifted_pair: dict[str, str], tmp_path: Path) -> None:
    world = np.eye(4)
    world[:3, 3] = SHIFT_MM
    write_affine(tmp_path / "affine.tfm", world)
    found = measure(shifted_pair, tmp_path / "affine.tfm", surface=False)
    assert found["dice"] == 1 and found["tre_mm"] < 1e-5 and found["sdlogj"] < 1e-9 and "hd95_mm" not in found


def test_jacobian_knows_the_voxels_of_an_oblique_grid(shifted_pair: dict[str, str], tmp_path: Path) -> None:
    frame = _frame()
    points = frame.to_mm(np.stack(np.indices(frame.shape).reshape(3, -1), 1))
    centred = points - frame.center_mm
    stretched = (centred * [0.3, -0.2, 0.1]).T.reshape(3, *frame.shape)
    assert measure(shifted_pair, _field(tmp_path / "a.nii.gz", stretched), surface=False)["sdlogj"] < 1e-4
    mirrored = (centred * [-2.0, 0, 0]).T.reshape(3, *frame.shape)
    found = measure(shifted_pair, _field(tmp_path / "b.nii.gz", mirrored), surface=False)
    assert found["folds_percent"] == 100 and found["ndv_percent"] > 85  # all cells; there are fewer than voxels


def test_structures_that_a_warp_loses_count_as_zero(shifted_pair: dict[str, str], tmp_path: Path) -> None:
    away = np.full((3, *_frame().shape), 500.0)
    found = measure(shifted_pair, _field(tmp_path / "ddf.nii.gz", away))
    assert found["lost"] == 2 and found["dice"] == 0 and np.isnan(found["hd95_mm"])


def test_worst_is_the_lowest_dice_and_the_largest_of_the_rest() -> None:
    rows = [{"dice": 0.5, "hd95_mm": 3.0}, {"dice": 0.7, "hd95_mm": 5.0}, {"dice": 0.6}]
    found = summarise(rows, ["dice", "hd95_mm", "tre_mm"])
    assert found["dice"]["worst"] == 0.5 and found["hd95_mm"] == {"mean": 4.0, "sd": 1.0, "worst": 5.0}
    assert "tre_mm" not in found


def test_run_sees_time_memory_and_failure() -> None:
    facts, out = run_child([sys.executable, "-c", "x = bytearray(300 << 20); print(len(x))"])
    assert 0.28 < facts["peak_gb"] < 0.36 and facts["command_seconds"] > 0 and out.strip() == str(300 << 20)
    with pytest.raises(RuntimeError, match="no such pair"):
        run_child([sys.executable, "-c", "import sys; sys.exit('no such pair')"])


@pytest.fixture
def datalist(shifted_pair: dict[str, str], tmp_path: Path) -> Path:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"validation": [shifted_pair]}))
    return path


@pytest.mark.slow
def test_bundle_and_peers_in_one_table(datalist: Path, tmp_path: Path) -> None:
    kept = tmp_path / "out" / "table.json"
    options = [*tiny_options(), f"--weights={make_weights(tmp_path / 'model.pt')}"]
    how = {"data": str(datalist), "refine_steps": 3, "refine_alone": 2, "with_peers": "demons,greedy_ncc", "threads": 1}
    how |= {"json": str(kept), "options": options}
    result = accuracy("vtn", **how)
    names = [row["method"] for row in result["rows"]]
    assert names[:4] == ["identity", "vtn", "vtn + refine 3", "refine 2 alone"] and names[-2:][1] == "vtn, affine part"
    assert "demons" in names and list(result["summary"])[1] == "vtn, affine part"
    for row in result["rows"]:
        assert 0 <= row["dice"] <= 1 and (row["method"] in ("identity", "vtn, affine part")) != ("seconds" in row)
    if "greedy_ncc" not in names:
        assert "pip install picsl-greedy" in result["skipped"]["greedy_ncc"]
    markdown = accuracy_markdown(result)
    assert "| vtn + refine 3 |" in markdown and "SimpleITK" in markdown and "identity" in accuracy_text(result)
    before = kept.read_bytes()
    assert accuracy("vtn", **how)["rows"] == json.loads(before)["rows"]  # nothing is run twice
    with pytest.raises(InputError, match="other settings"):
        accuracy("vtn", **{**how, "refine_steps": 4})


def test_bad_requests_get_a_sentence(shifted_pair: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no validation pairs"):
        find_pairs(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no peer 'ant'"):
        accuracy("vtn", data=str(tmp_path), with_peers="ant")
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({"validation": [{"fixed": shifted_pair["fixed"], "moving": shifted_pair["moving"]}]}))
    with pytest.raises(InputError, match="no labels"):
        find_pairs(bare)


def test_a_folder_gives_all_ordered_validation_pairs(tmp_path: Path) -> None:
    frame = Frame((4, 4, 4), np.eye(4))
    for subject in range(10):
        write_image(tmp_path / f"s{subject:02d}_t1.nii.gz", np.ones((4, 4, 4)), frame, "float32")
        write_image(tmp_path / f"s{subject:02d}_labels.nii.gz", np.ones((4, 4, 4)), frame, "uint8")
    pairs = find_pairs(tmp_path)
    assert [(Path(p["fixed"]).name[:3], Path(p["moving"]).name[:3]) for p in pairs] == [("s04", "s09"), ("s09", "s04")]
    assert len(find_pairs(tmp_path, limit=1)) == 1


def test_fields_of_the_peers_are_read_as_they_mean(shifted_pair: dict[str, str], tmp_path: Path) -> None:
    """A SimpleITK displacement field, as the adapters write it, moves the labels where it should."""
    fixed = sitk.ReadImage(shifted_pair["fixed"])
    chain = sitk.TranslationTransform(3, (SHIFT_MM * [-1, -1, 1]).tolist())
    grid = fixed.GetSize(), fixed.GetOrigin(), fixed.GetSpacing(), fixed.GetDirection()
    field = sitk.TransformToDisplacementField(chain, sitk.sitkVectorFloat32, *grid)
    sitk.WriteImage(field, str(tmp_path / "peer.nii.gz"))
    assert measure(shifted_pair, tmp_path / "peer.nii.gz", surface=False)["dice"] == 1


def test_a_page_of_results(tmp_path: Path) -> None:
    summary = {"identity": {"pairs": 2, "failed": 0, "versions": [], "dice": {"mean": 0.3, "sd": 0.1, "worst": 0.2}}}
    facts = {"cpu": "a", "cores": 2, "threads": 2, "memory_gb": 8.0, "load_before": 0.1}
    result = {"command": "python scripts/benchmark.py accuracy --data DATA", "summary": summary, "skipped": {}}
    (tmp_path / "a.json").write_text(json.dumps({**result, "machine": facts, "versions": {"torch": "2"}, "rows": []}))
    text = page(sorted(tmp_path.glob("*.json")))
    assert "## Accuracy (a)" in text and "| identity | 0.300 ± 0.100 (0.200) |" in text and "`python scripts" in text
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(InputError, match="b.json was not written"):
        page(sorted(tmp_path.glob("*.json")))
    with pytest.raises(InputError, match="no \\*.json"):
        page([])


def test_committed_page_is_what_the_committed_files_say() -> None:
    folder = Path(__file__).resolve().parent.parent / "docs"
    assert (folder / "results.md").read_text() == page(sorted((folder / "results").glob("*.json")))
