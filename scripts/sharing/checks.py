"""What can be checked by reading a bundle's files: each check returns a sentence for each rule that is broken."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shared_components.checkpoints import released_sums
from shared_components.images.files import sha256_of
from shared_components.release import RECORD, content_hash

from .contents import REQUIRED, bundle_files, metadata_of, read_json, strangers
from .schema import faults as metadata_faults

SECTIONS = """
    Authors|Tags|Model Description|Data|Performance|System Configuration|Limitations|Intended Use|Citation|References
""".strip().split("|")
INFERENCE_IDS = """
    bundle_root device dataset_dir output_dir network_def network inferer preprocessing postprocessing dataset
    dataloader handlers evaluator displayable_configs initialize run finalize
""".split()
TRAIN_IDS = """
    bundle_root device dataset_dir output_dir ckpt_dir network_def network val_interval resume train validate
    initialize run finalize
""".split()
EXPORTS = ("torchscript", "torch_export", "onnx", "tensorrt")
ROOT_FIRST = "$sys.path.insert(0, os.path.abspath(@bundle_root))"
PERSONAL = re.compile(r"(?:^|[\s'\"=])(?:/(?:home|Users|root|work|tmp|mnt|media|scratch|workspace)/|~/|[A-Za-z]:\\)")
MAX_MB = 25.0  # of a file; larger ones the model zoo wants to be downloaded from elsewhere


def files(bundle: Path) -> list[str]:
    """Everything that a bundle needs is there, and nothing that nobody expects."""
    missing = [f"{name} is missing" for name in REQUIRED if not (bundle / name).is_file()]
    return missing + [f"{name} belongs to no release; remove it" for name in strangers(bundle)]


def sizes(bundle: Path) -> list[str]:
    """No file is larger than the zoo takes."""
    sized = [(path, path.stat().st_size / 1e6) for path in bundle_files(bundle)]
    return [f"{path.relative_to(bundle)} has {mb:.1f} MB, more than {MAX_MB:g} MB" for path, mb in sized if mb > MAX_MB]


def metadata(bundle: Path) -> list[str]:
    """metadata.json keeps the schema, and its changelog has its version."""
    return metadata_faults(metadata_of(bundle))


def exports(bundle: Path) -> list[str]:
    """metadata.json says of each form of export whether the network can take it; ``export_bundles.py`` measures it."""
    said = metadata_of(bundle).get("exports", {})
    unclear = [form for form in EXPORTS if not str(said.get(form)).startswith(("supported", "not supported"))]
    return [f"'exports' does not say whether {form} is supported or not supported" for form in unclear]


def one_image(bundle: Path) -> list[str]:
    """MONAI's tools call the network with one image; here it has two channels, fixed and moving, on one grid."""
    formats = metadata_of(bundle)["network_data_format"]
    if list(formats["inputs"]) != ["image"] or list(formats["outputs"]) != ["pred"]:
        return ["network_data_format is not from one 'image' to one 'pred'"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    found = []
    if (image["num_channels"], image.get("channel_def")) != (2, {"0": "fixed", "1": "moving"}):
        found.append("'image' has not the two channels 0 fixed and 1 moving")
    if not pred["num_channels"] == len(image["spatial_shape"]) == len(pred.get("channel_def", {})):
        found.append("'pred' has not one described channel a dimension")
    if not pred["spatial_shape"] == image["spatial_shape"] == _config(bundle, "inference").get("size"):
        found.append("'image', 'pred' and the 'size' of inference.json differ")
    return found


def licences(bundle: Path) -> list[str]:
    """The code's licence is whole, and each file of weights is covered by the data's."""
    found, text = [], (bundle / "LICENSE").read_text(encoding="utf-8")
    parts = ("Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS")
    if not all(part in text for part in parts) or "[yyyy]" in text:
        found.append("LICENSE is not the whole Apache License 2.0 with its owner filled in")
    terms = (bundle / "docs" / "data_license.txt").read_text(encoding="utf-8")
    weights = [path.name for path in bundle_files(bundle) if path.parent.name == "models"]
    return found + [f"docs/data_license.txt does not mention {name}" for name in weights if name not in terms]


def readme(bundle: Path) -> list[str]:
    """docs/README.md follows the zoo's template, with text in each section."""
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    pieces = re.split(r"^#+\s+(.*?)\s*$", _without_code(text), flags=re.MULTILINE)
    sections = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    found = [f"docs/README.md has no section '{name}'" for name in SECTIONS if name not in sections]
    found += [f"section '{name}' is empty" for name in SECTIONS if name in sections and not sections[name].strip()]
    words = ("TorchScript", "ONNX", "TensorRT", "GPU memory", "data_license.txt")
    return found + [f"docs/README.md says nothing of {word}" for word in words if word not in text]


def _without_code(text: str) -> str:
    """Comments in blocks of code begin with # as headings do."""
    return re.sub(r"^```.*?^```", "```", text, flags=re.MULTILINE | re.DOTALL)


def paths(bundle: Path) -> list[str]:
    """No configuration names a place on somebody's machine."""
    return [
        f"{path.name} names a place on one machine: {text}"
        for path, config in _configs(bundle)
        for text in strings(config)
        if PERSONAL.search(text)
    ]


def ids(bundle: Path) -> list[str]:
    """The configurations have the ids that MONAI, MONAI Label and the other bundles use."""
    found = []
    for name, wanted in (("inference", INFERENCE_IDS), ("train", TRAIN_IDS)):
        config = _config(bundle, name)
        found += [f"{name}.json has no '{key}'" for key in wanted if key not in config]
    for path, config in _configs(bundle):
        first = config.get("initialize", [ROOT_FIRST])[:1]
        if first != [ROOT_FIRST]:
            found.append(f"'initialize' of {path.name} does not begin with {ROOT_FIRST}")
    return found


def release(bundle: Path) -> list[str]:
    """An unzipped release still has its library and its weights; a folder of the repository has no record of them."""
    library = bundle / "shared_components"
    if not library.is_dir():
        return []
    if not (library / RECORD).is_file():
        return [f"shared_components has no {RECORD}; package the bundle again"]
    same = read_json(library / RECORD)["sha256"] == content_hash(library)
    changed = [] if same else ["shared_components"]
    models = bundle / "models"
    for name, digest in released_sums(models).items():
        if not (models / name).is_file() or sha256_of(models / name) != digest:
            changed.append(f"models/{name}")
    return [f"{name} was changed after the bundle was packaged; package it again" for name in changed]


CHECKS: dict[str, Callable[[Path], list[str]]] = {
    check.__name__.replace("_", " "): check
    for check in (files, sizes, metadata, exports, one_image, licences, readme, paths, ids, release)
}


def broken_rules(bundle: Path) -> dict[str, list[str]]:
    """Return the sentences of each check; an empty list where all is well."""
    return {name: attempt(check, bundle) for name, check in CHECKS.items()}


def attempt(check: Callable[..., list[str]], *arguments: Any) -> list[str]:
    """Call a check; what it trips over, such as a file that is no JSON, is a broken rule too."""
    try:
        return check(*arguments)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"cannot be checked ({type(error).__name__}: {one_line(error)})"]


def one_line(message: object, longest: int = 300) -> str:
    """Return a message without its line breaks, cut where nobody reads on."""
    text = " ".join(str(message).split())
    return text if len(text) <= longest else text[:longest] + " ..."


def strings(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def _configs(bundle: Path) -> Iterator[tuple[Path, Any]]:
    for path in sorted((bundle / "configs").glob("*.json")):
        yield path, read_json(path)


def _config(bundle: Path, name: str) -> dict[str, Any]:
    return read_json(bundle / "configs" / f"{name}.json")
