"""The networks of the SUITS reproduction: what they are trained on, and by which committed configurations."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from register import find_bundle

from shared_components.checkpoints import save_atomically
from shared_components.errors import InputError
from shared_components.pairs import PairDataset, read_datalist
from shared_components.synth.abdomen import LABELS, write_abdomen

from .networks import Network, code_of, training_result
from .runs import Recipe, epochs_done, finished, same_settings, train, write_json
from .suits_sets import ABDOMEN_LAYOUT, BRAIN_LABELS, BRAINS, write_brains


@dataclass(frozen=True)
class ImageSet:
    """A data set and the network's grid for it.

    Attributes:
        title: in tables.
        fixed, moving: modalities.
        size, spacing_mm: of the grid.
        labels: value -> name.
        smoothness: lambda of the shipped configuration.
        paper: the paper's numbers are of such images.
    """

    title: str
    fixed: str
    moving: str
    size: tuple[int, int, int]
    spacing_mm: float
    labels: Mapping[int, str]
    smoothness: float
    paper: bool = False

    def settings(self) -> dict[str, Any]:
        """Return what the set changes in the configurations."""
        grid = {"size": list(self.size), "spacing_mm": self.spacing_mm}
        return {"fixed_modality": self.fixed, "moving_modality": self.moving, "labels": list(self.labels), **grid}


SETS = {
    "abdomen": ImageSet("Abdomen, CT → MR", "mr", "ct", (128, 96, 96), 3.0, LABELS, 0.6, paper=True),
    "brains": ImageSet("Brain, T2 → T1", "t1", "t2", (80, 112, 88), 2.0, BRAIN_LABELS, 0.4),
}
VOXELMORPH = "../../../scripts/reproducing/configs/voxelmorph_mind.json"  # as seen from the configs of the VTN bundle
PAPER = {"smoothness": 10.0, "training_smoothness": 5.0}  # lambda
SOFT = {"smoothness": 0.4, "training_smoothness": 0.25, "max_epochs": 21}  # the first: of validation meanwhile
NETWORKS = {
    "suits": Network("suits", ("train.json",), PAPER),
    "suits_first": Network("suits", ("train.json",), PAPER | {"max_steps": 1}),
    "suits_soft": Network("suits", ("train.json",), SOFT),
    "voxelmorph": Network("vtn", ("train.json", VOXELMORPH), {}),
}
LAST = "last.pt"  # weights of the last epoch
HALF, HALF_BEST = "pretrained_checkpoint.pt", "pretrained_best.pt"  # checkpoint.pt and model.pt after the first phase


def datalist_of(name: str, data_dir: str | Path, folder: Path) -> str:
    """Return the datalist of a set, in ``folder``; write the set first if it is not there.

    Raises:
        InputError: its source is not there.
    """
    path, data = folder / "datalist.json", Path(data_dir).expanduser()
    if path.is_file():
        return str(path.resolve())
    print(f"{name}: writing the images ...", file=sys.stderr, flush=True)
    if name == "abdomen":
        layout = data / ABDOMEN_LAYOUT
        write_abdomen(folder, layout=layout if layout.is_file() else None)
    elif (data / BRAINS).is_dir():
        write_brains(data / BRAINS, folder)
    else:
        raise InputError(f"--data_dir {data_dir} has no folder {BRAINS}; add it, or leave out {name} (see --sets)")
    return str(path.resolve())


def make_recipe(network: str, name: str, datalist: str, device: str, settings: Mapping[str, Any]) -> Recipe:
    """Return how a network is trained on a set.

    Args:
        network: of ``NETWORKS``.
        name: of ``SETS``.
        datalist: path.
        device: of training.
        settings: the command line's ``--set``; those that the configuration does not have are left out.
    """
    how = NETWORKS[network]
    known = how.keys()
    chosen = {**SETS[name].settings(), **settings, **how.knobs, "datalist": datalist, "device#name": device}
    kept = {key: value for key, value in chosen.items() if key.replace("::", "#").split("#")[0] in known}
    return Recipe(find_bundle(how.bundle), how.configs, kept)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that no configuration has.

    Raises:
        InputError: naming one.
    """
    known = set().union(*(network.keys() for network in NETWORKS.values()))
    for key in settings:
        if key.replace("::", "#").split("#")[0] not in known:
            raise InputError(f"no configuration has '{key}' to set; see train.json of the bundle suits_registration")


def pairs_of(recipe: Recipe, section: str = "test") -> PairDataset:
    """Return all pairs of a fixed and a moving image of the set's tests, on the network's grid."""
    parser = recipe.parser()
    modalities = [parser[f"{side}_modality"] for side in ("fixed", "moving")]
    transform = parser.get_parsed_content("preprocessing")
    return PairDataset(read_datalist(recipe.settings["datalist"], section), transform, modalities=modalities)


def train_missing(recipe: Recipe, folder: Path, network: str, name: str) -> None:
    """Train a network into ``folder``/``network`` unless it has a result; resumable.

    SUITS is stopped once between its two phases, which changes nothing, to keep the state from which the network that
    trains at the first step alone goes on.
    """
    place, told = folder / network, f"{name}, {network}"
    if finished(place) is not None:
        return
    place.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in recipe.settings.items() if key not in ("datalist", "device#name")}
    subjects = [item["subject"] for item in read_datalist(recipe.settings["datalist"], "training")]
    same_settings(place / "run.json", {"settings": settings, "subjects": subjects})
    with code_of(recipe):
        if NETWORKS[network].bundle == "suits":
            _first_phase(recipe, folder, network, told)
        train(recipe, place, told)
    result = training_result(place)
    write_json(place / "result.json", result)
    said = f"validation Dice {result['validation_dice']:.4f} in epoch {result['best_epoch']}"
    print(f"{told}: {said}", file=sys.stderr, flush=True)


def _first_phase(recipe: Recipe, folder: Path, network: str, told: str) -> None:
    """Train the first phase and keep its state, or take it over from SUITS."""
    place, other = folder / network, folder / "suits"
    parser = recipe.parser()
    length = parser.get_parsed_content("pretrain_epochs")
    if not length or length >= parser.get_parsed_content("max_epochs"):
        return
    if network != "suits" and epochs_done(place) == 0 and (other / HALF).is_file():
        best = other / (HALF_BEST if (other / HALF_BEST).is_file() else "pretrained.pt")
        shutil.copyfile(other / "pretrained.pt", place / "pretrained.pt")
        shutil.copyfile(best, place / "model.pt")
        shutil.copyfile(other / HALF, place / "checkpoint.pt")
    if epochs_done(place) < length:
        train(recipe, place, told, max_epochs=length)
    if network == "suits" and epochs_done(place) == length:
        shutil.copyfile(place / "model.pt", place / HALF_BEST)
        shutil.copyfile(place / "checkpoint.pt", place / HALF)


def keep_last_weights(place: Path, recipe: Recipe) -> None:
    """Write the weights of the last epoch beside the best ones, once a network is trained to its end."""
    length = recipe.parser().get_parsed_content("max_epochs")
    if epochs_done(place) >= length:
        state = torch.load(place / "checkpoint.pt", map_location="cpu", weights_only=True)
        save_atomically(state["model"], place / LAST)
