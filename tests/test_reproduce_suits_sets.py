"""The image sets of the SUITS reproduction: subjects divided once, labels merged, a contrast drawn by tissue."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from script_tools import ROOT

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import suits_sets  # noqa: E402
from reproducing.suits_sets import BRAIN_LABELS, coarse_labels, redraw_t2, regions, write_brains  # noqa: E402

from shared_components.errors import InputError  # noqa: E402
from shared_components.geometry import Frame  # noqa: E402
from shared_components.images import read_image, read_labels, write_image  # noqa: E402

FRAME = Frame((14, 12, 10), np.diag([2.0, 2, 2, 1]))
PARTS = ((51, 1, 500), (104, 2, 800), (44, 3, 1300), (57, 2, 900), (38, 2, 850), (35, 3, 1200), (48, 2, 820))


def brain(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1, fine labels and tissues of stripes of every coarse class inside a border of background."""
    t1, labels, tissues = (np.zeros(FRAME.shape, dtype) for dtype in (np.float32, np.uint8, np.uint8))
    texture = np.random.default_rng(seed).normal(0, 30, FRAME.shape)
    for k, (label, tissue, mean) in enumerate(PARTS):
        where = (slice(1, 13), slice(1, 11), slice(1 + k, 2 + k))
        labels[where], tissues[where], t1[where] = label, tissue, mean + texture[where]
    return t1, labels, tissues


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("brains")
    for seed in range(13):
        for kind, array in zip(("t1", "labels", "tissues"), brain(seed), strict=True):
            write_image(folder / f"{seed:02d}_{kind}.nii.gz", array, FRAME, np.int16 if kind == "t1" else None)
    return folder


def test_coarse_labels_follow_the_names_of_the_protocol():
    fine = np.array([0, 100, 207, 44, 45, 51, 50, 59, 36, 55, 40, 72, 35, 47, 32, 11, 46, 61])
    assert coarse_labels(fine).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6, 7, 7, 0, 0, 0]
    assert sorted(BRAIN_LABELS) == list(range(1, 8))


def test_tissues_decide_where_no_label_does():
    labels, tissues = np.array([0, 0, 0, 0, 44, 44]), np.array([0, 1, 2, 3, 3, 0])
    names = ["outside", *suits_sets._T2_MEANS]
    got = [names[k] for k in regions(labels, tissues)]
    assert got == ["outside", "fluid", "grey", "white", "white", "outside"]


def test_drawn_contrast_turns_tissues_and_texture_round():
    region = np.zeros((20, 20, 20), np.uint8)
    names = list(suits_sets._T2_MEANS)
    for k, name in enumerate(("fluid", "grey", "white")):
        region[2:18, 2:18, 2 + 5 * k : 7 + 5 * k] = names.index(name) + 1
    texture = np.random.default_rng(0).normal(0, 40, region.shape)
    means = np.zeros(len(names) + 1)
    means[1:4] = 400, 800, 1300
    t1 = np.where(region > 0, means[region] + texture, 0).astype(np.float32)
    image = redraw_t2(t1, region, 5)
    assert (image[region == 0] == 0).all() and image.min() >= 0
    fluid, grey, white = (image[4:16, 4:16, 4 + 5 * k].mean() for k in range(3))
    assert fluid > grey * 1.2 > white * 1.2
    inner = (slice(4, 16), slice(4, 16), slice(9, 10))
    assert np.corrcoef(t1[inner].ravel(), image[inner].ravel())[0, 1] < -0.5
    np.testing.assert_array_equal(image, redraw_t2(t1, region, 5))
    assert (image != redraw_t2(t1, region, 6)).any()


def test_brains_are_divided_once(source, tmp_path):
    path = Path(write_brains(source, tmp_path / "new", seed=1))
    sections = json.loads(path.read_text())
    counts = {name: sorted(item["modality"] for item in items) for name, items in sections.items()}
    assert counts == {
        "training": ["t1"] * 3 + ["t2"] * 4,
        "validation": ["t1", "t2"],
        "test": ["t1"] * 2 + ["t2"] * 2,
    }
    items = [item for section in sections.values() for item in section]
    assert sorted(item["subject"] for item in items) == [f"{k:02d}" for k in range(13)]
    for item in items:
        image, labels = read_image(path.parent / item["image"]), read_labels(path.parent / item["label"])
        real = read_image(source / f"{item['subject']}_t1.nii.gz")
        assert image.frame.same_grid(real.frame) and labels.frame.same_grid(real.frame)
        assert bool((image.array == real.array).all()) == (item["modality"] == "t1")
        assert set(np.unique(labels.array)) == {0, *BRAIN_LABELS}


def test_seed_decides_alone(source, tmp_path):
    first, again, other = (Path(write_brains(source, tmp_path / f"{k}", seed)) for k, seed in enumerate((0, 0, 2)))
    assert first.read_text() == again.read_text() != other.read_text()
    for item in json.loads(first.read_text())["test"]:
        assert (first.parent / item["image"]).read_bytes() == (again.parent / item["image"]).read_bytes()


def test_too_few_subjects_are_told(tmp_path):
    with pytest.raises(InputError, match="has 0 images"):
        write_brains(tmp_path, tmp_path / "out")


def test_sets_are_made_from_what_is_there(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(suits_sets, "write_abdomen", lambda folder, **options: asked.update(options) or str(folder))
    assert suits_sets.write_sets(tmp_path, tmp_path / "out") == {"abdomen": str(tmp_path / "out" / "abdomen")}
    assert asked == {"seed": 0, "layout": None}
    layout = tmp_path / suits_sets.ABDOMEN_LAYOUT
    layout.parent.mkdir()
    layout.write_bytes(b"x")
    suits_sets.write_sets(tmp_path, tmp_path / "out")
    assert asked["layout"] == layout


def test_real_brains_turn_from_t1_to_t2(data_dir):
    folder = data_dir / suits_sets.BRAINS
    if not folder.is_dir():
        pytest.skip("no brains")
    t1 = read_image(folder / "1000_t1.nii.gz").array[0].numpy()
    fine, tissues = (read_labels(folder / f"1000_{kind}.nii.gz").array[0].numpy() for kind in ("labels", "tissues"))
    image, coarse = redraw_t2(t1, regions(fine, tissues), 0), coarse_labels(fine)
    assert image[coarse == 3].mean() > image[coarse == 1].mean() > image[coarse == 2].mean()
    assert t1[coarse == 3].mean() < t1[coarse == 1].mean() < t1[coarse == 2].mean()
    assert {int(k) for k in np.unique(coarse)} == {0, *BRAIN_LABELS}
