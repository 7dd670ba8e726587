"""The networks of a reproduction: which committed configurations train them, what their trainings tell, loading."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from register import bundle_code, find_bundle

from shared_components.engines import load_weights

from .runs import Recipe, epochs_done, finished, read_epochs, read_json


@dataclass(frozen=True)
class Network:
    """How a network is trained.

    Attributes:
        bundle: short name.
        configs: in its ``configs/``.
        knobs: settings that tell it from others.
    """

    bundle: str
    configs: tuple[str, ...]
    knobs: Mapping[str, Any]

    def keys(self) -> set[str]:
        """Return the ids at the top of its configuration."""
        folder = find_bundle(self.bundle) / "configs"
        return {key.split("#")[0] for name in self.configs for key in read_json(folder / name)}


@contextmanager
def code_of(recipe: Recipe) -> Iterator[None]:
    """Let ``scripts`` be the package of the recipe's bundle."""
    with bundle_code(recipe.bundle):
        yield


def training_result(place: Path) -> dict[str, Any]:
    """Return what the folder of a training tells: size, epochs, seconds, the best validation Dice and its epoch."""
    state = torch.load(place / "checkpoint.pt", map_location="cpu", weights_only=True)
    epochs = read_epochs(place / "epochs.jsonl")
    weights = torch.load(place / "model.pt", map_location="cpu", weights_only=True)
    return {
        "parameters": sum(value.numel() for value in weights.values() if value.is_floating_point()),
        "epochs": epochs_done(place),
        "train_seconds": sum(epoch["seconds"] for epoch in epochs) if epochs else None,
        "train_cpu_seconds": sum(epoch["cpu_seconds"] for epoch in epochs) if epochs else None,
        "validation_dice": state["best_metric"],
        "best_epoch": state["best_metric_epoch"],
    }


def facts(folder: Path, network: str) -> dict[str, Any] | None:
    """Return what is known of a trained network's training; None if there are no weights of it."""
    if not (folder / network / "model.pt").is_file():
        return None
    place = folder / network
    return finished(place) or (training_result(place) if (place / "checkpoint.pt").is_file() else {})


def network_settings(recipe: Recipe) -> str:
    """Return what tells one network with the same weights from another: the values that it is made with."""
    parser = recipe.parser()
    made = {key: value for key, value in parser["network_def"].items() if isinstance(value, str) and value[0] == "@"}
    return json.dumps({key: parser[value[1:]] for key, value in made.items()}, sort_keys=True)


def load(recipe: Recipe, weights: Path | None, **knobs: Any) -> torch.nn.Module:
    """Return the recipe's network with weights, or as it starts, for evaluation."""
    with code_of(recipe):
        network = recipe.parser(**knobs).get_parsed_content("network")
        if weights is not None:
            load_weights(network, weights)
    return network.eval()
