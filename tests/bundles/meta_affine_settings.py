"""Write what configs of the learned search build: ``python meta_affine_settings.py BUNDLE ANSWERS.json NAME...``.

In a process of its own, because every bundle has a package ``scripts``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from monai.bundle import ConfigParser


def settings(bundle: Path, names: list[str]) -> dict[str, Any]:
    """Return the settings of a training by these configs."""
    parser = ConfigParser(ConfigParser.load_config_files([bundle / "configs" / f"{name}.json" for name in names]))
    parser["bundle_root"], parser["device"] = str(bundle), torch.device("cpu")
    knob = parser.get_parsed_content
    network, schedule = knob("network_def"), knob("train#handlers#0")
    schedule.optimizer = SimpleNamespace(param_groups=[{}])
    rates, phases = [], []
    batches = knob("pairs_per_epoch") // knob("batch_size")
    for epoch in range(1, knob("max_epochs") + 1):
        state = SimpleNamespace(epoch=epoch, epoch_length=batches, max_epochs=knob("max_epochs"))
        state.iteration = (epoch - 1) * batches + 1
        schedule.set_rate(SimpleNamespace(state=state))
        rates.append(schedule.optimizer.param_groups[0]["lr"])
        phases.append(schedule.phase(epoch)[0])
    trainable = [value.numel() for value in network.parameters() if value.requires_grad]
    data, held = knob("train#dataset"), knob("validate#dataset")
    return {
        "trainable": sum(trainable),
        "network": {"linear": network.linear, "output": network.output, "detach_grad": network.detach_grad},
        "size": knob("size"),
        "strides": network.strides,
        "rates": rates,
        "phases": phases,
        "batch_size": knob("batch_size"),
        "length": data.length,
        "degrees": data.rotation * 180 / torch.pi,
        "translation": data.translation,
        "others": [data.shear, data.across, data.pose, data.gamma],
        "noise": data.noise,
        "seeds": [data.seed, held.seed],
    }


def main(bundle: Path, target: Path, names: list[str]) -> None:
    """Write the settings."""
    sys.path.insert(0, str(bundle))
    target.write_text(json.dumps(settings(bundle, names)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
