"""Pairs, single measurements and tools of ``reproduce.py avsm``."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from script_tools import ROOT, blob

sys.path.append(str(ROOT / "scripts"))  # where the script itself finds its helpers

from reproducing import avsm_methods, pair_peers  # noqa: E402
from reproducing.avsm_methods import Fields, Found, measured, read_numbers  # noqa: E402
from reproducing.avsm_sets import CrossPairs, Item, LongitudinalPairs, both_orders, swapped  # noqa: E402
from reproducing.pair_rows import TestPairs  # noqa: E402

from shared_components.warp import compose, jacobian_determinant, warp_image, warp_labels  # noqa: E402

SIZE, SPACING_MM = (32, 28, 24), [4.0, 4.0, 4.0]


def brain(name: str, shift: float = 0.0) -> Item:
    """A soft ellipsoid with a core, in [0, 1]."""
    image = torch.from_numpy(blob(SIZE, shift)).float()[None] / 100
    return {"image": image, "label": (image > 0).int() + (image > 0.6).int(), "name": name}


def later() -> LongitudinalPairs:
    return LongitudinalPairs([brain("a"), brain("b", 1.0)], SPACING_MM)


def test_cross_pairs_are_every_two_in_both_orders() -> None:
    pairs = CrossPairs([brain(name, shift) for name, shift in (("a", 0.0), ("b", 1.0), ("c", 2.0))])
    assert [pair["name"] for pair in pairs] == ["a<-b", "a<-c", "b<-c"]
    item = pairs[1]
    this, other = both_orders(item)
    assert this is item and other["name"] == "c<-a" and torch.equal(other["image"][0], item["image"][1])
    assert torch.equal(other["fixed_label"], item["moving_label"]) and "truth" not in other
    assert swapped(other)["name"] == "a<-c" and torch.equal(swapped(other)["image"], item["image"])


def test_the_truth_of_longitudinal_pairs_undoes_what_was_done() -> None:
    pairs = later()
    assert len(pairs) == 4 and [pair["name"] for pair in pairs] == ["a<-time1", "a<-time2", "b<-time1", "b<-time2"]
    item = pairs[1]
    forth, back = item["truth"]
    inside = (item["image"][0] > 0) & (item["image"][1] > 0)
    for outer, inner in ((forth, back), (back, forth)):
        assert float(compose(outer, inner).norm(dim=1)[0][inside].max()) < 0.1  # voxels
    assert float(jacobian_determinant(forth).min()) > 0.3
    before, after = (
        float((labels[0] != item["fixed_label"][0]).float().mean())
        for labels in (item["moving_label"], warp_labels(item["moving_label"][None], forth)[0])
    )
    assert after < 0.4 * before
    length = (4 * forth.norm(dim=1)[0])[inside].mean()
    assert 1.0 < float(length) < 10.0


def test_longitudinal_pairs_differ_in_contrast_and_are_the_same_each_time() -> None:
    item, again = later()[0], later()[0]
    assert torch.equal(item["image"], again["image"]) and torch.equal(item["truth"][0], again["truth"][0])
    assert not torch.equal(item["truth"][0], later()[1]["truth"][0])
    still = warp_image(item["image"][None, :1], item["truth"][1], padding="zeros")[0]
    kept = (still > 0.05) & (item["image"][1:] > 0)
    assert float((still - item["image"][1:])[kept].abs().mean()) > 0.02
    assert float(item["image"].min()) >= 0 and float(item["image"][1].max()) == 1.0
    assert float(item["image"][1][(still == 0)[0]].abs().max()) == 0  # the background stays


def plain_pairs(folder: Path) -> tuple[TestPairs, Item]:
    pairs = LongitudinalPairs([brain("a")], SPACING_MM, 1)
    return TestPairs("set", folder, pairs, (), SPACING_MM, "v"), pairs[0]


def test_a_field_is_measured_as_it_should_be(tmp_path: Path) -> None:
    pairs, item = plain_pairs(tmp_path)
    forth, back = item["truth"]
    exact, zero = measured(pairs, item, forth, back), torch.zeros_like(forth)
    none = measured(pairs, item, zero, zero)
    assert exact["dice"] > 0.97 > none["dice"] and exact["hd95_mm"] < none["hd95_mm"]
    assert exact["error_mm"] == 0.0 and none["symmetry"] is None and exact["symmetry"] < -5
    assert none["error_mm"] == pytest.approx(float((4 * forth.norm(dim=1)[0])[item["image"][0] > 0].mean()), rel=1e-4)
    assert exact["folds"] == exact["diagonal_folds"] == exact["fold_size"] == exact["folds_percent"] == 0
    lost = measured(pairs, item, zero + 1000.0, zero)
    assert lost["dice"] == 0.0 and lost["hd95_mm"] is None


def linear(matrix: np.ndarray) -> torch.Tensor:
    """The field whose Jacobian is a matrix everywhere."""
    axes = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij"))
    return torch.einsum("ij,j...->i...", torch.from_numpy(matrix - np.eye(3)).float(), axes)[None]


def test_both_counts_of_folds(tmp_path: Path) -> None:
    pairs, item = plain_pairs(tmp_path)
    count = math.prod(SIZE)
    wrong, fine = np.eye(3), np.eye(3)
    wrong[:2, :2] = [[1, 2], [1, 1]]  # determinant -1, product of the diagonal 1
    fine[:2, :2] = [[-0.1, 1], [-1, 1]]  # determinant 0.9, product -0.1
    one, other = (measured(pairs, item, linear(matrix), torch.zeros(1, 3, *SIZE)) for matrix in (wrong, fine))
    assert (one["folds"], one["diagonal_folds"]) == (count, 0) and one["fold_size"] == pytest.approx(count, rel=1e-3)
    assert (other["folds"], other["diagonal_folds"]) == (0, count) and other["fold_size"] == 0


class Steps:
    """Stands for a method; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Fields:
        def fields(item: Item, timed: bool) -> Found:
            self.calls += 1
            return {"vtn": (torch.zeros(1, 3, *SIZE), {"seconds": 1.0, "cpu_seconds": 1.0} if timed else {})}

        return fields


def test_rows_are_kept_by_pair_and_version(tmp_path: Path) -> None:
    pairs = TestPairs("set", tmp_path, later(), (), SPACING_MM, "v")
    method = Steps()
    avsm_methods.measure(pairs, "vtn", method, version="a", count=1)
    assert method.calls == 2 and len(read_numbers(pairs, "vtn", "a")["vtn"]["dice"]) == 2
    avsm_methods.measure(pairs, "vtn", method, version="a", count=2)
    assert method.calls == 4 and read_numbers(pairs, "vtn", "a")["vtn"]["pairs"][:2] == ["a<-time1", "time1<-a"]
    avsm_methods.measure(pairs, "vtn", method, version="a", count=2)
    assert method.calls == 4 and read_numbers(pairs, "vtn", "b") == {}
    avsm_methods.measure(pairs, "vtn", method, version="b", count=1)
    assert method.calls == 6 and len(read_numbers(pairs, "vtn", "b")["vtn"]["seconds"]) == 2
    avsm_methods.measure(pairs, "vtn", method, again=True, version="b", count=1)
    assert method.calls == 8


def test_a_free_field_matches_better_and_folds() -> None:
    fixed, moving = brain("a")["image"], brain("b", 1.5)["image"]
    generator = torch.Generator().manual_seed(0)
    noise = 0.2 * torch.rand(2, *SIZE, generator=generator)
    image = (torch.cat([fixed, moving]) + noise)[None]
    found = avsm_methods.free_field(image, torch.zeros(1, 3, *SIZE))
    moved = warp_image(image[:, 1:], found)
    assert float((moved - image[:, :1]).square().mean()) < 0.7 * float((image[:, 1:] - image[:, :1]).square().mean())
    assert int((jacobian_determinant(found) < 0).sum()) > 0


def test_a_tool_of_files_answers_in_voxels_along_the_axes_of_the_array() -> None:
    sitk = pytest.importorskip("SimpleITK")
    seen: list[Any] = []

    def tool(fixed: str, moving: str, out: str, folder: str) -> tuple[str, float]:
        image = sitk.ReadImage(fixed)
        seen.append((image.GetSize(), image.GetSpacing(), sitk.GetArrayFromImage(image)))
        field = sitk.TransformToDisplacementField(
            sitk.TranslationTransform(3, (2.0, 6.0, -8.0)),
            sitk.sitkVectorFloat32,
            image.GetSize(),
            image.GetOrigin(),
            image.GetSpacing(),
            image.GetDirection(),
        )
        sitk.WriteImage(field, out)
        return "1.0", 2.5

    images = np.random.default_rng(0).random((2, 5, 6, 7))
    adapter = lambda *given: pair_peers.by_files(tool, *given)  # noqa: E731
    ddf, facts = pair_peers.register(adapter, images, [1.0, 2.0, 4.0], 1)
    assert ddf.shape == (3, 5, 6, 7) and np.allclose(ddf[:, 2, 3, 4], [2.0, 3.0, -2.0])
    assert facts["seconds"] == 2.5 and not facts["failed"]
    size, spacing, values = seen[0]
    assert size == (5, 6, 7) and spacing == (1.0, 2.0, 4.0) and np.allclose(values, images[0].T, atol=1e-6)


def test_demons_register_in_a_process_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    pairs, item = plain_pairs(tmp_path)
    avsm_methods.measure_peer(pairs, "demons", sys.executable, 1, 1)
    found = read_numbers(pairs, "demons")["demons"]
    before = measured(pairs, item, torch.zeros(1, 3, *SIZE), torch.zeros(1, 3, *SIZE))
    assert len(found["dice"]) == 2 and found["failed"] == 0 and found["tool"].startswith("SimpleITK")
    assert found["dice"][0] > before["dice"] and found["error_mm"][0] < before["error_mm"]


@pytest.mark.skipif(find_spec("ants") is not None, reason="antspyx is installed here")
def test_a_missing_tool_is_skipped_with_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, _ = plain_pairs(tmp_path)
    avsm_methods.measure_peer(pairs, "syn", sys.executable, 1, 1)
    assert "pip install antspyx" in capsys.readouterr().err and read_numbers(pairs, "syn") == {}
