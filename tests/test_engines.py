"""The pieces that train and evaluate share."""

import subprocess
import sys

import pytest
import torch

from shared_components.engines import (
    AutocastInferer,
    PrepareInference,
    PrepareTraining,
    RegisterBack,
    StageInferer,
    WarpLabel,
    load_weights,
    lower_is_better,
    resolve_device,
    warmup_cosine,
)
from shared_components.errors import InputError


def batch():
    image = torch.rand(1, 2, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    label = torch.arange(120, dtype=torch.int16).view(1, 1, 5, 6, 4) % 3
    return {"image": image, "fixed_label": label, "moving_label": label, "name": ["a<-b"]}


def test_training_batches_hold_both_orders_if_asked():
    image, targets, args, kwargs = PrepareTraining(symmetric=True)(batch())
    assert image.shape[0] == 2 and torch.equal(image[0, 0], image[1, 1]) and torch.equal(image[0, 1], image[1, 0])
    assert torch.equal(targets["fixed"], image[:, :1]) and kwargs == {"return_stages": True}
    assert PrepareTraining()(batch())[0].shape[0] == 1


def test_a_target_field_is_handed_on_but_not_swapped():
    with_target = {**batch(), "ddf": torch.ones(1, 3, 5, 6, 4)}
    assert torch.equal(PrepareTraining()(with_target)[1]["ddf"], with_target["ddf"])
    with pytest.raises(InputError, match="one order"):
        PrepareTraining(symmetric=True)(with_target)


def test_the_seed_of_the_first_pair_reaches_the_network():
    seeds = {**batch(), "noise_seed": torch.tensor([7, 9])}
    assert PrepareTraining()(seeds)[3] == {"return_stages": True, "noise_seed": 7}


def test_of_errors_the_first_and_every_lower_one_is_better():
    assert lower_is_better(0.5, -1) and lower_is_better(0.0, -1) and lower_is_better(0.4, 0.5)
    assert not lower_is_better(0.5, 0.4) and not lower_is_better(0.0, 0.0)


def test_labels_reach_the_evaluator_and_are_moved():
    image, labels = PrepareInference()(batch())
    assert set(labels) == {"fixed_label", "moving_label"}
    shift = torch.zeros(3, 5, 6, 4)
    shift[0] = 1
    moved = WarpLabel()({"label": {"moving_label": labels["moving_label"][0]}, "pred": shift})["moved_label"]
    assert torch.equal(moved[:, :-1], labels["moving_label"][0][:, 1:]) and moved.dtype == torch.int16
    assert "moved_label" not in WarpLabel()({"label": {}, "pred": shift})


def test_the_other_order_is_registered_in_the_same_way():
    class Difference(torch.nn.Module):
        def forward(self, image):
            return (image[:, :1] - image[:, 1:]).expand(-1, 3, -1, -1, -1)

    twice = lambda data: {**data, "pred": 2 * data["pred"]}  # noqa: E731
    image = batch()["image"][0]
    item = {"image": image, "pred": Difference()(image[None])[0]}
    for then, times in ((None, 1), (twice, 2)):
        found = RegisterBack(Difference(), None, then)(item)
        assert torch.equal(found["pred_back"], -times * item["pred"]) and torch.equal(found["pred"], item["pred"])
    assert torch.equal(RegisterBack(Difference(), StageInferer("identity"))(item)["pred_back"], 0 * item["pred"])


class Cascade(torch.nn.Module):
    def forward(self, image, return_stages=False):
        ones = torch.ones(image.shape[0], 3, *image.shape[2:])
        return {"ddf": [ones, 2 * ones]} if return_stages else 2 * ones


def test_stages_can_be_evaluated_one_by_one():
    image = batch()["image"]
    found = [float(StageInferer(stage)(image, Cascade()).mean()) for stage in ("identity", 0, "final")]
    assert found == [0, 1, 2]
    with pytest.raises(InputError, match="stage"):
        StageInferer("affine")


class Biased(torch.nn.Module):
    """Finds the true shift of 2 voxels along the first axis, +-, but for an error that is the same in both orders."""

    def forward(self, image):
        ddf = torch.zeros(image.shape[0], 3, *image.shape[2:])
        ddf[:, 0] = torch.where((image[:, 0] > image[:, 1]), 2.0, -2.0) + 0.5
        return ddf


def test_both_orders_cancel_what_they_do_not_share():
    image = torch.stack([torch.ones(16, 8, 8), torch.zeros(16, 8, 8)])[None].repeat(2, 1, 1, 1, 1)
    image[1] = image[1].flip(0)
    found = StageInferer(both_orders=True)(image, Biased())
    assert torch.allclose(found[:, 0, 4:-4], torch.tensor([2.0, -2.0]).view(2, 1, 1, 1), atol=1e-5)
    assert torch.allclose(StageInferer()(image, Biased())[:, 0], torch.tensor([2.5, -1.5]).view(2, 1, 1, 1))
    assert not StageInferer("identity", both_orders=True)(image, Biased()).any()


def test_a_stage_is_computed_in_the_precision_asked_for():
    layer = torch.nn.Conv3d(2, 3, 1)
    assert StageInferer("final", "bfloat16")(batch()["image"], layer).dtype == torch.bfloat16
    assert StageInferer("final")(batch()["image"], layer).dtype == torch.float32


def test_autocast_is_off_for_float32():
    def network(image):
        return image.reshape(1, -1) @ image.reshape(-1, 1)

    assert AutocastInferer("float32")(batch()["image"], network).dtype == torch.float32
    assert AutocastInferer("bfloat16")(batch()["image"], network).dtype == torch.bfloat16


def test_the_schedule_rises_once_and_ends_near_zero():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, epochs=10, warmup_epochs=2)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1 / 3) and rates[2] == pytest.approx(1.0)
    assert all(a > b for a, b in zip(rates[2:], rates[3:], strict=False)) and 0 < rates[-1] < 0.05


def test_weights_that_do_not_belong_are_told_in_a_sentence(tmp_path):
    network, path = torch.nn.Linear(2, 2), tmp_path / "model.pt"
    with pytest.raises(InputError, match="missing"):
        load_weights(network, path)
    assert not load_weights(network, path, required=False) and not load_weights(network, None)
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(InputError, match="another network"):
        load_weights(network, path)
    path.write_bytes(b"rubbish")
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(network, path)
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    assert load_weights(network, path)


def test_devices_that_are_not_there():
    assert resolve_device("cpu").type == "cpu"
    for name in ("cuda:99", "toaster"):
        with pytest.raises(InputError, match=name):
            resolve_device(name)


def test_the_hook_prints_the_sentence_alone():
    code = (
        "from shared_components.engines import start; from shared_components.errors import InputError; start()\n"
        "try:\n    raise InputError('this file is bad')\nexcept InputError as e:\n    raise RuntimeError() from e"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1] == "error: this file is bad"
    assert "Traceback" not in done.stderr
