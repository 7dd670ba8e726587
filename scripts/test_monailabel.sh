#!/usr/bin/env bash
# The bundles in a real MONAI Label 0.8.5: makes .venv-monailabel beside the README, installs what MONAI Label needs
# there, and runs tests/test_monai_label_server.py with it. Options are handed on to pytest: test_monailabel.sh -k train
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment requirements.txt requirements-test.txt
label=.venv-monailabel/bin/python
if [ ! -x "$label" ]; then
    # MONAI Label imports distutils, which Python 3.12 no longer has
    for base in "${MONAI_LABEL_BASE:-python3.11}" python3.11 python3.10 "$python"; do
        if "$base" -c 'import distutils' 2>/dev/null; then break; fi
    done
    "$base" -m venv .venv-monailabel
fi
stamp=.venv-monailabel/installed-requirements-monailabel.txt
if ! cmp -s requirements-monailabel.txt "$stamp"; then
    echo "installing requirements-monailabel.txt into .venv-monailabel ..."
    "$label" -m pip install --quiet --disable-pip-version-check -r requirements-monailabel.txt
    # without what they ask for: the pins above are what fits together
    "$label" -m pip install --quiet --disable-pip-version-check --no-deps monailabel==0.8.5 pydicom-seg==0.4.1
    cp requirements-monailabel.txt "$stamp"
fi
if ! "$label" -c 'from torchvision.utils import make_grid, save_image' 2>/dev/null; then
    # MONAI Label imports two functions for pictures of batches, which nothing here calls; the usual wheel is for CUDA
    # and does not load beside a torch for the CPU
    echo "torchvision does not load beside this torch: a stand-in takes its place"
    "$label" -m pip uninstall --quiet --yes torchvision
    "$label" - <<'PYTHON'
import sysconfig
from pathlib import Path

folder = Path(sysconfig.get_path("purelib")) / "torchvision"
folder.mkdir(exist_ok=True)
(folder / "__init__.py").write_text('__version__ = "0"\n')
(folder / "utils.py").write_text(
    "def make_grid(*args, **kwargs):\n    raise NotImplementedError('torchvision is not installed')\n\n\nsave_image = make_grid\n"
)
PYTHON
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=Agg
exec "$python" -m pytest -m nightly tests/test_monai_label_server.py "$@"
