"""What transform.json tells of a run: the options that were given, and how they are read again."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared_components.errors import InputError
from shared_components.images.files import sha256_of

# What was asked of the result, and what it may be (a record is read again, and what comes from it goes into a
# configuration). Not files, which are told by their sha256, nor where and how fast it ran, which run.json tells.
_KINDS: dict[str, tuple[type, ...]] = {
    "config": (str,),
    "refine_steps": (int,),
    "refine": (str,),
    "diffeomorphic": (bool,),
    "steps": (int,),
    "tolerance": (int, float),
    "uncertainty": (bool,),
    "starts": (int,),
    "set": (list,),
    "initial_transform": (str, dict),
}
OPTIONS = tuple(name for name in _KINDS if name not in ("set", "initial_transform"))
FILES = tuple(f"{side}{kind}" for side in ("fixed", "moving") for kind in ("", "_label", "_points", "_mask"))
WORDS = ("centre_of_mass", "header", "meta_affine")  # initial transforms that are no file
_ELSEWHERE = (*FILES, "weights", "output_dir", "device", "bundle_root", "datalist", "section", "max_memory_gb")
_NEEDED = ("bundle", "fixed", "options", "results", "versions")
_OF_PAIR, _OF_SERIES = ("moving", "inputs"), ("series", "fixed_frame")


def recorded_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of register.py that a result depends on, those that were set, for its record.

    An initial transform that is a file is told as {"file": its name, "sha256"}: the same wherever it lies.
    """
    kept = {name: getattr(options, name) for name in OPTIONS if is_set(getattr(options, name))}
    start = options.initial_transform
    if start is not None:
        file = os.path.expanduser(start)
        known = start not in WORDS and os.path.isfile(file) and os.path.getsize(file)
        kept["initial_transform"] = {"file": os.path.basename(file), "sha256": sha256_of(file)} if known else start
    changes = [text for text in options.set if text.split("=")[0].split("#")[0] not in _ELSEWHERE]
    return {**kept, **({"set": changes} if changes else {})}


def is_set(value: Any) -> bool:
    """Tell whether an option was given; 0 is a value."""
    return value is not None and value is not False


@dataclass(frozen=True)
class Record:
    """A transform.json, of a pair or of a series, by which a run can be repeated.

    Attributes:
        path: of the file.
        content: of it.
    """

    path: Path
    content: dict[str, Any]

    @property
    def bundle(self) -> tuple[str, str]:
        """Folder name and version of the bundle."""
        name, _, version = self.content["bundle"].partition(" ")
        return name, version

    @property
    def is_series(self) -> bool:
        """Whether it is of a series instead of a pair."""
        return "series" in self.content

    @property
    def fixed_frame(self) -> int | None:
        """Of a series, however it was chosen."""
        return self.content["fixed_frame"] if self.is_series else None

    @property
    def options(self) -> dict[str, Any]:
        """Of register.py."""
        return self.content["options"]

    @property
    def files(self) -> dict[str, dict[str, str]]:
        """{role: {"file", "sha256"}} of all that the run read, but the weights; roles are names of options.

        A series may be a folder, whose name and sha256 these are, see ``pairs.series.identify_series``.
        """
        start = self.options.get("initial_transform")
        more = {"initial_transform": start} if isinstance(start, dict) else {}
        if self.is_series:
            known = self.content["series"]
            return {"series": {"file": known.get("file") or known["folder"], "sha256": known["sha256"]}, **more}
        found = {side: {key: self.content[side][key] for key in ("file", "sha256")} for side in ("fixed", "moving")}
        return found | self.content["inputs"] | more

    @property
    def weights(self) -> dict[str, str] | None:
        """{"file", "sha256"}; None where the method has none."""
        return self.content["weights"]

    @property
    def run(self) -> dict[str, Any]:
        """run.json beside it: threads and device, on which the last digits depend; empty if it is gone."""
        try:
            facts = json.loads(self.path.with_name("run.json").read_text())
        except (OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}


def read_record(path: str | Path) -> Record:
    """Read a transform.json.

    Raises:
        InputError: it is missing, no record of a registration, or one that does not tell the options.
    """
    path = Path(path).expanduser().absolute()
    path = path / "transform.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"record {path} does not exist; give the transform.json of a result") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"record {path} is not readable JSON ({error}); give the transform.json of a result") from None
    if not isinstance(content, dict) or "direction" not in content:
        raise InputError(f"{path} is no record of a registration; give the transform.json of a result")
    needed = (*_NEEDED, *(_OF_SERIES if "series" in content else _OF_PAIR))
    missing = [key for key in needed if content.get(key) is None] + ["weights"][: "weights" not in content]
    if missing:
        raise InputError(
            f"{path} does not tell its {missing[0]}: the run was not made by register.py or cohort.py, or by an older "
            "version; it can only be given again with all its options"
        )
    try:
        record = Record(path, content)
        _check_form(record)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"record {path} is damaged; give the transform.json of a result as it was written") from None
    _check_harmless(record)
    return record


def _check_form(record: Record) -> None:
    """Raise one of the exceptions of a wrong form if it is one."""
    parts = [*record.files.values(), *([record.weights] if record.weights is not None else [])]
    texts = [record.content["bundle"], *(part[key] for part in parts for key in ("file", "sha256"))]
    texts += [*record.content["results"].values(), *record.options.get("set", [])]
    if not all(isinstance(text, str) for text in texts) or not isinstance(record.content["versions"], dict):
        raise ValueError
    if not set(record.files) <= {*FILES, "initial_transform", *(["series"] if record.is_series else [])}:
        raise ValueError
    if record.is_series and (type(record.fixed_frame) is not int or record.fixed_frame < 0):
        raise ValueError
    for name, value in record.options.items():
        kinds = _KINDS[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError
    if not all(record.options.get(name, "a").isidentifier() for name in ("config", "refine")):
        raise ValueError


def _check_harmless(record: Record) -> None:
    """Refuse what a configuration would execute: a record is data, and may be a stranger's."""
    for text in record.options.get("set", []):
        key, _, value = text.partition("=")
        try:
            value = json.dumps(json.loads(value), ensure_ascii=False)
        except ValueError:
            pass
        if any(sign in part for part in (key, value) for sign in ("$", "%", "@", "_target_")):
            raise InputError(
                f"the run of {record.path} was made with --set {text}, which may execute code, and --replay does not; "
                "give that command again if you trust it"
            )
