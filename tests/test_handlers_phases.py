"""Phases of a training: which one an epoch belongs to, and its rate, also after a restart."""

import pytest
import torch
from ignite.engine import Engine, Events

from shared_components.handlers import PhaseRates, PhaseValues, phase_of


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=7.0)


def rates(scheduler: PhaseRates, epochs: int) -> list[float]:
    """Return the rate that each epoch trains with."""
    seen, engine = [], Engine(lambda engine, batch: seen.append(scheduler.optimizer.param_groups[0]["lr"]))
    scheduler.attach(engine, Events.EPOCH_STARTED)
    engine.run([0], max_epochs=epochs)
    return seen


def test_epochs_after_the_last_phase_belong_to_it():
    assert [phase_of(epoch, (1, 0, 2)) for epoch in range(5)] == [(0, 0), (2, 0), (2, 1), (2, 2), (2, 3)]


def test_each_phase_begins_with_its_rate_and_halves_it():
    scheduler = PhaseRates(optimizer(), (3, 0, 4), (4.0, 9.0, 1.0), halve_every=2)
    assert rates(scheduler, 8) == [4.0, 4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.25]


def test_phases_may_halve_at_their_own_pace():
    scheduler = PhaseRates(optimizer(), (3, 3), (4.0, 1.0), halve_every=[1, 2])
    assert rates(scheduler, 6) == [4.0, 2.0, 1.0, 1.0, 1.0, 0.5]


def test_a_restart_goes_on_where_it_was():
    first, second = (PhaseRates(optimizer(), (3, 4), (4.0, 1.0), halve_every=2) for _ in range(2))
    whole = rates(PhaseRates(optimizer(), (3, 4), (4.0, 1.0), halve_every=2), 7)
    begun = rates(first, 4)
    second.load_state_dict(first.state_dict())
    assert begun + rates(second, 3) == whole


def test_every_phase_needs_a_rate():
    with pytest.raises(ValueError, match="2 phases need as many learning rates"):
        PhaseRates(optimizer(), (1, 1), (1.0,))
    with pytest.raises(ValueError, match="2 phases need as many epochs between halvings"):
        PhaseRates(optimizer(), (1, 1), (1.0, 1.0), [3])


def test_values_follow_the_phases_also_after_a_resumption() -> None:
    class Network:
        steps = 9

    network, seen = Network(), []
    for first in (1, 3):
        engine = Engine(lambda engine, batch: seen.append(network.steps))
        PhaseValues(network, "steps", (2, 1, 1), (1, 3, 6)).attach(engine)
        engine.state.epoch = first - 1
        for epoch in range(first, 7):
            engine.state.epoch = epoch
            engine.fire_event(Events.EPOCH_STARTED)
            seen.append(network.steps)
    assert seen == [1, 1, 3, 6, 6, 6, 3, 6, 6, 6]
    with pytest.raises(ValueError, match="3 phases need as many values of 'steps'"):
        PhaseValues(network, "steps", (2, 1, 1), (1, 3))
    with pytest.raises(ValueError, match="has no 'stepps'"):
        PhaseValues(network, "stepps", (2,), (1,))
