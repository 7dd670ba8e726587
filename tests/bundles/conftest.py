"""Bundle packages are all called ``scripts``: import each one's modules under a package name of its own."""

from __future__ import annotations

import importlib
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
        package = f"_bundle_{bundle}"
        if package not in sys.modules:
            folder = BUNDLES / bundle / "scripts"
            spec = importlib.util.spec_from_file_location(
                package, folder / "__init__.py", submodule_search_locations=[str(folder)]
            )
            assert spec is not None and spec.loader is not None
            sys.modules[package] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[package])
        return importlib.import_module(f"{package}.{module}")

    return load
