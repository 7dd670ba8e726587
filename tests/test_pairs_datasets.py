"""Pairs by index, shares of an epoch, batches."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from shared_components.errors import InputError
from shared_components.pairs import (
    PairDataset,
    PairSampler,
    ValidationSampler,
    make_preprocessing,
    pair_collate,
    single_collate,
)


class Load:
    """Preprocessing of a subject or a pair without files; counts its calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        name = item.get("image") or f"{item['fixed']}<-{item['moving']}"
        self.calls[name] += 1
        if "image" not in item:
            return {"image": torch.zeros(2, 3, 3, 3), "name": name}
        value = float(name)
        found = {"image": torch.full((1, 3, 3, 3), value), "name": name}
        return found | ({"label": torch.full((1, 3, 3, 3), int(value))} if item.get("label") else {})


def subjects(n: int, label: bool = True) -> list[dict[str, Any]]:
    return [{"image": str(i), "label": label} for i in range(n)]


def add_noise(item: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
    return {**item, "image": item["image"] + torch.rand(2, 3, 3, 3, generator=generator)}


def test_all_ordered_pairs_once_an_epoch() -> None:
    dataset = PairDataset(subjects(4), Load())
    assert len(dataset) == 12
    names = [dataset[i]["name"] for i in range(12)]
    assert sorted(names) == sorted(f"{i}<-{j}" for i in range(4) for j in range(4) if i != j)
    assert [dataset[12 + i]["name"] for i in range(12)] == names, "the next epoch has the same pairs"


def test_a_pair_is_fixed_then_moving_with_their_labels() -> None:
    item = PairDataset(subjects(3), Load())[5]
    fixed, moving = item["name"].split("<-")
    assert item["image"].shape == (2, 3, 3, 3) and item["image"][:, 0, 0, 0].tolist() == [float(fixed), float(moving)]
    assert item["fixed_label"].unique().tolist() == [int(fixed)]
    assert item["moving_label"].unique().tolist() == [int(moving)]
    assert "fixed_label" not in PairDataset(subjects(3, label=False), Load())[0]


@pytest.mark.parametrize("length", [None, 7])
def test_an_item_depends_on_its_index_alone(length: int | None) -> None:
    def fresh(**kwargs: Any) -> PairDataset:
        return PairDataset(subjects(5), Load(), length, add_noise, **kwargs)

    order = [3, 0, 25, 3, 101, 6]
    first, second = fresh(), fresh(cache=False)
    torch.rand(100)  # the global generator has no say
    there = {i: first[i] for i in order}
    back = {i: second[i] for i in reversed(order)}
    for i in order:
        assert there[i]["name"] == back[i]["name"] and torch.equal(there[i]["image"], back[i]["image"])
    other = fresh(seed=1)
    assert not any(torch.equal(there[i]["image"], other[i]["image"]) for i in order)


def test_augmentation_changes_from_epoch_to_epoch() -> None:
    dataset = PairDataset(subjects(3), Load(), augment=add_noise)
    assert dataset[1]["name"] == dataset[7]["name"] and not torch.equal(dataset[1]["image"], dataset[7]["image"])


def test_random_pairs_reach_every_pair_about_equally() -> None:
    dataset = PairDataset(subjects(4), Load(), length=10)
    assert len(dataset) == 10
    counts = Counter(dataset[i]["name"] for i in range(1200))
    assert len(counts) == 12 and 60 < min(counts.values()) and max(counts.values()) < 145  # 100 expected, 4.5 sigma


def test_listed_pairs_come_as_listed() -> None:
    pairs = [{"fixed": "a", "moving": "b"}, {"fixed": "b", "moving": "c"}, {"fixed": "c", "moving": "a"}]
    dataset = PairDataset(pairs, Load())
    assert [dataset[i]["name"] for i in range(len(dataset))] == ["a<-b", "b<-c", "c<-a"]
    drawn = {PairDataset(pairs, Load(), length=2)[i]["name"] for i in range(30)}
    assert drawn == {"a<-b", "b<-c", "c<-a"}


class LoadAllBut(Load):
    """Some subjects cannot be read."""

    def __init__(self, *broken: int) -> None:
        super().__init__()
        self.broken = set(map(str, broken))

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        found = super().__call__(item)
        if found["name"] in self.broken:
            raise InputError(f"{found['name']} is damaged")
        return found


def test_one_unreadable_image_in_a_thousand_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    load = LoadAllBut(7, 500)
    dataset = PairDataset(subjects(1000, label=False), load, length=4000)
    names = [dataset[i]["name"].split("<-") for i in range(4000)]
    assert not {"7", "500"} & {name for pair in names for name in pair}
    told = [record.getMessage() for record in caplog.records]
    assert sorted(told) == ["left out of the training: 500 is damaged", "left out of the training: 7 is damaged"]
    assert load.calls["7"] == load.calls["500"] == 1, "not read again"
    again = PairDataset(subjects(1000, label=False), LoadAllBut(7, 500), length=4000)
    assert [again[i]["name"].split("<-") for i in (3999, 12)] == [names[3999], names[12]], (
        "an item depends on its index"
    )


def test_a_damaged_file_is_left_out_by_the_real_preprocessing_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MONAI wraps the sentence of a transform in an exception of its own."""
    grid = np.add.outer(np.arange(6.0), np.arange(5.0))
    nib.save(nib.Nifti1Image(grid.astype("float32"), np.eye(4)), tmp_path / "good.nii")
    (tmp_path / "bad.nii").write_bytes((tmp_path / "good.nii").read_bytes()[:360])
    items = [{"image": str(tmp_path / ("bad.nii" if k == 50 else "good.nii"))} for k in range(100)]
    dataset = PairDataset(items, make_preprocessing((4, 4), 1.0, keep_native=False), length=400)
    assert all(dataset[index]["image"].shape == (2, 4, 4) for index in range(400))
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("left out of the training: ") and "bad.nii is damaged" in told


def test_too_many_unreadable_images_stop_the_training() -> None:
    few = PairDataset(subjects(20, label=False), LoadAllBut(3), length=400)
    with pytest.raises(InputError, match="3 is damaged"):
        [few[i] for i in range(400)]
    spared = PairDataset(subjects(20, label=False), LoadAllBut(3), length=400, spare=0.05)
    assert len([spared[i] for i in range(400)]) == 400
    listed = PairDataset(subjects(200, label=False)[:3], LoadAllBut(1), spare=0.5)
    with pytest.raises(InputError, match="1 is damaged"):
        [listed[i] for i in range(len(listed))]


def test_subjects_are_preprocessed_once_if_cached() -> None:
    cached, fresh = Load(), Load()
    for load, cache in ((cached, True), (fresh, False)):
        dataset = PairDataset(subjects(3), load, augment=add_noise, cache=cache)
        items = [dataset[i] for i in range(6)]
    assert set(cached.calls.values()) == {1} and set(fresh.calls.values()) == {4}
    assert {float(item["image"][0].floor().mean()) for item in items} == {0.0, 1.0, 2.0}, "the cache is not augmented"


def test_one_subject_makes_no_pair_and_none_an_empty_set() -> None:
    with pytest.raises(InputError, match="one subject alone makes no pair"):
        PairDataset(subjects(1), Load())
    assert len(PairDataset([], Load())) == 0 and len(PairDataset([], Load(), length=5)) == 0


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_an_epoch_without_overlap(ranks: int) -> None:
    dataset = PairDataset(subjects(4), Load())
    samplers = [PairSampler(dataset, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    epochs = []
    for epoch in (0, 1, 5):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert len({len(share) for share in shares}) == 1
        assert sorted(sum(shares, [])) == [12 * epoch + i for i in range(12)]
        epochs.append([i - 12 * epoch for i in sum(shares, [])])
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2]), "shuffled anew"
    again = PairSampler(dataset, num_replicas=ranks, rank=0)
    again.set_epoch(5)
    assert list(again) == shares[0], "the epoch alone decides"


def test_an_epoch_that_does_not_divide_is_complete() -> None:
    dataset = PairDataset(subjects(5), Load(), length=7)
    shares = [list(PairSampler(dataset, num_replicas=2, rank=rank)) for rank in range(2)]
    assert [len(s) for s in shares] == [4, 4] and set(sum(shares, [])) == set(range(7))


def test_without_ranks_and_shuffling_the_order_is_kept() -> None:
    sampler = PairSampler(PairDataset(subjects(3), Load()), shuffle=False)
    sampler.set_epoch(2)
    assert list(sampler) == list(range(12, 18))


def test_pairs_to_validate_on_are_dealt_out_once_and_each_rank_needs_one() -> None:
    dataset = PairDataset(subjects(3), Load(), length=3)
    assert [list(ValidationSampler(dataset, 2, rank)) for rank in range(2)] == [[0, 2], [1]]
    with pytest.raises(InputError, match="pairs to validate on, 3, is too small for 4 processes: each needs one"):
        ValidationSampler(dataset, 4, 0)


def test_a_loader_yields_the_same_batches_for_any_number_of_workers() -> None:
    def epoch(workers: int) -> list[dict[str, Any]]:
        dataset = PairDataset(subjects(4), Load(), augment=add_noise)
        sampler = PairSampler(dataset)
        sampler.set_epoch(3)
        return list(
            torch.utils.data.DataLoader(dataset, 4, sampler=sampler, num_workers=workers, collate_fn=pair_collate)
        )

    for one, other in zip(epoch(0), epoch(1), strict=True):
        assert one["name"] == other["name"] and torch.equal(one["image"], other["image"])


def test_collate_stacks_what_fits_and_lists_the_rest() -> None:
    marker = object()
    items = [
        {"image": torch.zeros(2, 4, 4), "points": torch.zeros(n, 3), "name": str(n), "pair": marker} for n in (5, 6)
    ]
    batch = pair_collate(items)
    assert batch["image"].shape == (2, 2, 4, 4) and batch["name"] == ["5", "6"] and batch["pair"] == [marker, marker]
    assert [len(p) for p in batch["points"]] == [5, 6]


def test_collate_leaves_out_what_not_all_have() -> None:
    dataset = PairDataset([*subjects(2), {"image": "2"}], Load())
    batch = pair_collate([dataset[i] for i in range(6)])
    assert set(batch) == {"image", "name"} and batch["image"].shape == (6, 2, 3, 3, 3)


def test_single_collate_keeps_the_pair_itself() -> None:
    marker = object()
    batch = single_collate([{"image": torch.zeros(2, 4, 4), "name": "a<-b", "pair": marker}])
    assert batch["image"].shape == (1, 2, 4, 4) and batch["name"] == "a<-b" and batch["pair"] is marker
    with pytest.raises(ValueError, match="unpack"):
        single_collate([batch, batch])


def test_modalities_say_who_may_be_fixed_and_who_moving() -> None:
    data = subjects(5)
    for item, modality in zip(data, ["mr", "mr", "ct", "ct", None], strict=True):
        item["modality"] = modality
    names = {item["name"] for item in PairDataset(data, Load(), modalities=("mr", "ct"))}
    assert names == {"0<-2", "0<-3", "1<-2", "1<-3", "0<-4", "1<-4", "4<-2", "4<-3"}
    with pytest.raises(InputError, match="no pair of a fixed 'pet'"):
        PairDataset(data[:4], Load(), modalities=("pet", "ct"))
