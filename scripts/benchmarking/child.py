"""Run a command and write its exit code, seconds, CPU seconds and peak resident memory to a JSON file.

    python child.py FACTS.json COMMAND ...

A process of its own between the benchmark and the command: Linux counts the memory of whoever forks a process towards
that process's peak, and the benchmark itself, with torch loaded, is larger than some of the tools that it measures.
``run_child`` is the benchmark's side of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory


def run_child(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
    allowed: Sequence[int] = (0,),
) -> tuple[dict[str, float], str]:
    """Run a command in its own process; return its seconds, CPU seconds and peak memory, and what it printed.

    Args:
        command: program and arguments.
        environment: variables to be set beside those of this process.
        folder: where to run it.
        allowed: exit codes of success.

    Raises:
        RuntimeError: it failed; the last line that it printed.
    """
    with TemporaryDirectory() as scratch:
        facts = Path(scratch) / "facts.json"
        between = [sys.executable, "-S", __file__, str(facts), *command]
        settings = {"env": {**os.environ, **(environment or {})}, "cwd": folder, "capture_output": True, "text": True}
        done = subprocess.run(between, check=False, **settings)
        found = json.loads(facts.read_text()) if facts.is_file() else {"returncode": done.returncode}
    code = found.pop("returncode")
    if code not in allowed:
        told = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RuntimeError(told[-1] if told else f"it ended with code {code} and no word")
    return found, done.stdout


def main(facts: str, *command: str) -> None:
    """Run, wait, write."""
    begin = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    found = {
        "returncode": child.returncode,
        "command_seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gb": round(usage.ru_maxrss / 2**20, 3),
    }
    with open(facts, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
