"""Training of AVSM: the losses of both parts, pairs of one subject, the four phases, resuming."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from bundle_tools import ROOT, read_json, run_python, tiny, write_data
from ignite.engine import Engine
from torch import Tensor

from shared_components.flows import MultiGaussian, exponential
from shared_components.handlers import PhaseRates
from shared_components.mk_lncc import MultiKernelLNCC
from shared_components.pairs import AugmentPair

BUNDLE = ROOT / "bundles" / "avsm_registration"
HERE = Path(__file__).parent
SIZE = (16, 16, 16)
Load = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def load(bundle_module: Callable[[str, str], ModuleType]) -> Load:
    return lambda name: bundle_module("avsm_registration", name)


def random_affine(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.eye(3, 4, dtype=torch.float64) + 0.2 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)


def inverse(affine: Tensor) -> Tensor:
    A = torch.linalg.inv(affine[:, :, :3])
    return torch.cat([A, -A @ affine[:, :, 3:]], -1)


def test_affine_weight_falls_as_in_figure_9(load: Load) -> None:
    weight = load("losses").affine_weight
    assert [round(weight(n), d) for n, d in ((0, 2), (20, 2), (40, 3))] == [8.0, 0.26, 0.002]
    assert weight(3, constant=1.0, decay=3.0) == pytest.approx(3 / (3 + 2.718281828))
    assert weight(5, plateau=5) == weight(2, plateau=5) == 8.0 > weight(6, plateau=5)
    assert weight(1e6) < 1e-300


def test_affine_losses_vanish_where_they_should(load: Load) -> None:
    losses, eye = load("losses"), torch.eye(3, 4)[None]
    assert losses.affine_regularity(eye) == losses.affine_asymmetry(eye, eye) == 0
    shifted = eye.clone()
    shifted[0, 0, 3], shifted[0, 1, 1] = 0.5, 1.5
    assert losses.affine_regularity(shifted) == 0.5
    affine, other = random_affine(0), random_affine(1)
    assert losses.affine_asymmetry(affine, inverse(affine)) < 1e-24
    (A, b), (B, c) = ((x[:, :, :3], x[:, :, 3]) for x in (affine, other))
    wanted = ((B @ A - torch.eye(3)) ** 2).sum((1, 2)) + (((B @ b[..., None])[..., 0] + c) ** 2).sum(1)
    torch.testing.assert_close(losses.affine_asymmetry(affine, other), wanted.mean())


@pytest.mark.parametrize("clamped", [False, True])
def test_energy_of_a_momentum_is_positive_and_knows_no_grid(load: Load, clamped: bool) -> None:
    energy, kernel = load("losses").velocity_energy, MultiGaussian()
    found = []
    for n in (12, 24):
        axes = torch.meshgrid(*(torch.linspace(0, 6.28, n),) * 3, indexing="ij")
        momentum = torch.stack([0.1 * axis.sin() for axis in axes])[None] * (n - 1)
        velocity = kernel(momentum)
        found.append(energy(momentum, velocity, torch.full((3,), 1 / (n - 1)), clamped))
    assert 0 < found[1] and found[0] == pytest.approx(float(found[1]), rel=0.35)
    noise = torch.randn(1, 3, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    values = [float(energy(noise, kernel(noise), torch.full((3,), 1 / 11), c)) for c in (False, True)]
    assert 0 < values[0] < values[1]
    constant = torch.full((1, 3, 11, 11, 11), 2.0)  # voxels of 1/10 of the domain
    assert float(energy(constant, constant, torch.full((3,), 0.1))) == pytest.approx(3 * 0.2**2 * 1.1**3)


def test_asymmetry_is_that_of_the_composition_in_units_of_the_domain(
    load: Load, smooth_ddf: Callable[..., Tensor]
) -> None:
    asymmetry, voxel = load("losses").asymmetry, torch.full((3,), 1 / 31, dtype=torch.float64)
    velocity = smooth_ddf((32, 32, 32), 2.0, vanish=True)
    forth, back = exponential(-velocity), exponential(velocity)
    exact, wrong = (float(asymmetry(forth, other, voxel)) for other in (back, forth))
    assert exact < 1e-5 * wrong
    shift = torch.zeros(1, 3, 8, 8, 8, dtype=torch.float64)
    shift[:, 1] = 1.0
    assert float(asymmetry(shift, shift, torch.tensor([0.5, 0.25, 0.5]))) == pytest.approx((2 * 0.25) ** 2 / 3)
    assert 1e-4 * load("losses").PAPER_ENTRIES == pytest.approx(885, abs=1)


def stages_of(load: Load, velocity_steps: int = 2, **options: Any) -> tuple[dict[str, Any], Tensor]:
    network = load("network").AVSM(SIZE, 3, velocity_steps, width=2, affine_width=2, identity_bias=True)
    image = torch.rand(1, 2, *SIZE, generator=torch.Generator().manual_seed(0))
    image = torch.cat([image, image.flip(1)])
    return network(image, return_stages=True, **options), image[:, :1]


def test_the_loss_of_velocities_is_the_sum_over_steps_and_directions(load: Load) -> None:
    losses, similarity = load("losses"), MultiKernelLNCC()
    stages, fixed = stages_of(load)
    loss = losses.AVSMLoss()
    total, wanted = loss(stages, {"fixed": fixed}), 0.0
    for step in (0, 1):
        m, v, ddf = (stages[name][step] for name in ("momenta", "velocities", "ddf"))
        for k in (0, 1):
            wanted = wanted + similarity(fixed[k : k + 1], stages["moved"][step][k : k + 1])
            energy = losses.velocity_energy(m[k : k + 1], v[k : k + 1], stages["half_voxel"])
            wanted = wanted + 10 * energy
        wanted = wanted + 1e-4 * losses.PAPER_ENTRIES * losses.asymmetry(*ddf.chunk(2), stages["voxel"])
    torch.testing.assert_close(total, wanted)
    names = {f"{name}_{step}" for name in ("similarity", "velocity", "symmetry") for step in (1, 2)}
    assert set(loss.terms) == names and not any(term.requires_grad for term in loss.terms.values())
    plain = losses.AVSMLoss(symmetric=False)
    plain(stages, {"fixed": fixed})
    torch.testing.assert_close(2 * plain.terms["similarity_2"], loss.terms["similarity_2"])
    assert set(plain.terms) == {name for name in names if "symmetry" not in name}


def test_only_folds_of_the_last_map_cost(load: Load) -> None:
    losses = load("losses")
    stages, fixed = stages_of(load)
    loss = losses.AVSMLoss(fold_weight=3.0)
    loss(stages, {"fixed": fixed})
    assert loss.terms["folds"] == 0.0
    for step, cost in ((0, 0.0), (1, 2 * 3.0 * 1.1)):
        folded = [ddf.detach().clone() for ddf in stages["ddf"]]
        folded[step] = torch.zeros_like(folded[step])
        folded[step][:, 0] = -2.0 * torch.arange(SIZE[0]).view(-1, 1, 1)  # the determinant is -1 everywhere
        loss({**stages, "ddf": folded}, {"fixed": fixed})
        assert float(loss.terms["folds"]) == pytest.approx(cost, rel=1e-5)


def test_the_loss_of_the_affine_part_is_that_of_its_last_step(load: Load) -> None:
    losses = load("losses")
    stages, fixed = stages_of(load, velocity_steps=0)
    loss = losses.AVSMLoss()
    loss.epoch = 20
    total = loss(stages, {"fixed": fixed})
    affine, wanted = stages["affines"][-1], 0.0
    for k in (0, 1):
        wanted = wanted + MultiKernelLNCC()(fixed[k : k + 1], stages["affine_moved"][k : k + 1])
        wanted = wanted + losses.affine_weight(20) * losses.affine_regularity(affine[k : k + 1])
    torch.testing.assert_close(total, wanted + 10 * losses.affine_asymmetry(*affine.chunk(2)))
    assert set(loss.terms) == {"affine_similarity", "affine_regularity", "affine_symmetry"}
    stages["affines"][0] = stages["affines"][0] + 1
    assert torch.equal(loss(stages, {"fixed": fixed}), total)
    with pytest.raises(ValueError, match="both orders"):
        loss({"affines": [affine[:1]], "ddf": []}, {"fixed": fixed[:1]})


def test_similarities_can_be_chosen(load: Load) -> None:
    loss = load("losses").AVSMLoss(windows=[[1, 3, 2, 1], [2, 5, 1, 2]], affine_similarity="cc")
    assert [(w.weight, w.size, w.dilation, w.stride) for w in loss.similarity.windows] == [(1, 3, 2, 1), (2, 5, 1, 2)]
    assert type(loss.affine_similarity).__name__ == "GlobalNCC"
    assert load("losses").AVSMLoss("lncc", radius=2).affine_similarity.radius == 2


def test_some_pairs_are_of_one_subject(load: Load) -> None:
    image = torch.rand(1, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(image, (16, 16, 16), mode="trilinear", align_corners=True)[0]
    label = (image > 0.5).long()
    item = {"image": image, "fixed_label": label[:1], "moving_label": label[1:], "name": "a<-b"}
    mix = load("data").MixPairs(share=0.3)
    names = [mix(item, torch.Generator().manual_seed(seed))["name"] for seed in range(300)]
    assert set(names) == {"a<-b", "a<-itself"} and 60 < names.count("a<-itself") < 120
    small = AugmentPair(bspline=0.4, contrast=0.4)
    make = lambda share, seed=0: load("data").MixPairs(None, small, share)(item, torch.Generator().manual_seed(seed))  # noqa: E731
    assert make(0)["image"] is image
    same = make(1)
    assert torch.equal(same["image"], make(1)["image"]) and not torch.equal(same["image"], make(1, 1)["image"])
    assert not torch.equal(*same["image"]) and not torch.equal(same["fixed_label"], same["moving_label"])
    assert (same["fixed_label"] != label[:1]).sum() == 0
    agreement = (same["moving_label"] == label[:1]).float().mean()
    assert agreement > 0.8 > (label[1:] == label[:1]).float().mean()
    assert torch.equal(item["image"], image) and "fixed_label" not in load("data").MixPairs(share=1)(
        {"image": image}, torch.Generator()
    )
    with pytest.raises(ValueError, match="share"):
        load("data").MixPairs(share=2)


def test_phases_follow_from_the_epoch(load: Load) -> None:
    training = load("training")
    phases = training.make_phases(5, 7, 2)
    assert [p.options() for p in phases] == [
        {"affine_steps": a, "velocity_steps": v, "frozen_affine": f}
        for a, v, f in ((1, 0, False), (5, 0, False), (7, 1, True), (7, 2, True))
    ]
    network = SimpleNamespace(affine_steps=0, velocity_steps=0, parameters=lambda: iter([weight]))
    weight = torch.nn.Parameter(torch.ones(()))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    prepare, loss, validator = training.PreparePhases(), load("losses").AVSMLoss(), Engine(lambda engine, batch: None)
    log: list[tuple] = []

    def step(engine: Engine, _: int) -> None:
        age = int(optimizer.state[weight]["step"]) if optimizer.state else 0
        log.append((network.affine_steps, network.velocity_steps, loss.epoch, optimizer.param_groups[0]["lr"], age))
        assert prepare.phase.affine_steps == network.affine_steps
        optimizer.zero_grad()
        weight.backward()
        optimizer.step()

    scheduler = PhaseRates(optimizer, (1, 2, 0, 3), (4.0, 2.0, 9.0, 1.0), halve_every=2)
    handler = training.Phases(network, optimizer, prepare, loss, phases, (1, 2, 0, 3), scheduler, validator)
    handler.keep = lambda engine: setattr(validator.state, "best_metric", 0.5)  # keeps no weights here
    engine = Engine(step)
    handler.attach(engine)
    engine.run([0], max_epochs=6)
    assert [entry[:2] for entry in log] == [(1, 0), (5, 0), (5, 0), (7, 2), (7, 2), (7, 2)]
    assert [entry[2] for entry in log] == [0, 1, 2, 3, 4, 5]
    assert [entry[3] for entry in log] == [4, 2, 2, 1, 1, 0.5]
    assert [entry[4] for entry in log] == [0, 0, 1, 0, 1, 2], "Adam starts anew with each phase"
    handler.start_epoch(SimpleNamespace(state=SimpleNamespace(epoch=4)))
    assert validator.state.best_metric == -1


def test_batches_hold_both_orders_of_a_pair(load: Load) -> None:
    image = torch.rand(1, 2, 4, 4, 4)
    prepare = load("training").PreparePhases()
    both, targets, _, options = prepare({"image": image})
    assert torch.equal(both, torch.cat([image, image.flip(1)])) and torch.equal(targets["fixed"], both[:, :1])
    assert options == {"return_stages": True, "affine_steps": 1, "velocity_steps": 0, "frozen_affine": False}
    assert load("training").PreparePhases(symmetric=False)({"image": image})[0] is image


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training through all phases; one that is killed at the end of the second and in the last, and resumed."""
    folder = tmp_path_factory.mktemp("avsm")
    common = tiny(BUNDLE, "train") | {"datalist": str(write_data(folder, 3)), "device": "cpu"}
    common |= {"phase_epochs": [1, 2, 1, 2], "max_epochs": 6, "width": 2, "affine_width": 2, "affine_steps": 3}
    common |= {"training_affine_steps": 2, "halve_every": 1, "learning_rates": [0.01, 0.01, 0.01, 0.01]}
    plan = [
        {"configs": ["train"], "options": common | {"output_dir": str(folder / name), "resume": resume}, "crash_at": at}
        for name, resume, at in (
            ("whole", False, None),
            ("killed", False, 7),
            ("killed", True, 11),
            ("killed", True, None),
        )
    ]
    (folder / "plan.json").write_text(json.dumps(plan))
    done = run_python([HERE / "train_runs.py", BUNDLE, folder / "plan.json"], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_killed_training_goes_on_to_the_same_weights(runs: Path) -> None:
    whole, resumed = (torch.load(runs / name / "rank0.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    logs = [torch.load(runs / name / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")]
    assert logs[0]["scheduler"] == logs[1]["scheduler"] and logs[0]["best_metric"] == logs[1]["best_metric"]
    assert logs[0]["best_metric_epoch"] >= 5, "of the last phase"
    names = {f"{name}_{step}" for name in ("similarity", "velocity", "symmetry") for step in (1, 2)}
    assert set(read_json(runs / "whole" / "rank0.json")) == {"loss", "folds"} | names


def test_each_phase_trains_its_own_part(runs: Path) -> None:
    kept = [torch.load(runs / "whole" / f"phase{k}.pt", weights_only=True) for k in (1, 2, 3, 4)]
    for part, moves in (("affine", (True, False, False)), ("momentum", (False, True, True))):
        for before, after, moved in zip(kept, kept[1:], moves, strict=False):
            same = [torch.equal(before[name], after[name]) for name in before if name.startswith(part)]
            assert all(same) != moved
            assert not moved or sum(same) < len(same) / 2
