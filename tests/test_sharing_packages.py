"""Pins of a bundle: those of requirements.txt, installed, fitting together, and all that the code imports."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from sharing import packages
from sharing.packages import closure, conflicts, imports, module_imports, pins, top_folders
from sharing_case import configure, copy_bundle

from shared_components.errors import InputError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return copy_bundle(tmp_path)


def test_pin_of_what_is_not_installed_is_noticed(bundle):
    configure("metadata", "required_packages_version/antspyx", "0.0.1")(bundle)
    assert pins(bundle) == ["antspyx is pinned to 0.0.1, requirements.txt has no version"]
    with pytest.raises(InputError, match="antspyx is not installed"):
        imports(bundle)


def test_closure_holds_what_is_required_and_no_more():
    found = closure(["nibabel"])
    assert {"nibabel", "numpy", "packaging"} <= found.keys() and "torch" not in found
    assert "PIL" in top_folders("pillow") and not {"..", "__pycache__"} & top_folders("pillow")


def test_installed_version_that_differs_is_noticed(bundle, monkeypatch):
    monkeypatch.setattr(packages, "installed", lambda name: None if name == "fire" else "0.1")
    told = pins(bundle)
    assert "fire is pinned to 0.7.1, installed is none" in told
    assert "monai is pinned to 1.6.1, installed is 0.1" in told


def test_packages_that_do_not_fit_are_noticed(monkeypatch):
    assert conflicts(["monai", "matplotlib"]) == []
    packages_found = closure(["monai"])
    numpy = copy.copy(packages_found["numpy"])
    monkeypatch.setattr(type(numpy), "version", property(lambda self: "1.0" if self.name == "numpy" else "99"))
    assert any(sentence.startswith("monai 99 needs numpy") for sentence in conflicts(["monai"]))


def test_imports_in_functions_are_optional():
    optional = "try:\n    import a.b\nexcept ImportError:\n    pass\n"
    source = optional + "class B:\n    import c\n    def f():\n        import d\n"
    assert module_imports(source) == {"a", "c"}
