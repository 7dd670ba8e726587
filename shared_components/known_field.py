"""Learning from pairs whose true field is known, such as synthetic ones: the field's error, and heads on features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KnownFieldLoss(nn.Module):
    """A loss of images plus the errors of all fields, and of what features tell of the field, where it is known.

    The error is the mean square of the difference within the fixed image's body over that of the true field: 1 for a
    field of zeros. A head, one convolution of size 1 a map of features, predicts the field at the map's resolution, so
    that layers far from the loss learn to see motion; heads are for training alone. Give their parameters to the
    optimizer too. After a call ``terms`` holds the base's terms, "field" and "heads", detached.

    Args:
        base: ``base(stages, targets) -> scalar``, with a dictionary ``terms``, for the images.
        channels: of the maps in ``stages["features"][0]``, the first step's; empty for no heads.
        ndim: 2 or 3.
        base_weight: of ``base``.
        field_weight: of the fields' error, mean over ``stages["ddf"]``.
        head_weight: of the heads' error, mean over the maps.
        body: the fixed image's intensities, scaled to [0, 1], above this are body; elsewhere truth is arbitrary.
        floor: voxels^2, added to the true field's mean square, so that pairs at rest count little.
    """

    def __init__(
        self,
        base: nn.Module,
        channels: Sequence[int] = (),
        ndim: int = 2,
        base_weight: float = 5.0,
        field_weight: float = 1.0,
        head_weight: float = 1.0,
        body: float = 0.06,
        floor: float = 0.05,
    ) -> None:
        super().__init__()
        self.base, self.body, self.floor = base, body, floor
        self.weights = (base_weight, field_weight, head_weight)
        head = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.heads = nn.ModuleList(head(count, ndim, 1) for count in channels)
        self.terms: dict[str, Tensor] = {}

    def forward(self, stages: Mapping[str, Any], targets: Mapping[str, Tensor]) -> Tensor:
        """Return the scalar loss.

        Args:
            stages: of the network, "ddf" a list of (B, D, *spatial) voxels, "features" a list of tuples of maps.
            targets: "ddf" (B, D, *spatial) voxels, the truth, and "fixed" (B, 1, *spatial).

        Raises:
            KeyError: no truth.
        """
        truth = targets["ddf"]
        weight = (targets["fixed"] > self.body).to(truth)
        base = self.base(stages, targets)
        field = torch.stack([self._error(ddf, truth, weight) for ddf in stages["ddf"]]).mean()
        errors = [self._seen(head, x, truth, weight) for head, x in zip(self.heads, self._maps(stages), strict=True)]
        heads = torch.stack(errors).mean() if errors else field.new_zeros(())
        loss = sum(w * term for w, term in zip(self.weights, (base, field, heads), strict=True))
        named = {"field": field, "heads": heads, "loss": loss}
        self.terms = {**self.base.terms, **{name: value.detach() for name, value in named.items()}}
        return loss

    def _maps(self, stages: Mapping[str, Any]) -> Sequence[Tensor]:
        return stages["features"][0] if len(self.heads) else ()

    def _error(self, found: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
        axes = tuple(range(1, truth.ndim))
        share = weight / weight.mean(axes, keepdim=True).clamp_min(1e-3)
        error = (share * (found - truth).square()).mean(axes)
        return (error / ((share * truth.square()).mean(axes) + self.floor)).mean()

    def _seen(self, head: nn.Module, features: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
        pool = F.adaptive_avg_pool2d if truth.ndim == 4 else F.adaptive_avg_pool3d
        coarse = pool(weight, features.shape[2:])
        wanted = pool(weight * truth, features.shape[2:]) / coarse.clamp_min(0.05)
        return self._error(head(features.to(truth.dtype)), wanted, coarse)
