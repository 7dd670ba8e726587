"""What can be measured for AVSM's Table 1: groups of methods that one call makes, and the version of each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.inferers import Inferer
from register import find_bundle

from . import avsm_methods as methods
from .meta_affine_methods import fingerprint
from .networks import code_of, load, network_settings
from .runs import Recipe


@dataclass(frozen=True)
class Group:
    """Methods that share a file of results.

    Attributes:
        name: of the file.
        make: makes what registers.
        version: of weights and settings.
        count: the first so many pairs; None for all.
    """

    name: str
    make: Callable[[], methods.Fields]
    version: str = ""
    count: int | None = None


def groups(recipe: Recipe, weights: Path, device: str, optimised_pairs: int) -> Iterator[Group]:
    """Yield all that can be measured in this process, the fast ones first.

    Args:
        recipe: of AVSM.
        weights: of it; where there are none its rows are left out.
        device: of the other networks.
        optimised_pairs: pairs for the optimisation.
    """
    yield Group("identity", lambda: methods.still)
    if weights.is_file():
        version = f"{fingerprint(weights)} {network_settings(recipe)}"
        yield Group("avsm", lambda: methods.network_fields(load(recipe, weights)), version)
        improved = f"{version} {methods.FREE_ITERATIONS} {methods.REFINE_STEPS}"
        yield Group("improved", lambda: methods.improved(load(recipe, weights)), improved)
    else:
        print(f"  no {weights.name} in networks/avsm: rows of AVSM are left out", file=sys.stderr, flush=True)
    if (vtn := shipped("vtn", recipe, device)) is not None:
        own = fingerprint(vtn.bundle / "models" / "model.pt")
        yield Group("vtn", lambda: methods.own_fields(called(vtn), "vtn"), own)
    version = f"{methods.AFFINE_OPT} {methods.VSVF_OPT}"
    yield Group("optimised", lambda: methods.optimised, version, optimised_pairs)


def shipped(bundle: str, like: Recipe, device: str) -> Recipe | None:
    """Return a bundle as it is shipped, if its weights are there and made for the same grid as ``like``."""
    recipe = Recipe(find_bundle(bundle), ("inference.json",), {"device#name": device})
    theirs, ours = recipe.parser(), like.parser()
    fits = all(theirs[key] == ours[key] for key in ("size", "spacing_mm"))
    return recipe if fits and (recipe.bundle / "models" / "model.pt").is_file() else None


def called(recipe: Recipe) -> torch.nn.Module:
    """Return a bundle's network with its own weights, called in the way of its inference.json."""
    network = load(recipe, recipe.bundle / "models" / "model.pt")
    with code_of(recipe):
        inferer = recipe.parser().get_parsed_content("inferer")
    return _Called(network, inferer)


class _Called(torch.nn.Module):
    """A network behind an inferer."""

    def __init__(self, network: torch.nn.Module, inferer: Inferer) -> None:
        super().__init__()
        self.network, self.inferer = network, inferer

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the ddf."""
        return self.inferer(image, self.network)
