"""Try the verdict on two hundred constructed cases: a hundred good pairs, a hundred spoilt ones.

Half of the cases choose the limits, the other half tells how well they do. Each case is registered once and its numbers
are kept in --output_dir, so that a run that was stopped goes on, and limits can be changed without registering again.
It needs the images of --data_dir (their licences do not allow them here). Brains take some twenty to forty minutes on
one core, abdomens an hour, slices three minutes.

examples:
  verdict_cases.py --bundle vtn --data_dir ../shared/data --output_dir verdicts
  verdict_cases.py --bundle vtn --data_dir ../shared/data --output_dir verdicts --write_limits --publish

exit codes: 0 both shares are reached; 1 they are not; 2 the input is at fault, the last line says what to do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from register import find_bundle

from shared_components.cli import quiet, run_main
from shared_components.errors import InputError
from shared_components.images.files import atomic_path
from shared_components.verdict import Limits

COMMAND = "python scripts/verdict_cases.py --data_dir DATA --output_dir OUT"
SETS = {  # by bundle: module and class of its cases
    "avsm_registration": ("brains", "Brains"),
    "meta_affine_registration": ("flat", "FlatImages"),
    "r2n2_registration": ("thoraces", "Thoraces"),
    "suits_registration": ("abdomens", "Abdomens"),
    "vtn_registration": ("brains", "Brains"),
}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="the images that the cases are made of")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="for the numbers of each case")
    parser.add_argument("--bundle", default="vtn", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default: %(default)s")
    parser.add_argument(
        "--only_done", action="store_true", help="judge the cases that have been registered so far and write nothing"
    )
    parser.add_argument("--publish", action="store_true", help="into docs/verdict and the table of docs/verdict.md")
    parser.add_argument(
        "--write_limits", action="store_true", help="put the limits chosen on the first half into metadata.json"
    )
    return parser.parse_args(argv)


def case_set(root: Path, data: Path) -> Any:
    """Return what the cases of a bundle are made of.

    Raises:
        InputError: there is no set for that bundle, or the data lack something.
    """
    if root.name not in SETS:
        raise InputError(f"there are no cases for {root.name}; give one of {', '.join(SETS)}")
    module, name = SETS[root.name]
    return getattr(import_module(f"verdicts.{module}"), name)(data)


def find_limits(records: Sequence[dict[str, Any]], images: Any, root: Path, before: Any) -> dict[str, Any]:
    """Return the entries "trained_on" and "verdict" of metadata.json: from training images, and from the first half."""
    from verdicts.limits import choose_limits, training_statistics
    from verdicts.run import training_views

    half = [record for record in records if record["half"] == 0]
    trained_on = training_statistics(training_views(images, root), images.SPACING_MM)
    return {"trained_on": trained_on, "verdict": choose_limits(half, trained_on, before)}


def try_cases(options: argparse.Namespace) -> bool:
    """Run what is asked for; tell whether both shares are reached."""
    from verdicts.cases import list_cases  # seconds to import
    from verdicts.run import finished, run_cases
    from verdicts.table import WANTED, judged, publish, summarise, to_markdown

    if options.only_done and (options.write_limits or options.publish):
        raise InputError("--only_done is for a look on the way; leave it out to write limits or a page")
    root = find_bundle(options.bundle)
    images = case_set(root, Path(options.data_dir).expanduser())
    folder = Path(options.output_dir).expanduser() / root.name
    with quiet():
        plan = list_cases(images, options.seed)
        plan = finished(plan, root, folder) if options.only_done else plan
        records = run_cases(plan, images, root, folder, options.threads)
        file = root / "configs" / "metadata.json"
        metadata = json.loads(file.read_text())
        if options.write_limits:
            metadata |= find_limits(records, images, root, metadata.get("verdict"))
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(metadata, indent=4, ensure_ascii=False) + "\n")
    trained_on, limits = metadata.get("trained_on"), Limits.of(metadata.get("verdict"))
    cases = judged(records, limits, trained_on)
    summary = summarise(cases, records)
    name = root.name.removesuffix("_registration")
    text = to_markdown(summary, name, f"{COMMAND} --bundle {name} --seed {options.seed}", images.ABOUT)
    print(text)
    content = {"seed": options.seed, "verdict": metadata.get("verdict"), **summary, "cases": cases}
    if options.publish:
        publish(name, content, text)
    return min(summary["halves"][1].values()) >= WANTED


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(argv)
    reached: list[bool] = []
    code = run_main(lambda: reached.append(try_cases(options)))
    return code or int(not reached[0])


if __name__ == "__main__":
    sys.exit(main())
