"""Lists of pairs for scripts/cohort.py: tables and datalists, and the sentences of bad ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cohorts import lists

from shared_components.errors import InputError


def table(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def test_a_table_is_read_with_paths_from_its_folder(tmp_path: Path) -> None:
    path = table(tmp_path, "name,fixed,moving,fixed_label\none,a.nii.gz,/x/b.nii.gz,\n\n,c.nii.gz,d.mha,sub/e.nii\n")
    first, second = lists.read_tasks(path)
    assert first.name == "one" and first.item["moving"] == "/x/b.nii.gz" and "fixed_label" not in first.item
    assert first.item["fixed"] == str(tmp_path / "a.nii.gz")
    assert second.name == "c_from_d" and "name" not in second.item
    assert second.item["fixed_label"] == str(tmp_path / "sub" / "e.nii")
    assert first.where == f"{path} line 2" and second.where == f"{path} line 4"


@pytest.mark.parametrize("text", [
    "\ufefffixed;moving\r\na.nii;b.nii\r\n", "fixed\tmoving\na.nii\tb.nii\n", ' fixed , moving \n"a.nii", b.nii \n',
])  # fmt: skip
def test_tables_of_other_programs(tmp_path: Path, text: str) -> None:
    (task,) = lists.read_tasks(table(tmp_path, text))
    assert dict(task.item) == {"fixed": str(tmp_path / "a.nii"), "moving": str(tmp_path / "b.nii")}


def test_a_datalist_is_read_as_register_reads_it(tmp_path: Path) -> None:
    content = {"validation": [{"fixed": "a.nii", "moving": "b.nii"}, {"image": "c.nii", "moving": "d.nii"}]}
    path = table(tmp_path, json.dumps(content), "list.json")
    tasks = lists.read_tasks(path, "validation")
    assert [task.name for task in tasks] == ["a_from_b", "c_from_d"]
    assert tasks[0].item["fixed"] == str(tmp_path / "a.nii")
    with pytest.raises(InputError, match="list.json has no pairs under 'test'"):
        lists.read_tasks(path)


@pytest.mark.parametrize(("text", "sentence"), [
    ("", "line 1 needs one column 'fixed'"),
    ("fixed,moving\n", "has no pairs below its first line"),
    ("fixed,mowing\na,b\n", "line 1 has a column 'mowing'; the columns are name, fixed"),
    ("fixed\na\n", "line 1 needs one column 'moving'"),
    ("fixed,moving,fixed\na,b,c\n", "line 1 needs one column 'fixed'"),
    ("fixed,moving,name,name\na,b,c,d\n", "line 1 has the column 'name' twice"),
    ("fixed,moving\na,b\nc\n", "pairs.csv line 3 names no moving image; correct"),
    ("fixed,moving\n,b\n,c\n", "line 2 names no fixed image; .*pairs.csv line 3 names no fixed image; correct"),
    ("fixed,moving\n" + ",b\n" * 7, r"\(and 2 more rows at fault\)"),
    ("fixed,moving\na,b,c\n", "line 2 has more cells than the first line has columns"),
    ("fixed,moving,name\na,b,../x\n", "line 2 has the name '../x', which cannot"),
    ("fixed,moving,name\na,b,.\n", "line 2 has the name '.', which cannot"),
    ("fixed,moving,name\na,b,index.html\n", "line 2 has the name 'index.html', which cannot"),
    ("fixed,moving,name\na,b," + "x" * 201 + "\n", "line 2 has a name of more than 200 bytes"),
    ("fixed,moving,name\na,b,x\nc,d,x\n", "line 3 would write to the folder 'x' as .*line 2 does; give each"),
    ("fixed,moving\n1/t.nii,2/t1.nii\n3/t.nii,4/t1.nii\n", "line 3 would write to the folder 't_from_t1' as .*line 2"),
    ('fixed,moving\n"a,b\n', "is no row of a table"),
    ("fixed,moving\na\0,b\n", "line 2 has a path under 'fixed' with a zero byte"),
    (b"fixed,moving\n\xff\xfe,b\n", "is no text in UTF-8"),
])  # fmt: skip
def test_bad_lists_are_sentences_with_file_and_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        lists.read_tasks(table(tmp_path, text))
    assert str(tmp_path / "pairs.csv") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("item", "sentence"), [
    ({"fixed": "a"}, "list.json, pair 2 of 'test' names no moving image"),
    ({"fixed": "a", "moving": 3}, "list.json, pair 2 of 'test' has 3 under 'moving' where a path belongs"),
    ({"fixed": "a", "moving": "b", "name": "x/y"}, "pair 2 of 'test' has the name 'x/y'"),
    (7, "holds 7 where an object"),
])  # fmt: skip
def test_bad_datalists_are_sentences(tmp_path: Path, item: object, sentence: str) -> None:
    path = table(tmp_path, json.dumps([{"fixed": "x", "moving": "y"}, item]), "list.json")
    with pytest.raises(InputError, match=sentence):
        lists.read_tasks(path)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/2/3", "²/3"])
def test_shards_that_are_not_possible(text: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"--shard {text} is not possible")):
        lists.read_shard(text)
