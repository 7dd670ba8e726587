"""Random changes to a pair: repeatable, labels move with their images, background stays background."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared_components.errors import InputError
from shared_components.pairs import AugmentPair, DrawSeed
from shared_components.warp import warp_image

EVERYTHING = {
    "bspline": 0.4, "rotation": 10.0, "scaling": 0.1, "translation": 0.05, "pose_rotation": 10.0, "pose_scaling": 0.1,
    "contrast": 0.4, "bias": 0.3, "noise": 0.02, "flip": 0.5,
}  # fmt: skip


def pair() -> dict[str, Tensor]:
    """Two images that are their own labels: a block each."""
    labels = torch.zeros(2, 20, 22, 18)
    labels[0, 6:13, 7:15, 5:12] = 1
    labels[1, 8:15, 6:14, 6:13] = 1
    return {"image": labels.clone(), "fixed_label": labels[:1].short(), "moving_label": labels[1:].short()}


def drawn(seed: int, **knobs: float) -> dict[str, Tensor]:
    return AugmentPair(**{**knobs})(pair(), torch.Generator().manual_seed(seed))


def test_one_seed_one_result() -> None:
    first, again, other = drawn(1, **EVERYTHING), drawn(1, **EVERYTHING), drawn(2, **EVERYTHING)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], other["image"])


def test_the_given_pair_is_not_touched() -> None:
    item = pair()
    AugmentPair(**EVERYTHING)(item, torch.Generator().manual_seed(0))
    assert all(torch.equal(item[key], value) for key, value in pair().items())


def test_labels_move_with_their_images() -> None:
    found = drawn(3, bspline=0.4, rotation=15.0, translation=0.1, pose_rotation=15.0, flip=1.0)
    for index, side in enumerate(("fixed", "moving")):
        assert not torch.equal(found[f"{side}_label"], pair()[f"{side}_label"])
        inside = found["image"][index][found[f"{side}_label"][0] > 0]
        outside = found["image"][index][found[f"{side}_label"][0] == 0]
        assert inside.min() >= 0.2 and outside.max() <= 0.8, "nearest and linear agree but for a rim"


def test_pose_is_common_and_relative_motion_is_not() -> None:
    same = {**pair(), "image": pair()["image"][:1].repeat(2, 1, 1, 1)}
    posed = AugmentPair(bspline=0, pose_rotation=20.0, pose_scaling=0.1)(same, torch.Generator().manual_seed(0))
    assert torch.allclose(posed["image"][0], posed["image"][1]) and not torch.equal(posed["image"], same["image"])
    moved = AugmentPair(bspline=0, rotation=20.0)(same, torch.Generator().manual_seed(0))
    assert torch.equal(moved["image"][0], same["image"][0]) and not torch.equal(moved["image"][1], same["image"][1])


def test_mirroring_takes_everything_along() -> None:
    found, before = drawn(0, bspline=0, flip=1.0), pair()
    assert all(torch.equal(found[key], before[key].flip(1)) for key in before)


def test_a_field_to_be_learned_is_mirrored_too_and_kept_from_other_changes() -> None:
    item = pair()
    item["ddf"] = torch.randn(3, *item["image"].shape[1:], generator=torch.Generator().manual_seed(1))
    mirrored = AugmentPair(bspline=0, contrast=0.3, flip=1.0)(dict(item), torch.Generator().manual_seed(0))["ddf"]
    image = item["image"][None, 1:]
    straight = warp_image(image, item["ddf"][None]).flip(2)
    torch.testing.assert_close(warp_image(image.flip(2), mirrored[None]), straight, atol=1e-5, rtol=0)
    for change in ({"bspline": 0.4}, {"bspline": 0, "rotation": 5.0}, {"bspline": 0, "pose_rotation": 5.0}):
        with pytest.raises(InputError, match="has a target field; train on it with --augment None"):
            AugmentPair(**change)(dict(item), torch.Generator())


def test_background_stays_background_in_the_intensities() -> None:
    found = drawn(0, bspline=0, contrast=0.4, bias=0.3, noise=0.05)["image"]
    before = pair()["image"]
    assert (found[before == 0] == 0).all() and found[before == 1].std() > 0.01


def test_probability_leaves_some_pairs_as_acquired() -> None:
    kept = sum(torch.equal(drawn(seed, probability=0.5)["image"], pair()["image"]) for seed in range(60))
    assert 15 < kept < 45
    assert not any(torch.equal(drawn(seed)["image"], pair()["image"]) for seed in range(10))
    assert all(torch.equal(drawn(seed, probability=0.0)["image"], pair()["image"]) for seed in range(10))


def test_an_empty_augmentation_changes_nothing() -> None:
    found = drawn(0, bspline=0)
    assert all(torch.equal(found[key], value) for key, value in pair().items())


def test_every_pair_has_a_seed_of_its_own() -> None:
    draw = DrawSeed(lambda item, generator: {**item, "seen": torch.rand((), generator=generator)})
    items = [draw({"image": torch.zeros(2, 4, 4)}, torch.Generator().manual_seed(k)) for k in (0, 1, 0)]
    seeds = [int(item["noise_seed"]) for item in items]
    assert seeds[0] == seeds[2] != seeds[1] and all("seen" in item for item in items)
    assert set(DrawSeed()({}, torch.Generator())) == {"noise_seed"}
