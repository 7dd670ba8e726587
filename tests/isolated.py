"""A Python environment with nothing but some packages and what they require, made of links into this one.

A new virtual environment without pip and without the packages of the system; each file or folder that an installed
package owns at the top of ``site-packages`` is linked into it. So it holds the same versions as the environment of the
tests, needs no network and a second to make, and knows neither this repository, whose editable install is no part of
it, nor any package that was not asked for.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path

from sharing.packages import closure, top_folders


def make_environment(folder: Path, packages: Iterable[str]) -> Path:
    """Return the interpreter of a new environment in ``folder`` with these packages and what they require."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    target = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    home = Path(sysconfig.get_path("purelib"))
    for package in closure(packages).values():
        for top in sorted(top_folders(package.name)):
            if not (target / top).exists() and (home / top).exists():
                (target / top).symlink_to(home / top)
    return python


def run_isolated(
    python: Path, arguments: Sequence[str | Path], cwd: Path, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter with no variable that could lead it elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment = kept | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(python), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )
