"""Package bundles: a zip each that runs where this repository never was, and model_info.json in the model zoo's format.

examples:
  package_bundle.py vtn --output_dir dist
  package_bundle.py --all --output_dir dist --source https://github.com/OWNER/REPOSITORY/releases/download/v1.0

NAME_vVERSION.zip has one folder, NAME: the bundle, and the shared_components that it needs. The same files give the
same bytes. A bundle that breaks a rule of verify_bundles.py which can be seen without running it is not packaged.

exit codes: 0 done; 2 a bundle is at fault, the last line says how; 1 anything else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from register import BUNDLES, find_bundle, found_bundles
from sharing.archive import checksum, package

from shared_components.cli import run_main
from shared_components.errors import InputError


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_bundles(parser)
    parser.add_argument("--output_dir", default="dist", metavar="DIR", help="default: dist")
    parser.add_argument(
        "--source", default="", metavar="URL", help="folder from which the zips will be served, for model_info.json"
    )
    parser.add_argument("--verbose", action="store_true", help="tracebacks of failures")
    return parser.parse_args(argv)


def add_bundles(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``chosen`` takes."""
    known = ", ".join(found_bundles())
    parser.add_argument("bundle", metavar="BUNDLE", nargs="*", help=f"among {known}, or bundles' folders")
    parser.add_argument("--all", action="store_true", help="all bundles of this repository")


def chosen(names: Sequence[str], every: bool) -> list[Path]:
    """Return the folders of the bundles that are asked for.

    Raises:
        InputError: none, or names beside --all.
    """
    if every == bool(names):
        raise InputError(f"give names of bundles ({', '.join(found_bundles())}), or --all")
    return [BUNDLES / name for name in found_bundles()] if every else [find_bundle(name) for name in names]


def pack(options: argparse.Namespace) -> None:
    """Package the bundles and say where they are."""
    for bundle in chosen(options.bundle, options.all):
        path = package(bundle, Path(options.output_dir), options.source)
        print(f"{path} ({path.stat().st_size / 1e6:.1f} MB, sha1 {checksum(path)})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(argv)
    return run_main(lambda: pack(options), options.verbose)


if __name__ == "__main__":
    sys.exit(main())
