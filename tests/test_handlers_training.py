"""Guards, progress, loss terms and checkpoints, in MONAI's trainer."""

import io
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from shared_components import handlers


class Loss:
    """Two named terms; the second follows the data, so that a test can make it what it likes."""

    def __call__(self, pred, target):
        self.terms = {"fit": (pred - target).square().mean().detach(), "extra": target.mean()}
        return (pred - target).square().mean() + 0.5 * target.mean()


class RootLoss:
    """Finite with an infinite gradient where the prediction is 0."""

    def __call__(self, pred, target):
        return pred.abs().sqrt().sum()


def trainer(targets, attached, loss=None, epochs=1, accumulation_steps=1, weight=0.5):
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, weight)
    items = [{"image": torch.ones(1), "label": torch.tensor([t]), "name": f"pair{i}"} for i, t in enumerate(targets)]
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(items, batch_size=1),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=loss or Loss(),
        train_handlers=attached,
        accumulation_steps=accumulation_steps,
    )


def test_gradients_are_clipped_before_the_step():
    clip = handlers.GradientClip(max_norm=0.01)
    engine = trainer([100.0], [clip])
    engine.run()
    # gradient 2 (0.5 - 100) = -199, clipped to -0.01, times the rate 0.1
    assert engine.network.weight.item() == pytest.approx(0.5 + 0.001, abs=1e-6)
    assert float(engine.state.gradient_norm) == pytest.approx(199.0)
    small = trainer([0.6], [handlers.GradientClip(max_norm=10.0)])
    small.run()
    assert small.network.weight.item() == pytest.approx(0.5 + 0.1 * 0.2)
    with pytest.raises(ValueError, match="positive"):
        handlers.GradientClip(0.0)


def test_under_accumulation_the_sum_is_clipped():
    """Iterations 1-2 and, with the epoch, 3: a step each, clipped each; iteration 1 alone is not."""
    norms = []
    engine = trainer([100.0, -100.0, 50.0], [handlers.GradientClip(max_norm=0.01)], accumulation_steps=2)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: norms.append(float(getattr(e.state, "gradient_norm", math.nan)))
    )
    engine.run()
    assert math.isnan(norms[0])
    assert norms[1] == pytest.approx(abs((2 * -99.5 + 2 * 100.5) / 2), rel=1e-4)
    assert norms[2] == pytest.approx(49.5, rel=1e-2)


def test_scaled_gradients_are_unscaled_first():
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight * 3).sum()).backward()
    engine = SimpleNamespace(
        amp=True, scaler=scaler, optimizer=optimizer, state=SimpleNamespace(iteration=1, epoch_length=1)
    )
    handlers.GradientClip(max_norm=2.0)(engine)
    scaler.step(optimizer)
    assert weight.item() == pytest.approx(1.0 - 2.0) and float(engine.state.gradient_norm) == pytest.approx(3.0)


def test_nan_loss_stops_before_the_step_and_names_the_culprits():
    before = []
    engine = trainer([0.1, 0.2, float("nan"), 0.3], [handlers.StopOnNaN()], epochs=2)
    engine.logger.setLevel(logging.CRITICAL)
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: before.append(e.network.weight.item()))
    with pytest.raises(FloatingPointError, match=r"epoch 1, iteration 3.*loss is nan \(fit, extra\).*pair2;"):
        engine.run()
    assert engine.network.weight.item() == before[2] != before[0]


def test_the_batch_at_fault_is_kept(tmp_path):
    engine = trainer([0.1, float("nan")], [handlers.StopOnNaN(output_dir=str(tmp_path / "run"))])
    engine.logger.setLevel(logging.CRITICAL)
    with pytest.raises(FloatingPointError, match=r"pair1 \(the batch is kept in .*stopped_batch\.pt\); look at"):
        engine.run()
    kept = torch.load(tmp_path / "run" / "stopped_batch.pt", weights_only=True)
    assert (kept["epoch"], kept["iteration"], kept["pairs"]) == (1, 2, "pair1")
    assert set(kept["batch"]) == {"image", "label"} and bool(kept["batch"]["label"].isnan())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["stopped_batch.pt"]


def test_infinite_gradient_stops_before_the_step():
    engine = trainer([0.0], [handlers.StopOnNaN()], RootLoss(), weight=0.0)
    engine.logger.setLevel(logging.CRITICAL)
    with pytest.raises(FloatingPointError, match="gradient is not finite.*pair0"):
        engine.run()
    assert engine.network.weight.item() == 0.0
    blind = trainer([0.0], [handlers.StopOnNaN(gradients=False)], RootLoss(), weight=0.0)
    blind.run()
    assert not math.isfinite(blind.network.weight.item())


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


def test_progress_bar_shows_the_terms(monkeypatch):
    monkeypatch.delenv("MONAI_NO_PROGRESS", raising=False)
    stream = Terminal()
    trainer([0.1, 0.2], [handlers.EpochProgress(refresh_s=0, stream=stream)], epochs=2).run()
    drawn = stream.getvalue()
    assert "Epoch [2/2]" in drawn and "loss=" in drawn and "fit=" in drawn and "extra=" in drawn


def test_progress_bar_is_silent_where_nobody_looks(monkeypatch):
    plain, stream = io.StringIO(), Terminal()
    monkeypatch.delenv("MONAI_NO_PROGRESS", raising=False)
    trainer([0.1], [handlers.EpochProgress(stream=plain)]).run()
    monkeypatch.setenv("MONAI_NO_PROGRESS", "1")
    trainer([0.1], [handlers.EpochProgress(stream=stream)]).run()
    assert plain.getvalue() == stream.getvalue() == ""


def test_progress_bar_works_without_a_loss(monkeypatch):
    monkeypatch.delenv("MONAI_NO_PROGRESS", raising=False)
    stream, engine = Terminal(), Engine(lambda engine, batch: None)
    handlers.EpochProgress("Validation", stream=stream).attach(engine)
    engine.run([0, 0])
    assert "Validation" in stream.getvalue()


def test_terms_are_averaged_over_an_epoch(tmp_path, caplog):
    logger = handlers.StageLossLogger(log_dir=str(tmp_path), name="terms")
    engine = trainer([0.0, 1.0, 5.0], [logger], epochs=2)
    means, fits = [], []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: fits.append(float(e.loss_function.terms["fit"])))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: means.append(e.state.loss_terms))
    with caplog.at_level(logging.INFO, logger="terms"):
        engine.run()
    assert [set(m) for m in means] == [{"loss", "fit", "extra"}] * 2
    assert [m["extra"] for m in means] == pytest.approx([2.0, 2.0])
    assert [m["fit"] for m in means] == pytest.approx([sum(fits[:3]) / 3, sum(fits[3:]) / 3])
    assert all(m["loss"] == pytest.approx(m["fit"] + 0.5 * m["extra"]) for m in means)
    assert f"epoch 2/2: loss {means[1]['loss']:.5g}, fit" in caplog.text
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"train_loss/loss", "train_loss/fit", "train_loss/extra"}
    written = [(e.step, e.value) for e in events.Scalars("train_loss/fit")]
    assert written == [(1, pytest.approx(means[0]["fit"])), (2, pytest.approx(means[1]["fit"]))]


def test_terms_go_to_a_given_writer_and_the_log_alone_suffices():
    calls = []
    writer = SimpleNamespace(add_scalar=lambda *args: calls.append(args), flush=lambda: None)
    engine = trainer([4.0], [handlers.StageLossLogger(summary_writer=writer, tag="t"), handlers.StageLossLogger()])
    engine.run()
    assert ("t/extra", 4.0, 1) in calls and len(calls) == 3
