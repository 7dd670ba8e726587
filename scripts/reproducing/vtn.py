"""Tables II, III and V of the VTN paper (Zhao et al. 2019) on hippocampi: cascades trained on equal budgets.

The paper's networks D, DD, DDD, AD, ADD, ADDD and ADDD + inv, small, at half resolution, through the bundle's
``configs/train.json`` with ``configs/reproduce.json`` on top. All see the same pairs in the same order, as often, and
both orders of each pair (the invertibility loss needs them, so all get them). The last weights are measured, nothing
is chosen on the validation subjects.

A killed reproduction goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from register import bundle_code, find_bundle

from shared_components.errors import InputError
from shared_components.metrics import dice, folds_percent, iou, mean_over_labels, std_jacobian
from shared_components.pairs import PairDataset
from shared_components.warp import warp_image, warp_labels

from .hippocampus import download, find_hippocampi, write_datalist
from .reports import add_report_arguments
from .runs import (
    Recipe,
    finished,
    measure_pairs,
    read_epochs,
    read_json,
    same_settings,
    train,
    trained_network,
    write_json,
)
from .vtn_tables import IDENTITY, report

NETWORKS = ("D", "DD", "DDD", "AD", "ADD", "ADDD", "ADDD+inv")
CONFIGS = ("train.json", "reproduce.json")
STEPS = 10_000  # about an hour of one core for all seven
INVERTIBILITY = 1e-3  # at 128^3
EVALUATION = 0.1  # share of a budget that is kept for loading and measuring


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``reproduce.py vtn``."""
    parser.add_argument("--dataset_dir", required=True, help="*_t1.nii.gz and *_label.nii.gz, or the Decathlon's")
    parser.add_argument("--download", action="store_true", help="get the images there first if they are missing")
    parser.add_argument("--output_dir", default="reproduce_vtn", help="runs are kept here; default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0; the table wants three or more")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help=f"optimizer steps of each network; default: {STEPS}")
    length.add_argument("--budget", type=float, metavar="MINUTES", help="of a seed: find the steps by timing a few")
    parser.add_argument("--pairs", type=int, default=120, help="validation pairs to measure; default: %(default)s")
    add_report_arguments(parser)


def reproduce(options: argparse.Namespace, settings: Mapping[str, Any], command: str) -> None:
    """Train what is missing, measure it, print the report.

    Args:
        options: see ``add_arguments``.
        settings: further overrides of the configuration.
        command: what the user typed, for the report.
    """
    _check(options)
    torch.set_num_threads(options.threads)
    if options.download:
        download(options.dataset_dir)
    split = find_hippocampi(options.dataset_dir)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    datalist = write_datalist(split, folder / "subjects.json")
    bundle = find_bundle("vtn")
    with bundle_code(bundle):
        recipe = Recipe(bundle, CONFIGS, {**settings, "datalist": datalist, "device#name": options.device})
        epochs, per_epoch = _length(options, recipe, folder)
        recipe = Recipe(bundle, CONFIGS, {**recipe.settings, "max_epochs": epochs})
        dataset, indices = _validation_pairs(recipe, options.pairs)
        names = [dataset[index]["name"] for index in indices]
        same_settings(folder / "plan.json", _plan(options, settings, epochs * per_epoch, split, names))
        results = {IDENTITY: {0: _identity(folder, dataset, indices)}}
        for seed in options.seeds:
            for network in options.networks:
                results.setdefault(network, {})[seed] = _run(recipe, folder, network, seed, dataset, indices)
        seconds = _seconds_a_pair(recipe, folder, options, dataset, indices)
        example = recipe.command(**_knobs(recipe, "ADDD+inv", options.seeds[0]))
    plan = read_json(folder / "plan.json") | {"command": command, "each_run": example, "seeds": options.seeds}
    report(plan, results, seconds, options)


def _check(options: argparse.Namespace) -> None:
    for name, least in (("steps", 1), ("pairs", 1), ("threads", 1), ("budget", 0.01)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value} is too small; give {least} or more")
    if len(set(options.seeds)) < len(options.seeds):
        raise InputError("--seeds names a seed twice; each one gives one run")


def _plan(
    options: argparse.Namespace, settings: Mapping[str, Any], steps: int, split: Mapping, names: Sequence[str]
) -> dict[str, Any]:
    """What all runs of a folder have in common; seeds and networks may be added later."""
    return {
        "steps": steps,
        "threads": options.threads,
        "settings": dict(settings),
        "configs": {name: read_json(find_bundle("vtn") / "configs" / name) for name in CONFIGS[1:]},
        "subjects": {name: [subject["subject"] for subject in subjects] for name, subjects in split.items()},
        "pairs": list(names),
    }


def _knobs(recipe: Recipe, network: str, seed: int) -> dict[str, Any]:
    """The settings that tell one run from another.

    The invertibility loss is a squared length in voxels. So that it weighs what it weighs in the paper for a residual
    of the same share of the image, its weight at 128^3 is multiplied by (128 / mean side of this grid)^2.
    """
    cascade, _, inv = network.partition("+")
    size = recipe.parser().get_parsed_content("size")
    weight = INVERTIBILITY * 128**2 / math.prod(size) ** (2 / len(size))
    return {"cascade": cascade, "invertibility_weight": float(f"{weight:.3g}") if inv else 0.0, "seed": seed}


def _length(options: argparse.Namespace, recipe: Recipe, folder: Path) -> tuple[int, int]:
    """Return epochs and steps an epoch. With --budget an earlier start's count stays, so that it can be resumed."""
    parser = recipe.parser()
    per_epoch = parser.get_parsed_content("pairs_per_epoch") // parser.get_parsed_content("batch_size")
    steps, plan = options.steps or STEPS, folder / "plan.json"
    if options.budget is not None and plan.is_file():
        steps = read_json(plan)["steps"]
        print(f"{folder} has been started with a budget before; its steps stay")
    elif options.budget is not None:
        cost = sum(_step_seconds(recipe, network) for network in options.networks)
        steps = int(options.budget * 60 * (1 - EVALUATION) / cost)
        print(
            f"a step of all networks takes {cost:.2f} s, so {options.budget:g} minutes are {steps} steps each",
            flush=True,
        )
    epochs = max(1, round(steps / per_epoch))
    steps = epochs * per_epoch
    print(f"{steps} steps a network, in {epochs} epochs (the same again: --steps {steps})", flush=True)
    return epochs, per_epoch


def _step_seconds(recipe: Recipe, network: str, count: int = 3) -> float:
    """Median time of a training step of a network that is thrown away afterwards."""
    parser = recipe.parser(**_knobs(recipe, network, 0))
    model, loss, optimizer = (parser.get_parsed_content(name) for name in ("network", "loss", "optimizer"))
    dataset = parser.get_parsed_content("train#dataset")
    prepare = parser.get_parsed_content("train#trainer").prepare_batch
    device, seconds = next(model.parameters()).device, []
    for index in range(count + 1):
        begin = time.perf_counter()
        image, targets, _, extra = prepare({"image": dataset[index % 2]["image"][None]}, device)
        optimizer.zero_grad()
        loss(model(image, **extra), targets).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def _validation_pairs(recipe: Recipe, count: int) -> tuple[PairDataset, list[int]]:
    """Return all ordered pairs of validation subjects, and which of them are measured: drawn once and for all."""
    dataset = recipe.parser().get_parsed_content("validate#dataset")
    chosen = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    return dataset, sorted(chosen.tolist())


def measure(item: Mapping[str, Any], ddf: torch.Tensor) -> dict[str, float]:
    """Return the numbers of one pair.

    Args:
        item: "fixed_label" and "moving_label", (1, *spatial), 1 anterior and 2 posterior hippocampus.
        ddf: (1, 3, *spatial) voxels.

    Returns:
        iou: the paper's, of the whole hippocampus: its mask moved by linear interpolation and cut at one half; also
        mean label iou and Dice (moved by nearest neighbour), folds_percent, std_jacobian (the paper's).
    """
    fixed, moving, ddf = item["fixed_label"], item["moving_label"], ddf.cpu()
    organ = warp_image((moving[None] > 0) * 255.0, ddf)[0] > 128
    moved = warp_labels(moving[None], ddf)[0]
    return {
        "iou": mean_over_labels(iou((fixed > 0).int(), organ.int(), absent="zero")),
        "label_iou": mean_over_labels(iou(fixed, moved, absent="zero")),
        "dice": mean_over_labels(dice(fixed, moved, absent="zero")),
        "folds_percent": folds_percent(ddf),
        "std_jacobian": std_jacobian(ddf),
    }


def _identity(folder: Path, dataset: PairDataset, indices: Sequence[int]) -> dict[str, Any]:
    def still(item: Mapping[str, Any]) -> dict[str, float]:
        image = item["image"]
        return measure(item, image.new_zeros(1, image.ndim - 1, *image.shape[1:]))

    path = folder / "identity.json"
    if not path.is_file():
        write_json(path, {"pairs": measure_pairs(dataset, indices, still)})
    return read_json(path)


@torch.no_grad()
def _measured(network: torch.nn.Module, dataset: PairDataset, indices: Sequence[int]) -> dict[str, list[float]]:
    device = next(network.parameters()).device
    return measure_pairs(dataset, indices, lambda item: measure(item, network(item["image"][None].to(device))))


def _run(
    recipe: Recipe, folder: Path, network: str, seed: int, dataset: PairDataset, indices: Sequence[int]
) -> dict[str, Any]:
    """Train and measure one network, or read what an earlier start has measured."""
    place = folder / f"seed{seed}" / network.replace("+", "_")
    name = f"{network}, seed {seed}"
    if (result := finished(place)) is not None:
        print(f"{name}: done before", file=sys.stderr, flush=True)
        return result
    train(recipe, place, name, **_knobs(recipe, network, seed))
    model = trained_network(recipe, place, **_knobs(recipe, network, seed))
    epochs = read_epochs(place / "epochs.jsonl")
    result = {
        "parameters": sum(value.numel() for value in model.parameters()),
        "train_seconds": sum(epoch["seconds"] for epoch in epochs),
        "train_cpu_seconds": sum(epoch["cpu_seconds"] for epoch in epochs),
        "final_loss": {name: value for name, value in epochs[-1].items() if "seconds" not in name},
        "pairs": _measured(model, dataset, indices),
    }
    write_json(place / "result.json", result)
    told = ", ".join(f"{key} {statistics.fmean(values):.4g}" for key, values in result["pairs"].items())
    print(f"{name}: {told}; {result['train_seconds']:.0f} s", file=sys.stderr, flush=True)
    return result


@torch.no_grad()
def _seconds_a_pair(
    recipe: Recipe, folder: Path, options: argparse.Namespace, dataset: PairDataset, indices: Sequence[int]
) -> dict[str, float]:
    """Median time of each network alone, all in turn on the same pairs, so that conditions are the same for all."""
    path, seed = folder / "seconds.json", options.seeds[0]
    known = read_json(path) if path.is_file() else {}
    if set(options.networks) <= set(known):
        return known
    places = {name: folder / f"seed{seed}" / name.replace("+", "_") for name in options.networks}
    models = {name: trained_network(recipe, place, **_knobs(recipe, name, seed)) for name, place in places.items()}
    runs: dict[str, list[float]] = {name: [] for name in models}
    for index in indices[:20]:
        for name, model in models.items():
            runs[name].append(_timed(model, dataset[index]["image"][None]))
    write_json(path, {name: statistics.median(seconds[2:] or seconds) for name, seconds in runs.items()})
    return read_json(path)


def _timed(model: torch.nn.Module, image: torch.Tensor) -> float:
    """Seconds of one forward pass; on one CPU thread its CPU time, which a busy machine leaves alone."""
    device = next(model.parameters()).device
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    image = image.to(device)
    begin = clock()
    model(image).cpu()
    return clock() - begin
