"""Test-time refinement: polish any field on the very pair it belongs to, and never make it worse.

The update is added to the given field, u = u0 + d. Over the levels (a quarter, a half, all of the resolution) d is the
smoothed, upsampled field of parameters on half the level's grid, driven by Adam. At the end the full-resolution loss
and the folds of the result are compared with those of u0; what is not better is not returned.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .metrics import folded_cells, folds_percent, ndv_percent
from .regularity import diffusion, fold_penalty
from .similarity import LocalNCC, box_sum, make_similarity
from .warp import resize, warp_image


@dataclass(frozen=True)
class RefineSettings:
    """Numbers of a refinement.

    Attributes:
        steps: Adam steps over all levels together; 0 returns the field untouched.
        similarity: "lncc", "cc" or "mse", see ``similarity.make_similarity``.
        radius: of the "lncc" window, in voxels of each level.
        diffusion_weight: of ``regularity.diffusion`` of the whole field, 1 / voxel^2.
        fold_weight: of ``regularity.fold_penalty`` on the last level.
        rate: Adam's step, in voxels of each level.
        levels: factors by which the grid is coarsened.
        shares: part of the steps that each level gets.
    """

    steps: int = 0
    similarity: str = "lncc"
    radius: int = 3
    diffusion_weight: float = 0.05
    fold_weight: float = 10.0
    rate: float = 0.5
    levels: tuple[int, ...] = (4, 2, 1)
    shares: tuple[float, ...] = (0.35, 0.4, 0.25)

    def __post_init__(self) -> None:
        if self.steps < 0 or len(self.levels) != len(self.shares) or min(self.levels) < 1:
            raise ValueError(f"refinement needs steps >= 0 and one share for each level, got {self}")


def _smooth(x: Tensor) -> Tensor:
    """3-box twice; the window is cut at the border."""
    pool = {4: F.avg_pool2d, 5: F.avg_pool3d}[x.ndim]
    for _ in range(2):
        x = pool(x, 3, 1, 1, count_include_pad=False)
    return x


class _Level:
    """One resolution: its images, the field so far, and the loss of an update."""

    def __init__(self, fixed: Tensor, moving: Tensor, mask: Tensor, ddf: Tensor, factor: int, how: RefineSettings):
        shape = [max(min(n, 8), -(-n // factor)) for n in fixed.shape[2:]]
        self.fixed, self.moving, self.mask = (self._shrink(x, shape, factor) for x in (fixed, moving, mask))
        self.ddf = resize(ddf, shape)
        self.how, self.last = how, factor == how.levels[-1]
        radius = max(1, min(how.radius, (min(shape) - 1) // 2))
        self.similarity = make_similarity(how.similarity, radius)
        local = isinstance(self.similarity, LocalNCC)
        self.extra = {"statistics": self.similarity.fixed_statistics(self.fixed)} if local else {}

    @staticmethod
    def _shrink(x: Tensor, shape: list[int], factor: int) -> Tensor:
        if factor == 1:
            return x
        x = _smooth(x) if factor > 2 else x
        mode = {4: "bilinear", 5: "trilinear"}[x.ndim]
        return F.interpolate(_smooth(x), size=shape, mode=mode, align_corners=True)

    def loss(self, ddf: Tensor) -> Tensor:
        """Similarity and regularity of a field on this level."""
        moved = warp_image(self.moving, ddf)
        total = self.similarity(self.fixed, moved, self.mask, **self.extra)
        total = total + self.how.diffusion_weight * diffusion(ddf)
        if self.last and self.how.fold_weight:
            total = total + self.how.fold_weight * fold_penalty(ddf, margin=0.05)
        return total

    def run(self, steps: int) -> Tensor:
        """Return the update after ``steps`` of Adam, in voxels of this level."""
        half = [max(2, -(-n // 2)) for n in self.ddf.shape[2:]]
        parameters = torch.zeros(*self.ddf.shape[:2], *half, device=self.ddf.device, requires_grad=True)
        optimizer = torch.optim.Adam([parameters], lr=self.how.rate)
        for step in range(steps):
            for group in optimizer.param_groups:  # settle at the end of each level
                group["lr"] = self.how.rate * min(1.0, 2 * (steps - step) / steps)
            optimizer.zero_grad(set_to_none=True)
            self.loss(self.ddf + self._update(parameters)).backward()
            optimizer.step()
        with torch.no_grad():
            return self._update(parameters)

    def _update(self, parameters: Tensor) -> Tensor:
        shape = self.ddf.shape[2:]
        mode = {4: "bilinear", 5: "trilinear"}[parameters.ndim]
        return F.interpolate(_smooth(parameters), size=shape, mode=mode, align_corners=True)


def default_mask(fixed: Tensor, radius: int) -> Tensor:
    """Return where windows touch the fixed image's foreground (above its minimum), float (B, 1, *spatial)."""
    return (box_sum((fixed > fixed.amin()).float(), radius) > 0.5).float()


def refine(
    fixed: Tensor, moving: Tensor, ddf: Tensor, settings: RefineSettings, mask: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Return a field with at most the loss and at most the folds of ``ddf``, and the numbers that show it.

    Args:
        fixed: (B, 1, *spatial), intensities in about [0, 1]; moving likewise, on the same grid.
        moving: as fixed.
        ddf: (B, D, *spatial) voxels, the identity or any other field.
        settings: see ``RefineSettings``.
        mask: (B, 1, *spatial) where the similarity counts; None takes the fixed foreground.

    Returns:
        the field, and {"loss_before", "loss_after", "folds_before", "folds_after", "strict_folds_before",
        "strict_folds_after"}, folds in % of voxels (central differences; one-sided, ``metrics.ndv_percent``).
    """
    if settings.steps == 0:
        return ddf, {}
    fixed, moving, ddf = fixed.float(), moving.float(), ddf.detach().float()
    mask = default_mask(fixed, settings.radius) if mask is None else mask.float()
    update = torch.zeros_like(ddf)
    with torch.enable_grad():
        for factor, steps in zip(settings.levels, _shares(settings), strict=True):
            level = _Level(fixed, moving, mask, ddf + update, factor, settings)
            update = update + resize(level.run(steps), ddf.shape[2:])
    with torch.no_grad():
        judge = _Level(fixed, moving, mask, ddf, 1, settings)
        return _best(judge, ddf, update)


def _shares(settings: RefineSettings) -> list[int]:
    steps = [round(settings.steps * share / sum(settings.shares)) for share in settings.shares]
    steps[-1] = settings.steps - sum(steps[:-1])
    return steps


def _best(judge: _Level, ddf: Tensor, update: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Mend the result where it folds, weaken the update, until loss and folds are no worse; else keep the input."""
    old, known, before = _folds(ddf), _folded(ddf), float(judge.loss(ddf))
    for attempt in range(24):
        candidate = ddf + update
        folded = _folded(candidate)
        if not (folded & ~known).any():
            new, after = _folds(candidate), float(judge.loss(candidate))
            if after < before and all(n <= o for n, o in zip(new, old, strict=True)):
                return candidate, _numbers(before, after, old, new)
        if attempt < 16 and folded.any():  # smoother there: towards a local translation, which cannot fold
            update = update + _around(folded, 2 + attempt // 3) * (_smooth(candidate) - candidate)
        else:
            update = 0.5 * update
    return ddf, _numbers(before, before, old, old)


def _numbers(before: float, after: float, old: tuple[float, float], new: tuple[float, float]) -> dict[str, float]:
    return {
        "loss_before": before,
        "loss_after": after,
        "folds_before": old[0],
        "folds_after": new[0],
        "strict_folds_before": old[1],
        "strict_folds_after": new[1],
    }


def _folds(ddf: Tensor) -> tuple[float, float]:
    return sum(folds_percent(one[None]) for one in ddf), sum(ndv_percent(one[None]) for one in ddf)


def _folded(ddf: Tensor) -> Tensor:
    return torch.stack([folded_cells(one[None]) for one in ddf])[:, None]


def _around(mask: Tensor, radius: int) -> Tensor:
    """Return a smooth bump, 1 on the mask and 0 beyond about 2 ``radius`` voxels."""
    grown = (box_sum(mask.float(), radius) > 0.5).float()
    size = (2 * radius + 1) ** (mask.ndim - 2)
    return torch.maximum(box_sum(grown, radius) / size, mask.float())


class RefineField:
    """Post transform: refine "pred" on "image" (0 fixed, 1 moving), within "fixed_mask" and "moving_mask" if given.

    Args:
        steps: 0 leaves the data alone.
        settings: the other numbers of ``RefineSettings``.
    """

    def __init__(self, steps: int = 0, **settings: Any) -> None:
        self.settings = RefineSettings(steps=int(steps), **settings)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data with the refined "pred" and "refine", the numbers; with or without a batch axis."""
        if self.settings.steps == 0:
            return dict(data)
        begin = time.perf_counter()
        pred: Tensor = data["pred"]
        ndim = pred.shape[0 if pred.ndim == data["image"].ndim and data["image"].shape[0] == 2 else 1]
        batched = pred.ndim == ndim + 2
        image, ddf = (x if x.ndim == ndim + 2 else x[None] for x in (data["image"], pred))
        image = image.to(ddf.device)
        mask = self._mask(data, image[:, :1], ddf)
        refined, numbers = refine(image[:, :1], image[:, 1:2], ddf, self.settings, mask)
        numbers["seconds"] = round(time.perf_counter() - begin, 2)
        return {**data, "pred": refined if batched else refined[0], "refine": numbers}

    def _mask(self, data: Mapping[str, Any], fixed: Tensor, ddf: Tensor) -> Tensor:
        """Return the fixed mask or foreground, less what the moving mask leaves out as seen through the given field."""
        given = {side: data.get(f"{side}_mask") for side in ("fixed", "moving")}
        masks = {
            side: (mask if mask.ndim == fixed.ndim else mask[None]).to(fixed.device).float().clamp(0, 1)
            for side, mask in given.items()
            if mask is not None
        }
        mask = masks.get("fixed", default_mask(fixed, self.settings.radius))
        if "moving" in masks:
            mask = mask * (warp_image(masks["moving"], ddf.float()) > 0.5)
        return mask
