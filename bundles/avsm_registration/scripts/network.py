"""AVSM: an affine network applied in steps, then stationary velocity fields from momenta (Shen et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared_components.affine import affine_ddf, compose_affines
from shared_components.flows import MultiGaussian, advect
from shared_components.warp import resize, warp_image

COMPOSITIONS = ("paper", "pullback")
STEP = ("momenta", "velocities", "ddf", "moved")
MULTIPLE = 16
_LAYOUT = torch.channels_last_3d  # 3x faster convolutions on CPU
_SIGMAS = (0.05, 0.1, 0.15, 0.2, 0.25)


def exporting() -> bool:
    """Whether the network is being traced or compiled: then plain operations only, and no thought of memory."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def padded(size: Sequence[int]) -> tuple[int, ...]:
    """Return the size with each axis raised to a multiple of 16."""
    return tuple(-(-n // MULTIPLE) * MULTIPLE for n in size)


def _frame(shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...], list[int], tuple[Any, ...]]:
    """Return the padded shape, half of it, the widths for ``F.pad`` that lead there, and the index back."""
    full = padded(shape)
    sides = [((m - n) // 2, (m - n + 1) // 2) for n, m in zip(shape, full, strict=True)]
    inside = (..., *(slice(low, low + n) for (low, _), n in zip(sides, shape, strict=True)))
    return full, tuple(n // 2 for n in full), [width for pair in sides[::-1] for width in pair], inside


def affine_in_voxels(affine: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return (A, b) of ``shared_components.affine`` for an affine map (B, 3, 4) of [-1, 1]^3 on a grid of ``shape``."""
    middle = (torch.tensor(tuple(shape), dtype=affine.dtype, device=affine.device) - 1) / 2
    eye = torch.eye(3, dtype=affine.dtype, device=affine.device)
    return middle[:, None] * (affine[..., :3] - eye) / middle, middle * affine[..., 3]


def _conv(inputs: int, outputs: int, stride: int = 1, slope: float = 0.0) -> nn.Sequential:
    """3^3 convolution with bias; ReLU, or LeakyReLU of that slope."""
    return nn.Sequential(nn.Conv3d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(slope) if slope else nn.ReLU())


class AffineNet(nn.Module):
    """One step of the affine registration: two images (B, 1, *size) in [-1, 1] -> (B, 3, 4), raw (Fig. 2).

    147,920 weights at 80 x 192 x 192. The output is A beside b themselves, not the deviation from the identity.

    Args:
        size: the one grid that it takes.
        width: channels that both images share in the first layer, 16 in the paper.
    """

    def __init__(self, size: Sequence[int] = (80, 192, 192), width: int = 16) -> None:
        super().__init__()
        both = 2 * width
        self.first = nn.Conv3d(1, width, 3, 1, 1)
        self.body = nn.Sequential(
            *[_conv(both, both), _conv(both, both, 2), _conv(both, both), nn.MaxPool3d(2), _conv(both, both)],
            *[_conv(both, width, 2), _conv(width, width), _conv(width, 4, 2)],
        )
        self.size = padded(size)
        self.head = nn.Sequential(nn.Linear(4 * prod(-(-n // 32) for n in self.size), 32), nn.ReLU(), nn.Linear(32, 12))

    def describe(self, image: Tensor) -> Tensor:
        """Return the features of one image, pooled: what the two have in common."""
        return F.relu(F.max_pool3d(self.first(image.contiguous(memory_format=_LAYOUT)), 2))

    def forward(self, fixed_features: Tensor, moved: Tensor) -> Tensor:
        """Return (B, 3, 4) from the features of the fixed image and the moved image."""
        features = self.body(torch.cat([fixed_features, self.describe(moved)], 1)).contiguous().flatten(1)
        with torch.autocast(moved.device.type, enabled=False):  # half precision errs by voxels at the border
            return self.head(features.to(self.head[0].weight.dtype)).view(-1, 3, 4)


class _Residuals(nn.Module):
    """Convolutions whose results are added to what goes in; to the first input each, or to the last."""

    def __init__(self, channels: int, count: int, slope: float = 0.0, to_first: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_conv(channels, channels, 1, slope) for _ in range(count))
        self.to_first = to_first

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums."""
        first = x
        for layer in self.layers:
            x = (first if self.to_first else x) + layer(x)
        return x


class MomentumNet(nn.Module):
    """U-net with residuals and without its last decoder level (Fig. 11): (B, 2, *spatial) -> (B, 3, *spatial / 2).

    5,938,515 weights at width 16. Sizes must be multiples of 16, intensities lie in [-1, 1].

    Args:
        width: channels of the first layer, 16 in the paper.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = [width * 2**level for level in range(5)]
        self.first = _conv(2, w[0])
        self.down = nn.ModuleList(
            nn.Sequential(_conv(w[i - 1], w[i], 2), _Residuals(w[i], 1 if i == 4 else 2, to_first=i == 1))
            for i in range(1, 5)
        )
        up = ((w[4], w[3], w[3]), (w[3], w[2], w[1]), (w[1], w[1], w[0]))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(inputs, outputs, 2, 2), nn.LeakyReLU(0.01)) for inputs, outputs, _ in up
        )
        self.join = nn.ModuleList(
            nn.Sequential(_conv(2 * skip, outputs, 1, 0.01), _Residuals(outputs, 1, 0.01))
            for _, skip, outputs in up[:2]
        )
        self.last = nn.Sequential(nn.Conv3d(2 * w[1], w[0], 3, 1, 1), nn.Conv3d(w[0], 3, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the momentum, of either sign."""
        x, skips = self.first(image.contiguous(memory_format=_LAYOUT)), []
        for layer in self.down:
            x = layer(x)
            skips.append(x)
        for up, join, skip in zip(self.up, [*self.join, self.last], skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return x


class AVSM(nn.Module):
    """``network(image) -> ddf``: affine steps, then steps of momentum, smoothing and advection on half the grid.

    Units: an axis of the domain has length 1 as in the paper or, with ``spacing_mm``, its share of the longest extent;
    a momentum as the network predicts it, and the velocity K m, are in that unit. Stages give both in voxels of the
    half grid, as everything else here, with the length of a voxel beside them.

    Args:
        size: grid that the affine part is made for. Other images are resampled for it alone; all are padded with zeros
            to multiples of 16 inside.
        affine_steps: 7 at test time in the paper.
        velocity_steps: vSVF steps, any number at test time; 0 is the affine part alone.
        width: of the momentum network, 16 in the paper.
        affine_width: of the affine network, 16 in the paper.
        composition: of affine steps: "paper" (eq. 1), or "pullback", what warping in turn would do.
        identity_bias: a step of the affine network is I + its output.
        spacing_mm: voxel size, for Gaussians that are round in space; None: as many parts of each axis.
        sigmas, sigma_weights: of the Gaussians in units of the domain; None weighs them 1, 2, 3, ...
        padding: of the smoothing, "circular" as in the paper's code, or "zeros".
        time_steps: of the integrator, 10 in the paper.
        cfl: safety factor of the clamp on velocities, None for no clamp (the paper's text has none).
        recompute: save memory in training: affine steps and integration are calculated again on the way back.

    Raises:
        ValueError: for another composition.
    """

    def __init__(
        self,
        size: Sequence[int] = (80, 192, 192),
        affine_steps: int = 7,
        velocity_steps: int = 2,
        width: int = 16,
        affine_width: int = 16,
        composition: str = "paper",
        identity_bias: bool = False,
        spacing_mm: float | Sequence[float] | str | None = None,
        sigmas: Sequence[float] = _SIGMAS,
        sigma_weights: Sequence[float] | None = None,
        padding: str = "circular",
        time_steps: int = 10,
        cfl: float | None = 0.75,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        if composition not in COMPOSITIONS:
            raise ValueError(f"composition must be one of {', '.join(COMPOSITIONS)}, not '{composition}'")
        self.affine, self.momentum = AffineNet(size, affine_width), MomentumNet(width)
        self.image_size, self.composition, self.identity_bias = tuple(size), composition, identity_bias
        self.affine_steps, self.velocity_steps = affine_steps, velocity_steps
        cubic = isinstance(spacing_mm, str)  # "fit": voxels of the same size along all axes
        self.spacing = None if spacing_mm is None else torch.tensor(1.0 if cubic else spacing_mm).expand(3).tolist()
        weights = list(range(1, len(sigmas) + 1)) if sigma_weights is None else sigma_weights
        self.smoothing: dict[str, Any] = {"sigmas": tuple(sigmas), "weights": tuple(weights), "padding": padding}
        self.time_steps, self.cfl, self.recompute = time_steps, cfl, recompute
        self._smoothers: dict[tuple[int, ...], MultiGaussian] = {}  # by grid; they learn nothing
        self.to(memory_format=_LAYOUT)

    def forward(
        self,
        image: Tensor,
        return_stages: bool = False,
        affine_steps: int | None = None,
        velocity_steps: int | None = None,
        frozen_affine: bool = False,
    ) -> Tensor | dict[str, Any]:
        """Return the ddf that pulls moving onto fixed.

        Args:
            image: (B, 2, *spatial), channel 0 fixed, 1 moving, intensities in [0, 1].
            return_stages: a dict instead: "affines", (B, 3, 4) after each step, pull-back, on [-1, 1]^3 of the padded
                grid; "affine_ddf" and "affine_moved" after the last; of each vSVF step "momenta" and "velocities"
                (B, 3, *half) in voxels of the padded half grid (a velocity per unit of time), "ddf" and "moved";
                "voxel" and "half_voxel", (3,) lengths in units of the domain.
            affine_steps, velocity_steps: instead of the network's own.
            frozen_affine: no gradient for the affine part.

        Returns:
            (B, 3, *spatial) voxels, pull-back; or the dict.
        """
        full, half, sides, inside = _frame(image.shape[2:])
        fixed, moving = F.pad(image.to(torch.promote_types(image.dtype, torch.float32)), sides).split(1, 1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen_affine):
            affines = self._align(fixed, moving, self.affine_steps if affine_steps is None else affine_steps)
            ddf, coarse = (affine_ddf(*affine_in_voxels(affines[-1], shape), shape) for shape in (full, half))
        extent, count = self.extent(full), self.velocity_steps if velocity_steps is None else velocity_steps
        moved = warp_image(moving, ddf, padding="zeros")
        stages: dict[str, Any] = {"affines": affines, "affine_ddf": ddf[inside], "affine_moved": moved[inside]}
        stages |= {name: [] for name in STEP} | {
            "voxel": (extent / (torch.tensor(full) - 1)).to(ddf),
            "half_voxel": (extent / (torch.tensor(half) - 1)).to(ddf),
        }
        for step in range(count):
            momentum, velocity, coarse = self._flow(fixed, moved, coarse)
            ddf = resize(coarse, full)
            if return_stages or step + 1 < count:
                moved = warp_image(moving, ddf, padding="zeros")
            for name, value in zip(STEP, (momentum, velocity, ddf[inside], moved[inside]), strict=True):
                stages[name].append(value)
        return stages if return_stages else ddf[inside]

    def extent(self, shape: Sequence[int]) -> Tensor:
        """Return the lengths (3,) of a full grid, first to last voxel centre, in units of the domain."""
        if self.spacing is None:
            return torch.ones(3, dtype=torch.float64)
        extent_mm = (torch.tensor(tuple(shape)) - 1) * torch.tensor(self.spacing, dtype=torch.float64)
        return extent_mm / extent_mm.max()

    def smoother(self, shape: Sequence[int]) -> MultiGaussian:
        """Return K for a full grid; what it smooths lies on half of it."""
        shape = tuple(shape)
        if shape not in self._smoothers:
            self._smoothers[shape] = MultiGaussian(**self.smoothing, extent=self.extent(shape).tolist())
        return self._smoothers[shape]

    def _align(self, fixed: Tensor, moving: Tensor, steps: int) -> list[Tensor]:
        """Return the affine maps after each step; every step sees the moving image, warped once."""
        shape = fixed.shape[2:]
        eye = torch.eye(3, 4, device=fixed.device, dtype=fixed.dtype)
        total = eye.expand(len(fixed), 3, 4)
        features, moved, found = self.affine.describe(self._seen(fixed)), moving, []
        for step in range(steps):
            if step:
                moved = warp_image(moving, affine_ddf(*affine_in_voxels(total, shape), shape), padding="zeros")
            again = self.recompute and steps > 1 and torch.is_grad_enabled() and not exporting()
            call = partial(checkpoint, self.affine, use_reentrant=False) if again else self.affine
            new = call(features, self._seen(moved)) + (eye if self.identity_bias else 0)
            total = compose_affines(*((new, total) if self.composition == "paper" else (total, new)))
            found.append(total)
        return found or [total]

    def _seen(self, image: Tensor) -> Tensor:
        """Return an image as the affine network takes it: in [-1, 1], on its grid."""
        if tuple(image.shape[2:]) != self.affine.size:
            image = F.interpolate(image, self.affine.size, mode="trilinear", align_corners=True)
        return 2 * image - 1

    def _flow(self, fixed: Tensor, moved: Tensor, ddf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return momentum, velocity and the map after advection, on the half grid in its voxels."""
        full, half = fixed.shape[2:], ddf.shape[2:]
        momentum = self.momentum(2 * torch.cat([fixed, moved], 1) - 1).to(ddf.dtype).contiguous()
        momentum = momentum * ((torch.tensor(half) - 1) / self.extent(full)).to(momentum).view(1, 3, 1, 1, 1)
        velocity = self.smoother(full)(momentum)
        recompute = self.recompute and not exporting()
        return momentum, velocity, advect(ddf, velocity, self.time_steps, self.cfl, recompute)
