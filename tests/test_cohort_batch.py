"""scripts/cohort.py --batch: several pairs in one forward pass, and the same results."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from cohort_case import contents, pairs_of, run, table
from cohorts import batches, worker
from cohorts.job import Loaded
from cohorts.worker import Worker

from shared_components.results import save

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undo_config")]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs went through the network in each of its passes for several."""
    seen: list[int] = []
    real = worker.predict_together

    def counted(evaluator: object, pairs: list[Loaded]) -> None:
        seen.append(len(pairs))
        real(evaluator, pairs)

    monkeypatch.setattr(worker, "predict_together", counted)
    return seen


def test_results_of_a_batch_are_those_of_one_pair_after_the_other(
    finished: Path, mine: Path, passes: list[int]
) -> None:
    """Three pairs in batches of two: all bytes but those of the fields' last digits, if any."""
    assert run(mine, "two", "--batch=2") == 0
    assert passes == [2] and pairs_of(mine / "two") == ["p0", "p1", "p2"]
    one, two = contents(finished / "out"), contents(mine / "two")
    assert one.keys() == two.keys()
    for pair in ("p0", "p1", "p2"):
        for name in ("moved.nii.gz", "ddf.nii.gz", "inverse_ddf.nii.gz", "moved_label.nii.gz"):
            found, wanted = (nib.load(place / pair / name).get_fdata() for place in (mine / "two", finished / "out"))
            np.testing.assert_allclose(found, wanted, atol=1e-3, err_msg=f"{pair}/{name}")
    assert {name for name in one if name.startswith("p2/") and one[name] != two[name]} == set()  # it was alone
    assert all(0 < float(row["seconds"]) < 60 for row in table(mine / "two"))


def test_a_broken_file_costs_its_pair_and_not_its_batch(finished: Path, mine: Path, passes: list[int]) -> None:
    (mine / "m1.nii.gz").write_bytes(b"nothing")
    assert run(mine, "broken", "--batch=3") == 3
    assert passes == [2]
    assert [row["status"] for row in table(mine / "broken")] == ["ok", "failed", "ok"]
    moved = [nib.load(place / "p2" / "moved.nii.gz").get_fdata() for place in (mine / "broken", finished / "out")]
    np.testing.assert_allclose(*moved, atol=1e-3)


def test_a_pair_that_fails_in_the_midst_leaves_the_others_of_its_batch_whole(
    finished: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluator is a new one after it; what the network made is kept, and so is the affine part."""
    real, left = save.SaveRegistration.__call__, [1]

    def call(self: save.SaveRegistration, data: dict) -> dict:
        left[0] -= 1
        if left[0] == 0:
            raise MemoryError("no more")
        return real(self, data)

    monkeypatch.setattr(save.SaveRegistration, "__call__", call)
    assert run(mine, "half", "--batch=3") == 3
    assert [row["status"] for row in table(mine / "half")] == ["failed", "ok", "ok"]
    wanted = {name for name in contents(finished / "out") if not name.startswith("p0/")}
    assert "p1/affine.tfm" in wanted and set(contents(mine / "half")) == wanted


def test_a_batch_without_room_is_taken_apart(finished: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(evaluator: object, pairs: list[Loaded]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(worker, "predict_together", fail)
    assert run(mine, "narrow", "--batch=3") == 0
    assert contents(mine / "narrow") == contents(finished / "out")


def test_a_cohort_begun_one_by_one_is_finished_in_batches(mine: Path, passes: list[int], capsys) -> None:
    assert run(mine, "out", "--batch=2") == 0
    assert "3 finished before, 0 to do" in capsys.readouterr().err and passes == []


class Evaluator:
    """As much of MONAI's as a forward pass needs; its network tells each pair by the sum of its image."""

    def __init__(self) -> None:
        self.network, self.state = torch.nn.Identity(), type("State", (), {"device": "cpu"})
        self.sizes: list[tuple[int, ...]] = []

    def mode(self, network: torch.nn.Module) -> torch.no_grad:
        return torch.no_grad()

    def inferer(self, images: torch.Tensor, network: torch.nn.Module) -> dict[str, torch.Tensor]:
        self.sizes.append(tuple(images.shape))
        return {"ddf": images[:, :1], "sum": images.flatten(1).sum(1, keepdim=True)}


def test_images_of_one_size_go_together_and_each_gets_its_own() -> None:
    images = [torch.full((1, 2, *size), float(value)) for value, size in enumerate([(4, 5), (3, 3), (4, 5)], 1)]
    pairs = [Loaded({"image": image}, 1.0, {}, []) for image in images]
    evaluator = Evaluator()
    batches.predict_together(evaluator, pairs)
    assert sorted(evaluator.sizes) == [(1, 2, 3, 3), (2, 2, 4, 5)]
    for pair, image in zip(pairs, images, strict=True):
        assert torch.equal(pair.pred["ddf"], image[:, :1]) and float(pair.pred["sum"]) == float(image.sum())
        assert pair.seconds > 1
        again = batches.Known(pair.pred)(image, evaluator.network)
        assert torch.equal(again["ddf"], image[:, :1])


@pytest.mark.slow
def test_workers_take_batches_too(finished: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(mine, "workers", "--batch=2", "--workers=2") == 0
    rows = table(mine / "workers")
    assert [row["status"] for row in rows] == ["ok"] * 3
    for name in ("p0", "p1", "p2"):
        told = [
            json.loads((place / name / "metrics.json").read_text()) for place in (mine / "workers", finished / "out")
        ]
        assert told[0]["field"]["displacement_mm"]["mean"] == pytest.approx(
            told[1]["field"]["displacement_mm"]["mean"], abs=1e-4
        )


def test_a_worker_is_given_no_more_than_two_batches(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds the batch at work and the one being read."""
    begun, open_pairs, real = [0], [], Worker.load
    finish = Worker.finish

    def load(self: Worker, task: object) -> object:
        begun[0] += 1
        open_pairs.append(begun[0])
        return real(self, task)

    def done(self: Worker, task: object, loading: object) -> object:
        begun[0] -= 1
        return finish(self, task, loading)

    lines = ["name,fixed,moving"] + [f"q{number},fixed.nii.gz,m{number % 3}.nii.gz" for number in range(8)]
    (mine / "pairs.csv").write_text("\n".join(lines))
    monkeypatch.setattr(Worker, "load", load)
    monkeypatch.setattr(Worker, "finish", done)
    assert run(mine, "many", "--batch=2") == 0
    assert max(open_pairs) == 4
