"""A bundle and the library it needs as one zip, the same bytes wherever it is made, and its entry in the index."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from shared_components.checkpoints import SUMS
from shared_components.errors import InputError
from shared_components.images.files import atomic_path
from shared_components.release import RECORD, library_files, make_record

from .checks import broken_rules
from .contents import LIBRARY, bundle_files, metadata_of, read_json

INDEX = "model_info.json"
OLDEST = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can express
GUARD = """\
# Added when the bundle was packaged: Python keeps the first shared_components of a process, whoever brought it.
from pathlib import Path

from shared_components.release import check_release

check_release(Path(__file__).resolve().parents[1])
"""


def release_name(bundle: Path) -> str:
    """Return NAME_vVERSION, by which MONAI and its model zoo know a release."""
    return f"{bundle.name}_v{metadata_of(bundle)['version']}"


def members(bundle: Path, library: Path = LIBRARY) -> dict[str, bytes]:
    """Return what a release holds, by name in the zip, in the order of names.

    Args:
        bundle: folder of the bundle.
        library: folder of shared_components, which is copied beside the bundle's own folders.

    Raises:
        InputError: weights of the library without a licence of their data; code that cannot follow the guard.
    """
    content = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle_files(bundle)}
    package = "scripts/__init__.py"
    content[package] = _guarded(content.get(package, b""), bundle / package)
    for path in library_files(library):
        if path.suffix == ".pt" and not path.with_name("data_license.txt").is_file():
            raise InputError(f"{path} has no data_license.txt beside it; say there what the weights were trained on")
        content[f"shared_components/{path.relative_to(library).as_posix()}"] = path.read_bytes()
    content[f"shared_components/{RECORD}"] = make_record(library).encode()
    sums = [(hashlib.sha256(data).hexdigest(), name) for name, data in content.items() if name.startswith("models/")]
    content[f"models/{SUMS}"] = "".join(f"{digest}  {name[len('models/') :]}\n" for digest, name in sums).encode()
    return {f"{bundle.name}/{name}": content[name] for name in sorted(content)}


def _guarded(code: bytes, path: Path) -> bytes:
    text = f"{GUARD}\n{code.decode()}" if code.strip() else GUARD
    try:
        compile(text, str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise InputError(
            f"{path} cannot have lines of its own in front ({error.msg}); keep it empty or without __future__"
        ) from None
    return text.encode()


def write_zip(content: dict[str, bytes], path: Path) -> Path:
    """Write a zip whose bytes depend on names and contents only.

    Files are stored: weights hardly shrink, and what deflate makes of the rest depends on the version of zlib.
    """
    with atomic_path(path) as temporary, ZipFile(temporary, "w", ZIP_STORED) as archive:
        for name, data in content.items():
            entry = ZipInfo(name, OLDEST)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix, rw-r--r--
            archive.writestr(entry, data)
    return path


def package(bundle: Path, output_dir: Path, source: str = "", library: Path = LIBRARY) -> Path:
    """Write a bundle's release and enter it into model_info.json beside it.

    Args:
        bundle: folder of the bundle.
        output_dir: where NAME_vVERSION.zip and model_info.json go; entries of other releases stay.
        source: URL of the folder from which the zip will be served; "" enters the file's name alone.
        library: folder of shared_components.

    Returns:
        path of the zip.

    Raises:
        InputError: the bundle breaks a rule that ``verify_bundles.py`` would report.
    """
    broken = [f"{name}: {fault}" for name, faults in broken_rules(bundle).items() for fault in faults]
    if broken:
        raise InputError(f"{bundle.name} is not fit to be released ({'; '.join(broken)}); see verify_bundles.py")
    path = write_zip(members(bundle, library), output_dir / f"{release_name(bundle)}.zip")
    url = f"{source.rstrip('/')}/{path.name}" if source else path.name
    _enter(output_dir / INDEX, release_name(bundle), {"checksum": checksum(path), "source": url})
    return path


def checksum(path: Path) -> str:
    """Return the SHA-1 of a file, which the model zoo's index holds."""
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


def _enter(index: Path, name: str, entry: dict[str, str]) -> None:
    known = read_json(index) if index.is_file() else {}
    with atomic_path(index) as temporary:
        temporary.write_text(json.dumps(dict(sorted((known | {name: entry}).items())), indent=4) + "\n")
