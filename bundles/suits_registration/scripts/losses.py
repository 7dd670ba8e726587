"""What SUITS learns from: MIND-SSC before, labels after (Algorithm 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SUITSLoss(nn.Module):
    """L1 distance to MIND-SSC in the first phase, cross entropy of the warped label in the second.

    After a call ``terms`` holds the loss under the name of its phase, detached.

    Args:
        logarithm: False, the paper's Algorithm 1: the warped one-hot values are taken as logits; for K classes that is
            between log(e + K - 1) - 1 (1.165 for 7) and log(e + K - 1), with bounded gradients. True: -log(p), floored.
    """

    def __init__(self, logarithm: bool = False) -> None:
        super().__init__()
        self.logarithm = logarithm
        self.terms: dict[str, Tensor] = {}

    def forward(self, stages: dict, targets: dict) -> Tensor:
        """Return the scalar loss.

        Args:
            stages: what ``SUITS(image, return_stages=True, ...)`` returns.
            targets: {"fixed_label": class of every voxel, (B, *spatial) from 0}, for the second phase.
        """
        if "target" in stages:
            loss = sum(F.l1_loss(a, b) for a, b in zip(stages["features"], stages["target"], strict=True)) / 2
        elif self.logarithm:
            loss = F.nll_loss(stages["moved_label"].clamp_min(1e-3).log(), targets["fixed_label"])
        else:
            loss = F.cross_entropy(stages["moved_label"], targets["fixed_label"])
        self.terms = {"features" if "target" in stages else "labels": loss.detach()}
        return loss


def classes_of(label: Tensor, values: list[int]) -> Tensor:
    """Return the class (B, *spatial) of a label map (B, 1, *spatial): 1 + its place in ``values``, 0 for others."""
    found = torch.zeros_like(label[:, 0], dtype=torch.long)
    for index, value in enumerate(values, 1):
        found[label[:, 0] == value] = index
    return found


def one_hot(classes: Tensor, count: int) -> Tensor:
    """Return (B, count, *spatial) float32 of classes (B, *spatial)."""
    return F.one_hot(classes, count).movedim(-1, 1).float().contiguous()
