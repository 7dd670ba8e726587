"""Do with a bundle what MONAI Label's BundleInferTask does, in its order: ``python label_steps.py BUNDLE PLAN.json``.

The plan has "options" (ids of inference.json), "weights" and "request"; "answer.npz" and "answer.json" are written to
its folder. The real server is in tests/test_monai_label_server.py; this needs nothing but MONAI.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser


def answer(bundle: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the dictionary that MONAI Label's writer gets."""
    sys.path.insert(0, str(bundle))
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    for key, value in {**plan["options"], "bundle_root": str(bundle), "device": "cpu"}.items():
        parser[key] = value
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(plan["weights"], weights_only=True))
    defaults = parser.get_parsed_content("displayable_configs")
    sys.path.remove(str(bundle))
    data = {**defaults, "model_filename": ["model.pt"], "model": bundle.name, **plan["request"]}
    data["image_path"] = data["image"]
    parser["displayable_configs"].update({key: data[key] for key in defaults})
    parser.parse()
    for step in steps(parser, bundle, "preprocessing"):
        data = step(data)
    with torch.no_grad():
        data["pred"] = steps(parser, bundle, "inferer")(data["image"][None], network)[0]
    for step in steps(parser, bundle, "postprocessing"):
        data = step(data)
    return data


def steps(parser: ConfigParser, bundle: Path, name: str) -> Any:
    """Return what a block of the configuration makes; each time the bundle's package is imported anew."""
    sys.path.insert(0, str(bundle))
    for module in [module for module in sys.modules if module.split(".")[0] == "scripts"]:
        del sys.modules[module]
    found = parser.get_parsed_content(name)
    sys.path.remove(str(bundle))
    return getattr(found, "transforms", found)


def main(bundle: Path, plan: Path) -> None:
    """Answer the request of the plan."""
    data = answer(bundle, json.loads(plan.read_text()))
    np.savez(plan.with_name("answer.npz"), pred=data["pred"], affine=data["image_meta_dict"]["original_affine"])
    told = {key: data[key] for key in ("result", "result_extension")}
    plan.with_name("answer.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
