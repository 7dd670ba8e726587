"""A released bundle runs where this repository never was.

The zip is fetched by ``monai.bundle download`` from a web server on the loopback into an empty folder, and run from
elsewhere by an interpreter (isolated.py) that has the packages that metadata.json pins, what these require, and nothing
else: no shared_components, no pytest, none of the optional packages of the repository.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bundle_tools import BUNDLES, ROOT, bundle_arguments, config_of, dimensions, read_json, tiny, write_data
from isolated import make_environment, run_isolated
from sharing.archive import package
from sharing.packages import pins_of
from sharing.schema import OBJECTS, REQUIRED, STRINGS
from sharing.verdict import RULES, judge

ALWAYS = "meta_affine_registration"  # the quickest; the others run with -m nightly
RELEASES = [
    pytest.param(path, id=path.name, marks=[] if path.name == ALWAYS else pytest.mark.nightly) for path in BUNDLES
]
pytestmark = pytest.mark.slow
SHARING = ROOT / "scripts" / "sharing"
GITHUB = """
import sys
from monai.bundle import download, scripts
url, name, version, folder = sys.argv[1:]
scripts._get_git_release_url = lambda owner, repository, tag_name, filename: "/".join(
    (url, owner, repository, tag_name, filename)
)
download(name, version=version, bundle_dir=folder, source="github", repo="owner/name/v1", progress=False)
"""
MEETING = """
import sys
from monai.bundle import ConfigParser, run
first, second, output = sys.argv[1:]

def network(root):
    sys.path.insert(0, root)
    parser = ConfigParser()
    parser.read_config(f"{root}/configs/inference.json")
    parser["bundle_root"] = root
    parser.get_parsed_content("network_def")

def tell(action):
    from shared_components.errors import find_input_error
    try:
        action()
    except Exception as error:
        print("TOLD", find_input_error(error))
    else:
        print("TOLD nothing")

network(first)
tell(lambda: run(config_file=f"{second}/configs/inference.json", bundle_root=second, output_dir=output))
for root in (second, first):
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]  # as MONAI Label does between two models
    tell(lambda: network(root))
"""


@dataclass
class Place:
    """Somewhere that is not the repository: an interpreter, a released bundle, data, and a folder to work in."""

    python: Path
    bundle: Path
    datalist: Path
    work: Path

    def run(self, *arguments: str | Path) -> str:
        """Run Python there; return what it printed."""
        done = run_isolated(self.python, arguments, cwd=self.work)
        assert done.returncode == 0, f"{arguments[:6]}:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def run_bundle(self, names: list[str], **options: object) -> None:
        """Run the bundle's configs."""
        self.run("-m", "monai.bundle", *bundle_arguments(self.bundle, names, self.work, device="cpu", **options))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A web server on the loopback: its address, and the folder that it serves."""
    folder = tmp_path_factory.mktemp("served")
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", folder
        running.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module", params=RELEASES)
def place(request: pytest.FixtureRequest, server: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The bundle, downloaded."""
    source: Path = request.param
    url, served = server
    zipped = package(source, served, source=url)
    home = tmp_path_factory.mktemp("elsewhere")
    work = home / "work"
    work.mkdir()
    metadata = config_of(source, "metadata")
    found = Place(
        make_environment(home / "environment", pins_of(metadata)),
        home / "bundles" / source.name,
        write_data(work, dimensions(source)),
        work,
    )
    where = read_json(served / "model_info.json")[zipped.stem]["source"]
    fetch = ["download", f"--name={source.name}", f"--url={where}", f"--bundle_dir={home / 'bundles'}"]
    found.run("-m", "monai.bundle", *fetch)
    return found


@pytest.fixture(scope="module")
def trained(place: Place) -> Path:
    """Output folder of one epoch of training."""
    output = place.work / "trained"
    options = tiny(place.bundle, "train") | {"datalist": place.datalist, "output_dir": output}
    place.run_bundle(["train"], **options)
    return output


def test_nothing_of_the_repository_is_there(place):
    names = ("shared_components", "pytest", "nilearn")
    code = f"from importlib.util import find_spec; print([*filter(find_spec, {names})])"
    assert place.run("-c", code).strip() == "[]"
    assert (place.bundle / "shared_components" / "release.json").is_file()
    assert ROOT not in place.bundle.parents


def test_registers_with_the_shipped_weights(place):
    (pair,) = read_json(place.datalist)["test"]
    images = {key: pair[key] for key in ("fixed", "moving", "fixed_label", "moving_label")}
    output = place.work / "registered"
    place.run_bundle(["inference"], output_dir=output, **images)
    written = {path.name for path in output.iterdir()}
    assert {"moved.nii.gz", "moved_label.nii.gz", "ddf.nii.gz", "report.html"} <= written
    moved = nib.load(output / "moved.nii.gz")
    assert moved.shape == nib.load(pair["fixed"]).shape and np.asarray(moved.dataobj).std() > 1
    records = read_json(output / "transform.json")
    assert records["bundle"] == f"{place.bundle.name} {config_of(place.bundle, 'metadata')['version']}"


def test_trains_one_epoch(trained):
    assert (trained / "model.pt").is_file() and (trained / "checkpoint.pt").is_file()


def test_evaluates(place, trained):
    output = place.work / "evaluated"
    options = tiny(place.bundle, "train") | {"datalist": place.datalist, "output_dir": output}
    place.run_bundle(["train", "evaluate"], weights=trained / "model.pt", **options)
    overall = dict(line.split(",") for line in (output / "metrics.csv").read_text().split())
    assert 0 < float(overall["dice"]) <= 1


def test_monais_tools_agree(place):
    """load, create_workflow, ckpt_export, verify_metadata, verify_net_in_out and a run of each workflow."""
    environment = place.work.parent / "environment_of_the_zoo"
    packages = [*pins_of(config_of(place.bundle, "metadata")), "jsonschema"]  # which verify_metadata needs
    tools, answers = place.work / "tools", place.work / "answers.json"
    tools.mkdir()
    for name in ("probe.py", "tiny.py"):
        shutil.copy(SHARING / name, tools)
    schema = tools / "schema.json"
    schema.write_text(json.dumps(_schema()))
    zoo = Place(make_environment(environment, packages), place.bundle, place.datalist, place.work)
    zoo.run(tools / "probe.py", place.bundle, place.datalist, answers, schema)
    verdicts = judge(place.bundle, read_json(answers))
    assert verdicts == {name: [] for name, _ in RULES.values()}


def test_download_from_a_github_release_finds_the_zip(place, server):
    url, served = server
    version = config_of(place.bundle, "metadata")["version"]
    assets = served / "owner" / "name" / "v1"
    assets.mkdir(parents=True, exist_ok=True)
    shutil.copy(served / f"{place.bundle.name}_v{version}.zip", assets)
    fresh = place.work.parent / "from_github"
    place.run("-c", GITHUB, url, place.bundle.name, version, fresh)
    assert (fresh / place.bundle.name / "models" / "model.pt").is_file()


def test_monai_tells_that_a_second_release_with_another_library_cannot_join(place):
    library = place.work / "changed" / "shared_components"
    shutil.copytree(ROOT / "shared_components", library, ignore=shutil.ignore_patterns("__pycache__"))
    (library / "warp.py").write_text((library / "warp.py").read_text() + "# changed\n")
    zipped = package(ROOT / "bundles" / place.bundle.name, place.work / "second", library=library)
    shutil.unpack_archive(zipped, place.work / "second")
    second = place.work / "second" / place.bundle.name
    printed = place.run("-c", MEETING, place.bundle, second, place.work / "never").splitlines()
    by_run, by_code, again = [line for line in printed if line.startswith("TOLD ")]
    assert by_run == by_code and again == "TOLD nothing"
    assert "already runs shared_components" in by_run and str(second) in by_run
    assert not (place.work / "never").exists()


def _schema() -> dict[str, object]:
    """The part of MONAI's schema that is written down in sharing/schema.py; theirs would have to be downloaded."""
    kinds = dict.fromkeys(STRINGS, {"type": "string"}) | dict.fromkeys(OBJECTS, {"type": "object"})
    return {"type": "object", "required": list(REQUIRED), "properties": kinds}
