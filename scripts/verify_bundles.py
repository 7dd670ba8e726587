"""Check bundles offline as the model zoo's CI does on a pull request, and by the rules of this repository.

examples:
  verify_bundles.py                        all bundles
  verify_bundles.py vtn --files_only       in a second, without running MONAI
  verify_bundles.py dist/vtn_registration  an unzipped release
  verify_bundles.py --released models/model_info.json --schema meta_schema_20240725.json --resolve

One line a check: ok, skipped, or FAILED and why. --released refuses versions that are released already, --schema adds
MONAI's own verify_metadata, which would download that file, and --resolve asks pip whether the pinned packages can be
installed together (the only option that needs a network).

exit codes: 0 all is well; 1 a check failed; 2 the command line is at fault.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from register import BUNDLES, find_bundle, found_bundles
from sharing.archive import release_name
from sharing.checks import attempt, broken_rules, one_line
from sharing.contents import metadata_of, read_json
from sharing.packages import imports, pins, pins_of
from sharing.verdict import RULES, ask_monai, judge

from shared_components.cli import run_main
from shared_components.errors import InputError

Verdict = tuple[str, list[str] | None]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    known = ", ".join(found_bundles())
    parser.add_argument("bundle", metavar="BUNDLE", nargs="*", help=f"default: all of {known}; or bundles' folders")
    parser.add_argument("--files_only", action="store_true", help="only what can be seen without running anything")
    parser.add_argument("--released", metavar="JSON", help="model_info.json of what is released")
    parser.add_argument("--schema", metavar="JSON", help="MONAI's schema of metadata.json")
    parser.add_argument("--resolve", action="store_true", help="ask pip whether the pins resolve")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of failures")
    return parser.parse_args(argv)


def verdicts(bundle: Path, options: argparse.Namespace) -> Iterator[Verdict]:
    """Yield the name of each check and its faults; None: it was not made."""
    yield from broken_rules(bundle).items()
    yield "pins", attempt(pins, bundle)
    yield "imports", attempt(imports, bundle)
    if options.released:
        yield "new version", attempt(unreleased, bundle, Path(options.released))
    if options.resolve:
        yield "pins resolve", attempt(resolve, bundle)
    if options.files_only:
        yield from ((name, None) for name, _ in RULES.values())
        return
    try:
        answers = ask_monai(bundle, Path(options.schema).resolve() if options.schema else None)
    except (OSError, ValueError, KeyError) as error:  # a bundle too broken to be asked; the lines above say why
        yield "MONAI", [one_line(error)]
        return
    yield from judge(bundle, answers).items()


def unreleased(bundle: Path, index: Path) -> list[str]:
    """The version is a new one: whoever has downloaded it must be able to rely on its content."""
    name = release_name(bundle)
    return [f"{name} is released already; raise 'version' and add to 'changelog'"] if name in read_json(index) else []


def resolve(bundle: Path) -> list[str]:
    """Pip finds all pinned packages, and versions of what they require that fit together."""
    wanted = [f"{name}=={version}" for name, version in pins_of(metadata_of(bundle)).items()]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [one_line(done.stderr.strip()[-300:])] if done.returncode else []


def line(name: str, faults: list[str] | None) -> str:
    """Return what is printed of a check.

    Example:
        >>> line("files", []), line("files", ["LICENSE is missing", "x is missing"])
        ('files: ok', 'files: FAILED: LICENSE is missing; x is missing')
    """
    if faults is None:
        return f"{name}: skipped"
    return f"{name}: FAILED: {'; '.join(faults)}" if faults else f"{name}: ok"


def verify(options: argparse.Namespace) -> int:
    """Check the bundles, print a line a check, and return how many failed."""
    for file in (options.released, options.schema):
        if file and not Path(file).is_file():
            raise InputError(f"{file} does not exist; check the path")
    bundles = [find_bundle(name) for name in options.bundle] or [BUNDLES / name for name in found_bundles()]
    made = failed = 0
    for bundle in bundles:
        for name, faults in verdicts(bundle, options):
            print(f"{bundle.name}: {line(name, faults)}", flush=True)
            made, failed = made + (faults is not None), failed + bool(faults)
    print(f"{len(bundles)} bundle{'s' * (len(bundles) != 1)}, {made} checks, {failed} failed")
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(argv)
    failed: list[int] = []
    code = run_main(lambda: failed.append(verify(options)), options.verbose)
    return code or int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
