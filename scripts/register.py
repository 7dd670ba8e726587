"""Register a moving image onto a fixed one with a bundle of this repository.

The friendly front of `python -m monai.bundle run --config_file BUNDLE/configs/inference.json`: it looks up the bundle,
turns the options into overrides of that configuration, and runs it. Nothing is registered by other means.

examples:
  register.py vtn --fixed a.nii.gz --moving b.nii.gz --output_dir out
  register.py vtn --fixed a.nii.gz --moving b.nii.gz --output_dir out \\
      --fixed_label a_seg.nii.gz --moving_label b_seg.nii.gz --refine_steps 100
  register.py vtn --datalist pairs.json --output_dir out --device cuda:0
  register.py r2n2 --series cine.nii.gz --output_dir out
  register.py meta_affine --config inference_3d --fixed a.nii.gz --moving b.nii.gz --output_dir out
  register.py path/to/my_bundle --fixed a.nii.gz --moving b.nii.gz --output_dir out --set precision=bfloat16
  register.py --replay out/transform.json --output_dir again

exit codes: 0 done, the verdict is ok; 3 done, the verdict is check: look at it; 4 done, the verdict is failed: do not
use it, docs/verdict.md (of many pairs the worst counts); 2 the input is at fault, the last line says what to do; 1
anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from replaying.record import WORDS, recorded_options
from replaying.replay import replay

import shared_components
from shared_components.cli import quiet, run_main
from shared_components.errors import InputError
from shared_components.verdict.exits import collected, exit_code

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
CONFIG = Path("configs") / "inference.json"
PAIR = {
    "fixed": "the image that stays: it defines the grid of the result",
    "moving": "the image that is brought onto it",
    "fixed_label": "label map of the fixed image, on its grid",
    "moving_label": "label map of the moving image; moved along",
    "fixed_points": "landmarks in the fixed image (.csv or Slicer .fcsv, .mrk.json)",
    "moving_points": "the same landmarks in the moving image, in the same order",
    "fixed_mask": "where the fixed image counts in the refinement",
    "moving_mask": "where the moving image counts in the refinement",
}
SERIES = Path(shared_components.__file__).parent / "series" / "series.json"
REFINE, REFINE_STEPS = ("field", "vsvf", "bspline"), 90


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    known = ", ".join(found_bundles())
    parser.add_argument("bundle", nargs="?", metavar="BUNDLE", help=f"one of {known}, or a bundle's folder")
    parser.add_argument("--output_dir", help="folder for the results; made if missing")
    images = parser.add_argument_group("one pair")
    for name, text in PAIR.items():
        images.add_argument(f"--{name}", metavar="FILE", help=text)
    many = parser.add_argument_group("many pairs")
    many.add_argument(
        "--datalist", metavar="JSON", help="list of pairs, paths from its folder; each gets a folder of results"
    )
    many.add_argument("--section", help="which list of that file; default: test")
    _series_arguments(parser)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--initial_transform",
        metavar="WORD|FILE",
        help="centre_of_mass (default), header (images as they lie), meta_affine (learned affine search, for images "
        "turned up to 60 degrees), or an affine file (.tfm, .mat): fixed -> moving",
    )
    how.add_argument("--refine_steps", type=int, metavar="N", help="improve the field on this very pair; default: 0")
    how.add_argument(
        "--refine",
        choices=REFINE,
        help="how it is improved: the field itself (default), by a stationary velocity in front of it (vsvf), which "
        "keeps a field without folds invertible, or by a cubic B-spline added to it (bspline); alone the option stands "
        f"for --refine_steps {REFINE_STEPS}",
    )
    how.add_argument("--diffeomorphic", action="store_true", help="take every fold out of the written fields")
    _step_arguments(how)
    how.add_argument("--starts", type=int, metavar="N", help="rotations to search from; for bundles that search")
    how.add_argument("--config", metavar="NAME", help="a configuration of the bundle on top, such as inference_3d")
    how.add_argument("--weights", metavar="FILE", help="default: the bundle's models/model.pt")
    how.add_argument("--device", default="auto", help="auto (default), cpu or cuda:0")
    how.add_argument("--max_memory_gb", type=float, metavar="G", help="GB that it may take; docs/memory.md")
    how.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: all cores")
    how.add_argument("--no_report", action="store_true", help="do not write report.html")
    how.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other id of the configuration; repeatable"
    )
    how.add_argument("--verbose", action="store_true", help="what MONAI and Ignite say, and tracebacks of failures")
    return _parsed(parser, argv)


def _parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Add --replay, for which nothing else is required, and parse."""
    text = "repeat the run that this transform.json tells of, with its options, and compare the results; files are "
    text += "looked for near it, or given again; without --output_dir nothing is kept"
    parser.add_argument("--replay", metavar="JSON", help=text)
    options = parser.parse_args(argv)
    needed = {"BUNDLE": options.bundle, "--output_dir": options.output_dir}
    missing = [name for name, value in needed.items() if value is None and options.replay is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return options


def _series_arguments(parser: argparse.ArgumentParser) -> None:
    series = parser.add_argument_group("a series over time, for bundles of 2-D images")
    series.add_argument("--series", metavar="PATH", help="a 2-D+t file, or a folder with one image a frame")
    series.add_argument("--fixed_frame", type=int, metavar="K", help="from 0 on; default: nearest the mean intensity")


def _step_arguments(how: argparse._ArgumentGroup) -> None:
    how.add_argument("--steps", type=int, metavar="T", help="most steps of a bundle that goes step by step")
    how.add_argument("--tolerance", type=float, metavar="V", help="voxels; its steps end when less is left to be moved")
    how.add_argument("--uncertainty", action="store_true", help="also the expected error in mm, uncertainty_mm.nii.gz")


def found_bundles() -> list[str]:
    """Return the names of the bundles in this repository."""
    return sorted(path.parent.parent.name for path in BUNDLES.glob(f"*/{CONFIG}"))


def find_bundle(name: str) -> Path:
    """Return the folder of a bundle given by short name (vtn), folder name (vtn_registration) or path.

    Raises:
        InputError: naming those that there are.
    """
    for folder in (BUNDLES / name, BUNDLES / f"{name}_registration", Path(name)):
        if (folder / CONFIG).is_file():
            return folder.resolve()
    raise InputError(
        f"there is no bundle '{name}' (no {CONFIG} in a folder of that name); "
        f"give one of {', '.join(found_bundles())} or the path of a bundle's folder"
    )


def config_files(root: Path, name: str | None) -> list[Path]:
    """Return a bundle's inference.json and, on top, the configuration of that name if one is asked for.

    Raises:
        InputError: the bundle has none of that name; naming those that it has.
    """
    files = [root / CONFIG]
    if name:
        files.append(root / CONFIG.parent / f"{name.removesuffix('.json')}.json")
        if not files[-1].is_file():
            known = sorted(file.stem for file in (root / CONFIG.parent).glob("inference_*.json"))
            raise InputError(f"{root.name} has no configuration '{name}'; it has {', '.join(known) or 'none to add'}")
    return files


def overrides(options: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """Return the ids of the configuration that the options change, with their values.

    Paths become absolute, so that none begins with $, @ or %, which MONAI would evaluate.

    Raises:
        InputError: neither pair nor datalist, both, or an id that the configuration does not have.
    """
    _check_pair(options)
    chosen = {name: getattr(options, name) for name in (*PAIR, "datalist", "series", "weights", "output_dir")}
    chosen = {name: _path(path) for name, path in chosen.items() if path is not None}
    initial = options.initial_transform
    if initial is not None:
        chosen["initial_transform"] = initial if initial in WORDS else _path(initial)
    if options.refine is not None and options.refine_steps is None:
        options.refine_steps = REFINE_STEPS
    for name in ("section", "fixed_frame", "refine", "refine_steps", "steps", "tolerance", "starts", "max_memory_gb"):
        if getattr(options, name) is not None:
            chosen[name] = getattr(options, name)
    for name in ("uncertainty", "diffeomorphic"):
        if getattr(options, name):
            chosen[name] = True
    if options.no_report:
        chosen["report"] = False
    chosen["device#name"] = options.device
    chosen |= dict(setting(text) for text in options.set)
    unknown = sorted(key for key in chosen if key.replace("::", "#").split("#")[0] not in config)
    if unknown:
        raise InputError(
            f"the configuration of {options.bundle} has no '{unknown[0]}' to set; it has {', '.join(sorted(config))}"
        )
    return chosen


def _path(path: str) -> str:
    """Return the absolute path, written so that MONAI takes it as it is: it would turn ``@b#c`` into ``@b::c``."""
    path = os.path.abspath(os.path.expanduser(path))
    if not set(path) & set("@%"):
        return path
    return "$" + repr(path).replace("@", r"\x40").replace("%", r"\x25").replace("#", r"\x23")


def _check_pair(options: argparse.Namespace) -> None:
    named = [f"--{name}" for name in PAIR if getattr(options, name) is not None]
    if options.datalist is not None and named:
        raise InputError(f"--datalist and {named[0]} exclude each other; write the files of all pairs into the list")
    if options.series is not None and (named or options.datalist is not None):
        raise InputError(f"--series and {(*named, '--datalist')[0]} exclude each other; a series holds all its images")
    if options.series is not None and options.max_memory_gb is not None:
        raise InputError("--max_memory_gb is for pairs; a series holds all its frames, leave it out or give it fewer")
    if options.fixed_frame is not None and options.series is None:
        raise InputError("--fixed_frame chooses a frame of a series; give it with --series")
    if options.datalist is None and options.series is None:
        for side in ("fixed", "moving"):
            if not getattr(options, side):
                raise InputError(f"the {side} image is missing; give its path with --{side}, or many with --datalist")
    for name, least in (("refine_steps", 0), ("steps", 0), ("tolerance", 0), ("starts", 1), ("threads", 1)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise InputError(f"--{name} {value} is not possible; give {least} or more")


def setting(text: str) -> tuple[str, Any]:
    """Split KEY=VALUE of --set; the value is read as JSON where it is JSON.

    Raises:
        InputError: no such form.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"--set {text} is not of the form KEY=VALUE; write for example --set precision=bfloat16")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


@contextmanager
def bundle_code(root: Path) -> Iterator[None]:
    """Let ``import scripts`` mean this bundle's package: every bundle has one, and Python keeps the first it saw."""
    before = list(sys.path)
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def no_empty_folder(folder: Path) -> Iterator[None]:
    """Remove a new output folder again if nothing came of it."""
    new = not folder.exists()
    try:
        yield
    finally:
        if new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def register(options: argparse.Namespace) -> None:
    """Run the bundle's inference.json through ``monai.bundle``."""
    root = find_bundle(options.bundle)
    files = config_files(root, options.config) + ([SERIES] if options.series else [])
    config = {key: value for file in files for key, value in json.loads(file.read_text()).items()}
    chosen = overrides(options, config)
    with warnings.catch_warnings():
        warnings.simplefilter("default" if options.verbose else "ignore")
        import torch  # seconds to import: after everything that can fail at once
        from monai.bundle import run

        from shared_components.cuda_memory import with_less_memory
        from shared_components.results.records import asked_with
    if options.threads:
        torch.set_num_threads(options.threads)
    what = options.series or options.datalist or f"{Path(options.moving).name} onto {Path(options.fixed).name}"
    print(f"{root.name}: registering {what} ...", file=sys.stderr, flush=True)
    logging_file = None if options.verbose else False
    empty, asked = no_empty_folder(Path(options.output_dir).expanduser()), asked_with(recorded_options(options))
    with bundle_code(root), quiet(not options.verbose), empty, asked:
        known = {"config_file": list(map(str, files)), "bundle_root": _path(str(root)), "logging_file": logging_file}
        with_less_memory(lambda changes: run(**known, **{**chosen, **changes}), {**config, **chosen})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(argv)
    work = partial(register, options) if options.replay is None else partial(replay, options, find_bundle, register)
    with collected() as levels:
        return run_main(work, options.verbose) or exit_code(levels)


if __name__ == "__main__":
    sys.exit(main())
