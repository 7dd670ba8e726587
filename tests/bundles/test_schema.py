"""The validator of metadata.json finds what it is for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from sharing.schema import SCHEMA_URL, faults
from sharing_case import set_entry

TENSOR = {
    "type": "image",
    "format": "magnitude",
    "num_channels": 2,
    "spatial_shape": [80, "16*n", "*"],
    "dtype": "float32",
    "value_range": [0, 1.5],
    "channel_def": {"0": "fixed", "1": "moving"},
}
VALID: dict[str, Any] = {
    "schema": SCHEMA_URL,
    "name": "x",
    "version": "1.0.2",
    "changelog": {"1.0.2": "x", "1.0": "x"},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.4.6",
    "required_packages_version": {"nibabel": "5.4.2"},
    "supported_apps": {},
    "task": "x",
    "description": "x",
    "authors": "x",
    "copyright": "x",
    "references": ["x"],
    "network_data_format": {"inputs": {"image": TENSOR, "number": 3}, "outputs": {"pred": dict(TENSOR)}},
}


def broken(path: str, value: Any) -> dict[str, Any]:
    """VALID with one entry replaced, or removed if value is None."""
    metadata = copy.deepcopy(VALID)
    set_entry(metadata, path, value)
    return metadata


def test_valid_metadata_have_no_faults():
    assert faults(VALID) == []


@pytest.mark.parametrize("key", [key for key in VALID if key != "references"])
def test_required_key_is_missed(key):
    assert any(key in fault for fault in faults(broken(key, None)))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schema", "https://example.org/meta_schema_20220324.json"),
        ("version", "1.0"),
        ("version", "1.0.3"),
        ("authors", ["a", "b"]),
        ("intended_use", 3),
        ("references", "one string"),
        ("supported_apps", []),
        ("pytorch_version", "2.13.0+cpu"),
        ("required_packages_version", {"nibabel": ">=5"}),
        ("network_data_format/outputs", None),
        ("network_data_format/results", {}),
        ("network_data_format/inputs/image/dtype", None),
        ("network_data_format/inputs/image/num_channels", "2"),
        ("network_data_format/inputs/image/spatial_shape", [80.5]),
        ("network_data_format/inputs/image/spatial_shape", ["m*2"]),
        ("network_data_format/inputs/image/value_range", ["0"]),
        ("network_data_format/inputs/image/channel_def", ["fixed"]),
        ("network_data_format/inputs/image", [1]),
        ("second_data_format", {"inputs": {}}),
    ],
)
def test_fault_is_found(path, value):
    assert len(faults(broken(path, value))) == 1
