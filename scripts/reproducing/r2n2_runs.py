"""The networks of the R2N2 reproduction: the shipped one in its two phases, and three small ones of equal budgets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from register import find_bundle

from shared_components.errors import InputError
from shared_components.pairs import read_datalist

from .networks import Network, code_of, training_result
from .runs import Recipe, finished, same_settings, train, write_json

PRETRAIN = ("train.json", "pretrain.json")
PHASES = {  # on half the grid, then on the whole, from the weights of the first
    "pretrain": Network("r2n2", PRETRAIN, {}),
    "r2n2": Network("r2n2", (*PRETRAIN, "pretrain_fine.json"), {}),
}
ABLATION = {  # in the tables; each is trained like the first phase, for as many epochs
    "whole": "whole",
    "no_state": "without recurrent state",
    "no_certainty": "without certainty weights",
}
KNOBS = {
    "whole": {},
    "no_state": {"recurrent": False},
    "no_certainty": {"certainty": False},
}
PLAIN = {"augment#augment#contrast": 0.0, "augment#augment#bias": 0.0}  # so few epochs need no more variety
ABLATION_EPOCHS = 40


def recipes(
    datalist: str, folder: Path, device: str, settings: Mapping[str, Any], epochs: int = ABLATION_EPOCHS
) -> dict[str, Recipe]:
    """Return how each network is trained: those of ``PHASES`` and of ``ABLATION``.

    Args:
        datalist: of the training set.
        folder: of the networks.
        device: of training.
        settings: the command line's ``--set``.
        epochs: of each network of the ablation.
    """
    names = list(PHASES)
    before = dict(zip(names[1:], names, strict=False))
    start = {name: {"start_weights": str((folder / last / "model.pt").resolve())} for name, last in before.items()}
    networks = PHASES | {
        name: Network("r2n2", PRETRAIN, {**PLAIN, **KNOBS[name], "max_epochs": epochs, "seed": 0}) for name in ABLATION
    }
    named = {"datalist": datalist, "device#name": device}
    return {
        name: Recipe(find_bundle(one.bundle), one.configs, {**settings, **one.knobs, **start.get(name, {}), **named})
        for name, one in networks.items()
    }


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that the configuration does not have.

    Raises:
        InputError: naming one.
    """
    known = PHASES["pretrain"].keys()
    for key in settings:
        if key.replace("::", "#").split("#")[0] not in known:
            raise InputError(f"no configuration has '{key}' to set; see train.json of the bundle r2n2_registration")


def train_missing(recipe: Recipe, place: Path, name: str) -> None:
    """Train a network into a folder unless it has a result; resumable."""
    if finished(place) is not None:
        return
    place.mkdir(parents=True, exist_ok=True)
    left_out = ("datalist", "device#name", "start_weights")
    settings = {key: value for key, value in recipe.settings.items() if key not in left_out}
    series = [Path(item["series"]).name for item in read_datalist(recipe.settings["datalist"], "training")]
    same_settings(place / "run.json", {"settings": settings, "series": series})
    with code_of(recipe):
        train(recipe, place, name)
    write_json(place / "result.json", training_facts(place))


def training_facts(place: Path) -> dict[str, Any]:
    """Return what the folder of a training tells; its best metric is a mean squared difference, the less the better."""
    found = training_result(place)
    found["validation_mse"] = found.pop("validation_dice")
    print(f"  validation MSE {found['validation_mse']:.4f} in epoch {found['best_epoch']}", file=sys.stderr, flush=True)
    return found


def known_facts(place: Path) -> dict[str, Any] | None:
    """Return what is known of a network's training; None if there are no weights of it."""
    if not (place / "model.pt").is_file():
        return None
    return finished(place) or (training_facts(place) if (place / "checkpoint.pt").is_file() else {})
