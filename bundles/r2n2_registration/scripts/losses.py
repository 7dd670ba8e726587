"""What R2N2 learns from, no labels: the images' difference after each step, roughness of the last field (eq. 6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shared_components.regularity import isotropic_variation
from shared_components.similarity import mse_loss
from shared_components.warp import inside


class R2N2Loss(nn.Module):
    """Mean squared difference, mean over all steps, plus ``tv_weight`` x total variation of the last field (eq. 6).

    Pixels that come from outside the moving image do not count. After a call ``terms`` holds, detached, the "mse" of
    all steps and the "tv", "mse_last", the difference after the last step, and the "loss".

    Args:
        tv_weight: lambda, 0.1 in the paper at 256 x 256. The variation is a sum of steps from pixel to pixel, not a
            derivative: it doubles where the same field is sampled half as finely.
    """

    def __init__(self, tv_weight: float = 0.1) -> None:
        super().__init__()
        self.tv_weight = tv_weight
        self.terms: dict[str, Tensor] = {}

    def forward(self, stages: dict, targets: Any = None) -> Tensor:
        """Return the scalar loss of ``R2N2(image, return_stages=True)``; ``targets`` are not needed."""
        fixed, ddf = stages["fixed"], stages["ddf"]
        errors = [mse_loss(fixed, moved, inside(u)) for moved, u in zip(stages["moved"], ddf, strict=True)]
        units = [u * (2 / max(n - 1, 1)) for u, n in zip(ddf[-1].unbind(1), fixed.shape[2:], strict=True)]
        mse, tv = torch.stack(errors).mean(), isotropic_variation(torch.stack(units, 1))
        loss = mse + self.tv_weight * tv
        named = {"mse": mse, "mse_last": errors[-1], "tv": tv, "loss": loss}
        self.terms = {name: value.detach() for name, value in named.items()}
        return loss
