"""Releases: what is in them, the same bytes each time, the index, and two of them in one process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import pytest
import torch
from script_tools import load_script
from sharing.archive import GUARD, package
from sharing.checks import release
from sharing.contents import strangers
from sharing_case import NAME, ROOT, copy_bundle, small_library

from shared_components import __version__
from shared_components.engines import load_weights
from shared_components.errors import InputError
from shared_components.release import content_hash

LIBRARY = ROOT / "shared_components"


@pytest.fixture(scope="module")
def script():
    return load_script("package_bundle")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path / "source")


@pytest.fixture
def version(bundle: Path) -> str:
    return json.loads((bundle / "configs" / "metadata.json").read_text())["version"]


def unzip(path: Path, folder: Path) -> Path:
    with ZipFile(path) as archive:
        archive.extractall(folder)
    return folder / NAME


def test_zip_has_one_folder_with_bundle_library_and_licences(bundle, version, tmp_path):
    path = package(bundle, tmp_path / "dist")
    assert path == tmp_path / "dist" / f"{NAME}_v{version}.zip"
    names = ZipFile(path).namelist()
    assert {name.split("/")[0] for name in names} == {NAME}
    wanted = "LICENSE docs/README.md docs/data_license.txt configs/inference.json models/model.pt scripts/network.py"
    wanted += " shared_components/engines.py shared_components/release.json"
    wanted += " shared_components/affine_search/weights/data_license.txt"
    assert {f"{NAME}/{name}" for name in wanted.split()} <= set(names)


def test_library_in_the_zip_is_the_repositorys_to_the_byte(bundle, tmp_path):
    root = unzip(package(bundle, tmp_path), tmp_path / "there")
    assert content_hash(root / "shared_components") == content_hash(LIBRARY)
    record = json.loads((root / "shared_components" / "release.json").read_text())
    assert record == {"version": __version__, "sha256": content_hash(LIBRARY)}


def test_sums_in_the_zip_are_those_of_the_weights_and_are_checked(bundle, tmp_path):
    root = unzip(package(bundle, tmp_path), tmp_path / "there")
    told = (root / "models" / "SHA256SUMS").read_text()
    assert told == f"{hashlib.sha256(b'weights').hexdigest()}  model.pt\n"
    assert release(root) == [] and strangers(root) == []
    (root / "models" / "model.pt").write_bytes(b"others")
    assert release(root) == ["models/model.pt was changed after the bundle was packaged; package it again"]
    with pytest.raises(InputError, match="model.pt are not those that were released"):
        load_weights(torch.nn.Linear(1, 1), root / "models" / "model.pt")


def test_leftovers_of_work_stay_behind(bundle, tmp_path):
    before = package(bundle, tmp_path / "clean").read_bytes()
    for name in ("runs/model.pt", "eval/x.json", "scripts/__pycache__/a.pyc", ".git/x", "data/a.nii.gz", "docs/.x.swp"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_text("left")
    assert package(bundle, tmp_path / "dirty").read_bytes() == before


def test_bytes_depend_on_the_content_only(bundle, tmp_path):
    first = package(bundle, tmp_path / "a").read_bytes()
    for path in bundle.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
        path.chmod(0o700)
    assert package(bundle, tmp_path / "b").read_bytes() == first
    (bundle / "docs" / "more.txt").write_text("more")
    assert package(bundle, tmp_path / "c").read_bytes() != first


def test_entries_are_sorted_dated_1980_and_readable(bundle, tmp_path):
    entries = ZipFile(package(bundle, tmp_path)).infolist()
    assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
    facts = {(one.date_time, one.external_attr >> 16, one.create_system, one.compress_type) for one in entries}
    assert facts == {((1980, 1, 1, 0, 0, 0), 0o100644, 3, ZIP_STORED)}


def test_index_has_checksum_and_source_and_keeps_other_releases(bundle, version, tmp_path):
    (tmp_path / "model_info.json").write_text(json.dumps({"other_v1.0.0": {"checksum": "1", "source": "2"}}))
    path = package(bundle, tmp_path, source="https://example.org/v1/")
    index = json.loads((tmp_path / "model_info.json").read_text())
    assert index == {
        "other_v1.0.0": {"checksum": "1", "source": "2"},
        f"{NAME}_v{version}": {
            "checksum": hashlib.sha1(path.read_bytes()).hexdigest(),
            "source": f"https://example.org/v1/{path.name}",
        },
    }


def test_broken_bundle_is_not_packaged(bundle, tmp_path):
    (bundle / "LICENSE").unlink()
    with pytest.raises(InputError, match="not fit to be released .*LICENSE is missing.*verify_bundles"):
        package(bundle, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_weights_of_the_library_need_a_licence_of_their_data(bundle, tmp_path):
    library = small_library(tmp_path)
    (library / "net.pt").write_bytes(b"0")
    with pytest.raises(InputError, match=r"net\.pt has no data_license\.txt"):
        package(bundle, tmp_path / "dist", library=library)


def test_code_of_the_package_follows_the_guard(bundle, tmp_path):
    code = bundle / "scripts" / "__init__.py"
    code.write_text("from .network import VTN\n")
    root = unzip(package(bundle, tmp_path / "dist"), tmp_path / "there")
    text = (root / "scripts" / "__init__.py").read_text()
    assert text.startswith(GUARD) and text.endswith("\nfrom .network import VTN\n")
    code.write_text("from __future__ import annotations\n")
    with pytest.raises(InputError, match="lines of its own in front"):
        package(bundle, tmp_path / "dist")


def test_command_packages_and_says_where(script, bundle, tmp_path, capsys):
    assert script.main([str(bundle), "--output_dir", str(tmp_path / "dist")]) == 0
    (path,) = (tmp_path / "dist").glob("*.zip")
    assert f"{path} (" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--all", "vtn"], ["nonesuch"]])
def test_command_wants_names_or_all(script, arguments, tmp_path, capsys):
    assert script.main([*arguments, "--output_dir", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


MEETING = """
import sys

def load(root):
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]  # as MONAI Label does
    sys.path.insert(0, root)
    import scripts

first, second = sys.argv[1:]
load(first)
try:
    load(second)
except ValueError as error:
    print(f"{type(error).__name__}: {error}")
else:
    print("both run")
"""


def meet(first: Path, second: Path, cwd: Path) -> str:
    command = [sys.executable, "-I", "-c", MEETING, str(first), str(second)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def released(bundle: Path, library: Path, folder: Path) -> Path:
    return unzip(package(bundle, folder, library=library), folder)


def test_two_releases_do_not_meet_in_one_process(bundle, tmp_path):
    old, new = (small_library(tmp_path / name, f"value = '{name}'") for name in ("old", "new"))
    first, second = released(bundle, old, tmp_path / "a"), released(bundle, new, tmp_path / "b")
    told = meet(first, second, tmp_path)
    running, other = (f"{__version__} ({content_hash(one)[:12]})" for one in (old, new))
    assert told.startswith(f"InputError: this process already runs shared_components {running}")
    assert f"{second} was released with {other}" in told


def test_two_bundles_with_one_library_meet(bundle, tmp_path):
    library = small_library(tmp_path)
    first, second = released(bundle, library, tmp_path / "a"), released(bundle, library, tmp_path / "b")
    assert meet(first, second, tmp_path) == "both run"


def test_a_release_that_replaces_the_running_one_in_its_folder_is_refused(bundle, tmp_path):
    """A server that has imported the old files would go on with them."""
    first = released(bundle, small_library(tmp_path / "old"), tmp_path / "a")
    new = package(bundle, tmp_path / "b", library=small_library(tmp_path / "new", "value = 1"))
    code = MEETING.replace("try:", f"import zipfile; zipfile.ZipFile({str(new)!r}).extractall(sys.argv[2])\ntry:")
    command = [sys.executable, "-I", "-c", code.replace("load(second)", "load(first)"), str(first), str(first.parent)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "InputError: this process already runs" in done.stdout, done.stderr
