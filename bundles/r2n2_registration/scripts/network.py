"""R2N2: registration as a recurrent sequence of local Gaussian deformations (Sandkuehler et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared_components.errors import InputError
from shared_components.warp import warp_image

from .blocks import (
    GR2U,
    TANH_GAIN,
    ParameterNet,
    PositionNet,
    coarser,
    convolution,
    normed,
    weighted_position,
)
from .deformation import (
    COMPOSITIONS,
    accumulate,
    bumps,
    displacement,
    field_of,
    of_finer_grid,
    parameter_names,
    split,
    to_vox,
    unit_coords,
)

LEVELS, PATIENCE = 3, 3
_SEED_STEP = 1_000_003


class R2N2(nn.Module):
    """``network(image) -> ddf``: T times, look at both images, find where they differ, add one bump there.

    Defaults build the paper's network (3,593,611 weights), made for images of 256 x 256; any other size works, and any
    number of steps. One implementation for 2-D and 3-D.

    Args:
        ndim: 2 in the paper.
        channels: of the three levels and of the parameter network; one number c stands for c, 2 c, 4 c, 8 c.
        steps: T, 25 in the paper.
        blocks: residual blocks a level.
        max_width: largest width of a bump, in units of half the image.
        variance: the widths are squared already, which is eq. 9 to the letter; by default they are standard deviations.
        composition: "add" bumps as the paper does, or "compose" them: every bump then warps the moved image.
        coordinates: give the network the position of every pixel.
        norm: instance norm, as in the authors' code; the paper does not mention it.
        last_stride: of the convolution before the parameter network; 1 makes it one of 1 x 1.
        noise: on the recurrent kernels in training, see ``ConvGRU``.
        recurrent: False forgets everything from step to step.
        certainty: False trusts the positions of all levels alike.
        clamp: intensities, of mean 0 and deviation 1, are cut at +- this.
        padding: of the moving image outside its grid: "zeros", its mean, or "border".
        recompute: training keeps the ends of each step only and computes the rest again: less memory, more time.
        tolerance: voxels; not in training. A pair is done when ``remaining`` has been below this for three steps on
            end; T steps are made at most, and always if this is 0.
        shrink: the network looks at images coarser by this factor; fields and moved images stay as fine as given.

    Raises:
        InputError: for a word that is none of these, or a factor that is no whole number from 1 on.
    """

    def __init__(
        self,
        ndim: int = 2,
        channels: int | Sequence[int] = 32,
        steps: int = 25,
        blocks: int = 3,
        max_width: float = 0.3,
        variance: bool = False,
        composition: str = "add",
        coordinates: bool = True,
        norm: bool = False,
        last_stride: int = 2,
        noise: float = 2**0.5,
        recurrent: bool = True,
        certainty: bool = True,
        clamp: float = 2.0,
        padding: str = "zeros",
        recompute: bool = False,
        tolerance: float = 0.0,
        shrink: int = 1,
    ) -> None:
        super().__init__()
        if composition not in COMPOSITIONS:
            raise InputError(f"composition must be one of {', '.join(COMPOSITIONS)}, not '{composition}'")
        if not isinstance(shrink, int) or shrink < 1:
            raise InputError(f"shrink must be a whole number from 1 on, not {shrink}")
        self.shrink = shrink
        self.ndim, self.steps, self.image_size = ndim, steps, (256,) * ndim
        self.variance, self.composition, self.tolerance = variance, composition, tolerance
        self.noise, self.clamp, self.padding, self.recompute = noise, clamp, padding, recompute
        widths = [channels << k for k in range(LEVELS + 1)] if isinstance(channels, int) else list(channels)
        conv, levels = partial(convolution, ndim, gain=TANH_GAIN), range(LEVELS)
        self.widths, self.coordinates, self.norm = widths, coordinates, norm
        self.stem = conv(2 + (ndim if coordinates else 0), widths[0], 7, 2)
        self.units = nn.ModuleList(GR2U(ndim, widths[k], blocks, norm, noise, recurrent) for k in levels)
        self.down = nn.ModuleList(conv(widths[k], widths[k + 1], 3, 2) for k in levels)
        if last_stride == 1:
            self.down[-1] = conv(widths[-2], widths[-1], 1)
        self.positions = nn.ModuleList(PositionNet(ndim, widths[k], certainty) for k in levels)
        self.shape_net = ParameterNet(ndim, widths[-1], max_width=max_width)
        self.to(memory_format=torch.channels_last if ndim == 2 else torch.channels_last_3d)

    def forward(
        self, image: Tensor, return_stages: bool = False, steps: int | None = None, noise_seed: int | None = None
    ) -> Any:
        """Return the ddf that pulls moving onto fixed.

        Args:
            image: (B, 2, *spatial), channel 0 fixed, 1 moving, on any scale of intensities.
            return_stages: a dict instead: "parameters" (B, T, P), see ``deformation``; "certainty" (B, T, 3) of the
                position at each level, in [0, 2]; "features", what each step makes of the images, a list of tuples, a
                map (B, C, *coarse) a level and one for the parameter network; after each step "ddf", a list of
                (B, D, *spatial) in voxels, and "moved", a list of (B, 1, *spatial), to be compared with "fixed"
                (B, 1, *spatial): intensities as the network sees them.
            steps: T, if it shall be another than that of the network.
            noise_seed: of the noise in training; None takes one from torch's global generator.

        Returns:
            (B, D, *spatial) voxels, pull-back; or the dict.

        Raises:
            InputError: a grid that ``shrink`` does not divide.
        """
        total = self.steps if steps is None else steps
        stages = self._run(self.standardised(image), total, return_stages, self._seed(noise_seed))
        return stages if return_stages else self.field_of(stages["parameters"], image.shape[2:])

    def field_of(self, parameters: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the field (B, D, *shape) in voxels that bumps (B, T, P) make: bit for bit what ``forward`` gives."""
        return field_of(parameters, shape, self.variance, self.composition)

    def standardised(self, image: Tensor) -> Tensor:
        """Return each channel with mean 0 and standard deviation 1, cut at +- ``clamp``."""
        axes = tuple(range(2, image.ndim))
        if any(n % self.shrink for n in image.shape[2:]):
            size = " x ".join(map(str, image.shape[2:]))
            raise InputError(f"a grid of {size} cannot be made coarser by {self.shrink}; give a size that it divides")
        image = image.to(torch.promote_types(image.dtype, torch.float32))
        spread, mean = torch.std_mean(image, axes, keepdim=True, correction=0)
        return ((image - mean) / spread.clamp_min(1e-6)).clamp(-self.clamp, self.clamp)

    def _seed(self, given: int | None) -> int | None:
        if not self.training or not self.noise:
            return None
        return int(torch.randint(2**31, ())) if given is None else given

    def _run(self, image: Tensor, steps: int, keep: bool, seed: int | None) -> dict[str, Any]:
        fixed, moving = image[:, :1], image[:, 1:2]
        still, states = self._still(fixed), [None] * LEVELS
        ddf, moved = image.new_zeros(len(image), self.ndim, *image.shape[2:]), moving
        calm = torch.zeros(len(image), dtype=torch.long, device=image.device)
        found: dict[str, list[Any]] = {"parameters": [], "certainty": [], "features": [], "ddf": [], "moved": []}
        step = partial(checkpoint, self._step, use_reentrant=False) if self._recomputes() else self._step
        for t in range(steps):
            noise = None if seed is None else (seed * _SEED_STEP + t) % 2**63
            parameters, certainty, features, states, ddf, moved = step(
                still, moving, moved, ddf, calm < PATIENCE, states, noise, keep or t + 1 < steps
            )
            for name, value in zip(found, (parameters, certainty, features, ddf, moved), strict=True):
                found[name].append(value) if keep or name in ("parameters", "certainty") else None
            if self._may_stop():
                calm = torch.where(self.remaining(parameters, certainty, image.shape[2:]) < self.tolerance, calm + 1, 0)
                if bool((calm >= PATIENCE).all()):
                    break
        return {**found, "fixed": fixed, **self._stacked(found, image)}

    def _stacked(self, found: dict[str, list[Tensor]], image: Tensor) -> dict[str, Tensor]:
        if found["parameters"]:
            return {name: torch.stack(found[name], 1) for name in ("parameters", "certainty")}
        counts = {"parameters": len(parameter_names(self.ndim)), "certainty": LEVELS}
        return {name: image.new_zeros(len(image), 0, count) for name, count in counts.items()}

    def _still(self, fixed: Tensor) -> Tensor:
        """What the stem makes of the fixed image and the coordinates, the same in every step."""
        channels = [fixed := coarser(fixed, self.shrink)]
        if self.coordinates:
            shape = fixed.shape[2:]
            channels += [x.expand(len(fixed), 1, *shape) for x in unit_coords(shape, fixed)]
        weight = torch.cat([self.stem.weight[:, :1], self.stem.weight[:, 2:]], 1)
        return self.stem._conv_forward(torch.cat(channels, 1), weight, self.stem.bias)

    def _step(
        self,
        still: Tensor,
        moving: Tensor,
        moved: Tensor,
        ddf: Tensor,
        active: Tensor,
        states: Sequence[Tensor | None],
        noise: int | None,
        warp: bool,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], list[Tensor], Tensor, Tensor]:
        """Return the bump, its certainty, features, the new states, the field with the bump, and the image it moves."""
        generator = None if noise is None else torch.Generator(moved.device).manual_seed(noise)
        seen = coarser(moved, self.shrink)
        x = normed(still + self.stem._conv_forward(seen, self.stem.weight[:, 1:2], None), self.norm).tanh()
        news, places, features = [], [], []
        for unit, position, down, state in zip(self.units, self.positions, self.down, states, strict=True):
            x, state = unit(x, state, generator)
            news.append(state)
            places.append(position(x))
            features.append(x)
            x = normed(down(x), self.norm).tanh()
        centre, certainty = weighted_position(*zip(*places, strict=True))
        width, turn, weight = self.shape_net(x)
        found = torch.cat([centre, width, turn, weight * active[:, None]], -1)
        parameters = of_finer_grid(found, ddf.shape[2:], self.shrink, self.variance)
        bump = bumps(parameters, ddf.shape[2:], self.variance)
        ddf = accumulate(ddf, displacement(bump, split(parameters, self.ndim)[-1]), self.composition)
        moved = warp_image(moving, ddf, padding=self.padding) if warp else moved
        return parameters, certainty, (*features, x), news, ddf, moved

    def _recomputes(self) -> bool:
        return self.recompute and self.training and torch.is_grad_enabled()

    def _may_stop(self) -> bool:
        exporting = torch.jit.is_tracing() or torch.compiler.is_compiling()
        return self.tolerance > 0 and not self.training and not exporting

    def remaining(self, parameters: Tensor, certainty: Tensor, shape: Sequence[int]) -> Tensor:
        """Return how far bumps (..., P) move, in voxels, times how certain their place is, 0 to 1, (...)."""
        weight = to_vox(split(parameters, self.ndim)[-1], shape)
        return weight.norm(dim=-1) * certainty.mean(-1) / 2
