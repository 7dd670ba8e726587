"""Make a new bundle from a skeleton that keeps every rule of the others: a network to be replaced, and all around it.

examples:
  new_bundle.py my_method                              # bundles/my_method_registration, 64 x 64 x 64 voxels of 2 mm
  new_bundle.py my_method --size 96 112 96 --spacing_mm 1.5
  new_bundle.py my_method --size 128 128 --spacing_mm 1.0

Then write scripts/network.py of the new folder; docs/adding_a_bundle.md has the steps.

exit codes: 0 done; 2 the options are at fault, the last line says how; 1 anything else.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from register import BUNDLES
from sharing.packages import tested_versions

from shared_components.cli import run_main
from shared_components.errors import InputError

SKELETON = Path(__file__).with_name("skeleton")
SUFFIX = "_registration"
PLACEHOLDER = "[yyyy] [name of copyright owner]"
_AXES = ("first", "second", "third")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("name", metavar="NAME", help=f"small letters, digits and _; {SUFFIX} is appended")
    parser.add_argument("--size", type=int, nargs="+", default=[64, 64, 64], metavar="N", help="grid of the network")
    parser.add_argument("--spacing_mm", type=float, default=2.0, metavar="MM", help="its voxels; default: 2")
    parser.add_argument("--output_dir", default=str(BUNDLES), metavar="DIR", help="default: bundles")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of failures")
    return parser.parse_args(argv)


def words(name: str, size: Sequence[int], spacing_mm: float) -> dict[str, str]:
    """Return what the skeleton's {{words}} stand for, but for the number of parameters."""
    versions = tested_versions()
    channels = {str(k): f"displacement along the {_AXES[k]} array axis, voxels" for k in range(len(size))}
    return versions | {
        "title": name.removesuffix(SUFFIX).replace("_", " ").capitalize() + " registration",
        "size": json.dumps(list(size)),
        "grid": " × ".join(map(str, size)),
        "spacing": json.dumps(spacing_mm),
        "ndim": str(len(size)),
        "channels": json.dumps(channels),
    }


def fill(text: str, known: dict[str, str]) -> str:
    """Replace each {{word}}.

    Example:
        >>> fill("{{a}} and {{b}}", {"a": "1", "b": "2"})
        '1 and 2'
    """
    return re.sub(r"\{\{([\w-]+)\}\}", lambda found: known[found.group(1)], text)


def make_bundle(name: str, size: Sequence[int], spacing_mm: float, output_dir: Path) -> Path:
    """Write a new bundle and return its folder.

    Args:
        name: of the method.
        size: grid of the network, two or three numbers.
        spacing_mm: size of its voxels.
        output_dir: where the folder is made.

    Raises:
        InputError: a name or a size that cannot be, or a folder that is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"'{name}' is no name for a bundle; use small letters, digits and _, a letter first")
    if len(size) not in (2, 3) or min(size) < 16 or any(n % 8 for n in size):
        raise InputError(f"--size {' '.join(map(str, size))} is not possible; give 2 or 3 multiples of 8 from 16 on")
    if not spacing_mm > 0:
        raise InputError(f"--spacing_mm {spacing_mm} is not possible; give a positive number")
    target = output_dir / (name if name.endswith(SUFFIX) else f"{name}{SUFFIX}")
    if target.exists():
        raise InputError(f"{target} is there already; choose another name or remove it")
    output_dir.mkdir(parents=True, exist_ok=True)
    partial = output_dir / f".{target.name}.partial"
    try:
        _write(partial, words(target.name, size, spacing_mm))
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _write(folder: Path, known: dict[str, str]) -> None:
    shutil.copytree(SKELETON, folder, ignore=shutil.ignore_patterns("__pycache__"))
    licence = (BUNDLES.parent / "LICENSE").read_text(encoding="utf-8")
    (folder / "LICENSE").write_text(licence.replace(PLACEHOLDER, "the authors of this bundle"), encoding="utf-8")
    for path in folder.glob("configs/*.json"):
        path.write_text(fill(path.read_text(encoding="utf-8"), known), encoding="utf-8")
    known["parameters"] = f"{_random_weights(folder):,}"
    readme = folder / "docs" / "README.md"
    readme.write_text(fill(readme.read_text(encoding="utf-8"), known), encoding="utf-8")


def _random_weights(folder: Path) -> int:
    """Write models/model.pt and return how many numbers it holds."""
    import torch  # seconds to import: after everything that can fail at once

    config = json.loads((folder / "configs" / "inference.json").read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _module(folder / "scripts" / "network.py").Network(
            config["size"], config["channels"], config["levels"]
        )
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return sum(value.numel() for value in network.parameters())


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("new_bundle_network", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(options: argparse.Namespace) -> None:
    """Make the bundle and say what comes next."""
    folder = make_bundle(options.name, options.size, options.spacing_mm, Path(options.output_dir))
    print(f"{folder} is there, with random weights. Next: write scripts/network.py and scripts/losses.py, then")
    print(f"  python -m pytest tests/bundles -k {folder.name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(argv)
    return run_main(lambda: make(options), options.verbose)


if __name__ == "__main__":
    sys.exit(main())
