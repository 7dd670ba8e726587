"""scripts/cohort.py without a network: lists of pairs, options, records, summary, page, progress."""

from __future__ import annotations

import base64
import csv
import io
import os
import re
from pathlib import Path

import cohort
import numpy as np
import pytest
from cohorts import faults, inputs, lists, page, progress, recipe, summary, thumbnails
from cohorts.ledger import Ledger
from PIL import Image as Picture
from script_tools import wrapped

from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images import write_image

RECIPE = {"bundle": "b", "configuration": {}, "code": "", "weights": "", "options": {}, "versions": {}}


def table(folder: Path, text: str, name: str = "pairs.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


@pytest.mark.parametrize(("change", "sentence"), [
    (["--bundle=tvn"], "there is no bundle 'tvn'"),
    (["--shard=5"], "--shard 5 is not possible"),
    (["--workers=-1"], "--workers -1 is not possible"),
    (["--batch=0"], "--batch 0 is not possible; give 1 or more"),
    (["--fixed=a.nii"], "--datalist and --fixed exclude each other; write the files of all pairs into the list"),
    (["--set=chanels=3"], "has no 'chanels' to set"),
    (["--section=x"], "--section x is for datalists"),
    (["--config=inference_x"], "has no configuration 'inference_x'"),
])  # fmt: skip
def test_options_that_cannot_be_meant(tmp_path: Path, change: list[str], sentence: str, capsys) -> None:
    path = table(tmp_path, "fixed,moving\na.nii,b.nii\n")
    assert cohort.main([str(path), "--bundle=vtn", f"--output_dir={tmp_path / 'out'}", *change]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and sentence in err and len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("argv", "sentence"), [
    (["p.csv", "--bundle=vtn", "--output_dir=o", "--refine_stepps=3"], "unrecognized arguments: --refine_stepps=3"),
    (["p.csv", "--bundle=vtn", "--output_dir=o", "--refine_steps=x"], "argument --refine_steps: invalid int value"),
    (["--bundle=vtn", "p.csv", "--output_dir=o"], "the list of pairs comes first"),
    (["p.csv", "--output_dir=o"], "required: --bundle"),
])  # fmt: skip
def test_unknown_options_show_the_usage_of_this_script(argv: list[str], sentence: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cohort.main(argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in err and err.count("usage: ") == 1 and "cohort.py" in err.split()[1]


def test_help_shows_examples(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cohort.main(["--help"])
    assert stop.value.code == 0 and "cohort.py pairs.csv --bundle vtn --output_dir out" in capsys.readouterr().out


def test_the_recipe_tells_what_changed(tmp_path: Path) -> None:
    path = table(tmp_path, "fixed,moving\na.nii,b.nii\n")
    base = [str(path), "--bundle=vtn", f"--output_dir={tmp_path}"]

    def made(*more: str) -> dict:
        return cohort.make_job(*cohort.arguments([*base, *more])).recipe

    known = made()
    assert (
        recipe.difference(known, made("--device=cpu", "--threads=3", "--workers=2", "--batch=4", "--shard=1/2")) is None
    )
    assert recipe.difference(known, made("--refine_steps=3")) == "other options (refine_steps)"
    assert recipe.difference(made("--set=channels=2"), made("--set=levels=2")) == "other options (channels, levels)"
    (tmp_path / "w.pt").write_bytes(b"x")
    assert recipe.difference(known, made(f"--weights={tmp_path / 'w.pt'}")) == "other weights"
    assert recipe.difference(known, {**known, "code": "1"}) == "the code changed"
    start = tmp_path / "start.tfm"
    start.write_text("one")
    first = made(f"--initial_transform={start}")
    start.write_text("two")
    assert recipe.difference(first, made(f"--initial_transform={start}")) == "other options (initial_transform)"


def test_inputs_are_the_same_until_their_bytes_or_names_change(tmp_path: Path) -> None:
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).write_bytes(name.encode())
    item = {"fixed": str(tmp_path / "a.nii"), "moving": str(tmp_path / "b.nii"), "name": "x"}
    known = inputs.input_facts(item)
    assert inputs.changed_input(known, item) is None
    os.utime(tmp_path / "a.nii", (1, 1))
    assert inputs.changed_input(known, item) is None  # touched only
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "a.nii").write_bytes(b"a.nii")
    assert inputs.changed_input(known, {**item, "fixed": str(tmp_path / "c" / "a.nii")}) is None  # moved
    assert inputs.changed_input(known, {**item, "fixed": str(tmp_path / "none" / "a.nii")}) == "fixed changed"
    (tmp_path / "b.nii").write_bytes(b"B.nii")
    assert inputs.changed_input(known, item) == "moving changed"
    (tmp_path / "b.nii").unlink()
    assert inputs.changed_input(known, item) is None  # archived after the fact
    assert inputs.changed_input(known, {**item, "fixed_label": str(tmp_path / "a.nii")}) == "other files"


def test_the_voxels_behind_a_header_count_too(tmp_path: Path) -> None:
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = a.raw\n")
    (tmp_path / "b.nhdr").write_text("NRRD0004\ndata file: b.raw\n")
    for name in ("a.raw", "b.raw"):
        (tmp_path / name).write_bytes(b"12")
    item = {"fixed": str(tmp_path / "a.mhd"), "moving": str(tmp_path / "b.nhdr")}
    known = inputs.input_facts(item)
    assert set(known) == {"fixed", "fixed voxels", "moving", "moving voxels"}
    (tmp_path / "b.raw").write_bytes(b"34")
    os.utime(tmp_path / "b.raw", (5, 5))
    assert inputs.changed_input(known, item) == "moving voxels changed"


def results(place: Path, text: str = "1") -> Path:
    folder = place / "results"
    folder.mkdir()
    (folder / "moved.nii.gz").write_text(text)
    return folder


def test_results_replace_only_what_a_registration_wrote(tmp_path: Path) -> None:
    ledger, task = Ledger(tmp_path / "out"), lists.Task("p", {}, "")
    record = {"row": {"name": "p", "status": "ok"}, "recipe": RECIPE, "inputs": {}}
    with ledger.workplace() as place:
        ledger.publish("p", results(place), record)
        assert ledger.state(task, RECIPE) == ("ok", None)
        ledger.publish("p", results(place, "22"), record)
        assert (tmp_path / "out" / "p" / "moved.nii.gz").read_text() == "22"
        (tmp_path / "out" / "p" / "moved.nii.gz").write_text("33")
        assert ledger.state(task, RECIPE) == ("waiting", "results changed or are missing")
        (tmp_path / "out" / "p" / "thesis.docx").write_text("years")
        with pytest.raises(InputError, match="holds thesis.docx, which no registration wrote"):
            ledger.publish("p", results(place, "44"), record)
        assert (tmp_path / "out" / "p" / "thesis.docx").read_text() == "years"
        assert (tmp_path / "out" / "p" / "moved.nii.gz").read_text() == "33"
    assert not list((tmp_path / "out" / ".cohort" / "work").iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 2, "row": {"name": "p"}}'])
def test_a_marker_that_makes_no_sense_is_none(tmp_path: Path, text: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.pairs.mkdir(parents=True)
    (ledger.pairs / "p.json").write_text(text)
    assert ledger.read("p") is None and ledger.state(lists.Task("p", {}, ""), RECIPE) == ("waiting", None)


def test_only_what_dead_processes_left_is_cleaned(tmp_path: Path) -> None:
    ledger, other = Ledger(tmp_path), Ledger(tmp_path)
    with ledger.workplace() as living:
        (living / "x").write_text("at work")
        for name in ("dead", "dying"):
            (ledger.work / name).mkdir()
            (ledger.work / f"{name}.lock").write_text("")
        (ledger.work / "lonely.lock").write_text("")
        other.clean()
        assert sorted(path.name for path in ledger.work.iterdir()) == sorted([living.name, f"{living.name}.lock"])
        assert (living / "x").exists()


def rows(count: int) -> list[summary.Row]:
    task = lists.Task("a <b>&", {"fixed": "/f.nii", "moving": "/m.nii"}, "")
    metrics = {
        "similarity": {"correlation": {"header": 0.1, "initial": 0.2, "after": 0.9}},
        "field": {"folds_percent": 0.0, "sdlogj": 0.1, "displacement_mm": {"mean": 1234.5}}
        | {"inverse_consistency_mm": {"mean": 0.01}},
        "verdict": {"level": "check", "reasons": ["folds", "far"]},
    }
    ok = summary.ok_row(task, metrics, {"seconds": 1.5, "peak_memory_mb": 500}, "cpu", "a note")
    failed = summary.failed_row(lists.Task("bad", task.item, ""), "moving image /m.nii\nis damaged")
    return [ok, failed, *({**ok, "name": f"p{number}"} for number in range(count - 2))]


def test_the_summary_is_a_table_of_all_columns() -> None:
    read = list(csv.DictReader(io.StringIO(summary.to_csv(rows(3)))))
    assert len(read) == 3 and tuple(read[0]) == summary.COLUMNS
    assert read[0]["correlation_before"] == "0.2" and read[0]["correlation_after"] == "0.9"
    assert read[0]["dice_after"] == "" and read[0]["displacement_mm"] == "1234.5"
    assert read[0]["verdict"] == "check: folds; far" and read[0]["note"] == "a note"
    assert read[1]["status"] == "failed" and read[1]["fault"] == "moving image /m.nii is damaged"


def noise(count: int) -> dict[str, dict[str, str]]:
    """Thumbnails that do not compress."""
    random = np.random.default_rng(0)

    def one() -> str:
        stream = io.BytesIO()
        Picture.fromarray(random.integers(0, 256, (96, 96), dtype=np.uint8)).save(stream, "PNG")
        return base64.b64encode(stream.getvalue()).decode()

    both = {"fixed": one(), "moved": one()}
    return {f"p{number}": both for number in range(count)}


def test_the_page_is_one_offline_file_with_sortable_rows(tmp_path: Path) -> None:
    (tmp_path / "p0").mkdir()
    (tmp_path / "p0" / "report.html").write_text("")
    made = page.build_page("Title <x>", rows(4), noise(2), tmp_path)
    assert "Title &lt;x&gt;" in made and "a &lt;b&gt;&amp;" in made and "<b>" not in made
    assert (
        "http" not in made
        and 'src="data:image/png;base64,' in made
        and "//" not in re.sub(r"base64,\S+|// .*", "", made)
    )
    assert 'href="p0/report.html"' in made and 'href="p1/"' in made and 'href="a%20%3Cb%3E%26/"' in made
    body = made.split("<tbody>")[1]
    assert body.count("<tr>") == 4 and body.count("<img") == 4
    cells = {part.count("<td") for part in body.split("<tr>")[1:]} | {made.split("<tbody>")[0].count("<th") - 1}
    assert len(cells) == 1  # thead is counted with the heads
    assert "4 pairs: 3 ok, 1 failed." in made and 'data-v="1234.5">1234<' in made and "TRE" not in made


@pytest.mark.parametrize(("count", "size"), [(150, 96), (600, 48), (1500, 24), (5000, 0)])
def test_the_page_stays_below_five_megabytes(tmp_path: Path, count: int, size: int) -> None:
    made = page.build_page("t", rows(count), noise(count), tmp_path)
    words = {96: "pairs: ", 0: "too many pairs for pictures"}.get(size, f"Pictures are {size} pixels large")
    assert words in made and (size != 96 or "pixels large" not in made)
    assert len(made.encode()) < 5_000_000 and ("<img" in made) == (size > 0)


@pytest.mark.parametrize("shape", [(20, 30, 8), (20, 30)])
def test_thumbnails_are_the_middle_slice_as_a_reader_sees_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    affine = np.diag([2.0, 1.0, 3.0][: len(shape)] + [1.0])
    frame = Frame(shape, affine)
    fixed = np.zeros(shape, dtype=np.float32)
    fixed[(slice(0, 5), slice(24, 30), *([shape[2] // 2] if len(shape) == 3 else []))] = 7  # left, anterior
    write_image(tmp_path / "moved.nii.gz", fixed[::-1].copy(), frame, "float32")
    made = thumbnails.make_thumbnails(fixed, tmp_path / "moved.nii.gz", frame)
    seen = {k: np.asarray(Picture.open(io.BytesIO(base64.b64decode(v)))) for k, v in made.items()}
    assert seen["fixed"].shape == (72, 96)  # 40 mm wide, 30 mm high
    right = seen["fixed"][:, 48:].max() == 255 and seen["fixed"][:, :48].max() == 0
    assert right and seen["fixed"][:12, 75:].min() > 200 and seen["fixed"][40:].max() == 0
    np.testing.assert_array_equal(seen["moved"], seen["fixed"][:, ::-1])
    assert Picture.open(io.BytesIO(base64.b64decode(thumbnails.shrink(made["fixed"], 24)))).size == (24, 18)


def test_progress_tells_a_line_a_pair_and_what_is_left() -> None:
    now, stream = [0.0], io.StringIO()
    shown = progress.Progress(3, stream, lambda: now[0])
    for row, at in zip(rows(3), (100.0, 160.0, 170.0), strict=True):
        now[0] = at
        shown.add(row)
    shown.close()
    assert stream.getvalue().splitlines() == [
        "[1/3] ok a <b>& (a note), 1.5 s",
        "[2/3] failed bad: moving image /m.nii is damaged, 60 s left",
        "[3/3] ok p0 (a note), 1.5 s",
    ]


def test_a_terminal_sees_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv(progress.NO_PROGRESS, raising=False)
    stream = Terminal()
    shown = progress.Progress(2, stream)
    for row in rows(2):
        shown.add(row)
    shown.close()
    last = stream.getvalue().split("\r")[-1]
    assert re.search(r"2/2 \[\d\d:\d\d<\d\d:\d\d", last), "done, and how long is left"
    assert "failed=1" in last and "failed bad: moving image" in stream.getvalue()


def test_faults_are_sorted_by_what_to_do_about_them() -> None:
    assert faults.is_of_place(wrapped(OSError(28, "No space left on device")))
    assert not faults.is_of_place(wrapped(FileNotFoundError(2, "No such file")))
    assert faults.sentence(wrapped(InputError("a b\nc"))) == "a b c"
    assert faults.sentence(wrapped(ValueError("x\ny"))) == "ValueError: x"
    assert "use fewer workers" in faults.sentence(wrapped(MemoryError()))
