"""Write a registration: images, fields both ways, transform.json, metrics.json, report. All of it, or nothing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cuda_memory import fallback_facts
from ..errors import InputError
from ..images import write_image
from ..itk_io import write_affine, write_field
from ..memory import give_back_memory
from ..metrics import plain
from ..monai_label import answered, is_request, model_file, tells_client
from ..names import folder_name
from ..pairs.datasets import Item
from ..verdict import tell
from .page import table, write_page
from .records import asked_options, bundle_name, describe_frame, device_of, identify, identify_all, library_versions
from .registration import Registration, affine_world, as_batch, expected_error, measure
from .verdict import FALLBACK, AddVerdict

DIRECTION = (
    "ddf.nii.gz lives on the fixed grid and takes a point of the fixed image to the point of the moving image that "
    "belongs there (pull-back): use it to bring moving images and labels onto the fixed grid, and fixed points into "
    "the moving image. inverse_ddf.nii.gz lives on the moving grid and does the reverse."
)
UNITS = "fields and affine.tfm: mm, LPS (ITK, ANTs, Slicer); matrices in transform.json: mm, RAS, column vectors"


def check_output_dir(output_dir: str | Path) -> Path:
    """Make sure that the output folder can be made and written to; it is made when there is something to write.

    Raises:
        InputError: if not.
    """
    path = Path(output_dir)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"output folder {path} cannot be written to ({error.strerror}); choose another") from None
    return path


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside the results; on success what it holds is renamed into ``folder``, else discarded.

    A folder in it takes the place of one of its name, whole.
    """
    new = not check_output_dir(folder).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written to ({error.strerror}); choose another") from None
    try:
        yield temporary
        for file in sorted(temporary.iterdir()):
            if file.is_dir() and (folder / file.name).is_dir():
                os.replace(folder / file.name, temporary / f".old-{file.name}")
            os.replace(file, folder / file.name)
    except OSError as error:
        raise InputError(f"results could not be written to {folder} ({error.strerror}); free space or move") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if new and not any(folder.iterdir()):
            folder.rmdir()


class SaveRegistration:
    """Post transform that finishes a pair and writes its files.

    Where the data have a "record", a dictionary, its entries go into transform.json as well: what else is worth keeping
    of a method's result, such as the few numbers that its field is made of.

    Args:
        output_dir: folder for the results of one pair, or of folders named after the pairs if ``subfolders``.
        bundle: folder of the bundle, whose name and version (configs/metadata.json) go into the records, and whose
            limits there into the verdict.
        weights: path of the weights, for their sha256; None leaves it out.
        network: if it has ``affine_matrix(image) -> (1, D+1, D+1)`` voxels, affine.tfm is written; if its attribute
            ``affine_only`` is true, that is the whole transform.
        subfolders: one folder a pair. A request of MONAI Label has its own in any case.
        report: also write report.html.
        inferer: instead of ``network``: its attribute of that name, which is the network that made the field.
        configuration: whose limits are used, see ``AddVerdict``; "" for the bundle's own.
    """

    def __init__(
        self,
        output_dir: str,
        bundle: str = "",
        weights: str | None = None,
        network: torch.nn.Module | None = None,
        subfolders: bool = False,
        report: bool = True,
        inferer: Any = None,
        configuration: str = "",
    ) -> None:
        self.output_dir, self.bundle, self.weights = Path(output_dir), bundle_name(bundle), weights
        self.subfolders, self.report, self.inferer, self._network = subfolders, report, inferer, network
        self.add_verdict = AddVerdict(bundle, configuration)

    @property
    def network(self) -> Any:
        """What made the field, if it is known."""
        return self._network if self.inferer is None else self.inferer.network

    @tells_client
    def __call__(self, data: Item) -> Item:
        """Write everything and add "metrics", "run" and "folder" to the data, and the answer to a request.

        What the verdict calls failed is written all the same, and beside it what is left without the method.
        """
        pair, request = data["pair"], is_request(data)
        if pair.plan.max_gb is not None:
            give_back_memory()  # of the network
        own = self.subfolders or request
        folder = self.output_dir / folder_name(data["name"]) if own else self.output_dir
        result = self.result(data)
        metrics, error_mm = self.measured(result, data)
        records, failed = self.records(result, data), metrics["verdict"]["level"] == "failed"
        with all_or_nothing(folder) as place:
            self._write_volumes(result, place)
            if failed:
                self.add_verdict.write_fallback(result, place)
            if error_mm is not None:
                write_image(place / "uncertainty_mm.nii.gz", error_mm.numpy(), data["pair"].fixed.frame, "float32")
            (place / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
            kept = {**records, **data.get("record", {}), "results": identify_all(place.iterdir())}
            (place / "transform.json").write_text(json.dumps(kept, indent=2) + "\n")
            run = self.run_facts(pair.started) | device_of(self.network) | pair.plan.facts()
            (place / "run.json").write_text(json.dumps(run, indent=2) + "\n")
            if self.report and not request:
                facts = {**records, **run}
                write_page(place / "report.html", result, metrics, facts, data["name"], error_mm)
        for name in () if failed else FALLBACK:  # of an earlier result in this folder
            (folder / name).unlink(missing_ok=True)
        tell(metrics["verdict"]["level"])
        if self.subfolders and pair.plan.max_gb is not None:
            pair.forget()  # the engine keeps this pair until the next one is read
        done = {**data, "metrics": metrics, "run": run, "folder": str(folder)}
        return answered(done, result, table(metrics)) if request else done

    def result(self, data: Item) -> Registration:
        """Return the registration of the native images that the data of one pair, with its "pred", stand for."""
        world = self._affine(data)
        whole = world is not None and "refine" not in data and getattr(self.network, "affine_only", False)
        ddf = as_batch(data["pred"], data["pair"].network.ndim)
        hold = data["pair"].plan.means.hold
        return Registration(data["pair"], ddf, world, whole, diffeomorphic="unfolded" in data, hold=hold)

    def measured(self, result: Registration, data: Item) -> tuple[dict[str, Any], Tensor | None]:
        """Return metrics.json and, where it was predicted, the expected error on the fixed grid, (*fixed) mm."""
        metrics, error_mm = measure(result), None
        if "uncertainty_mm" in data:
            error_mm, metrics["expected_error_mm"] = expected_error(result, data["uncertainty_mm"])
        if "refine" in data:
            metrics["refine"] = {key: value for key, value in data["refine"].items() if key != "seconds"}
        if "unfolded" in data:
            metrics["diffeomorphic"] = plain({"network_grid": data["unfolded"], **result.unfolding})
        return self.add_verdict(metrics, result, data.get("image")), error_mm

    def _affine(self, data: Item) -> Any:
        if not hasattr(self.network, "affine_matrix"):
            return None
        image = data["image"] if data["image"].ndim == data["pair"].network.ndim + 2 else data["image"][None]
        device = next(self.network.parameters()).device
        with torch.no_grad():
            return affine_world(data["pair"], self.network.affine_matrix(image.to(device)))

    @staticmethod
    def _write_volumes(result: Registration, place: Path) -> None:
        pair = result.pair
        frame = pair.fixed.frame
        write_image(place / "moved.nii.gz", result.moved()[0].numpy(), frame, "float32")
        if "moving" in pair.labels:
            write_image(
                place / "moved_label.nii.gz", result.moved_label()[0].numpy(), frame, pair.labels["moving"].dtype
            )
        write_field(place / "ddf.nii.gz", result.field)
        write_field(place / "inverse_ddf.nii.gz", result.inverse_field)
        if result.affine_world is not None:
            write_affine(place / "affine.tfm", result.affine_world)

    def records(self, result: Registration, data: Item) -> dict[str, Any]:
        """Return transform.json: frames, units, direction, versions and sha256; the same for the same input."""
        pair = result.pair
        sides = {"fixed": pair.fixed, "moving": pair.moving}
        return {
            "bundle": self.bundle,
            "direction": DIRECTION,
            "units": UNITS,
            **{side: describe_frame(image.frame) | identify(image.path) for side, image in sides.items()},
            "inputs": {role: identify(path) for role, path in sorted(pair.files.items())},
            "network_frame": describe_frame(pair.network),
            **self.of_pair(result),
            **self.origin(data),
        }

    @staticmethod
    def of_pair(result: Registration) -> dict[str, Any]:
        """Return what transform.json tells of one pair alone."""
        return {
            "initial_world_ras_mm": result.pair.initial.tolist(),
            "affine_world_ras_mm": None if result.affine_world is None else result.affine_world.tolist(),
            "inverse_residual_vox": round(result.inverse_residual_vox, 6),
        }

    def origin(self, data: Item) -> dict[str, Any]:
        """Return what a result was made with: options, sha256 of the weights, versions."""
        weights = model_file(data, self.weights) if self.weights and is_request(data) else self.weights
        return {
            "options": asked_options(),
            "weights": identify(weights) if weights and Path(weights).is_file() else None,
            "versions": library_versions(),
        }

    @staticmethod
    def run_facts(started: float) -> dict[str, Any]:
        """Return run.json."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        facts = {
            "seconds": round(time.perf_counter() - started, 2),
            "peak_memory_mb": round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6),
            "threads": torch.get_num_threads(),
        }
        if torch.cuda.is_available():
            facts["peak_cuda_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 0)
        return facts | fallback_facts()
