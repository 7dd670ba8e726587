"""Register the MNI152 brain to itself under a known deformation, on another grid, and compare with the truth.

Called by quickstart.sh. Nothing is downloaded: the brain ships inside nilearn. The registration is the same command
that a user types, ``scripts/register.py vtn``; only the making of the moving image and the last lines of the table,
which need the true map, are added here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from shared_components.cli import DONE
from shared_components.errors import InputError
from shared_components.images import read_image, read_labels
from shared_components.itk_io import read_transform
from shared_components.metrics import dice, mean_over_labels
from shared_components.synth import make_demo_pair
from shared_components.transform import PhysicalField, affine_field

ROOT = Path(__file__).resolve().parent.parent


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", default=str(ROOT / "quickstart_output"), help="default: %(default)s")
    parser.add_argument("--refine_steps", type=int, default=90, help="of the second run; default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda:0")
    parser.add_argument("--picture", help="also draw fixed, moving, moved and deformed grid into this PNG")
    parser.add_argument("--seed", type=int, default=0, help="of the deformation; default: %(default)s")
    return parser.parse_args()


def main() -> int:
    """Make the pair, register it, report."""
    options = arguments()
    output = Path(options.output_dir)
    begin = time.perf_counter()
    print(
        "making the moving image from the MNI152 brain: known deformation, other grid, bias field, noise ...",
        flush=True,
    )
    pair = make_demo_pair(output / "input", seed=options.seed)
    print(f"... {time.perf_counter() - begin:.0f} s. Registering with the shipped VTN weights ...", flush=True)
    runs = {"network": 0} | ({"refined": options.refine_steps} if options.refine_steps else {})
    for name, steps in runs.items():
        if steps:
            print(f"\n\nThe same, refined on this very pair in {steps} steps ...", flush=True)
        code = register(pair, output / name, steps, options.device)
        if code not in DONE:
            return code
        compare_with_truth(pair, output / name)
    if options.picture:
        draw(pair, output / name, options.picture)
    print(f"\nwhole run {time.perf_counter() - begin:.0f} s; look at {output / name / 'report.html'} in a browser")
    return 0


def register(pair: dict, output: Path, refine_steps: int, device: str) -> int:
    """Run the command that a user types; return its exit code."""
    command = [sys.executable, str(ROOT / "scripts" / "register.py"), "vtn", "--output_dir", str(output)]
    for name in ("fixed", "moving", "fixed_label", "moving_label", "fixed_points", "moving_points"):
        command += [f"--{name}", str(pair[name])]
    command += ["--refine_steps", str(refine_steps), "--device", device]
    return subprocess.run(command, check=False).returncode


def compare_with_truth(pair: dict, result: Path) -> None:
    """Print how far the field is from the true one, over all brain voxels, and what Dice the truth itself reaches."""
    fixed = read_image(pair["fixed"], "fixed image")
    brain = (fixed.array[0] > fixed.array.min()).numpy()
    found = read_transform(result / "ddf.nii.gz").ddf_mm
    truth = PhysicalField(fixed.frame, np.load(pair["true_ddf"]))
    initial = np.asarray(json.loads((result / "transform.json").read_text())["initial_world_ras_mm"])
    start = affine_field(initial, fixed.frame).ddf_mm
    print("\ndistance to the true map over all brain voxels, mm")
    for name, ddf_mm in (("before", start), ("after", found)):
        error = np.linalg.norm((ddf_mm - truth.ddf_mm)[:, brain], axis=0)
        print(
            f"  {name:7} mean {error.mean():5.2f}   95 % below {np.percentile(error, 95):5.2f}   max {error.max():5.2f}"
        )
    label, moving_label = read_labels(pair["fixed_label"]), read_labels(pair["moving_label"])
    best = truth.resample(moving_label.array, moving_label.frame, "nearest")
    print(f"label Dice of the true map itself {mean_over_labels(dice(label.array, best)):.4f} (labels resampled twice)")


def draw(pair: dict, result: Path, path: str) -> None:
    """Draw a coronal slice of fixed, moving (by header), moved, and fixed under the deformed grid."""
    fixed, moving = read_image(pair["fixed"], "fixed image"), read_image(pair["moving"], "moving image")
    field = read_transform(result / "ddf.nii.gz")
    before = affine_field(np.eye(4), fixed.frame).resample(moving.array, moving.frame)
    images = [image[0].numpy() for image in (fixed.array, before, field.resample(moving.array, moving.frame))]
    middle = fixed.frame.shape[1] // 2
    figure = Figure(figsize=(12, 3.4), dpi=80, facecolor="black")
    for axes, image, title in zip(
        figure.subplots(1, 4), [*images, images[0]], ("fixed", "moving", "moved", "deformed grid"), strict=True
    ):
        axes.imshow(image[:, middle].T, cmap="gray", origin="lower", vmin=0, vmax=np.percentile(image[image > 0], 99.5))
        axes.set_title(title, color="white")
        axes.axis("off")
    landing = (
        field.voxel_ddf()[0].numpy()[:, :, middle]
        + np.mgrid[0 : images[0].shape[0], 0:1, 0 : images[0].shape[2]][:, :, 0]
    )
    for lines in (landing[:, ::4], landing[:, :, ::4].swapaxes(1, 2)):
        axes.plot(lines[0].T, lines[2].T, color="gold", linewidth=0.5)
    axes.set(xlim=(0, images[0].shape[0]), ylim=(0, images[0].shape[2]))
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
