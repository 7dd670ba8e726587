"""The refinement itself: level after level, then the check that nothing became worse."""

from __future__ import annotations

import torch
from torch import Tensor

from ..similarity import box_sum
from ..warp import resize
from .basis import smooth
from .check import count_folds, folded, mended, numbers
from .level import Level, RefineSettings


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
    update = _in_the_large(ddf, settings.start_spacing) - ddf
    with torch.enable_grad():
        for factor, steps in zip(settings.levels, settings.steps_of_levels(), strict=True):
            level = Level(fixed, moving, mask, ddf + update, factor, settings)
            update = update + resize(level.run(steps), ddf.shape[2:])
    with torch.no_grad():
        judge = Level(fixed, moving, mask, ddf, 1, settings)
        return _best(judge, ddf, update)


def _in_the_large(ddf: Tensor, spacing: int) -> Tensor:
    if spacing == 1 or not ddf.any():
        return ddf
    shape = ddf.shape[2:]
    return resize(resize(smooth(ddf), [min(n, max(4, -(-n // spacing))) for n in shape]), shape)


def _best(judge: Level, ddf: Tensor, update: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Mend the result where it folds, weaken the update, until loss and folds are no worse; else keep the input."""
    old, known, before = count_folds(ddf), folded(ddf), float(judge.loss(ddf))
    for _ in range(8):
        candidate = mended(ddf + update, known)
        new, after = count_folds(candidate), float(judge.loss(candidate))
        if after < before and all(n <= o for n, o in zip(new, old, strict=True)):
            return candidate, numbers(before, after, old, new)
        update = 0.5 * update
    return ddf, numbers(before, before, old, old)
