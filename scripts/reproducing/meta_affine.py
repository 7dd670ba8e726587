"""Tables 1 to 6 and Figures 3, 4 and 6 of the learned affine optimiser (Kanter & Lellmann 2022) on images at hand.

For each set of images the paper's network is trained three times through the bundle's ``configs/train.json`` with
``configs/train_paper.json`` on top: for rotations and shifts, for full affine maps (Table 5), and with four levels of
resolution (Table 6). The weights that are best on validation cases are tested, alone and as the start of L-BFGS,
against L-BFGS alone, a multistart, the bundle as it is shipped and, through another Python, elastix, SimpleITK and
ANTs' affine initialiser: all on the same fixed cases.

Folders under --data_dir: hands_xray (*.png), brain2d_mindboggle_trt20 (*_t1.nii.gz), brain2d_oasis100 (*.png),
hands_mednist64 (*.jpeg). A killed reproduction goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from register import bundle_code, find_bundle

from shared_components.errors import InputError

from . import meta_affine_methods as methods
from .hippocampus import write_datalist
from .meta_affine_hands import hands_pair
from .meta_affine_sets import SETS, SHEAR, Cases, drawn_maps, file_names, find_split, present, test_cases
from .meta_affine_tables import report
from .reports import add_report_arguments
from .runs import Recipe, finished, read_epochs, read_json, same_settings, train, trained_network, write_json

CONFIGS = ("train.json", "train_paper.json")
KINDS: dict[str, dict[str, Any]] = {"single": {}, "levels": {"strides": [8, 4, 2, 1]}, "affine": {"shear": SHEAR}}
SAMPLES = {"rotation": 60.0, "translation": 0.25, "across": False, "pose": 0.0, "gamma": 0.0}  # as in the paper
DRAWS = 10_000  # maps whose distance to the identity is known: 1.59
FULL = "_full"  # what the cases of Table 5 have behind the name of their set


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``reproduce.py meta_affine``."""
    parser.add_argument("--data_dir", required=True, help="folder of the image sets, see above")
    parser.add_argument("--output_dir", default="reproduce_meta_affine", help="runs are kept here; %(default)s")
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, default=["hands", "brain", "oasis"], help="that get networks; %(default)s"
    )
    parser.add_argument("--tests", nargs="+", choices=SETS, help="sets to test on; default: all that are there")
    parser.add_argument("--epochs_per_step", type=int, default=30, help="of each learned step; default: %(default)s")
    parser.add_argument("--cases", type=int, default=200, help="test cases of a set; default: %(default)s")
    parser.add_argument("--peer_python", metavar="PY", help="a Python with itk-elastix, SimpleITK and antspyx")
    parser.add_argument("--peer_cases", type=int, default=100, help="the first so many; default: %(default)s")
    parser.add_argument("--weights", metavar="FILE", help="of the shipped network; default: the bundle's model.pt")
    parser.add_argument("--again", action="store_true", help="measure anew; networks and classical tools are kept")
    parser.add_argument("--trained_only", action="store_true", help="report on what has been trained so far")
    add_report_arguments(parser, "for training: cpu (default), auto or cuda:0")
    parser.add_argument("--figures", metavar="FOLDER", help="write the figures here")


def reproduce(options: argparse.Namespace, settings: Mapping[str, Any], command: str) -> None:
    """Train what is missing, measure it, print the report.

    Args:
        options: see ``add_arguments``.
        settings: further overrides of the configuration.
        command: what the user typed, for the report.
    """
    _check(options)
    torch.set_num_threads(options.threads)
    tests = options.tests or present(options.data_dir)
    splits = {name: find_split(options.data_dir, name) for name in dict.fromkeys([*options.sets, *tests])}
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    bundle = find_bundle("meta_affine")
    every = min(5, options.epochs_per_step)
    common = {**settings, "device#name": options.device, "epochs_per_step": options.epochs_per_step}
    recipe = Recipe(bundle, CONFIGS, {"val_interval": every, **SAMPLES, **common})
    with bundle_code(bundle):
        _say_plan(options, folder, recipe)
        networks = _networks(options, recipe, folder, splits)
        results, images = _measure(options, settings, recipe, folder, splits, tests)
        identity = _drawn_identity(folder, recipe, splits[tests[0]]["validation"][0])
        example = recipe.command(**_knobs(recipe, "levels"))
    plan = {
        "epochs_per_step": options.epochs_per_step,
        "pairs_per_epoch": recipe.parser().get_parsed_content("pairs_per_epoch"),
        "settings": dict(settings),
        "config": read_json(bundle / "configs" / CONFIGS[1]),
        "cases": options.cases,
        "images": images,
        "command": command,
        "each_run": example,
    }
    picture = Path(options.figures) / "hands_pair.png" if options.figures else None
    content = {"plan": plan, "identity": identity, "networks": networks, "results": results}
    report(content | {"hands_pair": hands_pair(options.data_dir, picture)}, options)


def _check(options: argparse.Namespace) -> None:
    for name in ("epochs_per_step", "cases", "peer_cases", "threads"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)} is too small; give 1 or more")
    if options.peer_python and shutil.which(options.peer_python) is None:
        raise InputError(f"--peer_python {options.peer_python} is no program; give the path of a Python")
    if options.weights and not Path(options.weights).is_file():
        raise InputError(f"--weights {options.weights} does not exist; give a file of weights, or leave it out")


def _say_plan(options: argparse.Namespace, folder: Path, recipe: Recipe) -> None:
    wanted = [folder / "networks" / f"{name}-{kind}" for kind in KINDS for name in options.sets]
    left = [place for place in wanted if finished(place) is None]
    samples = recipe.parser().get_parsed_content("pairs_per_epoch") * options.epochs_per_step
    told = f"{len(left)} of {len(wanted)} networks are to be trained, {samples} pairs a step"
    print(told, file=sys.stderr, flush=True)


def _knobs(recipe: Recipe, kind: str) -> dict[str, Any]:
    """The settings that tell one kind of network from another."""
    strides = KINDS[kind].get("strides") or recipe.parser().get_parsed_content("strides")
    return {**KINDS[kind], "max_epochs": len(strides) * recipe.settings["epochs_per_step"]}


def _place(folder: Path, network: str) -> Path:
    return folder / "networks" / network.replace("/", "-")


def _networks(
    options: argparse.Namespace, recipe: Recipe, folder: Path, splits: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Train what is missing; return {"hands/single": facts of the training}."""
    found = {}
    for kind in KINDS:
        for name in options.sets:
            network, place = f"{name}/{kind}", _place(folder, f"{name}/{kind}")
            if finished(place) is None and not options.trained_only:
                _train(recipe, place, network, splits[name])
            if (result := finished(place)) is not None:
                found[network] = result
    return found


def _train(recipe: Recipe, place: Path, network: str, split: Mapping[str, Any]) -> None:
    knobs = _knobs(recipe, network.split("/")[1])
    place.mkdir(parents=True, exist_ok=True)
    images = {section: file_names(items) for section, items in split.items()}
    same_settings(place / "run.json", {"settings": dict(recipe.settings), "knobs": knobs, "images": images})
    datalist = write_datalist(split, place / "subjects.json")
    train(recipe, place, network, datalist=datalist, **knobs)
    state = torch.load(place / "checkpoint.pt", map_location="cpu", weights_only=True)
    epochs, model = read_epochs(place / "epochs.jsonl"), trained_network(recipe, place, **knobs)
    result = {
        "parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "epochs": len(epochs),
        "train_seconds": sum(epoch["seconds"] for epoch in epochs),
        "train_cpu_seconds": sum(epoch["cpu_seconds"] for epoch in epochs),
        "validation_mse": state["best_metric"],
        "best_epoch": state["best_metric_epoch"],
    }
    write_json(place / "result.json", result)
    told = f"validation MSE {result['validation_mse']:.4f} in epoch {result['best_epoch']}"
    print(f"{network}: {told}; {result['train_seconds']:.0f} s", file=sys.stderr, flush=True)


def _measure(
    options: argparse.Namespace, settings: Mapping[str, Any], recipe: Recipe, folder: Path, splits: Mapping, tests: list
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Run every method on every set's cases; return {cases: {method: numbers}} and the images of each set."""
    results = {}
    for full in (False, True):
        for name in tests:
            key, shear = name + FULL * full, SHEAR * full
            place = folder / f"cases{options.cases}" / key
            cases = test_cases(recipe, splits[name]["validation"], options.cases, shear, place)
            names = _measure_own(options, settings, recipe, folder, cases, name, full)
            if options.peer_python and not full:
                for peer in methods.PEERS:
                    methods.measure_peer(cases, peer, options.peer_python, options.peer_cases)
            found = {method: methods.read_result(cases, method) for method in (*names, *methods.PEERS)}
            results[key] = {method: numbers for method, numbers in found.items() if numbers is not None}
    images = {name: {section: len(items) for section, items in splits[name].items()} for name in splits}
    return results, images


def _measure_own(
    options: argparse.Namespace,
    settings: Mapping[str, Any],
    recipe: Recipe,
    folder: Path,
    cases: Cases,
    name: str,
    full: bool,
) -> list[str]:
    """Run our methods on the cases of a set; return their names, as in "comb@hands/single"."""
    simple = {"identity": methods.identity, "plain": methods.plain, "multistart": methods.multistart}
    for method, run in simple.items():
        methods.measure(cases, method, lambda run=run: run, options.again)
    names = list(simple)
    weights = Path(options.weights or recipe.bundle / "models" / "model.pt")
    if weights.is_file():
        config = recipe.bundle / "configs" / "inference.json"
        kept = {key: value for key, value in settings.items() if key in read_json(config)}
        shipped = Recipe(recipe.bundle, (config.name,), {**kept, "device#name": "cpu"})
        make, version = lambda: methods.ours(shipped, weights), methods.fingerprint(weights, config)
        methods.measure(cases, "ours", make, options.again, version)
        names.append("ours")
    wanted = [f"{name}/affine"] if full else [f"{name}/levels", *(f"{other}/single" for other in SETS)]
    for network in wanted:
        place = _place(folder, network)
        if finished(place) is not None:
            for method in (methods.learn, methods.comb):
                names.append(f"{method.__name__}@{network}")
                make = lambda m=method, p=place, n=network: m(_trained(recipe, p, n))  # noqa: E731
                methods.measure(cases, names[-1], make, options.again, methods.fingerprint(place / "model.pt"))
    return names


def _trained(recipe: Recipe, place: Path, network: str) -> torch.nn.Module:
    return trained_network(recipe, place, **_knobs(recipe, network.split("/")[1])).cpu()


def _drawn_identity(folder: Path, recipe: Recipe, item: Mapping[str, Any]) -> dict[str, float]:
    """Return how far the identity is from maps as they are drawn for tests: mean, median, max."""
    path = folder / "identity.json"
    if not path.is_file():
        truth = drawn_maps(recipe, item, DRAWS)
        still = methods.identity(truth.new_zeros(len(truth), 2, *[1] * methods.dimension(truth)))
        mse = torch.tensor(methods.distances(still, truth)["mse"])
        numbers = {"mean": mse.mean(), "median": mse.median(), "max": mse.max()}
        write_json(path, {"draws": DRAWS, **{name: float(value) for name, value in numbers.items()}})
    return read_json(path)
