"""Write training data without downloading anything: ``python -m shared_components.synth.thorax --output_dir DIR``."""

from __future__ import annotations

import sys

import fire

from ...errors import InputError
from .write import make_breathing_set


def main(
    output_dir: str,
    subjects: int = 21,
    slices: int = 8,
    frames: int = 63,
    seed: int = 0,
    rows: int = 256,
    real: str | None = None,
) -> None:
    """Write ``slices`` breathing series of each subject; ``real`` is a folder of scans with lung masks."""
    print(make_breathing_set(output_dir, subjects, slices, frames, seed, (rows, rows), real))


if __name__ == "__main__":
    try:
        fire.Fire(main)
    except InputError as error:
        sys.exit(f"error: {error}")
