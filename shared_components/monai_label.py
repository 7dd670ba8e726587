"""What MONAI Label asks of a bundle, and how it wants to be answered.

Its app ``monaibundle`` takes preprocessing, inferer and postprocessing from configs/inference.json and runs them on
one dictionary: {"image": path of the image that the client shows, "model": name, ...}, with the client's ``params``
and, for what the client left out, the values under ``displayable_configs``. It returns "pred" as a file, on the grid
that "image_meta_dict" describes, and "result" as JSON. Here that image is the fixed one; ``params`` name the moving.

MONAI Label itself is never imported: what is needed of it is in the dictionary, in the environment and in FastAPI.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .geometry import Frame
from .images.files import stem_of
from .images.formats import ITK_SUFFIXES, NIBABEL_SUFFIXES
from .images.pictures import SUFFIXES as PICTURE_SUFFIXES

if TYPE_CHECKING:
    from .results.registration import Registration

Item = dict[str, Any]
WANTED = ("auto", "moved_label", "moved")
STUDIES = "MONAI_LABEL_STUDIES"  # the server puts its settings into the environment
_ROLES = {"moving": "moving image", "moving_label": "moving label"}
_SUFFIXES = (*NIBABEL_SUFFIXES, *ITK_SUFFIXES, *PICTURE_SUFFIXES)
_INTEGERS = (np.uint8, np.int16, np.uint16)  # what ITK writes and every viewer takes for a label map


def is_request(item: Mapping[str, Any]) -> bool:
    """Tell whether an item is a request of MONAI Label."""
    return "model" in item and "image_path" in item


def asked_pair(item: Item) -> Item:
    """Return a request with the pair that it names: "fixed", "moving" and, where there is one, "moving_label".

    "moving" is a path on the server, or a name as in the client's list of images, which is the file's without suffix;
    it is looked up beside the fixed image and in the server's studies. "moving_label" likewise; if it is empty, the
    final label that MONAI Label keeps of the moving image is taken where there is one. "wanted" is one of ``WANTED``.

    Raises:
        InputError: no moving image, no such file, or another word for "wanted".
    """
    fixed = Path(item["image"])
    folders = [fixed.parent, *([Path(os.environ[STUDIES])] if os.environ.get(STUDIES) else [])]
    finals = [folder / "labels" / "final" for folder in folders]
    moving = _find(item, "moving", folders)
    if moving is None:
        raise InputError(
            "the moving image is missing; give its path on the server, or its name in the list of images, as "
            "'moving' in the parameters (in 3D Slicer: Options of the model)"
        )
    label = _find(item, "moving_label", [*finals, *folders]) or _named(stem_of(moving), finals)
    wanted = first(item.get("wanted")) or WANTED[0]
    if wanted not in WANTED:
        raise InputError(f"'wanted' must be one of {', '.join(WANTED)}, not '{wanted}'")
    if wanted == "moved_label" and label is None:
        raise InputError(f"there is no label of the moving image {moving} to be moved; give one as 'moving_label'")
    label = None if wanted == "moved" else label
    pair = {"fixed": str(fixed), "moving": str(moving), "moving_label": label and str(label), "name": None}
    return {**item, **pair, "refine_steps": _steps(item.get("refine_steps"))}


def _steps(given: Any) -> int | None:
    """Return how often to refine; clients send what was typed, and the empty string for 0."""
    if given is None or str(given).strip() == "":
        return None
    try:
        steps = int(given)
    except (TypeError, ValueError):
        steps = -1
    if steps < 0:
        raise InputError(f"'refine_steps' must be a whole number from 0 on, not '{given}'")
    return steps


def _find(item: Item, key: str, folders: Sequence[Path]) -> Path | None:
    given = str(item.get(key) or "").strip()
    if not given:
        return None
    path = Path(given).expanduser()
    found = path if path.is_file() else None if path.is_absolute() else _named(given, folders)
    if found is None:
        where = "there" if path.is_absolute() else f"in {' or '.join(dict.fromkeys(map(str, folders)))}"
        raise InputError(
            f"{_ROLES[key]} '{given}' is not {where}; give a path on the server or a name in the list of images"
        )
    return found


def _named(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the file of that name, with or without a suffix, that is found first."""
    candidates = (folder / f"{name}{suffix}" for folder in folders for suffix in ("", *_SUFFIXES))
    return next((path for path in candidates if path.is_file()), None)


def first(value: Any) -> Any:
    """Return the first of a list, which is how MONAI Label hands on a choice that the client did not make."""
    return value[0] if isinstance(value, (list, tuple)) and value else value


def model_file(item: Mapping[str, Any], weights: str | Path) -> Path:
    """Return the weights that a request runs with: the client may name another file in the folder of ``weights``."""
    chosen = Path(weights).with_name(Path(str(first(item.get("model_filename")) or "")).name or Path(weights).name)
    return chosen if chosen.is_file() else Path(weights)


def answered(data: Item, result: Registration, rows: Mapping[str, Any]) -> Item:
    """Return the data with the answer: "pred", the moved label or image on the fixed grid, and "result" for the client.

    Args:
        data: a finished registration of a request, with the "folder" of its files.
        result: that registration.
        rows: its numbers, {name: {"before", "after", "unit"}}.

    Returns:
        with "pred" (1, *fixed), in 2-D (1, *fixed, 1), because MONAI Label gives only volumes a place in the world.
    """
    label = result.moved_label()
    image = result.moved() if label is None else label
    values, frame = image.numpy(), result.pair.fixed.frame
    values = values.astype(np.float32) if label is None else _small(values)
    shape, affine = frame.shape, _affine_3d(frame)
    if frame.ndim == 2:
        values, shape = values[..., None], (*shape, 1)
    folder = Path(data["folder"])
    told = {
        "returned": "moved" if label is None else "moved_label",
        "folder": str(folder),
        "transform": str(folder / "ddf.nii.gz"),
        "inverse_transform": str(folder / "inverse_ddf.nii.gz"),
        "numbers": {name: dict(row) for name, row in rows.items()},
    }
    return {
        **data,
        "pred": values,
        "image_meta_dict": {"spatial_shape": np.asarray(shape), "original_affine": affine},
        "result": told,
        "result_extension": data.get("result_extension") or ".nii.gz",
    }


def _small(values: np.ndarray) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    fits = [kind for kind in _INTEGERS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max]
    return values.astype(fits[0] if fits else np.float32)


def _affine_3d(frame: Frame) -> np.ndarray:
    affine, axes = np.eye(4), [*range(frame.ndim), 3]
    affine[np.ix_(axes, axes)] = frame.affine
    return affine


def tells_client(call: Callable[[Any, Item], Item]) -> Callable[[Any, Item], Item]:
    """Decorate ``__call__`` of a transform: on a request, the client gets the sentence of an InputError (status 400).

    Of any other exception MONAI Label tells the client "Internal Server Error" and nothing else.
    """

    @wraps(call)
    def telling(self: Any, item: Item) -> Item:
        try:
            return call(self, item)
        except InputError as error:
            fastapi = sys.modules.get("fastapi")
            if fastapi is None or not is_request(item):
                raise
            raise fastapi.HTTPException(status_code=400, detail=str(error)) from error

    return telling
