"""The numbers of a calibration: found, put into the bundle's configuration, and told on docs/uncertainty.md."""

from __future__ import annotations

import json
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from register import CONFIG

from shared_components.errors import InputError
from shared_components.images.files import atomic_path
from shared_components.uncertainty import Calibration, draw_calibration, fit_calibration, spearman
from shared_components.uncertainty.fit import Measured, pooled

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
KINDS = {  # by bundle and configuration on top
    ("avsm_registration", None): "brains",
    ("meta_affine_registration", None): "flat_images",
    ("meta_affine_registration", "inference_3d"): "turned_brains",
    ("meta_affine_registration", "inference_levels"): "flat_images",
    ("r2n2_registration", None): "thorax",
    ("suits_registration", None): "abdomens",
    ("suits_registration", "inference_brain"): "two_contrasts",
    ("suits_registration", "inference_mind"): "abdomens",
    ("vtn_registration", None): "brains",
}
HEAD = """\
| bundle | pairs | ρ in a pair: mean | worst | ρ of all voxels | ρ of pairs | error [mm] | expected [mm] | before [mm] |
|---|---|---:|---:|---:|---:|---:|---:|---:|
"""


def kind_of(bundle: str, config: str | None) -> str:
    """Return the kind of set that a bundle is calibrated on.

    Raises:
        InputError: none is known.
    """
    kind = KINDS.get((bundle, config and config.removesuffix(".json")))
    if kind is None:
        raise InputError(f"no set is known for {bundle}; give a --kind, or pairs with true fields by --datalist")
    return kind


def tell(parts: Mapping[str, Sequence[Measured]], title: str, command: str, picture: Path, name: str) -> dict[str, Any]:
    """Fit on "validation", draw "test" and return everything that is worth keeping."""
    numbers = fit_calibration(*pooled(parts["validation"])).numbers()
    known = Calibration.of(numbers)

    def expected(signs: Mapping[str, np.ndarray]) -> np.ndarray:
        return known({name: torch.from_numpy(values) for name, values in signs.items()}).numpy()

    pairs = [_row(one, expected(one.signs)) for one in parts["test"]]
    signs, errors = pooled(parts["test"])
    drawn = draw_calibration(picture, expected(signs), errors, f"{name}\n{textwrap.fill(title, 52)}")
    told = {f"rho_{sign}": spearman(values, errors) for sign, values in signs.items()}
    rhos, means = ([row[key] for row in pairs] for key in ("rho", "expected_mm"))
    told = drawn | {
        "pairs": len(pairs),
        "rho_mean": float(np.mean(rhos)),
        "rho_worst": float(np.min(rhos)),
        "rho_pairs": spearman(np.array(means), np.array([row["error_mm"] for row in pairs])),
        "mean_expected_mm": float(np.mean(means)),
        "mean_before_mm": float(np.mean([row["before_mm"] for row in pairs])),
        **told,
    }
    short = {key: round(value, 4) for key, value in told.items()}
    shown = {"command": command, "title": title, "fitted_on": len(parts["validation"]), "pixels": len(errors)}
    return {**shown, "calibration": numbers, "test": short, "rows": pairs}


def _row(one: Measured, expected_mm: np.ndarray) -> dict[str, Any]:
    numbers = {
        "rho": float(np.nan_to_num(spearman(expected_mm, one.errors_mm))),  # who always says the same tells nothing: 0
        "error_mm": float(one.errors_mm.mean()),
        "expected_mm": float(expected_mm.mean()),
        "before_mm": one.before_mm,
    }
    return {"pair": one.name, **{key: round(value, 3) for key, value in numbers.items()}}


def publish(root: Path, config: str | None, found: Mapping[str, Any], picture: Path) -> None:
    """Put the numbers into the configuration, the rest into docs/uncertainty, and write the page's table again."""
    file = root / CONFIG if config is None else root / "configs" / f"{config.removesuffix('.json')}.json"
    set_calibration(file, found["calibration"])
    name = root.name.removesuffix("_registration") + (f"_{file.stem.removeprefix('inference_')}" if config else "")
    folder = DOCS / "uncertainty"
    folder.mkdir(exist_ok=True)
    with atomic_path(folder / f"{name}.png") as temporary:
        shutil.copyfile(picture, temporary)
    with atomic_path(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_page(DOCS / "uncertainty.md", folder)


def set_calibration(file: Path, numbers: Mapping[str, Any]) -> None:
    """Replace the entry "calibration" of a configuration, and nothing else of its text.

    Raises:
        InputError: it has none.
    """
    text = file.read_text()
    at = re.search(r'^( *).*"calibration": ', text, re.MULTILINE)
    if at is None:
        raise InputError(f"{file} has no 'calibration' to be replaced; add \"calibration\": null")
    _, end = json.JSONDecoder().raw_decode(text, at.end())
    indent = at.group(1) + "    "
    entries = [f'"{key}": {json.dumps(value)}' for key, value in numbers.items()]
    short = {"width": 118, "initial_indent": indent, "subsequent_indent": indent + "    ", "break_on_hyphens": False}
    lines = ",\n".join(textwrap.fill(entry, break_long_words=False, **short) for entry in entries)
    with atomic_path(file) as temporary:
        temporary.write_text(f"{text[: at.end()]}{{\n{lines}}}{text[end:]}")


def write_page(page: Path, folder: Path) -> None:
    """Put the table of all docs/uncertainty/*.json between the markers of the page."""
    rows, commands = [], []
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text())
        test = found["test"]
        numbers = [test[key] for key in ("rho_mean", "rho_worst", "rho", "rho_pairs")]
        lengths = [test[key] for key in ("mean_error_mm", "mean_expected_mm", "mean_before_mm")]
        cells = [f"[{file.stem}](uncertainty/{file.stem}.png)", f"{test['pairs']}: {found['title']}"]
        rows.append(" | ".join([*cells, *(f"{value:.2f}" for value in (*numbers, *lengths))]))
        commands.append(found["command"])
    table = HEAD + "".join(f"| {row} |\n" for row in rows)
    before, rest = page.read_text().split(BEGIN)
    content = f"{BEGIN}\n{table}\n```bash\n" + "\n".join(commands) + f"\n```\n{END}"
    with atomic_path(page) as temporary:
        temporary.write_text(before + content + rest.split(END)[1])
