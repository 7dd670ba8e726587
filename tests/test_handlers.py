"""Metrics of pairs over a run, in MONAI's evaluator."""

import csv
import logging
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator
from monai.handlers import MetricsSaver
from torch import nn
from torch.utils.data import DataLoader

from shared_components import handlers, metrics

SPACING = (2.0, 1.5)
SHAPE = (12, 14)


class Shift(nn.Module):
    """A "network" whose field is the same everywhere: (1, 0) voxels for the first pair, then (2, 0), ..."""

    def forward(self, image):
        ddf = image.new_zeros(image.shape[0], 2, *image.shape[2:])
        ddf[:, 0] = image[:, 0, 0, 0].view(-1, 1, 1)
        return ddf


def item(number, labelled=True):
    label = torch.zeros(1, *SHAPE, dtype=torch.int16)
    label[0, 3:9, 3:9], label[0, 0:3, 10:13] = 1, 2
    points = torch.tensor([[2.0, 3.0], [5.0, 5.0]])
    data = {"image": torch.full((2, *SHAPE), float(number)), "name": f"pair{number}"}
    if labelled:
        moved = label.roll(-number, 1)
        moved[0, 12 - number :] = 0  # rolled in on the other side
        data |= {"fixed_label": label, "moved_label": moved, "fixed_points_vox": points}
        data["moving_points_vox"] = points + torch.tensor([1.0, 0.0])
    return data


KEPT = ("fixed_label", "moved_label", "fixed_points_vox", "moving_points_vox", "inverse_ddf")


def prepare(batch, device=None, non_blocking=False, **kwargs):
    return batch["image"], {key: batch[key] for key in KEPT if key in batch}


class Inverse:
    """Post transform."""

    def __call__(self, data):
        return {**data, "inverse_ddf": -data["pred"] * 0.5}


def evaluator(items, key_metric, batch_size=1, decollate=True, **options):
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=batch_size),
        network=Shift(),
        prepare_batch=prepare,
        key_val_metric=key_metric,
        postprocessing=Inverse() if decollate else None,
        decollate=decollate,
        **options,
    )


def both(function, items, *args, **options):
    return [function(i["fixed_label"], i["moved_label"], *args, **options) for i in items]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_metrics_of_a_run_are_the_means_of_the_pairs(batch_size):
    items = [item(n) for n in (1, 2, 4)]
    additional = {
        "iou": handlers.IoUHandler(),
        "dice_of_one": handlers.DiceHandler(labels=[1]),
        "hd95_mm": handlers.HD95Handler(SPACING),
        "hd95_l2r": handlers.HD95Handler(None, labels=[1]),
        "jacobian": handlers.JacobianHandler(),
        "tre": handlers.TREHandler(SPACING),
        "inverse": handlers.InverseConsistencyHandler(SPACING),
    }
    engine = evaluator(items, {"dice": handlers.DiceHandler()}, batch_size, additional_metrics=additional)
    engine.run()
    found = engine.state.metrics
    dice = both(metrics.dice, items, absent="zero")
    assert dice[2][2] == 0.0 and not (items[2]["moved_label"] == 2).any(), "the last pair loses its second label"
    expected = np.mean([np.mean(list(scores.values())) for scores in dice])
    assert found["dice"] == pytest.approx(expected) == engine.state.best_metric
    assert found["dice_of_one"] == pytest.approx(np.mean([scores[1] for scores in dice]))
    iou = both(metrics.iou, items, absent="zero")
    assert found["iou"] == pytest.approx(np.mean([np.mean(list(scores.values())) for scores in iou]))
    hd95 = both(metrics.hd95_mm, items, SPACING)
    assert found["hd95_mm"] == pytest.approx(np.mean([np.mean(list(scores.values())) for scores in hd95]))
    assert found["hd95_l2r"] == pytest.approx(np.mean([scores[1] for scores in both(metrics.hd95_l2r, items)]))
    assert found["folds_percent"] == found["ndv_percent"] == found["sdlogj"] == 0.0
    # fields of 1, 2, 4 voxels of 2 mm; the landmarks moved by 1
    assert found["tre_mm"] == pytest.approx(np.mean([0, 2, 6])) and found["tre_mm_max"] == pytest.approx(6.0)
    assert found["ice_mm"] == pytest.approx(np.mean([1, 2, 4]))
    assert all(isinstance(value, float) for value in found.values()), "MONAI's writers take scalars only"


def test_details_reach_metrics_saver(tmp_path):
    items = [item(1), item(2)]
    engine = evaluator(
        items,
        {"dice": handlers.DiceHandler(labels=[1, 2, 7])},
        additional_metrics={"tre_mm": handlers.TREHandler(SPACING)},
        val_handlers=[
            MetricsSaver(
                str(tmp_path),
                metric_details="*",
                batch_transform=lambda batch: [{"filename_or_obj": data["name"]} for data in batch],
            )
        ],
    )
    engine.run()
    rows = list(csv.reader(open(tmp_path / "dice_raw.csv")))
    assert [row[0] for row in rows] == ["filename", "pair1", "pair2"] and rows[0][1:] == [
        "class0",
        "class1",
        "class2",
        "mean",
    ]
    dice = both(metrics.dice, items)
    assert [float(x) for x in rows[2][1:3]] == pytest.approx([dice[1][1], dice[1][2]], abs=1e-4)
    assert math.isnan(float(rows[2][3])) and engine.state.metric_details["dice"].shape == (2, 3)
    assert [float(row[1]) for row in list(csv.reader(open(tmp_path / "tre_mm_max_raw.csv")))[1:]] == [0.0, 2.0]
    assert f"dice,{engine.state.metrics['dice']}" in (tmp_path / "metrics.csv").read_text()


def test_batches_that_stay_together_give_the_same():
    items = [item(1), item(3)]
    engine = evaluator(items, {"dice": handlers.DiceHandler()}, batch_size=2, decollate=False)
    handlers.JacobianHandler(["std_jacobian", "det_min", "diagonal_folds_percent"]).attach(engine, "jacobian")
    handlers.AsymmetryHandler(1, ["pred", "pred"]).attach(engine, "asymmetry")
    engine.run()
    expected = np.mean([np.mean(list(s.values())) for s in both(metrics.dice, items, absent="zero")])
    assert engine.state.metrics["dice"] == pytest.approx(expected)
    assert engine.state.metrics["det_min"] == 1.0 and engine.state.metrics["std_jacobian"] == 0.0
    assert engine.state.metrics["diagonal_folds_percent"] == 0.0
    assert engine.state.metrics["log_asymmetry"] == pytest.approx(np.log([4.0, 36.0]).mean())  # shifts twice


def test_pairs_without_labels_are_left_out_and_none_at_all_is_nan(caplog):
    items = [item(2), item(3, labelled=False)]
    engine = evaluator(items, {"dice": handlers.DiceHandler()})
    handlers.TREHandler(SPACING).attach(engine, "tre")
    engine.run()
    assert engine.state.metrics["dice"] == pytest.approx(metrics.mean_over_labels(both(metrics.dice, items[:1])[0]))
    assert engine.state.metric_details["dice"].isnan().tolist() == [[False], [True]]
    assert engine.state.metrics["tre_mm_max"] == pytest.approx(2.0)
    with caplog.at_level(logging.WARNING):
        nothing = evaluator(items[1:], {"dice": handlers.DiceHandler()})
        handlers.TREHandler(SPACING).attach(nothing, "tre")
        nothing.run()
    assert math.isnan(nothing.state.metrics["dice"]) and math.isnan(nothing.state.metrics["tre_mm_max"])
    assert "none of 1 pairs" in caplog.text


def test_a_second_run_starts_afresh():
    engine = evaluator([item(1)], {"dice": handlers.DiceHandler()})
    engine.run()
    first = engine.state.metrics["dice"]
    engine.run(2)
    assert engine.state.metrics["dice"] == first and len(engine.state.metric_details["dice"]) == 1


def test_tre_in_millimetres_takes_mapped_points():
    engine = Engine(lambda engine, batch: batch)
    engine.state.metric_details = {}
    handlers.TREHandler().attach(engine, "tre")
    points = np.random.default_rng(0).normal(size=(9, 3))
    output = [{"mapped_points_mm": torch.from_numpy(points + [0, 3.0, 4.0]), "moving_points_mm": points}]
    engine.run([output])
    assert engine.state.metrics["tre_mm"] == pytest.approx(5.0) and engine.state.metrics["tre_mm_p95"] == 5.0


def test_labels_are_found_in_the_label_dictionary_and_transforms_of_ones_own_work():
    data = item(2)
    output = [{"moved_label": data["moved_label"], "label": {"fixed_label": data["fixed_label"]}}]
    for transform in (None, lambda out: ([out[0]["label"]["fixed_label"]], [out[0]["moved_label"]])):
        engine = Engine(lambda engine, batch: batch)
        handlers.DiceHandler(output_transform=transform, save_details=False).attach(engine, "dice")
        engine.run([output])
        assert engine.state.metrics["dice"] == pytest.approx(metrics.mean_over_labels(both(metrics.dice, [data])[0]))


def test_key_metric_must_be_one_of_the_numbers():
    with pytest.raises(ValueError, match="key metric 'jacobian'.*folds_percent"):
        evaluator([item(1)], {"jacobian": handlers.JacobianHandler()})
    engine = evaluator([item(1)], {"ndv_percent": handlers.JacobianHandler()})
    engine.run()
    assert engine.state.best_metric == 0.0
    with pytest.raises(ValueError, match="unknown Jacobian statistics"):
        handlers.JacobianHandler(["sdlogjac"])


def test_all_handlers_can_be_written_in_json(tmp_path):
    package = "shared_components.handlers."
    config = {
        "dice": {"_target_": package + "DiceHandler", "labels": [1, 2], "absent": "skip"},
        "hd95": {"_target_": package + "HD95Handler", "spacing_mm": [1, 1, 1], "keys": ["a", "b"]},
        "iou": {"_target_": package + "IoUHandler"},
        "tre": {"_target_": package + "TREHandler", "spacing_mm": [1, 1, 1]},
        "jacobian": {"_target_": package + "JacobianHandler", "statistics": ["sdlogj_l2r"]},
        "inverse": {"_target_": package + "InverseConsistencyHandler", "spacing_mm": [1, 1, 1]},
        "clip": {"_target_": package + "GradientClip", "max_norm": 1.0},
        "nan": {"_target_": package + "StopOnNaN"},
        "progress": {"_target_": package + "EpochProgress"},
        "terms": {"_target_": package + "StageLossLogger", "log_dir": str(tmp_path)},
    }
    parser = ConfigParser(config)
    built = {key: parser.get_parsed_content(key) for key in config}
    assert built["dice"].labels == [1, 2] and built["dice"].absent == "skip"
    assert all(hasattr(handler, "attach") for handler in built.values())


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    items = [item(1), item(2)] if rank == 0 else [item(4)]
    engine = evaluator(items, {"dice": handlers.DiceHandler()})
    handlers.TREHandler(SPACING).attach(engine, "tre")
    terms = handlers.StageLossLogger(log_dir=f"{folder}/log")
    engine.loss_function = type("Loss", (), {"terms": {"b": torch.tensor(rank + 1.0), "a": torch.tensor(3.0)}})
    terms.attach(engine)
    engine.run()
    torch.save((engine.state.metrics, engine.state.metric_details, engine.state.loss_terms), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_on_the_result_of_one(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    one = evaluator([item(n) for n in (1, 2, 4)], {"dice": handlers.DiceHandler()})
    handlers.TREHandler(SPACING).attach(one, "tre")
    one.run()
    assert found[0][0] == found[1][0] == one.state.metrics
    for details in (found[0][1], found[1][1]):
        torch.testing.assert_close(details, one.state.metric_details)
    assert found[0][2] == found[1][2] == {"b": pytest.approx((1 + 1 + 2) / 3), "a": 3.0}
    assert len(list((tmp_path / "log").iterdir())) == 1, "only one rank writes"


def test_mean_squares_leave_out_what_comes_from_outside():
    """The moving image is the fixed one shifted by two rows; the field brings it back but for two rows."""
    fixed = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    moving = torch.cat([torch.zeros(1, 2, SHAPE[1]), fixed[:, :-2]], 1)
    ddf = torch.zeros(2, *SHAPE)
    ddf[0] = 2.0
    handler = handlers.MeanSquaresHandler()
    after, before = handler.measure(torch.cat([fixed, moving]), ddf)
    assert after == pytest.approx(0, abs=1e-10)
    assert before == pytest.approx(float((fixed - moving).square().mean()), rel=1e-5) and before > 0.1
    assert handler.measure(torch.cat([fixed, moving]), ddf + 100)[0] == 0, "nothing is left to compare"
    assert handler.columns == ("mse", "mse_before")
