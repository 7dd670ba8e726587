"""The images of the R2N2 reproduction: breathing thoraces made to order, for training and, other patients, for tests.

Both come from one plan of 42 patients, as many as the paper has: 34 train, 4 validate, 4 test. The training set is
written at 128 x 128, with the real slices of lung_mr_proton3d where they are; the test series, one breathing cycle of
21 frames a slice, at the paper's 256 x 256.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared_components.images import Image
from shared_components.pairs import Pair
from shared_components.synth.thorax import RecordedSeries, make_breathing_set, read_breathing
from shared_components.warp import sample

from .meta_affine_methods import fingerprint
from .pair_rows import TestPairs

REAL = "lung_mr_proton3d"
SUBJECTS, SLICES, SEED = 42, 4, 0
TRAINING_SLICES, TRAINING_FRAMES, TRAINING_ROWS = 12, 42, 128
TEST_FRAMES, TEST_ROWS = 21, 256


@dataclass(frozen=True)
class Plan:
    """How much is made.

    Attributes:
        subjects: of both sets together.
        slices: of each in the test series.
        rows: likewise.
        training_slices: of each otherwise; every slice is another anatomy.
        training_rows: likewise.
        training_frames: likewise; two breathing cycles by default.
        test_frames: one.
    """

    subjects: int = SUBJECTS
    slices: int = SLICES
    rows: int = TEST_ROWS
    training_slices: int = TRAINING_SLICES
    training_rows: int = TRAINING_ROWS
    training_frames: int = TRAINING_FRAMES
    test_frames: int = TEST_FRAMES


def training_set(data_dir: str | Path | None, folder: Path, plan: Plan) -> str:
    """Return the datalist of the training set in ``folder``, which is written where it is missing."""
    real = None if data_dir is None else Path(data_dir).expanduser() / REAL
    size = (plan.training_rows, plan.training_rows)
    _say(folder, "training series")
    given = (plan.subjects, plan.training_slices, plan.training_frames, SEED, size)
    scans = real if real is not None and real.is_dir() else None
    return make_breathing_set(folder, *given, scans, sections=("training", "validation"))


def test_pairs(folder: Path, plan: Plan) -> TestPairs:
    """Return the test pairs, whose series are written to ``folder``/series where they are missing."""
    series = folder / "series"
    _say(series, "test series")
    given = (plan.subjects, plan.slices, plan.test_frames, SEED, (plan.rows, plan.rows))
    datalist = Path(make_breathing_set(series, *given, sections=("test",)))
    dataset = FramePairs(datalist)
    files = [datalist.parent / item[key] for item in dataset.items for key in ("series", "truth")]
    spacing = [float(step) for step in dataset.series(0).frame.spacing]
    return TestPairs("thorax", folder, dataset, (), spacing, fingerprint(*files))


test_pairs.__test__ = False  # no test of pytest's


def _say(folder: Path, what: str) -> None:
    if not (folder / "datalist.json").is_file():
        print(f"writing the {what} ...", file=sys.stderr, flush=True)


def spread(count: int) -> list[int]:
    """Return 0 ... count - 1 in an order of which every beginning is spread over the whole.

    Example:
        >>> spread(6)
        [0, 4, 2, 1, 5, 3]
    """
    digits = max(1, (count - 1).bit_length())
    return sorted(range(count), key=lambda k: int(f"{k:0{digits}b}"[::-1], 2))


class FramePairs(Sequence[dict[str, Any]]):
    """Every frame of each test series with its fixed frame: {"image": (2, *size), "name", "slice", "pair", "truth"}.

    The first n pairs come from all slices and from all of the cycle. "truth" is how far the tissue goes from fixed to
    moving frame, (1, 1, *size) voxels.

    Args:
        datalist: of ``make_breathing_set``.
    """

    def __init__(self, datalist: Path) -> None:
        self.folder = datalist.parent
        self.items: list[dict[str, Any]] = json.loads(datalist.read_text())["test"]
        self._read: dict[int, RecordedSeries] = {}

    @cached_property
    def order(self) -> list[tuple[int, int]]:
        """Series and moving frame of every pair."""
        moving = [
            [k for k in spread(len(self.series(index).frames)) if k != self.series(index).fixed]
            for index in range(len(self.items))
        ]
        longest = max(map(len, moving))
        return [(s, frames[k]) for k in range(longest) for s, frames in enumerate(moving) if k < len(frames)]

    def series(self, index: int) -> RecordedSeries:
        """Return a series, read once."""
        if index not in self._read:
            self._read[index] = read_breathing(self.folder / self.items[index]["series"])
        return self._read[index]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a pair."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, moving = self.order[index]
        series, item = self.series(number), self.items[number]
        name, frames = item["series"].split(".")[0], {"fixed": series.fixed, "moving": moving}
        images = {side: _image(series, frame, self.folder / item["series"]) for side, frame in frames.items()}
        points = {side: series.landmarks_mm(frame) for side, frame in frames.items()}
        return {
            "image": torch.cat([image.array for image in images.values()]),
            "name": f"{name}#{series.fixed}<-#{moving}",
            "subject": item["subject"],
            "slice": name,
            "pair": Pair(images, points_mm=points),
            "truth": _motion(series, moving),
        }


def _image(series: RecordedSeries, number: int, path: Path) -> Image:
    array = series.frames[number].transpose(1, 2).contiguous()  # rows and columns -> the file's axes
    return Image(array, series.frame, path, np.dtype(np.uint8))


def _motion(series: RecordedSeries, moving: int) -> Tensor:
    return series.motion.ddf(series.fixed, moving).norm(dim=1, keepdim=True).transpose(2, 3).float()


def share_of_motion(truth: Tensor, points_vox: np.ndarray) -> list[float]:
    """Return how far tissue at points (N, 2) moves, in shares of the largest motion (1, 1, *size) in the image."""
    coords = torch.from_numpy(np.ascontiguousarray(points_vox.T)).view(1, 2, -1, 1).to(truth.dtype)
    return (sample(truth, coords)[0, 0, :, 0] / truth.max().clamp_min(1e-6)).tolist()
