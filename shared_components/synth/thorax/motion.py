r"""How the inside of a chest moves when it breathes, in closed form, with its inverse.

A *compartment* is what lies between two walls, column l(y) to r(y). A point in it is told by its row y and its share
w = (x - l(y)) / (r(y) - l(y)) of the way between the walls. Breathing takes the material point (Y, W) to

    w = W + c h(Y) W (1 - W)        sway: the middle moves sideways, the walls stay where they are
    y = Y + a s(w) p(Y, w)          lift a: row by row along lines of constant w, hence along the walls

where p rises from 0 at the apex to 1 at the diaphragm, stays 1 in the upper abdomen and falls to ``tail`` at the
bottom, and s is the share of the lift by w. The compartment is taken onto itself: its contents slide along the walls,
which do not move, and nothing opens or overlaps. The inverse is a quadratic equation for W and one monotone equation
for Y, which Newton's method solves to rounding. Before it all the heart beats: a radial map within an ellipse.

Positions are voxels of the series, row and column first: tensors (2, ...), float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...warp import coords_grid
from .curves import Curve

_RISE, _FALL = 0.35, 0.25  # the lung's strain builds up over so much of its height and ends over so much
_STEEPEST = 1 / (1 - (_RISE + _FALL) / 2)  # slope of the ramp between
_SKIN = 1e-6  # voxels: a point on a wall is inside, before and after the rounding of its way there
_STATES = ("lift", "sway", "beat")


def ramp(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return a smooth rise from 0 at q <= 0 to 1 at q >= 1 and its slope; the slope is a trapezoid."""
    inner = ((q > 0) & (q < 1)).to(q.dtype)
    q = q.clamp(0, 1)
    late, end = (q - _RISE).clamp_min(0), (q - 1 + _FALL).clamp_min(0)
    value = (q * q - late * late) / (2 * _RISE) - end * end / (2 * _FALL)
    slope = (q - late) / _RISE - end / _FALL
    return _STEEPEST * value, _STEEPEST * slope * inner


@dataclass(frozen=True, eq=False)
class Compartment:
    """What lies between two walls and slides along them.

    Attributes:
        left, right: columns of the walls by row, voxels.
        dome: row of the diaphragm by w.
        share: factor of the lift by w; 1 where the dome is highest.
        top: row of the lung's apex; nothing moves above.
        rest: row above which the abdomen moves as a whole.
        bottom: row where only ``tail`` of the motion is left.
        tail: in [0, 1].
    """

    left: Curve
    right: Curve
    dome: Curve
    share: Curve
    top: float
    rest: float
    bottom: float
    tail: float

    def across(self, points: Tensor) -> Tensor:
        """Return w of (2, ...) positions: 0 at the left wall, 1 at the right."""
        left = self.left(points[0])
        return (points[1] - left) / (self.right(points[0]) - left)

    def forward(self, points: Tensor, lift: float, sway: float) -> Tensor:
        """Return where material points (2, ...) go. ``lift`` in voxels, ``sway`` in shares."""
        w = self.across(points)
        w = w + sway * self._below_apex(points[0]) * w * (1 - w)
        row = points[0] + lift * self.share(w) * self._profile(points[0], self.dome(w))[0]
        return self._place(row, w)

    def inverse(self, points: Tensor, lift: float, sway: float) -> Tensor:
        """Return which material points are at (2, ...); exact to rounding."""
        w = self.across(points)
        dome, size = self.dome(w), lift * self.share(w)
        row = points[0] - size * self._profile(points[0], dome)[0]
        for _ in range(20):
            value, slope = self._profile(row, dome)
            miss = row + size * value - points[0]
            row = row - miss / (1 + size * slope)
            if float(miss.abs().max() if miss.numel() else 0) < 1e-7:  # the step just taken squares the error
                break
        c = sway * self._below_apex(row)  # w = W + c W (1 - W), solved for W without cancellation
        return self._place(row, 2 * w / (1 + c + ((1 + c) ** 2 - 4 * c * w).clamp_min(0).sqrt()))

    def steepest(self, lift: float) -> float:
        """Return the largest |d displacement / d row| on a fine lattice; the map is invertible below 1."""
        rows = torch.linspace(self.top, self.bottom, 257, dtype=torch.float64).view(-1, 1)
        w = torch.linspace(0, 1, 65, dtype=torch.float64)
        slope = self.share(w) * self._profile(rows, self.dome(w))[1]
        return abs(lift) * float(slope.abs().max())

    def _place(self, row: Tensor, w: Tensor) -> Tensor:
        left = self.left(row)
        return torch.stack([row, left + w * (self.right(row) - left)])

    def _below_apex(self, row: Tensor) -> Tensor:
        return ramp((row - self.top) / (self.rest - self.top))[0]

    def _profile(self, row: Tensor, dome: Tensor) -> tuple[Tensor, Tensor]:
        """p(Y, w) and its derivative by Y."""
        height = dome - self.top
        lung, lung_slope = ramp((row - self.top) / height)
        depth = max(self.bottom - self.rest, 1e-6)
        lower, lower_slope = ramp((row - self.rest) / depth)
        kept = 1 - (1 - self.tail) * lower
        return lung * kept, lung_slope / height * kept - lung * (1 - self.tail) * lower_slope / depth

    def to_dict(self) -> dict[str, Any]:
        """Return its numbers."""
        curves = {name: getattr(self, name).to_dict() for name in ("left", "right", "dome", "share")}
        return {**curves, **{name: getattr(self, name) for name in ("top", "rest", "bottom", "tail")}}

    @classmethod
    def from_dict(cls, numbers: dict[str, Any]) -> Compartment:
        """Return the compartment that ``to_dict`` wrote."""
        return cls(**{k: Curve.from_dict(v) if isinstance(v, dict) else v for k, v in numbers.items()})


def share_from_dome(share: Curve, dome: Curve) -> Curve:
    """Return the shares of the lift scaled so that the highest place of the dome moves by the lift itself."""
    w = torch.linspace(0.02, 0.98, 193, dtype=torch.float64)
    return Curve(share.first, share.step, share.control / float(share(w)[dome(w).argmin()]))


@dataclass(frozen=True, eq=False)
class Pulse:
    """The heart: material within an ellipse moves towards its middle and back, r -> r (1 + beat (1 - r^2)^2).

    Attributes:
        center: (row, column).
        radii: along the two axes, voxels.
        angle: of the first axis against the rows, radians.
    """

    center: tuple[float, float]
    radii: tuple[float, float]
    angle: float

    def _unit(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Positions relative to the centre and their radius in the ellipse."""
        center = torch.tensor(self.center, dtype=torch.float64, device=points.device)
        away = points - center.view(2, *(1,) * (points.ndim - 1))
        cos, sin = torch.tensor(self.angle).cos().item(), torch.tensor(self.angle).sin().item()
        first = (cos * away[0] + sin * away[1]) / self.radii[0]
        second = (cos * away[1] - sin * away[0]) / self.radii[1]
        return away, torch.hypot(first, second)

    def forward(self, points: Tensor, beat: float) -> Tensor:
        """Return where material points (2, ...) go."""
        away, radius = self._unit(points)
        return points + away * beat * (1 - radius.clamp_max(1) ** 2) ** 2

    def inverse(self, points: Tensor, beat: float) -> Tensor:
        """Return which material points are at (2, ...)."""
        away, target = self._unit(points)
        near = target < 1
        aim = target[near]
        radius = aim.clone()
        for _ in range(20):
            fall = 1 - radius**2
            miss = radius * (1 + beat * fall**2) - aim
            radius = radius - miss / (1 + beat * fall**2 - 4 * beat * radius**2 * fall)
            if float(miss.abs().max() if miss.numel() else 0) < 1e-9:
                break
        scale = torch.ones_like(target)
        scale[near] = 1 / (1 + beat * (1 - radius**2) ** 2)
        return points + away * (scale - 1)


@dataclass(frozen=True, eq=False)
class Motion:
    """The true motion of a series.

    Attributes:
        compartments: they do not overlap; whatever is in none does not move.
        pulse: the heart, or None. Its ellipse lies in one compartment.
        states: (T, 3) float64: lift in voxels, sway, beat. All zero is the slice that the series was made from.
        size: (H, W) of the series.
    """

    compartments: tuple[Compartment, ...]
    pulse: Pulse | None
    states: Tensor
    size: tuple[int, int]

    def forward(self, points: Tensor, frame: int) -> Tensor:
        """Return where material points (2, ...) are in a frame."""
        lift, sway, beat = self.states[frame].tolist()
        points = points.to(torch.float64)
        beaten = points if self.pulse is None else self.pulse.forward(points, beat)
        return self._apply("forward", beaten, lift, sway, 0.0)

    def inverse(self, points: Tensor, frame: int, margin: float = 0.0) -> Tensor:
        """Return which material points (2, ...) are at positions of a frame.

        Args:
            points: (2, ...) voxels.
            frame: number of the frame.
            margin: points up to so many voxels outside the walls are taken as contents too; for rendering.
        """
        lift, sway, beat = self.states[frame].tolist()
        found = self._apply("inverse", points.to(torch.float64), lift, sway, margin)
        return found if self.pulse is None else self.pulse.inverse(found, beat)

    def ddf(self, fixed: int, moving: int) -> Tensor:
        """Return the true field (1, 2, H, W) float32, voxels, pull-back: x in frame ``fixed`` is x + ddf in ``moving``.

        It is discontinuous across the walls, exactly zero on their far side, and may point out of the image at its
        lower border, where tissue comes in and goes out.
        """
        grid = coords_grid(self.size, dtype=torch.float64)[0]
        return (self.forward(self.inverse(grid, fixed), moving) - grid)[None].float()

    def track(self, points_vox: Tensor) -> Tensor:
        """Return positions (T, N, 2) in all frames of material points (N, 2), voxels, float64."""
        return torch.stack([self.forward(points_vox.T, frame).T for frame in range(len(self.states))])

    def transport(self, points_vox: Tensor, fixed: int, moving: int) -> Tensor:
        """Return where points (N, 2) of frame ``fixed`` are in frame ``moving``, exactly, between voxels too."""
        return self.forward(self.inverse(points_vox.T, fixed), moving).T

    def contents(self, margin: float = 0.0) -> Tensor:
        """Return which voxels (H, W) lie within a compartment, or at most ``margin`` voxels outside."""
        grid = coords_grid(self.size, dtype=torch.float64)[0]
        return torch.stack([_inside(part, grid, margin) for part in self.compartments]).any(0)

    def _apply(self, direction: str, points: Tensor, lift: float, sway: float, margin: float) -> Tensor:
        moved = points.clone()
        for part in self.compartments:
            inside = _inside(part, points, margin) & (points[0] > part.top)
            moved[:, inside] = getattr(part, direction)(points[:, inside], lift, sway)
        return moved

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, enough to rebuild every field; JSON keeps them exactly."""
        pulse = None if self.pulse is None else {k: getattr(self.pulse, k) for k in ("center", "radii", "angle")}
        parts = [part.to_dict() for part in self.compartments]
        states = {name: column.tolist() for name, column in zip(_STATES, self.states.T, strict=True)}
        return {"size": list(self.size), "compartments": parts, "pulse": pulse, "states": states}

    @classmethod
    def from_dict(cls, numbers: dict[str, Any]) -> Motion:
        """Return the motion that ``to_dict`` wrote."""
        pulse = numbers["pulse"]
        heart = None if pulse is None else Pulse(tuple(pulse["center"]), tuple(pulse["radii"]), pulse["angle"])
        states = torch.tensor([numbers["states"][name] for name in _STATES], dtype=torch.float64).T.contiguous()
        parts = tuple(Compartment.from_dict(part) for part in numbers["compartments"])
        return cls(parts, heart, states, _pair(numbers["size"]))


def _inside(part: Compartment, points: Tensor, margin: float) -> Tensor:
    column, margin = points[1], margin + _SKIN
    return (column >= part.left(points[0]) - margin) & (column <= part.right(points[0]) + margin)


def _pair(size: Sequence[int]) -> tuple[int, int]:
    return int(size[0]), int(size[1])
