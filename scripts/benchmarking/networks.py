"""A bundle's networks by themselves: built from its configuration, counted, and timed stage by stage."""

from __future__ import annotations

import inspect
import json
import pydoc
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from monai.bundle import ConfigParser
from register import CONFIG, bundle_code
from torch import Tensor, nn

from shared_components.engines import load_weights
from shared_components.errors import InputError

from .timing import Timing, interleave, synchronise

REST = "between the stages"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def configuration(root: Path, config: str | Path = CONFIG) -> ConfigParser:
    """Return a bundle's configuration, not yet resolved."""
    parser = ConfigParser()
    parser.read_config(str(root / config))
    parser["bundle_root"] = str(root)
    return parser


def grid_of(root: Path, parser: ConfigParser) -> tuple[int, ...]:
    """Return the grid of the shipped network: the knob "size", or else what metadata.json says of its input."""
    size = parser.get("size")
    if size is None:
        metadata = json.loads((root / "configs" / "metadata.json").read_text())
        size = metadata["network_data_format"]["inputs"]["image"]["spatial_shape"]
    return tuple(size)


def shipped_network(root: Path, device: torch.device, size: Sequence[int] | None = None) -> tuple[nn.Module, Tensor]:
    """Return the network of inference.json and an image for it; with its weights unless another size is asked for."""
    parser = configuration(root)
    if size is not None:
        parser["size"] = list(size)
    shape = tuple(size) if size is not None else grid_of(root, parser)
    with bundle_code(root), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = parser.get_parsed_content("network_def")
    if size is None:
        load_weights(network, parser.get_parsed_content("weights"))
    return network.to(device).eval(), smooth_pair(shape, device)


def paper_network(root: Path, device: torch.device) -> tuple[nn.Module, Tensor]:
    """Return the paper's network, which is what the class builds by default, with random weights, and an image for it.

    Layers that start at zero get small random weights, so that fields are no special case.
    """
    parser = configuration(root)
    target = parser["network_def"]["_target_"]
    with bundle_code(root), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = pydoc.locate(target)
        if made is None:
            raise InputError(f"{root / CONFIG} names {target} as its network, which cannot be imported")
        network = made()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            if not weight.any():
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.003)
    shape = getattr(network, "image_size", None) or grid_of(root, parser)
    return network.to(device).eval(), smooth_pair(shape, device)


def knobs(root: Path) -> Collection[str]:
    """Return the arguments that a bundle's network takes."""
    with bundle_code(root):
        made = pydoc.locate(configuration(root)["network_def"]["_target_"])
    return inspect.signature(made).parameters if made is not None else ()


def smooth_pair(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return (1, 2, *shape) in [0, 1]: two smooth images that differ."""
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
    coarse = torch.rand(1, 2, *(min(8, n) for n in shape), generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, size=tuple(shape), mode=mode, align_corners=True).to(device)


def flops(network: nn.Module, *inputs: Tensor) -> dict[str, float]:
    """Return the floating-point operations of each convolution and linear layer in one forward pass, by layer name.

    A multiply-add is two operations; what a layer does by a faster algorithm counts as the layer. Everything else
    (activations, warps) is left out: it is bound by memory.
    """
    counted: dict[str, float] = {}
    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)):

            def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                grid = inputs[0] if isinstance(layer, _TRANSPOSED) else output
                places = grid.numel() // grid.shape[-1 if isinstance(layer, nn.Linear) else 1]
                counted[name] = counted.get(name, 0.0) + 2.0 * places * layer.weight.numel()

            hooks.append(layer.register_forward_hook(count))
    try:
        with torch.no_grad():
            network(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return counted


def stages(network: nn.Module) -> dict[str, nn.Module]:
    """Return the parts that a network calls one after the other: its children, lists taken apart."""
    found: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            found |= {f"{name}.{index}": part for index, part in enumerate(child)}
        else:
            found[name] = child
    return found


@contextmanager
def _stopwatch(network: nn.Module, device: torch.device) -> Iterator[dict[str, float]]:
    """Add up the seconds that each stage takes while this is open."""
    spent: dict[str, float] = {}
    hooks = []
    for name, part in stages(network).items():
        begins: list[float] = []

        def before(module: nn.Module, inputs: object, begins: list[float] = begins) -> None:
            synchronise(device)
            begins.append(time.perf_counter())

        def after(
            module: nn.Module, inputs: object, output: object, begins: list[float] = begins, name: str = name
        ) -> None:
            synchronise(device)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begins.pop()

        hooks += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def time_stages(network: nn.Module, image: Tensor, repeats: int = 5, warm_up: int = 1) -> dict[str, Timing]:
    """Return the seconds of each stage, and of what the network does between them: warps, compositions."""
    rounds: dict[str, list[float]] = {}
    with _stopwatch(network, image.device) as spent, torch.no_grad():
        for turn in range(-warm_up, repeats):
            spent.clear()
            whole = interleave({"whole": lambda: network(image)}, 1, 0, image.device)["whole"].seconds
            if turn < 0:
                continue
            for name, seconds in (spent | {REST: whole - sum(spent.values())}).items():
                rounds.setdefault(name, []).append(seconds)
    return {name: Timing(tuple(samples)) for name, samples in rounds.items()}
