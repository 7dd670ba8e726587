#!/usr/bin/env bash
# From a fresh clone to a registered brain: makes .venv, installs requirements.txt, runs scripts/quickstart.py.
# Options are handed on: quickstart.sh [--output_dir DIR] [--refine_steps N] [--device auto|cpu|cuda:0]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment requirements.txt
exec "$python" scripts/quickstart.py "$@"
