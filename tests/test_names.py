"""Names of pairs: what may be a folder, what a file is called without its suffix, and lists that would overwrite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cohorts.lists import read_tasks

from shared_components.errors import InputError
from shared_components.images.files import stem_of
from shared_components.names import LONGEST_NAME, fault_of_name, folder_name, pair_name
from shared_components.pairs import requested_pairs


def listed(folder: Path, *items: dict[str, Any]) -> Path:
    path = folder / "pairs.json"
    path.write_text(json.dumps({"test": [{"fixed": "a.nii.gz", "moving": "b.nii.gz", "name": "first"}, *items]}))
    return path


@pytest.mark.parametrize(("path", "stem"), [
    ("a.nii.gz", "a"), ("here/A.NII.GZ", "A"), ("a.b.nii", "a.b"), ("1.2.mha", "1.2"), ("noSuffix", "noSuffix"),
    (Path("x/y.mrk.json"), "y"), ("/x/.nii.gz", ".nii.gz"[:-3]), ("hand.jpeg", "hand"),
])  # fmt: skip
def test_the_stem_of_a_file(path: str | Path, stem: str) -> None:
    assert stem_of(path) == stem


def test_names_of_pairs_and_of_their_folders() -> None:
    assert pair_name({"fixed": "x/a.nii.gz", "moving": "y/b.mha"}) == "a<-b"
    assert pair_name({"image": "a.nii", "moving": "b.nii", "name": None}) == "a<-b"
    assert pair_name({"fixed": "a", "moving": "b", "name": 7}) == "7"
    assert folder_name("a<-b") == "a_from_b" and fault_of_name("a<-b") is None
    assert fault_of_name("x" * LONGEST_NAME) is None


BAD = ["../x", "/etc", "a/b", "a\\b", "..", ".", ".hidden", "", "  ", "a\nb", "a\0b", "index.html", "ä" * 101]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_no_folder_is_refused_with_file_and_pair(tmp_path: Path, name: str) -> None:
    path = listed(tmp_path, {"fixed": "c.nii.gz", "moving": "d.nii.gz", "name": name})
    for read in (requested_pairs, read_tasks):
        with pytest.raises(InputError) as caught:
            read(str(path))
        sentence = str(caught.value)
        assert str(path) in sentence and "pair 2 of 'test'" in sentence and "name" in sentence
        assert fault_of_name(name) is not None


@pytest.mark.parametrize(("items", "folder"), [
    ([{"fixed": "c.nii.gz", "moving": "d.nii.gz", "name": "first"}], "first"),
    ([{"fixed": "1/t.nii", "moving": "2/s.nii"}, {"fixed": "3/t.nii.gz", "moving": "4/s.mha"}], "t_from_s"),
    ([{"fixed": "t.nii", "moving": "s.nii"}, {"fixed": "c", "moving": "d", "name": "t_from_s"}], "t_from_s"),
])  # fmt: skip
def test_two_pairs_do_not_share_a_folder(tmp_path: Path, items: list[dict[str, Any]], folder: str) -> None:
    path = listed(tmp_path, *items)
    for read in (requested_pairs, read_tasks):
        with pytest.raises(InputError, match=f"would write to the folder '{folder}' as .*pair [12] of 'test'"):
            read(str(path))


def test_what_lacks_an_image_is_told_of_when_it_is_read(tmp_path: Path) -> None:
    path = listed(tmp_path, {"fixed": "c.nii.gz"}, {"image": "d.nii.gz", "moving": "e.nii.gz"})
    assert len(requested_pairs(str(path))) == 3
