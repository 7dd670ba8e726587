"""Table 1 of R2N2 (Sandkuehler et al. 2019) on breathing thoraces made to order, its figure 7, and what makes it work.

R2N2 is trained as ``configs/pretrain.json`` and ``pretrain_fine.json`` of its bundle say (or taken
as it is shipped, with --shipped) on 34 synthetic patients and, with lung_mr_proton3d under --data_dir, on slices of
real ones. It registers one breathing cycle of each slice of four other patients, beside the paper's B-spline baseline
and, through another Python, elastix and greedy. Three networks of equal budgets tell what the recurrent state and the
certainty weights do.

Series are kept in OUTPUT_DIR/data and OUTPUT_DIR/table1/series, networks in OUTPUT_DIR/networks. A killed reproduction
goes on where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from shared_components.errors import InputError
from shared_components.pairs import read_datalist

from . import r2n2_methods as methods
from .meta_affine_methods import fingerprint
from .networks import code_of, load, network_settings
from .pair_rows import TestPairs
from .r2n2_runs import ABLATION, ABLATION_EPOCHS, PHASES, check_settings, known_facts, recipes, train_missing
from .r2n2_sets import Plan, test_pairs, training_set
from .r2n2_tables import report
from .reports import add_report_arguments
from .runs import Recipe

PARTS = ("table1", "ablation")
LEAST = {"bspline_pairs": 1, "peer_pairs": 1, "ablation_epochs": 1, "threads": 1, "slices": 1, "subjects": 3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``reproduce.py r2n2``."""
    parser.add_argument("--data_dir", help="folder of the image sets; without it all slices are procedural")
    parser.add_argument("--output_dir", default="reproduce_r2n2", help="all is kept here; default: %(default)s")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: both")
    parser.add_argument("--shipped", action="store_true", help="the bundle's own weights instead of training")
    parser.add_argument("--subjects", type=int, default=Plan.subjects, help="of both sets; default: %(default)s")
    parser.add_argument("--slices", type=int, default=Plan.slices, help="of a subject; default: %(default)s")
    parser.add_argument("--rows", type=int, default=Plan.rows, help="of the test series; default: %(default)s")
    parser.add_argument(
        "--bspline_pairs", type=int, default=96, help="that the baseline registers; default: %(default)s"
    )
    parser.add_argument(
        "--ablation_epochs", type=int, default=ABLATION_EPOCHS, help="of each network there; default: %(default)s"
    )
    parser.add_argument("--peer_python", metavar="PY", help="a Python with itk-elastix, picsl-greedy and SimpleITK")
    parser.add_argument("--peer_pairs", type=int, default=32, help="the first so many; default: %(default)s")
    parser.add_argument("--again", action="store_true", help="measure anew; networks and tools are kept")
    parser.add_argument("--trained_only", action="store_true", help="report on what has been trained so far")
    add_report_arguments(parser, "cpu (default), auto or cuda:0, of training")
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
    folder = Path(options.output_dir)
    plan = Plan(options.subjects, options.slices, options.rows)
    known = _networks(options, settings, folder, plan)
    pairs = test_pairs(folder / "table1", plan)
    content: dict[str, Any] = {"table1": {}, "ablation": {}, "networks": {}, "set": _described(known, pairs, plan)}
    for name in known:
        if (facts := known_facts(folder / "networks" / name)) is not None:
            content["networks"][name] = facts
    if "table1" in options.parts:
        content["table1"] = _table_1(options, known["r2n2"], folder, pairs)
    if "ablation" in options.parts:
        content["ablation"] = _ablation(options, known, folder, pairs)
    if options.figures:
        content["real"] = _figures(options, known["r2n2"], folder, pairs, content)
    starts = {} if options.shipped else {"pretrain": {}, "r2n2": {"start_weights": "pretrain/model.pt"}}
    starts |= {"whole": {}} if "ablation" in options.parts else {}
    shown = [known[name].command(**more) for name, more in starts.items()]
    keys = ("shipped", "bspline_pairs", "peer_pairs", "ablation_epochs")
    made = {"settings": dict(settings), "command": command, "each_run": shown}
    report({"plan": made | {key: getattr(options, key) for key in keys}, **content}, options)


def _check(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    for name, least in LEAST.items():
        if getattr(options, name) < least:
            raise InputError(f"--{name} {getattr(options, name)} is too small; give {least} or more")
    if options.data_dir and not Path(options.data_dir).expanduser().is_dir():
        raise InputError(
            f"--data_dir {options.data_dir} is no folder; give the folder of the image sets, or leave it out"
        )
    if options.peer_python and shutil.which(options.peer_python) is None:
        raise InputError(f"--peer_python {options.peer_python} is no program; give the path of a Python")
    check_settings(settings)


def _networks(options: argparse.Namespace, settings: Mapping[str, Any], folder: Path, plan: Plan) -> dict[str, Recipe]:
    """Return how the networks are trained, after those that are asked for have been."""
    data, place = folder / "data", folder / "networks"
    datalist = str((data / "datalist.json").resolve())
    known = recipes(datalist, place, options.device, settings, options.ablation_epochs)
    wanted = [*(PHASES if "table1" in options.parts and not options.shipped else ())]
    wanted += ABLATION if "ablation" in options.parts else ()
    if not options.trained_only and any(not (place / name / "result.json").is_file() for name in wanted):
        training_set(options.data_dir, data, plan)
        for name in wanted:
            train_missing(known[name], place / name, name)
    return known


def _described(known: Mapping[str, Recipe], pairs: TestPairs, plan: Plan) -> dict[str, Any]:
    datalist, parser = known["r2n2"].settings["datalist"], known["r2n2"].parser()
    counts = {}
    if Path(datalist).is_file():
        counts = {section: len(read_datalist(datalist, section)) for section in ("training", "validation")}
    size = {name: known[name].parser()["size"] for name in PHASES}
    steps = {name: known[name].parser().get_parsed_content("steps") for name in PHASES}
    test = {"slices": len(pairs.dataset.items), "pairs": len(pairs.dataset), "rows": plan.rows}
    subjects = len({item["subject"] for item in pairs.dataset.items})
    test |= {"subjects": subjects, "spacing_mm": pairs.spacing_mm[0]}
    seen = {"shrink": parser["shrink"], "polish": shipped_polish(known["r2n2"])["iterations"]}
    return {
        "training_series": counts,
        "test": test,
        "size": size,
        "steps": steps,
        "channels": parser["channels"],
        **seen,
    }


def _weights(options: argparse.Namespace, recipe: Recipe, folder: Path) -> Path:
    return recipe.bundle / "models" / "model.pt" if options.shipped else folder / "networks" / "r2n2" / "model.pt"


def _table_1(options: argparse.Namespace, recipe: Recipe, folder: Path, pairs: TestPairs) -> dict[str, Any]:
    versions = dict.fromkeys(methods.METHODS, "")
    methods.measure(pairs, "identity", lambda: methods.still, options.again)
    versions["bspline"] = str(methods.BSPLINE)
    bspline = ("bspline", lambda: methods.bspline, options.again, versions["bspline"], options.bspline_pairs)
    methods.measure(pairs, *bspline)
    for tool in methods.PEERS if options.peer_python else ():
        methods.measure_peer(pairs, tool, options.peer_python, options.peer_pairs, options.threads)
    weights = _weights(options, recipe, folder)
    for name in ("proposed", "r2n2") if weights.is_file() else ():
        how = shipped_polish(recipe) if name == "r2n2" else None
        versions[name] = f"{_version(recipe, weights)} {how or ''}"
        methods.measure(pairs, name, _maker(recipe, weights, how, how is not None), options.again, versions[name])
    found = {name: methods.read_numbers(pairs, name, version) for name, version in versions.items()}
    return {name: numbers for name, numbers in found.items() if numbers is not None}


def _ablation(
    options: argparse.Namespace, known: Mapping[str, Recipe], folder: Path, pairs: TestPairs
) -> dict[str, Any]:
    found = {}
    for name in ABLATION:
        weights = folder / "networks" / name / "model.pt"
        if weights.is_file():
            version = _version(known[name], weights)
            methods.measure(pairs, name, _maker(known[name], weights), options.again, version)
            numbers = methods.read_numbers(pairs, name, version)
            found[name] = {key: value for key, value in numbers.items() if key not in methods.OF_BUMPS}
    return found


def _version(recipe: Recipe, weights: Path) -> str:
    return f"{fingerprint(weights)} {recipe.parser()['size']} {network_settings(recipe)}"


def shipped_polish(recipe: Recipe) -> dict[str, float]:
    """Return how the bundle polishes bumps when it registers a pair."""
    known = json.loads((recipe.bundle / "configs" / "inference.json").read_text())
    return {"iterations": known["polish"], "leash": known["leash"]}


def _maker(
    recipe: Recipe, weights: Path, polish: Mapping[str, float] | None = None, course: bool = True
) -> Callable[[], methods.Fields]:
    def make() -> methods.Fields:
        network = load(recipe, weights).cpu()
        if not polish:
            return methods.network_fields(network, network, recipe.parser()["size"], course)
        with code_of(recipe):
            from scripts.polish import Polished  # the bundle's

            whole = Polished(network, **polish).eval()
        return methods.network_fields(whole, network, recipe.parser()["size"], course)

    return make


def _figures(
    options: argparse.Namespace, recipe: Recipe, folder: Path, pairs: TestPairs, content: Mapping[str, Any]
) -> dict[str, Any]:
    from .r2n2_figures import draw_course, draw_strip  # matplotlib takes a while

    figures, weights = Path(options.figures), _weights(options, recipe, folder)
    if "r2n2" in content["table1"]:
        draw_course(content["table1"], content["ablation"], figures / "course.png")
    if weights.is_file():
        draw_strip(load(recipe, weights).cpu(), recipe.parser()["size"], pairs, figures)
    if not options.real or not options.data_dir:
        return {}
    from .r2n2_real import show_real

    return show_real(options.data_dir, folder / "real", figures, options.threads)
