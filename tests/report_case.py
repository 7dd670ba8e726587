"""A small registered pair, and what reads the report made of it."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from shared_components.geometry import Frame
from shared_components.report import ReportData

SECTIONS = ["metrics", "images", "checkerboard", "difference", "grid", "displacement", "jacobian", "labels"]
SECTIONS += ["landmarks", "run"]


DPI = 50


def blob(shape: tuple[int, ...], shift: float = 0.0) -> np.ndarray:
    """A bright ball with a darker core, ``shift`` voxels off the middle of the first axis."""
    grid = np.indices(shape, dtype=np.float64)
    middle = (np.array(shape) - 1).reshape(-1, *(1,) * len(shape)) / 2
    middle = middle + np.eye(len(shape))[0].reshape(-1, *(1,) * len(shape)) * shift
    radius = np.sqrt((((grid - middle) / (np.array(shape).reshape(-1, *(1,) * len(shape)) / 3)) ** 2).sum(0))
    return ((radius < 1) * (80 + 40 * radius)).astype(np.float32)


def make_data(frame: Frame, full: bool = True, **changes: object) -> ReportData:
    """A pair whose moving image is the fixed one, two voxels along the first axis."""
    step = frame.matrix[:, 0] * 2
    ddf_mm = np.broadcast_to(step.reshape(-1, *(1,) * frame.ndim), (frame.ndim, *frame.shape)).astype(np.float32)
    fixed, moving = blob(frame.shape), blob(frame.shape, 2)
    values = {"title": "A pair", "frame": frame, "fixed": fixed, "moved_before": moving, "moved": fixed}
    values |= {"ddf_mm": ddf_mm, "run": {"bundle": "vtn_registration", "weights sha256": "0f" * 32}}
    values["metrics"] = {"dice": {"mean": {"before": 0.5, "after": 0.75}}, "tre": {"unit": "mm", "mean": 1.25}}
    if full:
        points = frame.to_mm(np.full((1, frame.ndim), 3.0) + np.arange(4)[:, None])
        values |= {
            "fixed_points_mm": points,
            "mapped_points_mm": points + step,
            "moving_points_mm": points + 1.5 * step,
        }
        values |= {"fixed_label": (fixed > 0) + (fixed > 100), "moved_label": (fixed > 0) + (fixed > 100)}
        values |= {"moved_label_before": (moving > 0) + (moving > 100)}
    return ReportData(**(values | changes))


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that elements close in order."""

    VOID = {"img", "meta", "link", "input", "br"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def sections(self) -> list[str]:
        return [str(section["id"]) for section in self.named("section")]


def pixels(png: bytes) -> np.ndarray:
    """Decode a picture to (rows, columns, 3) in 0 … 255."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
