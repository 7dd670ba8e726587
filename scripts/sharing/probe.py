"""Ask MONAI what it thinks of one bundle: ``python probe.py BUNDLE DATALIST ANSWERS.json [SCHEMA.json]``.

In a process of its own, because every bundle has a package ``scripts`` and the second one in a process would get the
code of the first. Beside the bundle's own code it needs ``tiny.py`` only, so that it can ask about a release where this
repository is not.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import (
    ConfigParser,
    ConfigWorkflow,
    ckpt_export,
    create_workflow,
    load,
    verify_metadata,
    verify_net_in_out,
)
from tiny import config_of, tiny

BASES = {"train": "train", "inference": "infer"}


class Probe:
    """The questions; each public method is one, and its return value, or the fault it raised, is the answer."""

    def __init__(self, bundle: Path, datalist: Path, temporary: Path, schema: Path | None = None) -> None:
        self._bundle, self._configs, self._datalist = bundle, bundle / "configs", datalist
        self._temporary, self._schema = temporary, schema
        self._common = {
            "config_file": str(self._configs / "inference.json"),
            "meta_file": str(self._configs / "metadata.json"),
            "bundle_root": str(bundle),
        }

    def net_in_out(self) -> None:
        """Does the network take and give what metadata.json says?"""
        verify_net_in_out(net_id="network_def", device="cpu", **self._common)

    def parameters(self) -> int:
        """How many numbers are learned?"""
        return sum(value.numel() for value in self._network().parameters())

    def properties(self) -> dict[str, list[str]]:
        """Which properties does MONAI miss, per config and per mixin on top of its base?"""
        names = {path.stem for path in self._configs.glob("*.json")} - {"metadata", *BASES}
        mixins = [["inference" if name.startswith("inference") else "train", name] for name in sorted(names)]
        return {"+".join(group): self._missing(group) for group in [["train"], ["inference"], *mixins]}

    def _missing(self, group: list[str]) -> list[str]:
        base = group[0]
        files = [str(self._configs / f"{name}.json") for name in group]
        options = tiny(self._bundle, base) | {"bundle_root": str(self._bundle), "datalist": str(self._datalist)}
        options["output_dir"] = str(self._temporary)
        distributed = group[-1].startswith("multi_gpu")
        if distributed:  # its network cannot be built without a process group
            options["backend"], os.environ["MASTER_PORT"] = "gloo", str(_free_port())
        init = "initialize" if distributed else "nothing"
        workflow = ConfigWorkflow(files, workflow_type=BASES[base], init_id=init, **options)
        workflow.initialize()
        found = list(workflow.check_properties())
        if distributed:
            workflow.finalize()
        return found

    def weights(self) -> dict[str, Any]:
        """Is models/model.pt a plain state dict of this network? Returns its size in MB and what kind of values."""
        path = self._bundle / "models" / "model.pt"
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._network().load_state_dict(state, strict=True)
        plain = all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items())
        finite = all(bool(torch.isfinite(value).all()) for value in state.values())
        return {"mb": path.stat().st_size / 1e6, "plain": plain, "finite": finite}

    def load(self) -> bool:
        """Does monai.bundle.load give the network with the shipped weights?"""
        path = self._bundle / "models" / "model.pt"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing")
        network = load(self._bundle.name, bundle_dir=str(self._bundle.parent), workflow_type="train")
        state = torch.load(path, map_location="cpu", weights_only=True)
        return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())

    def trace(self) -> dict[str, float]:
        """Largest difference in voxels between the exported network and the eager one, and how far they move."""
        network, weights = self._moving_network()
        target = self._temporary / "model.ts"
        options = {"use_trace": True, "converter_kwargs": {"check_trace": False}}  # checked here, on another image
        ckpt_export("network_def", filepath=str(target), ckpt_file=str(weights), **options, **self._common)
        entry = config_of(self._bundle, "metadata")["network_data_format"]["inputs"]["image"]
        image = smooth_pair(entry["spatial_shape"])
        with torch.no_grad():
            eager, traced = network(image), torch.jit.load(str(target))(image)
        return {"difference": float((eager - traced).abs().max()), "motion": float(eager.abs().max())}

    def script(self) -> bool:
        """Can the network be exported by scripting, as the model zoo's own check does?"""
        target = self._temporary / "scripted.ts"
        _, weights = self._moving_network()
        try:
            ckpt_export("network_def", filepath=str(target), ckpt_file=str(weights), **self._common)
        except Exception as error:  # whatever torch.jit objects to
            print(f"not scriptable: {str(error).strip().splitlines()[0]}")
            return False
        return target.is_file()

    def workflows(self) -> dict[str, list[str]]:
        """Do training, evaluation and inference run on tiny images? Returns properties that MONAI misses in each."""
        train = {"datalist": str(self._datalist), "output_dir": str(self._temporary / "trained")}
        weights = {"weights": str(self._temporary / "trained" / "model.pt")}
        (pair,) = json.loads(self._datalist.read_text())["test"]
        images = {key: pair[key] for key in ("fixed", "moving", "fixed_label", "moving_label")}
        place = {"output_dir": str(self._temporary / "registered")}
        return {
            "train": self._run(["train"], train),
            "train+evaluate": self._run(["train", "evaluate"], {**train, **weights}),
            "inference": self._run(["inference"], {**images, **weights, **place}),
        }

    def _run(self, group: list[str], options: dict[str, str]) -> list[str]:
        files = [str(self._configs / f"{name}.json") for name in group]
        options = tiny(self._bundle, group[0]) | {"bundle_root": str(self._bundle), "device": "cpu"} | options
        workflow = create_workflow(config_file=files, workflow_type=BASES[group[0]], **options)  # initialises it too
        found = list(workflow.check_properties())
        workflow.run()
        workflow.finalize()
        return found

    def schema(self) -> bool | None:
        """Do the metadata keep the schema, by MONAI's own check? None without it, which MONAI would download."""
        if self._schema is None:
            return None
        verify_metadata(meta_file=str(self._configs / "metadata.json"), filepath=str(self._schema))
        return True

    def logging(self) -> None:
        """Does MONAI accept the logging configuration? Since 1.6.1 it refuses what could run code."""
        config, settings = self._common["config_file"], str(self._configs / "logging.conf")
        ConfigWorkflow(config, workflow_type="infer", logging_file=settings, bundle_root=str(self._bundle))

    def _network(self) -> torch.nn.Module:
        parser = ConfigParser()
        parser.read_config(str(self._configs / "inference.json"))
        parser["bundle_root"] = str(self._bundle)
        return parser.get_parsed_content("network_def").eval()

    def _moving_network(self) -> tuple[torch.nn.Module, Path]:
        """A network that moves things: with the shipped weights, or noise on the first ones where there are none."""
        network, path = self._network(), self._bundle / "models" / "model.pt"
        if path.is_file():
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
            return network, path
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for value in network.parameters():
                value += 3e-3 * torch.randn(value.shape, generator=generator)
        path = self._temporary / "noisy.pt"
        torch.save(network.state_dict(), path)
        return network, path


def ask(question: Callable[[], Any]) -> dict[str, Any]:
    """Return {"answer": ...} or {"fault": sentence}."""
    torch.manual_seed(0)
    try:
        return {"answer": question()}
    except Exception as error:  # every fault is an answer
        return {"fault": f"{type(error).__name__}: {error}"}


def smooth_pair(shape: list[int], seed: int = 5) -> torch.Tensor:
    """Two images that differ, as smooth as real ones: on noise an iterative method amplifies the last digits."""
    mode = {2: "bilinear", 3: "trilinear"}[len(shape)]
    coarse = torch.rand(1, 2, *(min(8, n) for n in shape), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=tuple(shape), mode=mode, align_corners=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main(bundle: Path, datalist: Path, target: Path, schema: Path | None = None) -> None:
    """Put all questions and write the answers."""
    sys.path.insert(0, str(bundle))
    probe = Probe(bundle, datalist, target.parent, schema)
    questions = [name for name in vars(Probe) if not name.startswith("_")]
    target.write_text(json.dumps({name: ask(getattr(probe, name)) for name in questions}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
