"""Fit what turns a network's signs of error into an expected error in mm, on series whose motion is known.

The signs are weighed and bent so that the expected error is right on average over the validation series; the plot and
the numbers are of the test series, whose subjects the fit has not seen. The numbers belong into "calibration" of the
bundle's inference.json, which knows the same ids "flips" and "uncertainty" (see shared_components/uncertainty).

example:
  python -m shared_components.synth.thorax --output_dir SET
  calibrate.py r2n2 --datalist SET/datalist.json --output_dir out

exit codes: 0 done; 2 the input is at fault, the last line says what to do; 1 anything else.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from register import bundle_code, config_files, find_bundle, found_bundles, setting

from shared_components.cli import quiet, run_main
from shared_components.errors import InputError
from shared_components.images import atomic_path


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("bundle", metavar="BUNDLE", help=f"one of {', '.join(found_bundles())}, or a bundle's folder")
    parser.add_argument("--datalist", required=True, metavar="JSON", help="of a set made by shared_components.synth")
    parser.add_argument("--output_dir", required=True, help="for calibration.json and calibration.png")
    parser.add_argument("--every", type=int, default=3, metavar="N", help="take every N-th frame; default: 3")
    parser.add_argument("--weights", metavar="FILE", help="default: the bundle's models/model.pt")
    parser.add_argument("--device", default="auto", help="auto (default), cpu or cuda:0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any id of the configuration")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of failures")
    return parser.parse_args(argv)


def parts(options: argparse.Namespace, root: Path) -> tuple[Any, Any]:
    """Return the bundle's ``PredictUncertainty`` without a calibration, weights loaded, and its preprocessing."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config([str(file) for file in config_files(root, None)])
    if "calibration" not in parser.config:
        raise InputError(f"{root.name} has no 'calibration' in its inference.json; give a bundle that predicts errors")
    changed = {"bundle_root": str(root), "calibration": None, "device#name": options.device}
    changed |= {"weights": str(Path(options.weights).resolve())} if options.weights else {}
    parser.update(changed | dict(setting(text) for text in options.set))
    parser.parse()
    from shared_components.engines import load_weights
    from shared_components.uncertainty import PredictUncertainty

    network = parser.get_parsed_content("network")
    load_weights(network, parser.get_parsed_content("weights"))
    steps = parser.get_parsed_content("postprocessing").transforms
    predict = next(step for step in steps if isinstance(step, PredictUncertainty))
    predict.network = network.eval()
    return predict, parser.get_parsed_content("preprocessing")


def calibrate(options: argparse.Namespace) -> None:
    """Fit on "validation", tell of "test"."""
    if options.every < 1:
        raise InputError(f"--every {options.every} is not possible; give 1 or more")
    root, output = find_bundle(options.bundle), Path(options.output_dir)
    with warnings.catch_warnings(), bundle_code(root), quiet():
        warnings.simplefilter("ignore")
        from shared_components.uncertainty import Calibration, draw_calibration, fit_calibration, spearman
        from shared_components.uncertainty.fit import known_series, signs_and_errors

        predict, preprocessing = parts(options, root)
        sets = {name: known_series(options.datalist, name) for name in ("validation", "test")}
        found = {name: signs_and_errors(predict, preprocessing, paths, options.every) for name, paths in sets.items()}
    numbers = fit_calibration(*found["validation"]).numbers()
    signs, errors = found["test"]
    import torch

    expected = Calibration.of(numbers)({name: torch.from_numpy(values) for name, values in signs.items()}).numpy()
    told = draw_calibration(output / "calibration.png", expected, errors, f"{root.name}, series the fit has not seen")
    told |= {f"rho_{name}": spearman(values, errors) for name, values in signs.items()}
    told = {name: round(value, 4) for name, value in told.items()}
    with atomic_path(output / "calibration.json") as temporary:
        temporary.write_text(json.dumps({"calibration": numbers, "test": told, "pixels": len(errors)}, indent=2) + "\n")
    print(json.dumps(told))
    print(f'"calibration": {json.dumps(numbers)},')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = arguments(argv)
    return run_main(lambda: calibrate(options), options.verbose)


if __name__ == "__main__":
    sys.exit(main())
