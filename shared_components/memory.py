"""Keep a registration within so much memory: what a pair will take is known before its images are read.

Native grids are worked through slab by slab in any case (``slabs``). What is left, and what a budget can do about it:
fields made anew wherever they are looked at instead of held, and a report made from every n-th voxel. Neither changes a
bit of the written files. The network's own grid is fixed, and so is what it takes.
"""

from __future__ import annotations

import ctypes
import json
import logging
import math
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError
from .images.formats import grid_of

GB = 2**30
SLACK = 0.15 * GB  # slabs, the report's figures, compression, what the allocator keeps back
NETWORK, REFINEMENT = 700, 900  # bytes a voxel of the network's grid, where the bundle's metadata do not tell
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Means:
    """What is done to save memory.

    Attributes:
        hold: False: the native fields are made anew wherever they are looked at.
        report_step: the report is made from every so-manieth voxel along each axis.
    """

    hold: bool = True
    report_step: int = 1

    def __str__(self) -> str:
        """In words; empty if nothing is done."""
        words = [] if self.hold else ["fields are made anew wherever they are needed, which takes longer"]
        words += [f"the report shows every {_ORDINALS[self.report_step]} voxel"] if self.report_step > 1 else []
        return " and ".join(words)


_ORDINALS = {2: "second"}
LADDER = (Means(), Means(hold=False), Means(hold=False, report_step=2))  # a still thinner report saves nothing more


@dataclass(frozen=True)
class Plan:
    """How a pair is registered within a budget.

    Attributes:
        max_gb: the budget, GB of 2^30 bytes; None: there is none.
        means: what is done about it.
        expected_gb: the peak that is reckoned with.
    """

    max_gb: float | None = None
    means: Means = Means()
    expected_gb: float | None = None

    def facts(self) -> dict[str, Any]:
        """Return what run.json tells of it; nothing where there is no budget."""
        if self.max_gb is None:
            return {}
        return {
            "max_memory_gb": self.max_gb,
            "expected_memory_gb": round(self.expected_gb or 0, 2),
            "memory_means": str(self.means) or "nothing had to be done",
        }


class MemoryBudget:
    """Finds out, from the headers of a pair's files, how it is kept within a budget, or that it cannot be.

    Args:
        max_gb: peak of the process's resident memory, GB of 2^30 bytes; None: as it comes.
        size: of the network's grid.
        bundle: folder of the bundle; its metadata.json may hold "memory", bytes a voxel of the network's grid by what
            is done: "network", and the methods of refinement.
        refine: method of the refinement.
        refine_steps: 0: there is none.
        diffeomorphic: fields are unfolded on the native grids, which holds all of them.
        report: whether one is made.

    Raises:
        InputError: no such amount.
    """

    def __init__(
        self,
        max_gb: float | None = None,
        size: Sequence[int] = (),
        bundle: str = "",
        refine: str = "field",
        refine_steps: int = 0,
        diffeomorphic: bool = False,
        report: bool = True,
    ) -> None:
        if max_gb is not None and (isinstance(max_gb, bool) or not isinstance(max_gb, int | float) or not max_gb > 0):
            raise InputError(f"max_memory_gb {max_gb} is not possible; give a number of GB above 0")
        self.max_gb, self.report, self.diffeomorphic = max_gb, report, diffeomorphic
        known = _metadata(bundle)
        self.network = known.get("network", NETWORK)
        if refine_steps:
            self.network = max(self.network, known.get(refine, REFINEMENT))
        self.network *= math.prod(size)
        self._process: float | None = None  # what it takes before any image is read

    def plan(self, item: Mapping[str, Any]) -> Plan:
        """Return how the pair of an item, see ``LoadPair``, is registered.

        Raises:
            InputError: not even the smallest way fits; how much it takes.
        """
        if self.max_gb is None:
            return Plan()
        if self._process is None:
            self._process = resident_bytes()
        ladder = LADDER[:1] if self.diffeomorphic else LADDER if self.report else LADDER[:2]
        needs = [(self._process + SLACK + self.needed(item, means)) / GB for means in ladder]
        for means, need in zip(ladder, needs, strict=True):
            if need <= self.max_gb:
                if str(means):
                    _log.warning("to stay within %g GB of memory, %s", self.max_gb, means)
                return Plan(self.max_gb, means, need)
        sides = " and ".join("x".join(map(str, _grid(item, side))) for side in ("fixed", "moving"))
        without = " without --diffeomorphic," if self.diffeomorphic else ""
        enough = math.ceil(100 * min(needs) + 1) / 100  # a hundredth more: the next process may begin with some MB more
        raise InputError(
            f"max_memory_gb {self.max_gb:g} is too little to register {item['fixed']} and {item['moving']} ({sides} "
            f"voxels): at least {enough:.2f} GB are needed; give that much,{without} or "
            "crop or downsample the images"
        )

    def needed(self, item: Mapping[str, Any], means: Means) -> float:
        """Return the bytes that a pair takes at its peak beside the process itself."""
        fixed, moving = (4.0 * math.prod(_grid(item, side)) for side in ("fixed", "moving"))
        labels = [4.0 * math.prod(_grid(item, name)) for name in _MAPS if item.get(name)]
        held = fixed + moving + sum(labels)
        both = bool(item.get("fixed_label") and item.get("moving_label"))
        shown = 1 / means.report_step ** len(_grid(item, "fixed")) if self.report else 0.0
        report = (5 + 2 * both) * fixed * shown  # images before and after, the field, labels before and after
        fields = 3 * (fixed + moving) if means.hold else 0.0
        if means.hold and self.report:
            report -= 3 * fixed  # it shows the field that is held
        measuring = moving + 2.5 * fixed + LABELS * fixed * both
        writing = moving + 2 * fixed
        drawing = DRAWING * _slice(item, means.report_step) if self.report else 0.0
        native = fields + max(measuring, writing, moving + report + drawing)
        unfolding = UNFOLDING * max(fixed, moving) if self.diffeomorphic else 0.0
        return held + max(self.network, READING * max(fixed, moving), native, fields + unfolding)


READING = 3.0  # times an image as float32: its values as they are in the file, and smoothed for the network
LABELS = 12.0  # times: label by label, distances to surfaces
UNFOLDING = 40.0
DRAWING = 200.0  # bytes a pixel of the largest slice: pictures of the report, by matplotlib in double precision
_MAPS = tuple(f"{side}_{kind}" for side in ("fixed", "moving") for kind in ("label", "mask"))


def _grid(item: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return the shape of a file's grid as its header tells; (0,) where it does not: reading will tell why."""
    return grid_of(item[name]) or (0,)


def _slice(item: Mapping[str, Any], step: int) -> float:
    """Return the pixels of the largest slice of the fixed image that the report shows."""
    return math.prod(sorted(_grid(item, "fixed"))[-2:]) / step**2


def _metadata(bundle: str) -> dict[str, float]:
    file = Path(bundle) / "configs" / "metadata.json"
    return json.loads(file.read_text()).get("memory", {}) if bundle and file.is_file() else {}


def resident_bytes() -> float:
    """Return what this process holds of the machine's memory now; where that is not told, the most it ever did."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak) * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let the peaks of memory begin anew, so that a pair is told its own (Linux; elsewhere that of the process)."""
    import torch

    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def give_back_memory() -> None:
    """Return to the system what the allocator keeps for later (glibc; elsewhere nothing happens)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass
