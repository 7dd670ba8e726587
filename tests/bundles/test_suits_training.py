"""Training of SUITS: the two phases, what they draw, the losses, the gradient through the solve, resuming."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from bundle_tools import ROOT, run_python, tiny, write_data
from ignite.engine import Engine

from shared_components.errors import InputError
from shared_components.solvers import Spectral, normal_equations, solve

BUNDLE = ROOT / "bundles" / "suits_registration"
HERE = Path(__file__).parent
LABELS = [2, 5]


@pytest.fixture(scope="module")
def load(bundle_module: Callable[[str, str], ModuleType]) -> Callable[[str], ModuleType]:
    return lambda name: bundle_module("suits_registration", name)


def batch(pairs: int = 2, size: tuple[int, ...] = (16, 12, 8)) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, *LABELS, 9])[torch.randint(4, (pairs, 2, *size), generator=generator)].float()
    labels = torch.nn.functional.interpolate(labels[..., ::4, ::4, ::4], size)
    return {
        "image": labels * 0.1 + 0.05 * torch.rand((pairs, 2, *size), generator=generator),
        "fixed_label": labels[:, :1],
        "moving_label": labels[:, 1:],
        "draw": torch.rand((pairs, 4), generator=generator),
        "name": ["a", "b"],
    }


def test_labels_become_classes_and_channels(load: Callable[[str], ModuleType]) -> None:
    losses = load("losses")
    classes = losses.classes_of(torch.tensor([[[[0, 2, 5, 9]]]]), LABELS)
    assert classes.tolist() == [[[0, 1, 2, 0]]]
    assert losses.one_hot(classes, 3)[0, :, 0].tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_the_papers_cross_entropy_takes_values_as_logits(load: Callable[[str], ModuleType]) -> None:
    losses = load("losses")
    right = torch.zeros(1, 4, 4, dtype=torch.long)
    moved = losses.one_hot(right, 7)
    loss = losses.SUITSLoss()
    best = float(loss({"moved_label": moved}, {"fixed_label": right}))
    worst = float(loss({"moved_label": moved.roll(1, 1)}, {"fixed_label": right}))
    assert best == pytest.approx(math.log(math.e + 6) - 1) and best == pytest.approx(1.165, abs=1e-3)
    assert worst == pytest.approx(math.log(math.e + 6))
    assert list(loss.terms) == ["labels"]
    logarithm = losses.SUITSLoss(logarithm=True)
    assert float(logarithm({"moved_label": moved}, {"fixed_label": right})) == 0
    assert float(logarithm({"moved_label": 0 * moved}, {"fixed_label": right})) == pytest.approx(math.log(1000))


def test_the_first_phase_learns_mind_of_both_sides(load: Callable[[str], ModuleType]) -> None:
    network, loss = load("network").SUITS(), load("losses").SUITSLoss()
    stages = network(batch()["image"], return_stages=True, target=True)
    assert [x.shape for x in stages["features"]] == [x.shape for x in stages["target"]] == [(2, 12, 4, 3, 2)] * 2
    wanted = sum((a - b).abs().mean() for a, b in zip(stages["features"], stages["target"], strict=True)) / 2
    value = loss(stages, {})
    torch.testing.assert_close(value, wanted)
    value.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.cnn.own.parameters() if p.ndim > 1)


def test_crops_are_of_the_images_and_differ(load: Callable[[str], ModuleType]) -> None:
    data = batch()
    prepare = load("training").PreparePhases(LABELS, crop=(8, 8, 20))
    image, targets, _, options = prepare(data, torch.device("cpu"))
    assert image.shape == (2, 2, 8, 8, 8) and targets == {} and options == {"return_stages": True, "target": True}
    for one, whole in zip(image, data["image"], strict=True):
        windows = whole.unfold(1, 8, 1).unfold(2, 8, 1).unfold(3, 8, 1)
        assert (windows == one[:, None, None, None]).flatten(4).all(4).any()
    assert load("training").PreparePhases(LABELS)(data)[0] is data["image"]


def test_steps_are_uniform_from_1_to_15(load: Callable[[str], ModuleType]) -> None:
    data, prepare = batch(), load("training").PreparePhases(LABELS)
    prepare.first = False
    found = []
    for k in range(300):
        data["draw"][0, 0] = k / 300
        found.append(prepare(data)[3]["steps"])
    assert [found.count(k) for k in range(1, 16)] == [20] * 15
    alone = load("training").PreparePhases(LABELS, max_steps=1)
    alone.first = False
    assert alone(data)[3]["steps"] == 1
    labels = prepare(data)[3]["labels"]
    assert labels.shape == (2, 2, 3, 16, 12, 8) and torch.equal(labels.sum(2), torch.ones(2, 2, 16, 12, 8))
    del data["fixed_label"]
    with pytest.raises(InputError, match="no labels"):
        prepare(data)


def test_label_steps_bring_the_labels_together(load: Callable[[str], ModuleType]) -> None:
    """Labels as features: the upper bound of what features can do."""
    losses, network = load("losses"), load("network").SUITS()
    axes = torch.meshgrid(*(torch.arange(n) for n in (32, 32, 32)), indexing="ij")
    balls = [
        ((torch.stack(axes) - torch.tensor(c).view(3, 1, 1, 1)) ** 2).sum(0) < 81 for c in ((14, 16, 16), (19, 15, 17))
    ]
    labels = torch.stack([losses.one_hot(ball[None].long(), 2) for ball in balls], 1)
    fixed, overlaps = labels[0, 0, 1], []
    for steps in range(5):
        field = network.dense(network.descend_on_labels(labels, torch.zeros(1, 3, 8, 8, 8), steps), labels[:, 0])
        moved = load("network").warp_image(labels[:, 1], field)[0, 1] > 0.5
        overlaps.append(float(2 * (moved & (fixed > 0)).sum() / (moved.sum() + fixed.sum())))
    assert (
        overlaps[0] < 0.75
        and overlaps[-1] > 0.93
        and min(b - a for a, b in zip(overlaps, overlaps[1:], strict=False)) > -0.01
    )


@pytest.mark.parametrize("full", [False, True])
def test_one_tracked_step_has_the_gradient_of_its_definition(load: Callable[[str], ModuleType], full: bool) -> None:
    """grad_A on: the derivative of the step itself; off, the paper: that of the step with the matrix held still."""
    descent, generator = load("descent"), torch.Generator().manual_seed(1)
    moved, fixed, ddf, probe = (
        torch.rand((1, c, 4, 3, 3), generator=generator, dtype=torch.float64) for c in (2, 2, 3, 3)
    )
    still, method = normal_equations(descent.slopes(moved), moved - fixed, ddf, 1.5)[0], Spectral(1e-12)
    moved.requires_grad_()

    def step(features: torch.Tensor) -> torch.Tensor:
        return (probe * descent.update(features, fixed, ddf, 1.5, method, grad_A=full)).sum()

    def held(features: torch.Tensor) -> torch.Tensor:
        b = normal_equations(descent.slopes(features), features - fixed, ddf, 1.5)[1]
        return (probe * solve(still, b, method).z).sum()

    definition = step if full else held
    assert torch.autograd.gradcheck(definition, moved)
    found, wanted = (torch.autograd.grad(function(moved), moved)[0] for function in (step, definition))
    torch.testing.assert_close(found, wanted)
    other = torch.autograd.grad((held if full else step)(moved), moved)[0]
    assert full != torch.allclose(found, other, rtol=1e-3), "what is dropped matters"


def test_only_the_features_learn(load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step: k_back - 1 updates on the labels, one on features; gradients reach the FeatCNN alone."""
    network, prepare, data = load("network").SUITS(), load("training").PreparePhases(LABELS), batch()
    prepare.first = False
    image, targets, _, options = prepare(data)
    updates: list[tuple[int, float]] = []
    step = load("descent").update

    def spy(moved: torch.Tensor, fixed: torch.Tensor, ddf: torch.Tensor, smoothness: float, *rest: Any) -> torch.Tensor:
        updates.append((moved.shape[1], smoothness))
        return step(moved, fixed, ddf, smoothness, *rest)

    monkeypatch.setattr(load("descent"), "update", spy)
    for steps in (1, 3):
        updates.clear()
        stages = network(image, **options | {"steps": steps})
        assert updates == [(3, 5.0)] * (steps - 1) + [(12, 5.0)]
    load("losses").SUITSLoss()(stages, targets).backward()
    assert all(p.grad is not None for p in network.cnn.parameters())
    assert sum(float(p.grad.abs().sum()) for p in network.parameters()) > 0


def test_phases_have_their_rates_and_a_fresh_adam(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    network, prepare = torch.nn.Linear(1, 1), load("training").PreparePhases(LABELS)
    optimizer = torch.optim.Adam(network.parameters())
    log = []

    def step(engine: Engine, _: int) -> None:
        ages = {int(state["step"]) for state in optimizer.state.values()}
        optimizer.zero_grad()
        network(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        log.append((prepare.first, optimizer.param_groups[0]["lr"], ages))

    engine = Engine(step)
    load("training").TwoPhases(network, optimizer, prepare, 2, (1e-3, 1e-5), str(tmp_path)).attach(engine)
    engine.run([0, 0], max_epochs=3)
    assert [entry[:2] for entry in log] == [(True, 1e-3)] * 4 + [(False, 1e-5)] * 2
    assert [entry[2] for entry in log] == [set(), {1}, {2}, {3}, set(), {1}]
    kept = torch.load(tmp_path / "pretrained.pt", weights_only=True)
    assert kept.keys() == network.state_dict().keys() and not torch.equal(kept["weight"], network.weight)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training of two epochs of each phase; one that is killed in the second phase and resumed."""
    folder = tmp_path_factory.mktemp("suits")
    common = tiny(BUNDLE, "train") | {"datalist": str(write_data(folder, 3)), "device": "cpu", "val_interval": 2}
    common |= {"labels": [1, 2], "pretrain_epochs": 2, "max_epochs": 4, "pretrain_crop": [8, 8, 8], "iterations": 2}
    plan = [
        {
            "configs": ["train"],
            "options": common | {"output_dir": str(folder / name), "resume": resume},
            "crash_at": crash,
        }
        for name, resume, crash in (("whole", False, None), ("killed", False, 7), ("killed", True, None))
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    done = run_python([HERE / "train_runs.py", BUNDLE, folder / "plan.json"], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_killed_training_goes_on_to_the_same_weights(runs: Path) -> None:
    whole, resumed = (torch.load(runs / name / "rank0.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    terms = json.loads((runs / "whole" / "rank0.json").read_text())
    assert set(terms) == {"loss", "labels"} and terms["labels"] == terms["loss"]


def test_what_the_first_phase_reached_is_kept(runs: Path) -> None:
    first, best = (torch.load(runs / "whole" / f"{name}.pt", weights_only=True) for name in ("pretrained", "rank0"))
    assert first.keys() == best.keys() and not all(torch.equal(first[name], best[name]) for name in first)
    assert all(float((first[name] - best[name]).abs().max()) < 1e-3 for name in first), "the second rate is small"
