"""Take images, label maps and points through saved transforms: one or a chain, forward or inverse, interpolated once.

A transform is the result folder of register.py, or a file: a displacement field (ddf.nii.gz, or one of ANTs or ITK) or
an affine (.tfm, .txt, .mat).

directions:
                   without --inverse                        with --inverse
  --image/--label  moving image -> grid of the fixed one    fixed image -> grid of the moving one
  --points         points of the FIXED image -> moving      points of the MOVING image -> fixed
  Points travel against the images: the field holds, for each voxel of the new image, the place to fetch its value from.

chains: --transform A --transform B follows a point from the final grid: first A, then B. A is the transform whose fixed
  image is the final grid, B's fixed image is A's moving image (the order of antsApplyTransforms -t A -t B). With
  --inverse keep that order; the chain as a whole is turned round.

examples:
  apply_transform.py --transform out --image t2.nii.gz --label atlas.nii.gz --output_dir moved
  apply_transform.py --transform out --inverse --label fixed_seg.nii.gz --points moving_marks.csv --output_dir back
  apply_transform.py --transform template_from_t1 --transform t1_from_fmri --image fmri.nii.gz --output_dir in_template

Each result is called NAME_moved: images (float32, linear) and labels (nearest neighbour, number type and label values
kept) as .nii.gz, points in the format they came in. A file of many volumes is moved volume by volume.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared_components.cli import run_main
from shared_components.errors import InputError
from shared_components.geometry import Frame
from shared_components.images.files import suffix_of
from shared_components.images.volumes import Volumes, read_frame, read_volumes, write_volumes
from shared_components.itk_io import read_transform
from shared_components.points import check_points_inside, read_points, write_points
from shared_components.results.save import all_or_nothing
from shared_components.transform import PhysicalField, Step, compose_chain, map_points, pull

FORWARD, INVERSE = "ddf.nii.gz", "inverse_ddf.nii.gz"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--transform", action="append", required=True, metavar="DIR|FILE", help="repeat it for a chain, see above"
    )
    parser.add_argument("--inverse", action="store_true", help="the other way round, see above")
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": [], "metavar": "FILE"}
    parser.add_argument("--image", **several, help="images, interpolated linearly")
    parser.add_argument("--label", **several, help="label maps, nearest neighbour")
    parser.add_argument("--points", **several, help="point files (.csv, Slicer .fcsv); mind their direction, see above")
    parser.add_argument(
        "--reference", metavar="FILE", help="image on whose grid the results lie; default: the grid of the first field"
    )
    parser.add_argument("--output_dir", required=True, help="folder for the results; made if missing")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: all cores")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of failures")
    return parser.parse_args(argv)


def load_chain(paths: Sequence[str], inverse: bool = False) -> list[Step]:
    """Read transforms as the steps that a point takes, first step first.

    Args:
        paths: result folders or transform files, the one next to the fixed grid first.
        inverse: turn the whole chain round.

    Raises:
        InputError: a file that cannot be read, a field without its inverse, or 2-D beside 3-D.
    """
    chain = [_load_step(Path(path), inverse) for path in paths]
    if len({_ndim(step) for step in chain}) > 1:
        raise InputError(f"transforms {', '.join(paths)} are partly 2-D and partly 3-D; chain those of one dimension")
    _check_links(paths)
    return chain[::-1] if inverse else chain


def _load_step(path: Path, inverse: bool) -> Step:
    if path.is_dir():
        file = path / (INVERSE if inverse else FORWARD)
        if not file.is_file():
            raise InputError(f"transform {path} has no {file.name}; give a folder that register.py wrote")
        return read_transform(file)
    step = read_transform(path)
    if not inverse:
        return step
    if isinstance(step, PhysicalField):
        raise InputError(
            f"transform {path} is one field without its inverse; with --inverse give the whole result folder, "
            "or the inverse field without --inverse"
        )
    return np.linalg.inv(step)


def _ndim(step: Step) -> int:
    return step.frame.ndim if isinstance(step, PhysicalField) else step.shape[0] - 1


def _check_links(paths: Sequence[str]) -> None:
    """Say so if the moving image of one result folder is not the fixed image of the next."""
    for here, there in itertools.pairwise(paths):
        try:
            outer, inner = (json.loads((Path(path) / "transform.json").read_text()) for path in (here, there))
            (moving, one), (fixed, other) = (
                (image["file"], image["sha256"]) for image in (outer["moving"], inner["fixed"])
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a file, or made by another program
            continue
        if one != other:
            print(
                f"note: the moving image of {here} ({moving}) is not the fixed image of {there} ({fixed}); "
                "check the order of --transform",
                file=sys.stderr,
            )


def field_of(chain: Sequence[Step], reference: str | None = None) -> PhysicalField:
    """Collapse a chain into one field on the grid of ``reference``, or of the first field of the chain.

    Raises:
        InputError: no reference where there are only affines.
    """
    ndim = _ndim(chain[0])
    frame = None if reference is None else read_frame(reference, "reference", ndim)
    if frame is None:
        frame = next((step.frame for step in chain if isinstance(step, PhysicalField)), None)
    if frame is None:
        raise InputError("affine transforms have no grid of their own; give an image that has it with --reference")
    first = chain[0]
    if len(chain) == 1 and isinstance(first, PhysicalField) and _equal(first.frame, frame):
        return first
    return compose_chain(chain, frame)


def _equal(a: Frame, b: Frame) -> bool:
    return a.shape == b.shape and np.array_equal(a.affine, b.affine)


def move(volumes: Volumes, field: PhysicalField, mode: str) -> Volumes:
    """Pull every volume onto the grid of ``field``, each interpolated once; outside lies its minimum, or label 0."""
    coords = field.coords_in(volumes.frame)
    moved = torch.stack([pull(volume[None], coords, mode)[0] for volume in volumes.array])
    return replace(volumes, array=moved, frame=field.frame, dtype=volumes.dtype if mode == "nearest" else np.float32)


def targets(options: argparse.Namespace) -> dict[tuple[str, str], str]:
    """Return {(kind, input): name of its result}.

    Raises:
        InputError: nothing to move, two results of one name, or one that would replace an input.
    """
    asked = [(kind, path) for kind in ("image", "label", "points") for path in getattr(options, kind)]
    if not asked:
        raise InputError("there is nothing to move; give --image, --label or --points")
    folder = Path(options.output_dir).resolve()
    given = {Path(path).resolve() for _, path in asked} | {Path(path).resolve() for path in options.transform}
    given |= {Path(options.reference).resolve()} if options.reference else set()
    names: dict[tuple[str, str], str] = {}
    for kind, path in asked:
        name = _result_name(path, kind)
        if name in names.values():
            raise InputError(f"two inputs would be written to {folder / name}; move {path} in a run of its own")
        if (folder / name).resolve() in given:
            raise InputError(f"{folder / name} is an input and would be replaced; choose another --output_dir")
        names[kind, path] = name
    return names


def _result_name(path: str, kind: str) -> str:
    name, suffix = Path(path).name, suffix_of(path)
    stem = name[: len(name) - len(suffix)]
    if kind != "points":
        return f"{stem}_moved.nii.gz"
    return f"{stem}_moved{suffix if suffix in ('.csv', '.fcsv', '.mrk.json') else '.csv'}"


def apply(options: argparse.Namespace) -> list[Path]:
    """Move everything that was asked for and return the files written: all of them, or none."""
    if options.threads is not None:
        if options.threads < 1:
            raise InputError(f"--threads {options.threads} is not possible; give 1 or more")
        torch.set_num_threads(options.threads)
    names = targets(options)
    chain = load_chain(options.transform, options.inverse)
    field = field_of(chain, options.reference) if options.image or options.label else None
    folder = Path(options.output_dir)
    with all_or_nothing(folder) as place:
        for (kind, path), name in names.items():
            if kind == "points":
                _move_points(path, chain, place / name)
            else:
                labels = kind == "label"
                volumes = read_volumes(path, kind, field.frame.ndim, labels)
                write_volumes(place / name, move(volumes, field, "nearest" if labels else "linear"))
    return [folder / name for name in names.values()]


def _move_points(path: str, chain: Sequence[Step], target: Path) -> None:
    frame = chain[0].frame if isinstance(chain[0], PhysicalField) else None
    points = read_points(path, ndim=_ndim(chain[0]), frame=frame)
    if frame is not None:
        check_points_inside(points.points_mm, frame, path)
    write_points(target, replace(points, points_mm=map_points(points.points_mm, chain)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(argv)

    def body() -> None:
        for file in apply(options):
            print(file)

    return run_main(body, options.verbose)


if __name__ == "__main__":
    sys.exit(main())
