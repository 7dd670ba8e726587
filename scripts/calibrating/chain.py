"""A bundle's own pieces, put together as its inference.json does, with the truth at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from register import config_files

from shared_components.engines import load_weights
from shared_components.errors import InputError
from shared_components.pairs.datasets import Item
from shared_components.uncertainty import PredictUncertainty
from shared_components.uncertainty.fit import Measured, known_items, known_pairs, signs_and_errors


class Chain:
    """Preprocessing, network and post transforms of a bundle; what they deliver is judged.

    Args:
        root: folder of the bundle.
        config: configuration on top of its inference.json, or None.
        changes: ids of the configuration with other values.

    Raises:
        InputError: a bundle that predicts no errors.
    """

    def __init__(self, root: Path, config: str | None, changes: dict[str, Any]) -> None:
        parser = ConfigParser()
        parser.read_config([str(file) for file in config_files(root, config)])
        if "calibration" not in parser.config:
            raise InputError(
                f"{root.name} has no 'calibration' in its inference.json; give a bundle that predicts errors"
            )
        parser.update({"bundle_root": str(root), "calibration": None} | changes)
        parser.parse()
        self.network = parser.get_parsed_content("network")
        for item in parser.config["initialize"]:
            if isinstance(item, dict) and item["_target_"].endswith("load_weights"):
                to_load = parser.get_parsed_content(item["network"][1:])
                load_weights(to_load, parser.get_parsed_content("weights"))
        self.network.eval()
        self.preprocessing = parser.get_parsed_content("preprocessing")
        self.inferer = parser.get_parsed_content("inferer")
        steps = parser.get_parsed_content("postprocessing").transforms
        self.predict = next(step for step in steps if isinstance(step, PredictUncertainty))
        self.before = steps[: steps.index(self.predict)]

    def register(self, data: Item) -> Item:
        """Return the data of a pair with "pred", refined and unfolded if the configuration says so."""
        device = next(self.network.parameters()).device
        data = {**data, "pred": self.inferer(data["image"][None].to(device), self.network)[0]}
        for step in self.before:
            data = step(data)
        return data

    def measure(self, datalist: str, section: str, every: int) -> list[Measured]:
        """Return signs and true errors of the known pairs of a section."""
        pairs = known_pairs(known_items(datalist, section), self.preprocessing, every)
        return signs_and_errors(pairs, self.register, self.predict.signs)
