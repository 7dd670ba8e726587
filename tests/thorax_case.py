"""Small thoraces for the tests: one slice of every kind, at 64 x 64."""

from __future__ import annotations

from functools import cache

import torch

from shared_components.synth.thorax import PLAIN, Breath, BreathingSeries, Thorax, breathing_series, procedural_thorax

SIZE = (64, 64)
EVEN = Breath(period=12, variation=0.0, drift=0.0)
KINDS = ("front", "back", "right", "left")


def kind_of(thorax: Thorax) -> str:
    if thorax.plane == "coronal":
        return "front" if len(thorax.compartments) == 1 else "back"
    return "left" if thorax.pulse is not None else "right"


@cache
def make_thorax(kind: str) -> Thorax:
    """The first slice that shows heart and trachea, the spine, or the right or left half from the side."""
    plane = "coronal" if kind in ("front", "back") else "sagittal"
    for seed in range(30):
        thorax = procedural_thorax(torch.Generator().manual_seed(seed), SIZE, plane)
        if kind_of(thorax) == kind:
            return thorax
    raise AssertionError(f"none of 30 {plane} slices is of the kind {kind}")


@cache
def make_plain(kind: str) -> BreathingSeries:
    """A series without noise, bias or swelling: it breathes and its heart beats."""
    return breathing_series(make_thorax(kind), 12, torch.Generator().manual_seed(5), 5.0, EVEN, PLAIN)


def extremes(series: BreathingSeries) -> tuple[int, int]:
    """Frames of expiration and inspiration."""
    return int(series.signal.argmin()), int(series.signal.argmax())
