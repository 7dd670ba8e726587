"""Checkpoints and weights: what is read, what is refused, and a training that goes on with other settings."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from shared_components.checkpoints import SUMS, TrainingCheckpoint, read_tensors, released_sums
from shared_components.engines import load_weights, warmup_cosine
from shared_components.errors import InputError


class Payload:
    """Reading it as a pickle would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def training(folder: Path, epochs: int, resume: bool = False) -> tuple[Engine, list[float]]:
    """Train nothing for some epochs; return the engine and the rate of each epoch."""
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    schedule, rates = warmup_cosine(optimizer, epochs), []
    engine = Engine(lambda _, batch: optimizer.step())
    engine.add_event_handler(Events.EPOCH_STARTED, lambda _: rates.append(optimizer.param_groups[0]["lr"]))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: schedule.step())
    kept = {"model": network, "optimizer": optimizer, "lr_scheduler": schedule}
    TrainingCheckpoint(str(folder), kept, resume=resume).attach(engine)
    engine.run([0], max_epochs=epochs)
    return engine, rates


def test_a_longer_training_goes_on_at_its_own_rate(tmp_path: Path) -> None:
    """Not at that of the end of the shorter one, which is next to nothing."""
    _, whole = training(tmp_path / "whole", 8)
    _, short = training(tmp_path / "short", 4)
    _, longer = training(tmp_path / "short", 8, resume=True)
    assert longer == whole[4:] and longer[0] > 0.5 and short[-1] < 0.3


def test_a_training_of_the_same_length_goes_on_at_the_same_rate(tmp_path: Path) -> None:
    _, whole = training(tmp_path / "whole", 5)
    engine = Engine(lambda _, batch: None)
    assert len(whole) == 5 and engine is not None
    _, first = training(tmp_path / "stopped", 3)
    state = torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)
    assert first != whole[:3] and state["lr_scheduler"]["last_epoch"] == 3
    _, again = training(tmp_path / "whole", 6, resume=True)
    assert again == pytest.approx(training(tmp_path / "six", 6)[1][5:])


def test_a_checkpoint_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": Payload(tmp_path / "executed")}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="checkpoint .*checkpoint.pt cannot be read as a plain state dict"):
        training(tmp_path, 2, resume=True)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{}, {"model": {}}, {"model": {"weight": torch.zeros(1)}}, 5, [1]])
def test_a_checkpoint_of_something_else_is_told(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="is of another training than the configuration describes"):
        training(tmp_path, 2, resume=True)


def test_half_written_files_of_a_killed_training_are_cleared_away(tmp_path: Path) -> None:
    for name in (".checkpoint.pt.123.tmp", ".model.pt.123.tmp", ".other.pt.123.tmp"):
        (tmp_path / name).write_bytes(b"half")
    training(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.pt.123.tmp", "checkpoint.pt", "model.pt"]


def released(folder: Path) -> Path:
    """Weights of a small network as a packaged bundle has them."""
    network = torch.nn.Linear(2, 2)
    torch.save(network.state_dict(), folder / "model.pt")
    digest = hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    (folder / SUMS).write_text(f"{digest}  model.pt\n{'0' * 64}  other.pt\n")
    return folder / "model.pt"


def test_released_weights_must_be_those_of_the_release(tmp_path: Path) -> None:
    path, network = released(tmp_path), torch.nn.Linear(2, 2)
    assert load_weights(network, path)
    before = path.read_bytes()
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    assert path.read_bytes() != before
    with pytest.raises(InputError, match="model.pt are not those that were released .*get the file again"):
        load_weights(network, path)
    os.remove(tmp_path / SUMS)
    assert load_weights(network, path), "nothing is known of them"


def test_weights_of_a_training_take_the_place_of_released_ones(tmp_path: Path) -> None:
    path = released(tmp_path)
    training(tmp_path, 1)
    assert load_weights(torch.nn.Linear(2, 2), path) and released_sums(tmp_path) == {"other.pt": "0" * 64}


@pytest.mark.parametrize("text", ["", "\n\n", "no sums at all", "\0"])
def test_sums_that_say_nothing_refuse_nothing(tmp_path: Path, text: str) -> None:
    path = released(tmp_path)
    (tmp_path / SUMS).write_text(text)
    assert read_tensors(path).keys() == {"weight", "bias"}
