"""Datalists and folders of subjects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared_components.errors import InputError
from shared_components.pairs import find_subjects, read_datalist, requested_pairs


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_datalist_of_our_own(tmp_path: Path) -> None:
    pair = {"fixed": "a.nii.gz", "moving": "/abs/b.nii.gz", "fixed_label": "sub/a_seg.nii.gz", "name": "first"}
    path = write(tmp_path / "pairs.json", {"test": [pair], "validation": [{"image": "c.nii", "label": "d.nii"}]})
    assert read_datalist(path, "test") == [
        {
            "fixed": str(tmp_path / "a.nii.gz"),
            "moving": "/abs/b.nii.gz",
            "fixed_label": str(tmp_path / "sub/a_seg.nii.gz"),
            "name": "first",
        }
    ]
    assert read_datalist(str(path)) == [{"image": str(tmp_path / "c.nii"), "label": str(tmp_path / "d.nii")}]


def test_a_bare_list_serves_any_section(tmp_path: Path) -> None:
    path = write(tmp_path / "list.json", [{"fixed": "a", "moving": "b", "fixed_points": "p.csv", "moving_mask": "m"}])
    for section in ("training", "validation", "test"):
        (item,) = read_datalist(path, section)
        assert item["fixed_points"] == str(tmp_path / "p.csv") and item["moving_mask"] == str(tmp_path / "m")


def test_learn2reg_files_as_they_are(tmp_path: Path) -> None:
    content = {
        "name": "L2R",
        "numTraining": 2,
        "tensorImageSize": {"0": "3D"},
        "training": [{"image": "./imagesTr/x_0001.nii.gz"}, "./imagesTr/x_0002.nii.gz"],
        "registration_val": [{"fixed": "./imagesTr/x_0003.nii.gz", "moving": "./imagesTr/x_0004.nii.gz"}],
        "registration_test": [
            {
                "fixed_image": "imagesTs/x_0005.nii.gz",
                "moving_image": "imagesTs/x_0006.nii.gz",
                "fixed_keypoints": "keypointsTs/x_0005.csv",
                "moving_keypoints": "keypointsTs/x_0006.csv",
            }
        ],
    }
    path = write(tmp_path / "L2R_dataset.json", content)
    training = [{"image": str(tmp_path / f"imagesTr/x_000{i}.nii.gz")} for i in (1, 2)]
    assert read_datalist(path, "training") == training
    (validation,) = read_datalist(path, "validation")
    assert validation["moving"] == str(tmp_path / "imagesTr/x_0004.nii.gz")
    assert read_datalist(path, "test") == [
        {
            "fixed": str(tmp_path / "imagesTs/x_0005.nii.gz"),
            "moving": str(tmp_path / "imagesTs/x_0006.nii.gz"),
            "fixed_points": str(tmp_path / "keypointsTs/x_0005.csv"),
            "moving_points": str(tmp_path / "keypointsTs/x_0006.csv"),
        }
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "does not exist"),
        ("{ 'fixed': 1", "not readable JSON"),
        ("", "not readable JSON"),
        ("{}", "no pairs under 'test'"),
        ('{"test": []}', "no pairs under 'test'"),
        ('{"training": [{"image": "a"}]}', "no pairs under 'test'"),
        ('{"test": {"fixed": "a"}}', "no pairs under 'test'"),
        ("[]", "no pairs under 'test'"),
        ("3", "no pairs under 'test'"),
        ('{"test": [["a", "b"]]}', "holds .*'a', 'b'.* where an object"),
    ],
)
def test_bad_datalists_are_told_in_one_sentence(tmp_path: Path, text: str | None, match: str) -> None:
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=match) as caught:
        read_datalist(path, "test")
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence


def test_a_folder_or_bytes_in_place_of_a_datalist(tmp_path: Path) -> None:
    binary = tmp_path / "image.nii.gz"
    binary.write_bytes(b"\x1f\x8b\x08\x00\xff\xfe")
    for path in (tmp_path, binary):
        with pytest.raises(InputError, match="not readable JSON"):
            read_datalist(path)


def test_requested_pairs_come_from_a_datalist_or_from_arguments(tmp_path: Path) -> None:
    assert requested_pairs(fixed="a", moving="b", fixed_label=None, moving_mask="") == [{"fixed": "a", "moving": "b"}]
    path = write(tmp_path / "pairs.json", {"test": [{"fixed": "/a", "moving": "/b"}]})
    assert requested_pairs(str(path), fixed="ignored") == [{"fixed": "/a", "moving": "/b"}]


def test_every_fifth_subject_is_validation(tmp_path: Path) -> None:
    for i in range(11):
        (tmp_path / f"s{i:02d}_t1.nii.gz").touch()
        if i != 3:
            (tmp_path / f"s{i:02d}_labels.nii.gz").touch()
    split = find_subjects(tmp_path)
    assert [s["subject"] for s in split["validation"]] == ["s04", "s09"]
    assert [s["subject"] for s in split["training"]] == [f"s{i:02d}" for i in (0, 1, 2, 3, 5, 6, 7, 8, 10)]
    labelled = {s["subject"]: s.get("label") for part in split.values() for s in part}
    assert labelled["s03"] is None and labelled["s04"] == str(tmp_path / "s04_labels.nii.gz")
    assert [s["subject"] for s in find_subjects(tmp_path, every=2)["validation"]] == ["s01", "s03", "s05", "s07", "s09"]


def test_subjects_by_other_patterns(tmp_path: Path) -> None:
    for name in ("img_a.nii", "img_b.nii", "seg_a.nii", "other.nii"):
        (tmp_path / name).touch()
    split = find_subjects(tmp_path, "img_*.nii", "seg_*.nii", every=2)
    assert split["training"] == [
        {"image": str(tmp_path / "img_a.nii"), "subject": "a", "label": str(tmp_path / "seg_a.nii")}
    ]
    assert split["validation"] == [{"image": str(tmp_path / "img_b.nii"), "subject": "b"}]
    unlabelled = find_subjects(tmp_path, "img_*.nii", None)["training"]
    assert len(unlabelled) == 2 and not any("label" in s for s in unlabelled)


def test_a_missing_folder_has_no_subjects_and_a_datalist_comes_first(tmp_path: Path) -> None:
    assert find_subjects(tmp_path / "nowhere") == {"training": [], "validation": []}
    path = write(tmp_path / "d.json", {"training": ["/a", "/b"], "validation": ["/c"]})
    split = find_subjects(tmp_path / "nowhere", datalist=str(path))
    assert split == {"training": [{"image": "/a"}, {"image": "/b"}], "validation": [{"image": "/c"}]}


def test_subjects_of_the_real_data(data_dir: Path) -> None:
    split = find_subjects(data_dir / "brain_oasis_miccai2012_2mm")
    every = sorted(s["subject"] for part in split.values() for s in part)
    assert len(every) >= 10 and [s["subject"] for s in split["validation"]] == every[4::5]
    assert all(Path(s["label"]).is_file() for part in split.values() for s in part)
