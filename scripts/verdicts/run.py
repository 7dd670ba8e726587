"""Register the cases by a bundle's own pieces, in one process, and keep the numbers of each as they are found."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from register import bundle_code

from shared_components.errors import InputError, find_input_error
from shared_components.images import Image, write_image
from shared_components.images.files import atomic_path, sha256_of
from shared_components.metrics import folds_percent, inverse_consistency_error, plain
from shared_components.results import Registration
from shared_components.transform import affine_field

from .cases import Case, CaseSet, make

Record = dict[str, Any]


class Registrar:
    """A bundle's preprocessing, network and measuring, built once.

    Args:
        root: folder of the bundle.
        threads: CPU threads.
    """

    def __init__(self, root: Path, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        with bundle_code(root):
            parser = ConfigParser(ConfigParser.load_config_files([str(root / "configs" / "inference.json")]))
            parser["bundle_root"], parser["report"] = str(root), False
            parser["device#name"] = "cpu"
            parser["output_dir"] = tempfile.gettempdir()
            parser.get_parsed_content("initialize")
            self.preprocessing = parser.get_parsed_content("preprocessing")
            self.network = parser.get_parsed_content("network").eval()
            self.inferer = parser.get_parsed_content("inferer")
            *self.transforms, self.save = parser.get_parsed_content("postprocessing").transforms

    @torch.no_grad()
    def measure(self, fixed: Image, moving: Image) -> dict[str, Any]:
        """Return what metrics.json would hold of a pair in memory, as far as a verdict needs it."""
        with tempfile.TemporaryDirectory() as folder:
            sides = (("fixed", fixed), ("moving", moving))
            data = self.preprocessing({side: _write(image, folder, side) for side, image in sides})
        data["pred"] = self.inferer(data["image"][None], self.network)[0]
        for transform in self.transforms:
            data = transform(data)
        result = self.save.result(data)
        return self.save.add_verdict({"field": judged_field(result)}, result, data["image"])


def judged_field(result: Registration) -> dict[str, Any]:
    """Return those numbers of ``describe_field`` that a verdict is found from: the others take most of the time."""
    pair = result.pair
    inside = (pair.fixed.array[0] > pair.fixed.array.min()).numpy()
    inverse, _ = result._inverted()
    largest = float(abs(result.field.ddf_mm - affine_field(pair.initial, pair.fixed.frame).ddf_mm)[:, inside].max())
    return plain(
        {
            "displacement_mm": {"max": largest},
            "folds_percent": folds_percent(result.field.voxel_ddf(), inside),
            "inverse_consistency_mm": inverse_consistency_error(result.ddf, inverse, pair.network.spacing),
        }
    )


def run_cases(
    cases: Sequence[Case], images: CaseSet, root: Path, records: Path, threads: int = 1
) -> list[dict[str, Any]]:
    """Register the cases that have no record yet, and return the records of all.

    A record holds the numbers, not the verdict: limits may change without registering anything again.

    Args:
        cases: what to register.
        images: what they are made of.
        root: folder of the bundle.
        records: folder with a file a case; one of another plan, other weights or another configuration is made
            again. After a change of code or data begin with an empty folder.
        threads: CPU threads.

    Raises:
        InputError: an image is missing.
    """
    registrar, found, begin, done = None, [], time.perf_counter(), 0
    for case in cases:
        path, key = records / f"{case.name}.json", fingerprint(case, root)
        record = _read(path)
        if record is None or record["key"] != key:
            registrar = registrar or Registrar(root, threads)
            record = _register(case, images, registrar) | {"key": key}
            records.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(record, indent=1) + "\n")
            done += 1
            seconds = (time.perf_counter() - begin) / done
            print(f"{len(found) + 1}/{len(cases)} {case.name}, {seconds:.1f} s a case", file=sys.stderr, flush=True)
        found.append(record | {"half": case.half})
    return found


def training_views(images: CaseSet, root: Path) -> list[tuple[torch.Tensor, list[float]]]:
    """Return each training image as the network sees it, (*spatial), and the voxel size there."""
    registrar, found = Registrar(root), []
    for image in images.training():
        with tempfile.TemporaryDirectory() as folder:
            data = registrar.preprocessing({"image": _write(image, folder, "image")})
        found.append((data["image"][0], data["spacing_mm"].tolist()))
    return found


def _write(image: Image, folder: str, name: str) -> str:
    """Write an image for the preprocessing to read."""
    path = str(Path(folder) / f"{name}.nii")
    write_image(path, image.array[0].numpy(), image.frame, "float32")
    return path


def _register(case: Case, images: CaseSet, registrar: Registrar) -> Record:
    """Return the record of a case; one that is refused before anything is registered says so."""
    record: Record = {"name": case.name, "kind": case.kind, "spoilt": case.spoilt}
    pair = make(case, images)
    try:
        return record | {"metrics": registrar.measure(*pair), "refused": None}
    except Exception as error:  # MONAI wraps those of transforms
        refused = find_input_error(error)
        if refused is None:
            raise
        return record | {"metrics": None, "refused": str(refused)}


def fingerprint(case: Case, root: Path) -> str:
    """Return what a record depends on, as a hash: the plan of the case, and the bundle's weights and configuration."""
    plan = [case.name, case.kind, case.seed, case.what]
    config = json.loads((root / "configs" / "inference.json").read_text()) | {"calibration": None}  # no number of it
    known = [plan, sha256_of(root / "models" / "model.pt"), config]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def finished(cases: Sequence[Case], root: Path, records: Path) -> list[Case]:
    """Return the cases that have a record.

    Raises:
        InputError: none has.
    """
    keys = {case.name: (_read(records / f"{case.name}.json") or {}).get("key") for case in cases}
    found = [case for case in cases if keys[case.name] == fingerprint(case, root)]
    if not found:
        raise InputError(f"{records} holds no case that was registered; run without --only_done first")
    return found


def _read(path: Path) -> Record | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
