"""For the tests of bundles: where they are, and monai.bundle in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sharing.tiny import config_of, dimensions, read_json, tiny, write_data

__all__ = ["config_of", "dimensions", "read_json", "tiny", "write_data"]
ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("REGISTRATION_BUNDLES", ROOT / "bundles"))  # elsewhere: test_new_bundle.py
BUNDLES = sorted(path for path in FOLDER.iterdir() if (path / "configs").is_dir())


def run_python(
    arguments: Sequence[str | Path], cwd: Path, timeout: float = 900, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python in its own process, on one thread; stdout and stderr are captured."""
    command = [sys.executable, *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "MONAI_NO_PROGRESS": "1"} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=timeout)


def bundle_arguments(bundle: Path, names: Sequence[str], cwd: Path, **options: Any) -> list[str]:
    """Return the arguments of ``python -m monai.bundle run``; ``bundle_root`` only where ``cwd`` is elsewhere."""
    inside = cwd == bundle
    folder = "configs" if inside else str(bundle / "configs")
    files = [f"{folder}/{name}.json" for name in names]
    options = options if inside else {"bundle_root": str(bundle), **options}
    given = [f"--{key}={value if isinstance(value, Path) else json.dumps(value)}" for key, value in options.items()]
    return ["run", f"--config_file={files[0] if len(files) == 1 else files}", *given]


def run_bundle(bundle: Path, names: Sequence[str], cwd: Path, **options: Any) -> None:
    """Run a bundle's configs and fail with the end of its output if that fails."""
    done = run_python(["-m", "monai.bundle", *bundle_arguments(bundle, names, cwd, **options)], cwd)
    assert done.returncode == 0, f"{names} of {bundle.name} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
