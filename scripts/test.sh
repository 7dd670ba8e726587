#!/usr/bin/env bash
# All tests in the environment of quickstart.sh. Options are handed on to pytest: test.sh -m "not slow" -k warp
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment requirements.txt requirements-test.txt
"$python" -m ruff check .
"$python" -m ruff format --check .
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=Agg  # one process a core instead of two threads a test
exec "$python" -m pytest -n "${TEST_PROCESSES:-2}" --dist loadfile "$@"
