"""Train the networks of a paper's tables on data that anyone has, and print the tables beside the paper's.

examples:
  reproduce.py vtn --dataset_dir ../shared/data/hippocampus_msd04 --budget 60
  reproduce.py vtn --dataset_dir decathlon --download --seeds 0 1 2 --json vtn.json --markdown vtn.md
  reproduce.py vtn --dataset_dir hippocampi --networks D DD --steps 500
  reproduce.py meta_affine --data_dir ../shared/data --peer_python peers/bin/python --figures figures
  reproduce.py suits --data_dir ../shared/data --peer_python peers/bin/python --markdown suits.md --figures figures
  reproduce.py avsm --data_dir ../shared/data --peer_python peers/bin/python --markdown avsm.md --figures figures
  reproduce.py r2n2 --shipped --data_dir ../shared/data --peer_python peers/bin/python --figures figures --real

A reproduction that was stopped goes on where it was when the same command is given again.

exit codes: 0 done, whether the relations show or not; 2 the input is at fault, the last line says what to do; 1 else.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence

from register import setting

from shared_components.cli import quiet, run_main

# name -> module with add_arguments(parser) and reproduce(options, ...)
METHODS = {
    "vtn": "reproducing.vtn",
    "meta_affine": "reproducing.meta_affine",
    "suits": "reproducing.suits",
    "avsm": "reproducing.avsm",
    "r2n2": "reproducing.r2n2",
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True, help=", ".join(METHODS))
    for name, module_name in METHODS.items():
        module = importlib.import_module(module_name)
        method = methods.add_parser(
            name,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(method)
        method.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="any id of the configuration; repeatable"
        )
        method.add_argument("--verbose", action="store_true", help="what MONAI and Ignite say, and tracebacks")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(argv)
    typed = sys.argv[1:] if argv is None else list(argv)
    command = shlex.join(["python", "scripts/reproduce.py", *typed])

    def body() -> None:
        method = importlib.import_module(METHODS[options.method])
        with quiet(not options.verbose):
            method.reproduce(options, dict(map(setting, options.set)), command)

    return run_main(body, options.verbose)


if __name__ == "__main__":
    sys.exit(main())
