"""What MONAI answers about a bundle (probe.py), as rules that are kept or broken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shared_components.errors import InputError

from .checks import MAX_MB, attempt, one_line
from .contents import read_json
from .tiny import dimensions, write_data

PROBE = Path(__file__).with_name("probe.py")
LARGEST_DIFFERENCE = 1e-4  # voxels, between the exported network and the eager one
LEAST_MOTION = 0.1  # voxels; a network that moves nothing would pass every comparison
Answers = dict[str, dict[str, Any]]


def ask_monai(bundle: Path, schema: Path | None = None) -> Answers:
    """Put all questions of probe.py in a process of its own; {question: {"answer": ...} or {"fault": sentence}}.

    Args:
        bundle: folder of the bundle.
        schema: MONAI's schema of metadata, if it is at hand.

    Raises:
        InputError: the process itself failed.
    """
    with TemporaryDirectory() as folder:
        datalist = write_data(Path(folder), dimensions(bundle))
        target = Path(folder) / "answers.json"
        command = [sys.executable, str(PROBE), *map(str, (bundle, datalist, target, *([schema] if schema else [])))]
        environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise InputError(f"{bundle.name} cannot be asked anything ({one_line(done.stderr.strip()[-300:])})")
        return read_json(target)


def judge(bundle: Path, answers: Answers) -> dict[str, list[str] | None]:
    """Return the sentences of each check on MONAI's answers; None where it could not be made."""
    verdicts: dict[str, list[str] | None] = {}
    for question, (name, rule) in RULES.items():
        found = answers.get(question, {"fault": "was not answered"})
        if "fault" in found:
            verdicts[name] = [one_line(found["fault"])]
        elif question == "schema" and found["answer"] is None:
            verdicts[name] = None
        else:
            verdicts[name] = attempt(rule, bundle, found["answer"])
    return verdicts


def _no_news(bundle: Path, answer: Any) -> list[str]:
    return []


def _properties(bundle: Path, missing: dict[str, list[str]]) -> list[str]:
    return [f"{config} lacks or misnames {', '.join(names)}" for config, names in missing.items() if names]


def _parameters(bundle: Path, number: int) -> list[str]:
    told = f"{number:,}" in (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    return [] if told else [f"docs/README.md does not tell the {number:,} parameters of the network"]


def _weights(bundle: Path, found: dict[str, Any]) -> list[str]:
    rules = {
        "models/model.pt is no plain dictionary of tensors": found["plain"],
        "models/model.pt has values that are not finite": found["finite"],
        f"models/model.pt has {found['mb']:.1f} MB, more than {MAX_MB:g}": found["mb"] <= MAX_MB,
    }
    return [sentence for sentence, kept in rules.items() if not kept]


def _load(bundle: Path, same: bool) -> list[str]:
    return [] if same else ["monai.bundle.load gives other weights than models/model.pt"]


def _trace(bundle: Path, found: dict[str, float]) -> list[str]:
    if not found["motion"] > LEAST_MOTION:
        return [f"the network moves nothing by more than {found['motion']:.3g} voxels, so the export proves nothing"]
    if not found["difference"] <= LARGEST_DIFFERENCE:
        return [f"the exported network differs by {found['difference']:.2g} voxels from the one that was exported"]
    return []


def _script(bundle: Path, works: bool) -> list[str]:
    if works or "--use_trace" in (bundle / "docs" / "README.md").read_text(encoding="utf-8"):
        return []
    return ["export by scripting fails, and docs/README.md does not say to use --use_trace True"]


# question of probe.py -> name of the check, and what it asks of the answer
RULES: dict[str, tuple[str, Callable[[Path, Any], list[str]]]] = {
    "schema": ("verify_metadata", _no_news),
    "net_in_out": ("verify_net_in_out", _no_news),
    "properties": ("properties", _properties),
    "workflows": ("train, evaluate, register", _properties),
    "parameters": ("size of the network", _parameters),
    "weights": ("weights", _weights),
    "load": ("load", _load),
    "trace": ("ckpt_export, traced", _trace),
    "script": ("ckpt_export, scripted", _script),
    "logging": ("logging", _no_news),
}
