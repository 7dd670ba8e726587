"""The rules of MONAI's metadata schema of 2024-07-25, and what its model zoo asks for besides, as a validator.

Written down from the schema's documentation, because the schema itself is fetched over the network by MONAI's own
``verify_metadata``.
"""

from __future__ import annotations

import re
from typing import Any

SCHEMA_URL = "https://project-monai.github.io/schema/meta_schema_20240725.json"
STRINGS = (
    "schema version monai_version pytorch_version numpy_version task description authors copyright".split()
)  # required
REQUIRED = (*STRINGS, "required_packages_version", "network_data_format")
OPTIONAL_STRINGS = "data_source data_type image_classes label_classes pred_classes intended_use".split()
OBJECTS = "required_packages_version changelog eval_metrics supported_apps".split()
TENSOR_KEYS = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
}
TENSOR_OPTIONAL = {"modality": str, "is_patch_data": bool, "channel_def": dict}
SHAPE_EXPRESSION = re.compile(r"\*|[pn0-9+\-*/ ()]+")
NUMBERED = re.compile(r"\d+(\.\d+)+")


def faults(metadata: dict[str, Any]) -> list[str]:
    """Return a sentence for each rule that the metadata break; [] if they are valid."""
    found = [f"'{key}' is missing" for key in REQUIRED if key not in metadata]
    for key in (*STRINGS, *OPTIONAL_STRINGS, "name"):
        if key in metadata and not isinstance(metadata[key], str):
            found.append(f"'{key}' is not a string")
    for key in OBJECTS:
        if key in metadata and not isinstance(metadata[key], dict):
            found.append(f"'{key}' is not an object")
    references = metadata.get("references", [])
    if not (isinstance(references, list) and all(isinstance(entry, str) for entry in references)):
        found.append("'references' is not a list of strings")
    for key, value in metadata.items():
        if re.fullmatch(r"[_a-zA-Z0-9]+_data_format", key):
            found += _data_format(value, key)
    return found + _house_rules(metadata)


def _house_rules(metadata: dict[str, Any]) -> list[str]:
    """Return what the schema lets pass but the model zoo's checks or this collection do not."""
    found = []
    if metadata.get("schema") != SCHEMA_URL:
        found.append(f"'schema' is not {SCHEMA_URL}")
    if not metadata.get("name"):
        found.append("'name' is missing")
    version = str(metadata.get("version"))
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        found.append(f"version '{version}' is not MAJOR.MINOR.PATCH")
    if version not in (metadata.get("changelog") or {}):
        found.append(f"'changelog' does not mention version {version}")
    if "supported_apps" not in metadata:
        found.append("'supported_apps' is missing")
    pins = dict(metadata.get("required_packages_version") or {})
    pins |= {key: metadata.get(key) for key in ("monai_version", "pytorch_version", "numpy_version")}
    found += [
        f"'{name}' pins no plain version: {pin}" for name, pin in pins.items() if not NUMBERED.fullmatch(str(pin))
    ]
    return found


def _data_format(value: Any, where: str) -> list[str]:
    if not isinstance(value, dict) or not {"inputs", "outputs"} <= value.keys():
        return [f"'{where}' has no inputs and outputs"]
    found = [f"'{where}#{key}' is not known" for key in value.keys() - {"inputs", "outputs", "post_processed_outputs"}]
    for group, entries in value.items():
        if not isinstance(entries, dict):
            found.append(f"'{where}#{group}' is not an object")
            continue
        for name, entry in entries.items():
            if isinstance(entry, dict):
                found += _tensor(entry, f"{where}#{group}#{name}")
            elif not isinstance(entry, (int, float, str, bool)):
                found.append(f"'{where}#{group}#{name}' is neither a tensor nor a plain value")
    return found


def _tensor(entry: dict[str, Any], where: str) -> list[str]:
    found = [f"'{where}#{key}' is missing" for key in TENSOR_KEYS if key not in entry]
    for key, kind in (TENSOR_KEYS | TENSOR_OPTIONAL).items():
        value = entry.get(key, kind())
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            found.append(f"'{where}#{key}' is not of type {kind.__name__}")
    if isinstance(entry.get("spatial_shape"), list):
        found += [f"'{where}#spatial_shape' cannot have {n!r}" for n in entry["spatial_shape"] if not _is_size(n)]
    if isinstance(entry.get("value_range"), list):
        found += [f"'{where}#value_range' cannot have {v!r}" for v in entry["value_range"] if not _is_number(v)]
    return found


def _is_size(value: Any) -> bool:
    if isinstance(value, str):
        return bool(SHAPE_EXPRESSION.fullmatch(value))
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
