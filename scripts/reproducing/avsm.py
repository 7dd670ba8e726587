"""Tables 1 and 2 of AVSM (Shen et al. 2019) on brains, and its figures 7, 8 and 10.

Table 1: AVSM as its bundle's ``configs/train.json`` trains it, on pairs of held-out brains ("cross") of
brain_oasis_miccai2012_2mm, and of such a brain and itself after a small known deformation and a change of contrast
("longitudinal"); beside it the paper's optimisation counterparts, VTN with its shipped weights and, through another
Python, SyN, greedy and Demons. Table 2: what each part adds, one training a row and seed, on a coarser grid.

Networks are kept in OUTPUT_DIR/networks: avsm/model.pt, and seed0/I ... seed0/IX in ablation. A killed reproduction
goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from register import find_bundle

from shared_components.errors import InputError
from shared_components.pairs import find_subjects, read_datalist

from . import avsm_methods as methods
from .avsm_ablation import ROWS, coarser, last_weights, place_of, row_recipe, train_into, train_row
from .avsm_groups import groups
from .avsm_sets import CrossPairs, LongitudinalPairs
from .avsm_tables import report
from .hippocampus import write_datalist
from .meta_affine_methods import fingerprint
from .networks import Network, code_of, load, network_settings, training_result
from .pair_rows import TestPairs
from .reports import add_report_arguments
from .runs import Recipe, finished
from .suits_sets import BRAINS

PARTS = ("table1", "table2")
CONFIGS = ("train.json",)
ABLATION_EPOCHS = (6, 12, 4, 6)  # of the four phases, where a row has them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``reproduce.py avsm``."""
    parser.add_argument("--data_dir", required=True, help=f"folder of the image sets, with {BRAINS} in it")
    parser.add_argument("--output_dir", default="reproduce_avsm", help="all is kept here; default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: both tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="of Table 2; default: 0 1")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="of Table 2; default: all")
    parser.add_argument(
        "--ablation_epochs",
        type=int,
        nargs=4,
        default=list(ABLATION_EPOCHS),
        metavar="N",
        help=f"of the phases in Table 2; default: {' '.join(map(str, ABLATION_EPOCHS))}",
    )
    parser.add_argument(
        "--ablation_factor", type=float, default=2.0, help="its grid is coarser by this; default: %(default)g"
    )
    parser.add_argument(
        "--ablation_width", type=int, default=8, help="channels of its momentum networks; default: %(default)s"
    )
    parser.add_argument(
        "--repeats", type=int, default=2, help="longitudinal pairs of a held-out brain; default: %(default)s"
    )
    parser.add_argument("--peer_python", metavar="PY", help="a Python with antspyx, picsl-greedy and SimpleITK")
    parser.add_argument("--peers", nargs="+", choices=methods.PEERS, default=list(methods.PEERS), help="default: all")
    parser.add_argument("--peer_pairs", type=int, default=10, help="the first so many of a set; default: %(default)s")
    parser.add_argument("--optimised_pairs", type=int, default=10, help="likewise, for vSVF-opt; default: %(default)s")
    parser.add_argument("--real", action="store_true", help="with --figures: register knees by the shipped weights too")
    parser.add_argument("--again", action="store_true", help="measure anew; networks and tools are kept")
    parser.add_argument("--trained_only", action="store_true", help="report on what has been trained so far")
    add_report_arguments(parser, "cpu (default), auto or cuda:0, of the networks")
    parser.add_argument("--figures", metavar="FOLDER", help="write the figures here")


def reproduce(options: argparse.Namespace, settings: Mapping[str, Any], command: str) -> None:
    """Train what is missing, measure it, print the report.

    Args:
        options: see ``add_arguments``.
        settings: further overrides of the configuration.
        command: what the user typed, for the report.
    """
    _check(options, settings)
    torch.set_num_threads(options.threads)
    folder = Path(options.output_dir)
    recipe = _recipe(options, settings, folder)
    content: dict[str, Any] = {"table1": {}, "table2": {}, "networks": {}, "sets": {}}
    shown = [recipe.command()]
    if "table1" in options.parts:
        _table_1(options, recipe, folder, content)
    if "table2" in options.parts:
        coarse = _ablation_recipe(options, recipe)
        _table_2(options, coarse, folder, content)
        shown.append(row_recipe(coarse, "IX", options.seeds[0], options.ablation_epochs).command())
    if options.figures:
        from .avsm_figures import draw  # matplotlib takes a while

        draw(content["table1"], Path(options.figures))
        if options.real:
            from .avsm_knees import show_knees

            content["real"] = show_knees(options.data_dir, folder / "real", Path(options.figures), options.threads)
    keys = ("seeds", "ablation_epochs", "ablation_factor", "ablation_width", "repeats")
    plan = {"settings": dict(settings), "command": command, "each_run": shown}
    plan |= {key: getattr(options, key) for key in keys}
    report({"plan": plan, **content}, options)


def _check(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    for name, least in (("repeats", 1), ("peer_pairs", 1), ("optimised_pairs", 1), ("threads", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)} is too small; give {least} or more")
    if not options.ablation_factor >= 1:
        raise InputError(f"--ablation_factor {options.ablation_factor} is below 1; give 1 for the full grid, or more")
    if options.ablation_width < 1:
        raise InputError(f"--ablation_width {options.ablation_width} is too small; give 1 or more")
    if min(options.ablation_epochs) < 1:
        raise InputError("--ablation_epochs needs at least one epoch in each of the four phases")
    if len(set(options.seeds)) < len(options.seeds):
        raise InputError("--seeds names a seed twice; each one gives one run")
    if options.peer_python and shutil.which(options.peer_python) is None:
        raise InputError(f"--peer_python {options.peer_python} is no program; give the path of a Python")
    known = Network("avsm", CONFIGS, {}).keys()
    for key in settings:
        if key.replace("::", "#").split("#")[0] not in known:
            raise InputError(f"no configuration has '{key}' to set; see train.json of the bundle avsm_registration")


def _recipe(options: argparse.Namespace, settings: Mapping[str, Any], folder: Path) -> Recipe:
    """Return how AVSM is trained: every fifth brain is held out."""
    datalist = folder / "data" / "subjects.json"
    if not datalist.is_file():
        source = Path(options.data_dir).expanduser() / BRAINS
        split = find_subjects(source.resolve())
        if len(split["validation"]) < 2:
            raise InputError(
                f"--data_dir {options.data_dir} has no ten brains *_t1.nii.gz in a folder {BRAINS}; add it"
            )
        datalist.parent.mkdir(parents=True, exist_ok=True)
        write_datalist(split, datalist)
    named = {"datalist": str(datalist.resolve()), "device#name": options.device}
    return Recipe(find_bundle("avsm"), CONFIGS, {**settings, **named})


def _ablation_recipe(options: argparse.Namespace, recipe: Recipe) -> Recipe:
    parser = recipe.parser()
    grid = coarser(parser["size"], parser["spacing_mm"], options.ablation_factor)
    return Recipe(recipe.bundle, recipe.configs, {**recipe.settings, **grid, "width": options.ablation_width})


def _pairs(options: argparse.Namespace, recipe: Recipe, folder: Path) -> dict[str, TestPairs]:
    """Return the sets of pairs on the grid of a recipe."""
    parser = recipe.parser()
    size, spacing = parser["size"], [float(parser["spacing_mm"])] * 3
    with code_of(recipe):
        transform = parser.get_parsed_content("validate#preprocessing")
    subjects = read_datalist(recipe.settings["datalist"], "validation")
    for subject in subjects:
        if "label" not in subject:
            raise InputError(f"{subject['image']} has no labels to be measured with; add *_labels.nii.gz beside it")
    brains = [transform(dict(subject)) for subject in subjects]
    files = [Path(subject[key]) for subject in subjects for key in ("image", "label")]
    version = f"{fingerprint(*files)} {'x'.join(map(str, (*size, spacing[0])))}"
    later = LongitudinalPairs(brains, spacing, options.repeats)
    found = {"longitudinal": (later, f"{version} {later.plan}"), "cross": (CrossPairs(brains), version)}
    return {name: TestPairs(name, folder / name, pairs, (), spacing, told) for name, (pairs, told) in found.items()}


def _described(recipe: Recipe, sets: Mapping[str, TestPairs]) -> dict[str, Any]:
    parser = recipe.parser()
    images = {name: len(read_datalist(recipe.settings["datalist"], name)) for name in ("training", "validation")}
    pairs = {name: len(pairs.dataset) for name, pairs in sets.items()}
    return {"pairs": pairs, "images": images, "size": parser["size"], "spacing_mm": parser["spacing_mm"]}


def _table_1(options: argparse.Namespace, recipe: Recipe, folder: Path, content: dict[str, Any]) -> None:
    place = folder / "networks" / "avsm"
    if not options.trained_only:
        train_into(recipe, place, "AVSM")
    sets = _pairs(options, recipe, folder / "table1")
    content["sets"]["table1"] = _described(recipe, sets)
    if (known := _facts(place)) is not None:
        content["networks"]["AVSM"] = known
    for name, pairs in sets.items():
        numbers: dict[str, Any] = {}
        for group in groups(recipe, place / "model.pt", options.device, options.optimised_pairs):
            methods.measure(pairs, group.name, group.make, options.again, group.version, group.count)
            numbers |= methods.read_numbers(pairs, group.name, group.version)
        for tool in options.peers:
            if options.peer_python:
                methods.measure_peer(pairs, tool, options.peer_python, options.peer_pairs, options.threads)
            numbers |= methods.read_numbers(pairs, tool)
        content["table1"][name] = numbers


def _table_2(options: argparse.Namespace, recipe: Recipe, folder: Path, content: dict[str, Any]) -> None:
    place, epochs = folder / "networks" / "ablation", options.ablation_epochs
    sets = _pairs(options, recipe, folder / "table2")
    content["sets"]["table2"] = _described(recipe, sets)
    results: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in sets}
    for seed in options.seeds:
        for row in options.rows:
            if not options.trained_only:
                train_row(recipe, place, row, seed, epochs)
            one, weights = row_recipe(recipe, row, seed, epochs), last_weights(place_of(place, row, seed), row, epochs)
            if (known := _facts(place_of(place, row, seed))) is not None:
                content["networks"][f"{row}, seed {seed}"] = known
            if weights is None:
                continue
            version = f"{fingerprint(weights)} {network_settings(one)}"
            for name, pairs in sets.items():
                group = f"{row}_seed{seed}"
                methods.measure(pairs, group, _row_maker(one, weights, row), options.again, version)
                results[name].setdefault(row, {})[str(seed)] = methods.read_numbers(pairs, group, version)[row]
    content["table2"] = results


def _row_maker(recipe: Recipe, weights: Path, row: str) -> Callable[[], methods.Fields]:
    return lambda: methods.own_fields(load(recipe, weights), row)


def _facts(place: Path) -> dict[str, Any] | None:
    """Return what is known of a training, or None."""
    if (known := finished(place)) is not None or not (place / "model.pt").is_file():
        return known
    return training_result(place) if (place / "checkpoint.pt").is_file() else {}
