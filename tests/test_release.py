"""The library knows its own release, and refuses another one, and another bundle's code, in one process."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from shared_components import release
from shared_components.engines import start
from shared_components.errors import InputError
from shared_components.release import check_bundle_code, check_release, content_hash, library_files, make_record

HERE = Path(release.__file__).resolve().parent


def small_library(folder: Path) -> Path:
    (folder / "part").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "part" / "weights.pt").write_bytes(b"\0\1")
    return folder


@pytest.fixture
def bundle_with(tmp_path: Path):
    """``make("name", record)`` -> root of a bundle that brings a library with that record, or without one."""

    def make(name: str, record: dict[str, str] | None) -> Path:
        library = small_library(tmp_path / name / "shared_components")
        if record is not None:
            (library / release.RECORD).write_text(json.dumps(record))
        return tmp_path / name

    return make


def test_hash_is_of_names_and_contents(tmp_path):
    first, second = small_library(tmp_path / "a"), small_library(tmp_path / "b")
    same = content_hash(first)
    assert content_hash(second) == same and len(same) == 64
    (second / "part" / "weights.pt").write_bytes(b"\0\2")
    changed = content_hash(second)
    (first / "part" / "weights.pt").rename(first / "part" / "other.pt")
    assert len({same, changed, content_hash(first)}) == 3


def test_hash_leaves_out_caches_and_the_record(tmp_path):
    library = small_library(tmp_path / "a")
    before = content_hash(library)
    (library / "part" / "__pycache__").mkdir()
    (library / "part" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    (library / ".DS_Store").write_bytes(b"x")
    (library / release.RECORD).write_text(make_record(library))
    assert content_hash(library) == before == json.loads((library / release.RECORD).read_text())["sha256"]
    (library / "part" / release.RECORD).write_text("only the one at the top is the record")
    assert content_hash(library) != before


def test_files_are_sorted_and_hold_the_weights():
    names = [path.relative_to(HERE).as_posix() for path in library_files(HERE)]
    assert {"__init__.py", "py.typed", "affine_search/weights/affine_3d.pt"} <= set(names)
    assert names == [path.relative_to(HERE).as_posix() for path in sorted(library_files(HERE))]


def test_the_repository_itself_passes():
    check_release()
    check_release(HERE.parent)


def test_a_bundle_without_a_library_passes(tmp_path):
    check_release(tmp_path)


def test_a_copy_of_the_running_library_passes(tmp_path):
    shutil.copytree(HERE, tmp_path / "shared_components", ignore=shutil.ignore_patterns("__pycache__"))
    check_release(tmp_path)
    (tmp_path / "shared_components" / release.RECORD).write_text(make_record(HERE))
    check_release(tmp_path)


def test_another_library_is_refused_in_a_sentence(bundle_with, monkeypatch):
    root = bundle_with("second", {"version": "9.8.7", "sha256": "b" * 64})
    monkeypatch.setattr(release, "_RUNNING", {"version": "1.2.3", "sha256": "a" * 64})
    with pytest.raises(InputError) as caught:
        check_release(root)
    sentence = str(caught.value)
    assert "already runs shared_components 1.2.3 (aaaaaaaaaaaa)" in sentence
    assert f"{root} was released with 9.8.7 (bbbbbbbbbbbb)" in sentence and "process of its own" in sentence


def test_the_same_release_in_another_bundle_passes(bundle_with, monkeypatch):
    monkeypatch.setattr(release, "_RUNNING", {"version": "1.2.3", "sha256": "b" * 64})
    check_release(bundle_with("second", {"version": "1.2.3", "sha256": "b" * 64}))


def test_a_library_without_a_record_is_judged_by_its_content(bundle_with):
    with pytest.raises(InputError, match="without a release number"):
        check_release(bundle_with("second", None))


def test_start_refuses_the_library_that_the_path_now_names(bundle_with, monkeypatch):
    root = bundle_with("second", {"version": "9.8.7", "sha256": "b" * 64})
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # start() changes it
    with pytest.raises(InputError, match=r"released with 9\.8\.7"):
        start()


def loaded_scripts(monkeypatch, root: Path) -> None:
    module = ModuleType("scripts")
    module.__file__ = str(root / "scripts" / "__init__.py")
    monkeypatch.setitem(sys.modules, "scripts", module)


def test_code_of_another_bundle_is_refused(tmp_path, monkeypatch):
    roots = [tmp_path / name for name in ("first", "second")]
    for root in roots:
        (root / "scripts").mkdir(parents=True)
        (root / "scripts" / "__init__.py").write_text("")
    loaded_scripts(monkeypatch, roots[0])
    monkeypatch.syspath_prepend(str(roots[0]))
    check_bundle_code()
    monkeypatch.syspath_prepend(str(roots[1]))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for check in (check_bundle_code, start):
        with pytest.raises(InputError, match=f"the code of the bundle in {roots[0]}, but the one in {roots[1]}"):
            check()
