"""Register many pairs with a bundle: one folder a pair, a summary, and a page to look through.

Like register.py with --datalist, and the same files; besides, it goes on where it was stopped, does not stop at a pair
that cannot be registered, and works in several processes, on several machines. docs/cohorts.md tells how.

examples:
  cohort.py pairs.csv --bundle vtn --output_dir out
  cohort.py pairs.json --section validation --bundle vtn --output_dir out --workers 2 --refine_steps 90
  cohort.py pairs.csv --bundle vtn --output_dir out --shard 3/8 --no_report

pairs.csv: columns fixed, moving and, as they are there, name, fixed_label, moving_label, fixed_points, moving_points,
fixed_mask, moving_mask; paths from the folder of the table. All other options are those of register.py.

exit codes: 0 every pair is registered; 3 some pairs failed, see summary.csv; 2 no pair is registered or the input is at
fault, the last line says what to do; 1 anything else; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import register
from cohorts.crew import BuildError
from cohorts.job import Job
from cohorts.lists import read_shard, read_tasks
from cohorts.recipe import make_recipe
from cohorts.run import run_cohort
from replaying.record import recorded_options

from shared_components.cli import FAULT_OF_PROGRAM, run_main
from shared_components.errors import InputError


def arguments(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Parse the command line; return our own options, and those of register.py."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="cohort.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("pairs", metavar="PAIRS", help="table (.csv) or datalist (.json) of pairs; comes first")
    parser.add_argument("--bundle", required=True, metavar="NAME", help="as for register.py: a name or a folder")
    parser.add_argument("--output_dir", required=True, help="folder for the results; made if missing")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes; default: 1. 0: none beside this one"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="pairs that go through the network at once; for GPUs; default: 1",
    )
    parser.add_argument("--shard", metavar="I/N", help="register only every N-th pair from the I-th on, I from 1 to N")
    if argv and argv[0].startswith("-") and not {"-h", "--help"} & set(argv):
        parser.error("the list of pairs comes first: cohort.py pairs.csv --bundle NAME --output_dir OUT ...")
    own, rest = parser.parse_known_args(argv)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            how = register.arguments([own.bundle, "--output_dir", own.output_dir, "--datalist", own.pairs, *rest])
    except SystemExit:
        parser.error(told.getvalue().strip().rpartition("error: ")[2])
    if how.replay is not None:
        parser.error("--replay repeats one pair; give it to register.py")
    return own, how


def make_job(own: argparse.Namespace, how: argparse.Namespace) -> Job:
    """Return what the workers need to know.

    Raises:
        InputError: no such bundle or configuration, or options that cannot be meant.
    """
    root = register.find_bundle(own.bundle)
    files = register.config_files(root, how.config)
    config = {key: value for file in files for key, value in json.loads(file.read_text()).items()}
    chosen = register.overrides(how, config)
    if own.workers < 0:
        raise InputError(f"--workers {own.workers} is not possible; give 0 or more")
    if own.batch < 1:
        raise InputError(f"--batch {own.batch} is not possible; give 1 or more")
    recipe = make_recipe(how, root, files, chosen)
    output_dir = str(Path(own.output_dir).expanduser().absolute())
    names, workers = tuple(map(str, files)), max(1, own.workers)
    asked = recorded_options(how)
    return Job(str(root), names, chosen, output_dir, recipe, how.threads, workers, own.batch, how.verbose, asked)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    own, how = arguments(argv)
    code = []

    def body() -> None:
        shard = read_shard(own.shard)
        job = make_job(own, how)
        tasks = read_tasks(own.pairs, how.section)
        try:
            code.append(run_cohort(job, tasks, shard, own.workers))
        except BuildError as error:
            print(f"error: {error}{'' if how.verbose else ' (add --verbose to see where)'}", file=sys.stderr)
            code.append(FAULT_OF_PROGRAM)

    return run_main(body, how.verbose) or code[0]


if __name__ == "__main__":
    sys.exit(main())
