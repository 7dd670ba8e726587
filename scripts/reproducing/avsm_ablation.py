"""Table 2 of AVSM: what each part of the method adds. Every row is a training of its own, of as many pairs a part."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_components.pairs import read_datalist

from .networks import code_of, training_result
from .runs import Recipe, epochs_done, finished, same_settings, train, write_json

COLUMNS = ("Af-Reg", "Af-Multi", "Af-Sym", "Af-MK", "vSVF", "vSVF-MK", "vSVF-Multi", "vSVF-Sym")
AFFINE_STEPS, VELOCITY_STEPS = 7, 2  # of the rows with several
HALVE_EVERY = 8  # epochs of a phase
STOPPED = "training stopped in epoch"  # as StopOnNaN says: a row without regularity may well diverge
LOSS = {"affine_constant": 10.0, "affine_symmetry_weight": 10.0}  # where regularity and symmetry are on


@dataclass(frozen=True)
class Combination:
    """A row of the table.

    Attributes:
        parts: which of ``COLUMNS`` it has.
        start: the row whose affine part it goes on from.
    """

    parts: frozenset[str]
    start: str | None = None

    def lengths(self, epochs: Sequence[int]) -> list[int]:
        """Return the epochs of the four phases; both rows with and without several steps see as many pairs.

        Args:
            epochs: of the phases of a row with everything.
        """
        a, b, c, d = epochs
        affine = [a, b] if "Af-Multi" in self.parts else [a + b, 0]
        if "vSVF" not in self.parts:
            return [*affine, 0, 0]
        return [*affine, *([c, d] if "vSVF-Multi" in self.parts else [c + d, 0])]

    def knobs(self, epochs: Sequence[int]) -> dict[str, Any]:
        """Return what the row sets in train.json. All rows register both orders of a pair; losses on that differ."""
        velocity = VELOCITY_STEPS if "vSVF-Multi" in self.parts else int("vSVF" in self.parts)
        return {
            "phase_epochs": self.lengths(epochs),
            "affine_similarity": "mk_lncc" if "Af-MK" in self.parts else "cc",
            "similarity": "mk_lncc" if "vSVF-MK" in self.parts else "cc",
            "affine_steps": AFFINE_STEPS if "Af-Multi" in self.parts else 1,
            "velocity_steps": velocity,
            "symmetry_weight": 1e-4 if "vSVF-Sym" in self.parts else 0.0,
            "fold_weight": 0.0,
            "halve_every": HALVE_EVERY,
            "loss#affine_constant": LOSS["affine_constant"] if "Af-Reg" in self.parts else 0.0,
            "loss#affine_symmetry_weight": LOSS["affine_symmetry_weight"] if "Af-Sym" in self.parts else 0.0,
        }


def _row(parts: str, start: str | None = None) -> Combination:
    return Combination(frozenset(name for name, there in zip(COLUMNS, parts, strict=True) if there == "x"), start)


ROWS = {
    "I": _row("........"),
    "II": _row("x......."),
    "III": _row("xx......"),
    "IV": _row("xxx....."),
    "V": _row("xxxx...."),
    "VI": _row("xxx.x...", "IV"),
    "VII": _row("xxxxxx..", "V"),
    "VIII": _row("xxxxxxx.", "V"),
    "IX": _row("xxxxxxxx", "V"),
}


def coarser(size: Sequence[int], spacing_mm: float, factor: float) -> dict[str, Any]:
    """Return the settings of a grid of the same extent with fewer voxels, of an even number along each axis.

    Example:
        >>> coarser((80, 112, 88), 2.0, 2)
        {'size': [40, 56, 44], 'spacing_mm': 4.0}
    """
    return {"size": [2 * round(n / factor / 2) for n in size], "spacing_mm": spacing_mm * factor}


def row_recipe(recipe: Recipe, row: str, seed: int, epochs: Sequence[int]) -> Recipe:
    """Return how a row is trained; ``recipe`` has what all rows have in common."""
    return Recipe(recipe.bundle, recipe.configs, {**recipe.settings, **ROWS[row].knobs(epochs), "seed": seed})


def place_of(folder: Path, row: str, seed: int) -> Path:
    """Return the folder of a training."""
    return folder / f"seed{seed}" / row


def train_row(recipe: Recipe, folder: Path, row: str, seed: int, epochs: Sequence[int]) -> None:
    """Train a row unless that has been done; resumable.

    Where another row has trained the same affine part, training goes on from its end: the same weights as from the
    very beginning, in less time.
    """
    place, told = place_of(folder, row, seed), f"Table 2, row {row}, seed {seed}"
    if finished(place) is not None:
        return
    recipe = row_recipe(recipe, row, seed, epochs)
    train_into(recipe, place, told, ROWS[row].start and place_of(folder, ROWS[row].start, seed))


def train_into(recipe: Recipe, place: Path, told: str, start: Path | None = None) -> None:
    """Train into a folder, from its checkpoint if it has one, else from that of ``start``, and write the result."""
    if finished(place) is not None:
        return
    place.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in recipe.settings.items() if key not in ("datalist", "device#name")}
    subjects = [item["subject"] for item in read_datalist(recipe.settings["datalist"], "training")]
    same_settings(place / "run.json", {"settings": settings, "subjects": subjects})
    if start is not None and epochs_done(place) == 0 and "failed" not in (finished(start) or {"failed": "missing"}):
        for path in [*start.glob("phase*.pt"), start / "model.pt", start / "checkpoint.pt"]:  # checkpoint last
            if path.is_file():
                shutil.copyfile(path, place / path.name)
    try:
        with code_of(recipe):
            train(recipe, place, told)
    except (FloatingPointError, RuntimeError) as error:
        if STOPPED not in f"{error} {error.__cause__}":
            raise
        write_json(place / "result.json", {"failed": f"{error.__cause__ or error}".strip().splitlines()[-1]})
        print(f"{told}: the loss was not finite any more; no weights", file=sys.stderr, flush=True)
        return
    result = training_result(place)
    write_json(place / "result.json", result)
    print(f"{told}: validation Dice {result['validation_dice']:.4f}", file=sys.stderr, flush=True)


def last_weights(place: Path, row: str, epochs: Sequence[int]) -> Path | None:
    """Return the weights at the end of a row's last phase (no epoch is chosen by its Dice), or None."""
    lengths = ROWS[row].lengths(epochs)
    last = max((number for number, length in enumerate(lengths, 1) if length), default=0)
    path = place / f"phase{last}.pt"
    return path if path.is_file() else None
