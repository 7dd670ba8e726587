"""Export a bundle's network in every form and compare it with the network itself.

``python exports.py BUNDLE ANSWERS.json [FIXED MOVING]``, in a process of its own because every bundle has a package
``scripts``. The network is exported on one pair of images and compared on another: the two files, as the bundle's own
preprocessing brings them to the network, or two smooth images that differ.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from monai.bundle import ConfigParser
from probe import ask, smooth_pair
from torch import Tensor, nn

Exported = Callable[[Tensor], Tensor]


def torchscript(network: nn.Module, image: Tensor, folder: Path) -> Exported:
    """By tracing, through a file."""
    traced = torch.jit.trace(network, image, check_trace=False)
    path = folder / "model.ts"
    traced.save(str(path))
    return torch.jit.load(str(path))


def torch_export(network: nn.Module, image: Tensor, folder: Path) -> Exported:
    """By torch.export, through a file."""
    path = folder / "model.pt2"
    torch.export.save(torch.export.export(network, (image,), strict=False), str(path))
    return torch.export.load(str(path)).module()


def onnx(network: nn.Module, image: Tensor, folder: Path) -> Exported:
    """By torch.onnx from the graph of torch.export, run by ONNX Runtime."""
    import onnxruntime  # optional: pip install onnx onnxscript onnxruntime

    path = folder / "model.onnx"
    torch.onnx.export(network, (image,), str(path), dynamo=True, opset_version=20, external_data=False, verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = [entry.name for entry in session.get_inputs()]
    return lambda other: torch.from_numpy(session.run(None, {name: other.numpy()})[0])


FORMS = {form.__name__: form for form in (torchscript, torch_export, onnx)}


def network_of(bundle: Path, changes: dict[str, Any]) -> tuple[nn.Module, ConfigParser]:
    """Return the network with the shipped weights, or, where knobs change it, with noise on the first ones."""
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    for key, value in {**changes, "bundle_root": str(bundle), "device": "cpu"}.items():
        parser[key] = value
    network = parser.get_parsed_content("network_def").eval()
    if not changes:
        network.load_state_dict(torch.load(bundle / "models" / "model.pt", map_location="cpu", weights_only=True))
        return network, parser
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in network.parameters():
            value += 3e-2 * torch.randn(value.shape, generator=generator)
    return network, parser


def unsteadiness(network: nn.Module, image: Tensor) -> float:
    """Return by how many voxels the network's own result changes when its images change in their last digit."""
    generator = torch.Generator().manual_seed(6)
    result = network(image)
    last = torch.finfo(image.dtype).eps * image
    changed = [network(image + last * torch.randn(image.shape, generator=generator)) for _ in range(10)]
    return max(float((result - other).abs().max()) for other in changed)


def compare(network: nn.Module, form: Callable[..., Exported], images: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the largest difference in voxels, how far the network moves things, seconds of the export, size in MB.

    "rounding" is what the network itself differs by where its images do in their last digit, see ``unsteadiness``.
    """
    begin = time.perf_counter()
    with TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = form(network, images[0], Path(folder))
        seconds = time.perf_counter() - begin
        mb = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6
        eager, other = network(images[1]), exported(images[1])
        difference, motion = float((eager - other).abs().max()), float(eager.abs().max())
        rounding = unsteadiness(network, images[1])
    found = {"difference": difference, "motion": motion, "rounding": rounding}
    return {**found, "seconds": round(seconds, 1), "mb": round(mb, 2)}


def pairs(parser: ConfigParser, files: list[str]) -> tuple[Tensor, Tensor]:
    """Return two images (1, 2, *size): to export on, and to compare on."""
    size = parser.get_parsed_content("size")
    if not files:
        return smooth_pair(size, 4), smooth_pair(size, 5)
    image = parser.get_parsed_content("preprocessing")(dict(zip(("fixed", "moving"), files, strict=True)))["image"]
    return torch.rand(1, *image.shape, generator=torch.Generator().manual_seed(4)), image[None]


def main(bundle: Path, target: Path, *files: str, changes: dict[str, Any] | None = None) -> None:
    """Try all forms and write {form: {"answer": ...} or {"fault": sentence}}."""
    sys.path.insert(0, str(bundle))
    network, parser = network_of(bundle, changes or {})
    images = pairs(parser, list(files))
    found = {name: ask(lambda form=form: compare(network, form, images)) for name, form in FORMS.items()}
    target.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
