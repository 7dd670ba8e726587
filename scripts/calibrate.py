"""Fit what turns a bundle's signs of error into an expected error in mm, on pairs whose true transform is known.

The signs are weighed and bent so that the expected error is right on average over the "validation" part of a set; the
plot and the numbers are of its "test" part, whose subjects the fit has not seen. Without --datalist the set that
belongs to the bundle is made first, from --data_dir. --write puts the numbers into the bundle's configuration, the plot
into docs/uncertainty, and the row into docs/uncertainty.md.

examples:
  calibrate.py vtn --data_dir ../shared/data --output_dir out --write
  calibrate.py meta_affine --config inference_3d --data_dir ../shared/data --output_dir out --write
  calibrate.py r2n2 --output_dir out --write           # needs no images
  calibrate.py vtn --datalist mine.json --output_dir out   # pairs {"fixed", "moving", "ddf"} with the true field

exit codes: 0 done; 2 the input is at fault, the last line says what to do; 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from register import bundle_code, find_bundle, found_bundles, setting

from shared_components.cli import quiet, run_main
from shared_components.errors import InputError
from shared_components.images import atomic_path

COUNT = 8  # pairs of each part of a set


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("bundle", metavar="BUNDLE", help=f"one of {', '.join(found_bundles())}, or a bundle's folder")
    parser.add_argument("--config", metavar="NAME", help="a configuration on top of inference.json, as for register.py")
    parser.add_argument("--datalist", metavar="JSON", help="of a set that is there: sections validation and test")
    parser.add_argument("--kind", help="of set; default: the one that the bundle's configuration was trained for")
    parser.add_argument("--data_dir", default="../shared/data", metavar="DIR", help="real images; default: %(default)s")
    parser.add_argument("--output_dir", required=True, help="for the set, calibration.json and calibration.png")
    parser.add_argument("--every", type=int, default=3, metavar="N", help="of series: every N-th frame; default: 3")
    parser.add_argument(
        "--count", type=int, default=COUNT, metavar="N", help="pairs of each part; default: %(default)s"
    )
    parser.add_argument("--weights", metavar="FILE", help="default: those that the configuration names")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda:0")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any id of the configuration")
    parser.add_argument("--write", action="store_true", help="into the bundle's configuration and docs/uncertainty.md")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of failures")
    return parser.parse_args(argv)


def known_set(options: argparse.Namespace, output: Path) -> tuple[str, str]:
    """Return the datalist that was given, or that of the set made for the bundle, and what it shows in words."""
    if options.datalist:
        return options.datalist, "pairs of --datalist"
    from calibrating.page import kind_of
    from calibrating.sets import TITLES, write_set

    kind = options.kind or kind_of(find_bundle(options.bundle).name, options.config)
    return write_set(kind, options.data_dir, output / f"set_{kind}", options.count), TITLES.get(kind, kind)


def calibrate(options: argparse.Namespace) -> None:
    """Fit on "validation", tell of "test"."""
    for name in ("every", "count", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)} is not possible; give 1 or more")
    root, output = find_bundle(options.bundle), Path(options.output_dir).expanduser()
    with warnings.catch_warnings(), bundle_code(root), quiet():
        warnings.simplefilter("ignore")
        import torch
        from calibrating.chain import Chain
        from calibrating.page import publish, tell

        if options.threads:
            torch.set_num_threads(options.threads)
        changed = {"device#name": options.device} | dict(setting(text) for text in options.set)
        changed |= {"weights": str(Path(options.weights).resolve())} if options.weights else {}
        chain = Chain(root, options.config, changed)
        datalist, title = known_set(options, output)
        parts = {name: chain.measure(datalist, name, options.every) for name in ("validation", "test")}
        found = tell(parts, title, _command(options), output / "calibration.png", root.name)
    with atomic_path(output / "calibration.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    if options.write:
        publish(root, options.config, found, output / "calibration.png")
    print(json.dumps(found["test"]))
    print(f'"calibration": {json.dumps(found["calibration"])},')


def _command(options: argparse.Namespace) -> str:
    """The command in the words of the docs, its paths left out."""
    words: list[Any] = ["python scripts/calibrate.py", find_bundle(options.bundle).name.removesuffix("_registration")]
    words += [f"--{name} {getattr(options, name)}" for name in ("config", "kind") if getattr(options, name)]
    words += [f"--count {options.count}"] if options.count != COUNT else []
    words += [f"--set {text}" for text in options.set]
    return " ".join([*words, "--data_dir DATA --output_dir OUT"]) + " --write" * options.write


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(argv)
    return run_main(lambda: calibrate(options), options.verbose)


if __name__ == "__main__":
    sys.exit(main())
