"""Bundle packages are all called ``scripts``: load single modules by path, under names of their own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


@pytest.fixture(scope="session")
def bundle_module() -> Callable[[str, str], ModuleType]:
    """``load("vtn_registration", "network")`` -> bundles/vtn_registration/scripts/network.py as a module."""

    def load(bundle: str, module: str) -> ModuleType:
        name = f"_bundle_{bundle}_{module}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, BUNDLES / bundle / "scripts" / f"{module}.py")
            assert spec is not None and spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            sys.modules[name] = loaded
            spec.loader.exec_module(loaded)
        return sys.modules[name]

    return load
