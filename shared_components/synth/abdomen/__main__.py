"""Write training data without downloading anything: ``python -m shared_components.synth.abdomen --output_dir DIR``."""

from __future__ import annotations

import sys

import fire

from ...errors import InputError
from .patient import SPACING_MM
from .write import write_abdomen


def main(output_dir: str, count: int = 20, seed: int = 0, spacing_mm: float = SPACING_MM) -> None:
    """Write ``count`` CT and ``count`` MR patients of the abdomen, and a quarter more of each for validation."""
    size = [max(1, round(n * SPACING_MM / spacing_mm)) for n in (128, 96, 96)]
    print(write_abdomen(output_dir, count, seed, spacing_mm, (size[0], size[1], size[2])))


if __name__ == "__main__":
    try:
        fire.Fire(main)
    except InputError as error:
        sys.exit(f"error: {error}")
