"""Export the bundles' networks in every form, and measure how far each is from the network itself.

examples:
  export_bundles.py --all --brain
  export_bundles.py vtn suits --fixed a.nii.gz --moving b.nii.gz
  export_bundles.py --all --json exports.json

Forms: TorchScript by tracing, torch.export, and ONNX by way of it, run by ONNX Runtime (pip install onnx onnxscript
onnxruntime). Each is written, read again and run on another pair of images than it was exported on: the two given, or
with --brain the real brain of the quickstart and its deformed copy (in 2-D their middle slices), as the bundle's own
preprocessing brings them to the network; else two smooth ones. What a bundle says of itself under "exports" in
metadata.json must be what is found. The last column of the table is what the network itself differs by when its images
change in their last digit: no export is sure to be nearer to it than that.

exit codes: 0 as the metadata say; 1 not so, or anything else went wrong; 2 the options are at fault.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
from package_bundle import add_bundles, chosen
from sharing.checks import one_line
from sharing.contents import metadata_of
from sharing.tiny import dimensions
from sharing.verdict import LARGEST_DIFFERENCE, LEAST_MOTION

from shared_components.cli import run_main
from shared_components.errors import InputError
from shared_components.synth import make_demo_pair

CHILD = Path(__file__).with_name("sharing") / "exports.py"
HEADINGS = {"torchscript": "TorchScript (trace)", "torch_export": "torch.export", "onnx": "ONNX (opset 20)"}
Found = dict[str, dict[str, Any]]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_bundles(parser)
    parser.add_argument("--fixed", metavar="FILE", help="compare on this pair; of the dimensions of the bundles")
    parser.add_argument("--moving", metavar="FILE", help="likewise")
    parser.add_argument("--brain", action="store_true", help="compare on the quickstart's pair (needs nilearn)")
    parser.add_argument("--json", metavar="FILE", help="write what was found")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of failures")
    return parser.parse_args(argv)


def export(bundle: Path, files: Sequence[str] = ()) -> Found:
    """Return {form: {"answer": {"difference", "motion", "rounding", "seconds", "mb"}} or {"fault": sentence}}.

    Args:
        bundle: folder of the bundle.
        files: fixed and moving image to compare on; none: smooth ones.

    Raises:
        InputError: the bundle could not be asked at all.
    """
    with TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"
        paths = [os.path.abspath(file) for file in files]
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(CHILD), str(bundle.resolve()), str(target), *paths]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"{bundle.name} cannot be exported at all ({one_line(done.stderr.strip()[-300:])})")
        return json.loads(target.read_text())


def brains(folder: Path, ndim: int) -> list[str]:
    """Write the fixed and the moving brain of the quickstart, in 2-D their middle axial slices, and return the paths.

    Raises:
        InputError: nilearn is not installed.
    """
    pair = make_demo_pair(folder)
    volumes = [pair["fixed"], pair["moving"]]
    if ndim == 3:
        return volumes
    return [_middle_slice(path, folder / f"{side}_slice.nii.gz") for side, path in zip("ab", volumes, strict=True)]


def _middle_slice(path: str, target: Path) -> str:
    volume = nib.load(path)
    array = np.asarray(volume.dataobj)[:, :, volume.shape[2] // 2]
    affine = np.diag([*volume.header.get_zooms()[:2], 1.0, 1.0])
    affine[:2, 3] = -(np.array(array.shape) - 1) / 2 * affine.diagonal()[:2]  # the middle of both lies at zero
    nib.save(nib.Nifti1Image(array, affine), target)
    return str(target)


def is_missing(entry: dict[str, Any]) -> bool:
    """Tell whether a form was not tried because its packages are not installed."""
    return entry.get("fault", "").startswith("ModuleNotFoundError")


def works(entry: dict[str, Any]) -> bool:
    """Tell whether an export is as good as the network, on images that the network moves."""
    answer = entry.get("answer", {"difference": float("inf"), "motion": 0.0})
    return answer["difference"] <= LARGEST_DIFFERENCE and answer["motion"] > LEAST_MOTION


def disagreements(said: dict[str, str], found: Found) -> list[str]:
    """Return a sentence for each form that is not what the metadata say.

    Args:
        said: "exports" of the metadata: form -> a sentence that begins with "supported" or "not supported".
        found: what ``export`` returned.
    """
    wrong = []
    for form, entry in found.items():
        claim = said.get(form, "")
        if not claim.startswith(("supported", "not supported")):
            wrong.append(f"metadata.json does not say under 'exports' whether '{form}' is supported")
        elif not is_missing(entry) and works(entry) != claim.startswith("supported"):
            wrong.append(f"metadata.json says of {form} '{claim}', but it {'works' if works(entry) else told(entry)}")
    return wrong


def told(entry: dict[str, Any]) -> str:
    """Return what a table says of a form."""
    if is_missing(entry):
        return "not tried"
    if "fault" in entry:
        return f"fails ({one_line(entry['fault'], 80)})"
    answer = entry["answer"]
    return f"{answer['difference']:.1e} of {answer['motion']:.1f} voxels, {answer['mb']:.1f} MB"


def table(found: dict[str, Found]) -> str:
    """Return a Markdown table: a row a bundle, largest difference of largest motion and size of the file."""
    headings = ["", *HEADINGS.values(), "itself, last digits changed"]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for name, forms in found.items():
        own = [entry["answer"]["rounding"] for entry in forms.values() if "answer" in entry]
        cells = [name, *(told(forms[form]) for form in HEADINGS), f"{max(own):.1e}" if own else ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """Export the bundles, print the table and return the exit code."""
    if (options.fixed is None) != (options.moving is None):
        raise InputError("--fixed and --moving belong together; give both or none")
    if options.brain and options.fixed:
        raise InputError("--brain brings images of its own; leave --fixed and --moving out")
    found, wrong = {}, []
    for bundle in chosen(options.bundle, options.all):
        with TemporaryDirectory() as folder:
            files = brains(Path(folder), dimensions(bundle)) if options.brain else []
            found[bundle.name] = export(bundle, files or [options.fixed, options.moving] * bool(options.fixed))
        said = metadata_of(bundle).get("exports", {})
        wrong += [f"{bundle.name}: {sentence}" for sentence in disagreements(said, found[bundle.name])]
    print(table(found), *wrong, sep="\n")
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")
    return int(bool(wrong))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options, code = arguments(argv), [0]
    return run_main(lambda: code.append(run(options)), options.verbose) or code[-1]


if __name__ == "__main__":
    sys.exit(main())
