"""Table 2 of SUITS (Blendowski et al. 2020) on CT and MR of the abdomen made to order, and on brains of two contrasts.

For each set SUITS is trained through its bundle's ``configs/train.json``, once more with training at the first step of
the descent alone, and a VoxelMorph by mean squares of MIND-SSC through the VTN bundle. All register the same test
pairs, beside hand-made MIND in the same descent and, through another Python, elastix.

Where they are missing, the image sets are written to OUTPUT_DIR/data. The abdomens need nothing (with
abdomen_totalsegmentator under --data_dir half of them have real organ shapes), the brains brain_oasis_miccai2012_2mm.
Networks are kept in OUTPUT_DIR/networks/SET. A killed reproduction goes on where it was when the same command is given
again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from shared_components.errors import InputError
from shared_components.pairs import read_datalist

from . import suits_methods as methods
from .meta_affine_methods import fingerprint
from .networks import code_of, facts, load, network_settings
from .pair_rows import TestPairs
from .reports import add_report_arguments
from .runs import Recipe
from .suits_runs import (
    LAST,
    NETWORKS,
    SETS,
    check_settings,
    datalist_of,
    keep_last_weights,
    make_recipe,
    pairs_of,
    train_missing,
)
from .suits_sets import BRAINS
from .suits_smoothness import choose_smoothness
from .suits_tables import report

CHOSEN = {"smoothness": None}  # on validation pairs
SHIPPED = {"smoothness": "shipped"}  # that of the set
WITHOUT = {"features": "mind"}
VARIANTS: dict[str, tuple[str, str | None, dict[str, Any]]] = {  # method -> network, weights, knobs
    "voxelmorph": ("voxelmorph", "model.pt", {}),
    "mind": ("suits", None, WITHOUT),
    "mind_cnn": ("suits", "pretrained.pt", {}),
    "suits_first": ("suits_first", "model.pt", {}),
    "suits": ("suits", "model.pt", {}),
    "suits_first_last": ("suits_first", LAST, {}),
    "suits_last": ("suits", LAST, {}),
    "mind_chosen": ("suits", None, WITHOUT | CHOSEN),
    "mind_cnn_chosen": ("suits", "pretrained.pt", CHOSEN),
    "suits_chosen": ("suits", "model.pt", CHOSEN),
    "suits_soft": ("suits_soft", "model.pt", CHOSEN),
    "suits_shipped": ("suits_soft", "model.pt", SHIPPED),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``reproduce.py suits``."""
    parser.add_argument("--data_dir", required=True, help="folder of the image sets, see above")
    parser.add_argument("--output_dir", default="reproduce_suits", help="all is kept here; default: %(default)s")
    parser.add_argument("--sets", nargs="+", choices=SETS, help="default: abdomen, and brains where their images are")
    parser.add_argument("--peer_python", metavar="PY", help="a Python with itk-elastix")
    parser.add_argument("--peer_pairs", type=int, default=25, help="the first so many; default: %(default)s")
    parser.add_argument("--again", action="store_true", help="measure anew; networks and elastix are kept")
    parser.add_argument("--trained_only", action="store_true", help="report on what has been trained so far")
    add_report_arguments(parser)
    parser.add_argument("--figures", metavar="FOLDER", help="write the figures here")
    parser.add_argument("--real", action="store_true", help="with --figures: real images, by the shipped weights")


def reproduce(options: argparse.Namespace, settings: Mapping[str, Any], command: str) -> None:
    """Train what is missing, measure it, print the report.

    Args:
        options: see ``add_arguments``.
        settings: further overrides of the configurations.
        command: what the user typed, for the report.
    """
    _check(options, settings)
    torch.set_num_threads(options.threads)
    folder, sets = Path(options.output_dir), _sets(options)
    datalists = {name: datalist_of(name, options.data_dir, folder / "data" / name) for name in sets}
    recipes = {
        name: {kind: make_recipe(kind, name, datalists[name], options.device, settings) for kind in NETWORKS}
        for name in sets
    }
    results, trained, described = {}, {}, {}
    for name in sets:
        place = folder / "networks" / name
        if not options.trained_only:
            for network, recipe in recipes[name].items():
                train_missing(recipe, place, network, name)
        known = {f"{name}/{network}": facts(place, network) for network in NETWORKS}
        trained |= {network: found for network, found in known.items() if found is not None}
        pairs, validation = (
            _pairs(recipes[name]["suits"], folder / name, name, section) for section in ("test", "validation")
        )
        described[name] = _described(recipes[name]["suits"], pairs)
        results[name] = _measure(options, recipes[name], place, pairs, validation)
        if options.figures:
            _pictures(recipes[name]["suits"], place, pairs, name, Path(options.figures))
    real = {}
    if options.figures:
        from .suits_figures import draw_iterations  # matplotlib takes a while
        from .suits_real import show_real

        draw_iterations(results, Path(options.figures))
        if options.real:
            real = show_real(options.data_dir, folder / "real", Path(options.figures), options.threads)
    shown = [recipe.command() for recipe in recipes[sets[0]].values()]
    plan = {"settings": dict(settings), "command": command, "each_run": shown}
    report({"plan": plan, "sets": described, "networks": trained, "results": results, "real": real}, options)


def _check(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    for name in ("peer_pairs", "threads"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)} is too small; give 1 or more")
    if not Path(options.data_dir).expanduser().is_dir():
        raise InputError(f"--data_dir {options.data_dir} is no folder; give the folder of the image sets")
    if options.peer_python and shutil.which(options.peer_python) is None:
        raise InputError(f"--peer_python {options.peer_python} is no program; give the path of a Python")
    check_settings(settings)


def _sets(options: argparse.Namespace) -> list[str]:
    """Return the sets asked for, in the order of the tables."""
    if options.sets:
        return [name for name in SETS if name in options.sets]
    there = (Path(options.data_dir).expanduser() / BRAINS, Path(options.output_dir) / "data" / "brains")
    return [name for name in SETS if name != "brains" or any(path.is_dir() for path in there)]


def _pairs(recipe: Recipe, folder: Path, name: str, section: str) -> TestPairs:
    with code_of(recipe):
        dataset = pairs_of(recipe, section)
        spacing = [float(recipe.settings["spacing_mm"])] * 3
    files = [Path(item[key]) for item in dataset.data for key in ("image", "label")]
    grid = "x".join(map(str, (*recipe.settings["size"], recipe.settings["spacing_mm"])))
    return TestPairs(name, folder, dataset, list(SETS[name].labels), spacing, f"{fingerprint(*files)} {grid}")


def _described(recipe: Recipe, pairs: TestPairs) -> dict[str, Any]:
    sections = ("training", "validation", "test")
    images = {section: len(read_datalist(recipe.settings["datalist"], section)) for section in sections}
    grid = {key: recipe.settings[key] for key in ("size", "spacing_mm")}
    return {"pairs": len(pairs.dataset), "images": images, **grid}


def _measure(
    options: argparse.Namespace,
    recipes: Mapping[str, Recipe],
    place: Path,
    pairs: TestPairs,
    validation: TestPairs,
) -> dict[str, dict[str, Any]]:
    """Run what there is on the pairs; return {method: numbers}."""
    methods.measure(pairs, "initial", lambda: methods.still, options.again, steps=False)
    for tool in methods.PEERS if options.peer_python else ():
        methods.measure_peer(pairs, tool, options.peer_python, options.peer_pairs, options.threads)
    for method, (network, file, knobs) in VARIANTS.items():
        weights = place / network / file if file else None
        if file == LAST:
            keep_last_weights(place / network, recipes[network])
        if weights is None or weights.is_file():
            recipe = recipes[network]
            version = " ".join(filter(None, [weights and fingerprint(weights), network_settings(recipe)]))
            if CHOSEN.items() <= knobs.items():
                make = _with_smoothness(recipe, weights, knobs)
                knobs = knobs | {"smoothness": choose_smoothness(validation, method, make, version)}
                version += f" {knobs}"
            elif knobs == SHIPPED:
                knobs = {"smoothness": SETS[pairs.title].smoothness}
                version += f" {knobs}"
            iterative = NETWORKS[network].bundle == "suits"
            methods.measure(pairs, method, _maker(recipe, weights, knobs), options.again, version, iterative)
    found = {method: methods.read_numbers(pairs, method) for method in methods.METHODS}
    return {method: numbers for method, numbers in found.items() if numbers is not None}


def _with_smoothness(
    recipe: Recipe, weights: Path | None, knobs: Mapping[str, Any]
) -> Callable[[float], methods.Fields]:
    return lambda smoothness: _maker(recipe, weights, {**knobs, "smoothness": smoothness})()


def _maker(recipe: Recipe, weights: Path | None, knobs: Mapping[str, Any]) -> Callable[[], methods.Fields]:
    return lambda: methods.network_fields(load(recipe, weights, **knobs))


def _pictures(recipe: Recipe, place: Path, pairs: TestPairs, name: str, folder: Path) -> None:
    """Draw features and result of one pair, by the best weights that there are."""
    from .suits_figures import draw_features, draw_result

    found = [place / "suits" / file for file in ("model.pt", "pretrained.pt")]
    weights = next((path for path in found if path.is_file()), None)
    if weights is None:
        print(f"  {name}: no weights of SUITS, no pictures", file=sys.stderr, flush=True)
        return
    network, item = load(recipe, weights).cpu(), pairs.dataset[0]
    with torch.no_grad():
        ddf = network(item["image"][None])
        draw_features(network, item, ddf, folder / f"features_{name}.png")
    draw_result(item, ddf, SETS[name].title, folder / f"result_{name}.png")
