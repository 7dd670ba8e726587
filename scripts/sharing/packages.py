"""The packages that a bundle pins in metadata.json: tested together, installable together, and all that it imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shared_components.errors import InputError
from shared_components.release import library_files

from .contents import REPOSITORY, bundle_files, library_of, metadata_of

REQUIREMENTS = REPOSITORY / "requirements.txt"
BASE = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
OURS = {"shared_components", "scripts"}


def pins_of(metadata: dict[str, Any]) -> dict[str, str]:
    """Return package -> version of everything that the model zoo's CI would install for a bundle."""
    named = {name: metadata[key] for name, key in BASE.items()}
    return named | metadata["required_packages_version"] | metadata.get("optional_packages_version", {})


def tested_versions(requirements: Path = REQUIREMENTS) -> dict[str, str]:
    """Return package -> version of the lines NAME==VERSION of a requirements file."""
    lines = [line.partition("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if "==" in line)


def pins(bundle: Path, requirements: Path = REQUIREMENTS) -> list[str]:
    """The pins of metadata.json are those of requirements.txt, and what is installed here fits them."""
    tested = tested_versions(requirements)
    found = []
    for name, version in pins_of(metadata_of(bundle)).items():
        if tested.get(name) != version:
            found.append(f"{name} is pinned to {version}, {requirements.name} has {tested.get(name, 'no version')}")
        elif installed(name) != version:
            found.append(f"{name} is pinned to {version}, installed is {installed(name) or 'none'}")
    return found or conflicts(pins_of(metadata_of(bundle)))


def imports(bundle: Path) -> list[str]:
    """Whatever the code imports when it is loaded comes with Python or with the pinned packages.

    Imports within functions are left out: they are for what is optional, and say so when it is missing.
    """
    known = import_names(closure(pins_of(metadata_of(bundle))).values()) | sys.stdlib_module_names | OURS
    sources = [path for path in [*bundle_files(bundle), *library_files(library_of(bundle))] if path.suffix == ".py"]
    missing: dict[str, Path] = {}
    for path in sources:
        for name in sorted(module_imports(path.read_text(encoding="utf-8")) - known):
            missing.setdefault(name, path)
    return [f"{path.name} imports {name}, which no pinned package brings" for name, path in missing.items()]


def installed(name: str) -> str | None:
    """Return the version of an installed package without its local part, as in 2.13.0+cpu, or None."""
    try:
        return distribution(name).version.partition("+")[0]
    except PackageNotFoundError:
        return None


def closure(names: Iterable[str]) -> dict[str, Distribution]:
    """Return the packages and, recursively, all that they require, as installed here.

    Raises:
        InputError: one is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    open_ends = [Requirement(name) for name in names]
    while open_ends:
        wanted = open_ends.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        try:
            found[name] = distribution(wanted.name)
        except PackageNotFoundError:
            raise InputError(f"the package {wanted.name} is not installed; pip install -r requirements.txt") from None
        open_ends += requirements_of(found[name], wanted.extras)
    return found


def requirements_of(package: Distribution, extras: Iterable[str] = ()) -> list[Requirement]:
    """Return what a package requires on this machine."""
    needs = [Requirement(line) for line in package.requires or []]
    return [
        need
        for need in needs
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def conflicts(names: Iterable[str]) -> list[str]:
    """Return a sentence for each installed package that another one of the closure cannot work with."""
    packages = closure(names)
    found = []
    for package in packages.values():
        for need in requirements_of(package):
            version = packages[canonicalize_name(need.name)].version
            if not need.specifier.contains(version, prereleases=True):
                found.append(f"{package.name} {package.version} needs {need.name}{need.specifier}, not {version}")
    return found


def import_names(packages: Iterable[Distribution]) -> set[str]:
    """Return the names under which packages are imported: the first parts of the paths of their files."""
    tops = {top for package in packages for top in top_folders(package.name)}
    return {top.partition(".")[0] for top in tops if not top.endswith((".dist-info", ".pth"))}


@cache
def top_folders(package: str) -> frozenset[str]:
    """Return the files and folders that an installed package owns at the top of ``site-packages``."""
    tops = {str(file).partition("/")[0] for file in distribution(package).files or []}
    return frozenset(tops - {"..", "__pycache__"})


@cache
def module_imports(source: str) -> frozenset[str]:
    """Return the packages that a module imports as it is loaded: all import statements outside of functions.

    Example:
        >>> sorted(module_imports("import a.b, c\\nfrom .d import e\\ndef f():\\n    import g"))
        ['a', 'c']
    """
    names: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            nodes += ast.iter_child_nodes(node)
    return frozenset(names)
