"""The report: one offline file, the same bytes twice, every section, hostile text harmless."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_case import DPI, SECTIONS, Reader, blob, make_data

from shared_components import report
from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.report import ReportData, write_report
from shared_components.report.page import build_page
from shared_components.report.planes import Display, choose_planes


@pytest.fixture(scope="module")
def frame() -> Frame:
    return Frame((24, 30, 18), np.diag([-2.0, 2.0, 3.0, 1.0]))


@pytest.fixture(scope="module")
def page(frame: Frame, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_report(tmp_path_factory.mktemp("report") / "report.html", make_data(frame))
    return path.read_text(encoding="utf-8")


def test_every_section_is_there_and_every_link_leads_to_one(page: str) -> None:
    reader = Reader(page)
    assert reader.sections == SECTIONS
    assert [link["href"] for link in reader.named("a")] == [f"#{name}" for name in SECTIONS]
    assert len(reader.named("img")) == 10
    for words in ("vtn_registration", "Radiological", "pull-back", "LPS mm", "24 × 30 × 18 voxels of 2 × 2 × 3 mm"):
        assert words in reader.text


def test_the_file_asks_for_nothing_from_outside(page: str) -> None:
    assert len(page.encode()) < report.LARGEST_BYTES
    words = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert len(words) < 40_000
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<iframe|<object|fetch\(|XMLHttp|\bimport\b", words)
    for tag, attributes in Reader(page).tags:
        for name in ("src", "href", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
    assert "default-src 'none'" in page


def test_pictures_are_whole_png_files_without_metadata(page: str) -> None:
    for attributes in Reader(page).named("img"):
        png = base64.b64decode(str(attributes["src"]).split(",", 1)[1])
        picture = Image.open(io.BytesIO(png))
        picture.load()
        assert not picture.info
        ratio = int(str(attributes["width"])) / int(str(attributes["height"]))
        assert picture.width / picture.height == pytest.approx(ratio, rel=0.02)


def test_the_same_input_gives_the_same_bytes(frame: Frame, page: str, tmp_path: Path) -> None:
    again = write_report(tmp_path / "again.html", make_data(frame))
    assert again.read_text(encoding="utf-8") == page


def test_hostile_names_stay_text(frame: Frame, tmp_path: Path) -> None:
    evil = "</td></script><script>alert(1)</script><img src=x onerror='a()'>\"&\udc80"
    metrics = {evil: {evil: {"before": evil, "after": 1.0, "unit": evil}}, "many": {f"{evil}{i}": i for i in range(20)}}
    data = make_data(frame, title=evil, metrics=metrics, run={evil: evil, "g": {evil: [evil]}}, notes=[evil])
    page = write_report(tmp_path / "evil.html", data).read_text(encoding="utf-8")
    reader = Reader(page)
    assert len(reader.named("script")) == 1
    assert len(reader.named("img")) == 10
    assert all(str(image["src"]).startswith("data:image/png;base64,") for image in reader.named("img"))
    assert reader.text.count("onerror='a()'") >= 30


def test_sections_without_input_are_left_out(frame: Frame) -> None:
    reader = Reader(build_page(make_data(frame, full=False, metrics={}), DPI))
    assert reader.sections == [name for name in SECTIONS if name not in ("metrics", "labels", "landmarks")]
    no_before = make_data(frame, moved_label_before=None, moving_points_mm=None)
    assert Reader(build_page(no_before, DPI)).sections == SECTIONS
    none = np.zeros((0, 3))
    assert not make_data(frame, fixed_points_mm=none, moving_points_mm=none, mapped_points_mm=none).has_points


def test_two_dimensions(tmp_path: Path) -> None:
    flat = Frame((40, 28), np.array([[0.0, -1.5, 3], [2.0, 0, 4], [0, 0, 1]]))
    data = make_data(flat)
    page = write_report(tmp_path / "flat.html", data).read_text(encoding="utf-8")
    assert Reader(page).sections == SECTIONS
    assert "Radiological" not in page
    plane = choose_planes(Display(flat), Display(flat)(data.fixed))[0]
    assert plane.letters == {"left": "+x", "right": "−x", "top": "+y", "bottom": "−y"}
    assert plane.size_mm == pytest.approx((28 * 1.5, 40 * 2.0))


@pytest.mark.filterwarnings("error")
def test_odd_input_is_drawn_without_a_warning() -> None:
    shape = (12, 9, 1)
    slab = make_data(Frame(shape, np.diag([1.0, 1, 5, 1])), full=False)
    constant = replace(slab, fixed=np.full(shape, 7, np.uint8), moved=np.zeros(shape, bool))
    assert "jacobian" in Reader(build_page(constant, DPI)).sections
    broken = np.array(slab.ddf_mm)
    broken[:, 3] = np.nan
    broken[:, 4] = np.inf
    image = np.array(slab.fixed)
    image[2, 2] = np.nan
    with np.errstate(all="ignore"):
        assert "folds" in build_page(replace(slab, ddf_mm=broken, fixed=image), DPI).lower()


def test_noise_stays_below_the_limit_by_coarser_pictures(frame: Frame, tmp_path: Path, monkeypatch) -> None:
    fine = len(build_page(make_data(frame), 60).encode())
    monkeypatch.setattr(report, "LARGEST_BYTES", fine)
    monkeypatch.setattr(report, "_RESOLUTIONS", (60, 40))
    path = write_report(tmp_path / "small.html", make_data(frame))
    assert path.stat().st_size < fine
    assert Reader(path.read_text(encoding="utf-8")).sections == SECTIONS


@pytest.mark.slow
def test_a_large_volume_of_noise_stays_below_five_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape = (160, 160, 160)
    noise = rng.normal(size=(5, *shape)).astype(np.float32)
    label = (noise[0] > 0).astype(np.int16)
    data = ReportData("Noise", Frame(shape, np.eye(4)), *noise[:3], 5 * noise[2:], fixed_label=label, moved_label=label)
    assert write_report(tmp_path / "noise.html", data).stat().st_size < 5_000_000


def test_a_failed_write_leaves_the_old_report(frame: Frame, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def refuse(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InputError, match=r"report\.html.*No space left"):
        write_report(path, make_data(frame, full=False))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_shapes_that_do_not_fit_are_named(frame: Frame) -> None:
    with pytest.raises(ValueError, match="moved_label must have shape"):
        make_data(frame, moved_label=np.zeros((3, 3, 3)))
    with pytest.raises(ValueError, match="ddf_mm must have shape"):
        make_data(frame, ddf_mm=np.zeros(frame.shape))
    with pytest.raises(ValueError, match="mapped_points_mm must have shape"):
        make_data(frame, mapped_points_mm=np.zeros((9, 3)))


def test_no_global_state_of_matplotlib_is_touched(frame: Frame, monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    build_page(make_data(frame, full=False), DPI)
    assert "matplotlib.pyplot" not in sys.modules


def test_torch_tensors_are_taken_as_arrays(frame: Frame) -> None:
    data = make_data(frame, fixed=torch.from_numpy(blob(frame.shape)))
    assert isinstance(data.fixed, np.ndarray)


@pytest.mark.slow
def test_the_script_runs_in_a_browser(page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium to open the report in")
    poke = "document.querySelector('[data-wipe=\"1\"]').click(); var s = document.querySelector('input'); s.value = 40;"
    poke += "s.dispatchEvent(new Event('input')); document.querySelector('[data-top=\"1\"]').click();"
    path = tmp_path / "poked.html"
    path.write_text(page.replace("</body>", f"<script>{poke}</script></body>"), encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    quiet += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [browser, *quiet, "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
    assert '<html lang="en" class="js">' in shown
    assert "moving before left, fixed right" in shown
    layers = re.findall(r'class="layer"(?: style="([^"]*)")?', shown)
    assert "opacity: 1" in layers[1] and "polygon(" in layers[1] and "opacity: 0" in layers[2]
