"""A data set of breathing thoraces on disk, split by subject, with the truth of every series."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from ...geometry import Frame
from ...images import atomic_path, nifti_of, write_nifti
from ...images.files import stem_of
from ...images.volumes import mean_frame, read_volumes
from ...transform import PhysicalField
from ..settings import keep_settings
from .breath import draw_breath
from .folder import RealSlice, find_scans, read_slices
from .motion import Motion
from .procedural import procedural_thorax
from .real import thorax_from_slice
from .series import BreathingSeries, Look, breathing_series

SECTIONS = ("training", "validation", "test")
SECONDS = 0.25  # between frames; a cycle of the paper's series has about 21
_LAYOUT = "positions are (row, column) in voxels, row 0 at the head; the file's first axis counts columns, then rows"


@dataclass(frozen=True, eq=False)
class RecordedSeries:
    """A series read from disk.

    Attributes:
        frames: (T, 1, H, W) float32 in [0, 1], rows from head to foot.
        landmarks: (T, N, 2) float64 voxels.
        landmark_labels: N labels, see ``LABELS``.
        motion: the truth; ``motion.ddf(fixed, moving)``.
        fixed: number of the frame nearest the mean of the series.
        frame: the grid of the file, (columns, rows) -> RAS mm.
    """

    frames: Tensor
    landmarks: Tensor
    landmark_labels: tuple[int, ...]
    motion: Motion
    fixed: int
    frame: Frame

    def landmarks_mm(self, number: int) -> np.ndarray:
        """Return the landmarks (N, 2) of a frame in RAS mm."""
        return self.frame.to_mm(self.landmarks[number].flip(1).numpy())

    def truth(self, fixed: int, moving: int) -> PhysicalField:
        """Return the true map, RAS mm of frame ``fixed`` -> RAS mm of frame ``moving``, on the grid of the file."""
        ddf = self.motion.ddf(fixed, moving)[0].flip(0).transpose(1, 2)
        return PhysicalField(self.frame, np.einsum("ij,jxy->ixy", self.frame.matrix, ddf.numpy()))


def make_breathing_set(
    folder: str | os.PathLike[str],
    subjects: int = 21,
    slices: int = 8,
    frames: int = 63,
    seed: int = 0,
    size: Sequence[int] = (256, 256),
    real: str | os.PathLike[str] | None = None,
    sections: Sequence[str] = SECTIONS,
) -> str:
    """Write ``subjectNN_K.nii.gz``, 2-D + t, with ``subjectNN_K_truth.json``, and their datalist.

    Two of 21 subjects are for validation and two for test, as in the paper (34, 4 and 4 of 42), at least one each.
    Every second slice is sagittal. Slices of a procedural subject breathe alike but are drawn one by one. Real
    subjects come besides: all are for training but the last, which is for validation. Files that are there already
    are kept, so that a stopped run can be continued with the same settings.

    A series is uint8 with a slope of 1/255, (columns, rows, 1, frames) with the axes and signs that ITK gives a
    picture; 1.5 mm voxels at 256 rows, always 384 mm in all (real slices keep their own field of view if smaller).

    Args:
        folder: made if absent.
        subjects: procedural ones, at least 3.
        slices: of a subject.
        frames: of a series; three cycles by default.
        seed: of the data set.
        size: (H, W) of the series.
        real: folder of scans with lung masks, see ``find_scans``.
        sections: only these are written; which subject is in which does not depend on it.

    Returns:
        the path of ``datalist.json`` with the sections "training", "validation" and "test" of items {"series", "truth",
        "subject", "plane", "fixed_frame"}, paths relative to it: what ``pairs.SeriesPairs`` takes.

    Raises:
        InputError: fewer than 3 subjects, a folder made with other settings, or scans that cannot be read.
    """
    if subjects < 3:
        raise InputError(f"a breathing set needs 3 subjects to train, validate and test, not {subjects}")
    path, shape = Path(folder), (int(size[0]), int(size[1]))
    scans = {} if real is None else find_scans(real)
    given = {"slices": slices, "frames": frames, "seed": seed, "size": list(shape), "subjects": subjects}
    given |= {"sections": list(sections)} if set(sections) != set(SECTIONS) else {}
    keep_settings(path, {**given, "real": sorted(scans)}, "series")
    planes = [("coronal", "sagittal")[k % 2] for k in range(slices)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for number, section in enumerate(_sections(subjects)):
        for k, plane in enumerate(planes if section in sections else ()):
            name = f"subject{number + 1:02d}_{k + 1}"
            found[section].append(_written(path, name, [seed, 0, number, k], frames, shape, plane))
    for number, (subject, files) in enumerate(scans.items()):
        section = "validation" if number == len(scans) - 1 > 0 else "training"
        for k, part in enumerate(read_slices(*files, planes) if section in sections else ()):
            name = f"real{subject}_{k + 1}"
            found[section].append(_written(path, name, [seed, 1, number, k], frames, shape, part))
    datalist = path / "datalist.json"
    with atomic_path(datalist) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    return str(datalist)


def _sections(subjects: int) -> list[str]:
    """Return the section of every procedural subject: the last for test, those before for validation."""
    few = max(1, round(subjects * 4 / 42))
    return ["training"] * (subjects - 2 * few) + ["validation"] * few + ["test"] * few


def _written(
    folder: Path, name: str, seeds: list[int], frames: int, size: tuple[int, int], source: str | RealSlice
) -> dict[str, Any]:
    """Write one series where it is not there yet, the truth last, and return its item of the datalist."""
    image, truth = folder / f"{name}.nii.gz", folder / f"{name}_truth.json"
    if not (image.is_file() and truth.is_file()):
        subject, own = (_generator(entropy) for entropy in (seeds[:3], seeds))
        if isinstance(source, RealSlice):
            thorax = thorax_from_slice(source.image, source.mask, own, source.spacing_mm, source.plane, size)
        else:
            thorax = procedural_thorax(own, size, source)
        look = Look(noise=0.01 + 0.02 * float(torch.rand((), generator=own)))
        write_series(image, breathing_series(thorax, frames, own, breath=draw_breath(subject), look=look))
    known = json.loads(truth.read_text())
    item = {"series": image.name, "truth": truth.name, "subject": name.rsplit("_", 1)[0]}
    return {**item, "plane": known["plane"], "fixed_frame": known["fixed_frame"]}


def _generator(entropy: list[int]) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


def write_series(path: str | os.PathLike[str], series: BreathingSeries) -> None:
    """Write a series as ``NAME.nii.gz`` and its truth as ``NAME_truth.json`` beside it."""
    height, width = series.thorax.size
    step = series.thorax.spacing_mm
    frame = Frame((width, height), np.diag([-step, -step, 1.0]))
    values = (series.frames[:, 0] * 255).round().to(torch.uint8).permute(2, 1, 0)[:, :, None]
    image = nifti_of(values.contiguous().numpy(), frame)
    image.header.set_zooms((step, step, 1.0, SECONDS))
    image.header.set_xyzt_units("mm", "sec")
    image.header.set_slope_inter(1 / 255, 0)
    write_nifti(path, image)
    truth = {
        "layout": _LAYOUT,
        "plane": series.thorax.plane,
        "spacing_mm": step,
        "amplitude_vox": series.amplitude,
        "fixed_frame": mean_frame(series.frames),
        "signal": series.signal.tolist(),
        "landmark_labels": list(series.landmark_labels),
        "landmarks_vox": series.landmarks.tolist(),
        "motion": series.motion.to_dict(),
    }
    with atomic_path(_truth_of(path)) as temporary:
        temporary.write_text(json.dumps(truth) + "\n")


def read_breathing(path: str | os.PathLike[str]) -> RecordedSeries:
    """Read what ``write_series`` wrote, from the path of the image.

    Raises:
        InputError: the image or the truth beside it is missing or damaged.
    """
    volumes = read_volumes(path, "breathing series", ndim=2)
    try:
        truth = json.loads(_truth_of(path).read_text())
        motion = Motion.from_dict(truth["motion"])
        landmarks = torch.tensor(truth["landmarks_vox"], dtype=torch.float64).view(len(volumes.array), -1, 2)
        labels, fixed = tuple(truth["landmark_labels"]), int(truth["fixed_frame"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{_truth_of(path)} is no truth of a breathing series; write the set again") from error
    frames = volumes.array.transpose(1, 2)[:, None].contiguous()
    return RecordedSeries(frames, landmarks, labels, motion, fixed, volumes.frame)


def true_fields(item: Mapping[str, Any]) -> Callable[[int, int], PhysicalField]:
    """Return ``RecordedSeries.truth`` of the breathing series {"series": path}, for ``pairs.SeriesPairs``."""
    found = read_breathing(item["series"])
    return replace(found, frames=found.frames[:0]).truth  # what keeps the truth need not keep the images


def _truth_of(path: str | os.PathLike[str]) -> Path:
    return Path(path).with_name(stem_of(path) + "_truth.json")
