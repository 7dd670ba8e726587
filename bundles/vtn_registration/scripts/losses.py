"""The losses of VTN: similarity per stage, smoothness, rigidity of the affine part, invertibility (eq. 5-12)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared_components.regularity import (
    determinant,
    fold_penalty,
    inverse_consistency,
    orthogonality,
    total_variation,
)
from shared_components.similarity import box_sum, make_similarity


def stage_weights(cascade: str) -> list[float]:
    """Return Table I's similarity weights for a cascade: A 1, last D 1, the D before it 0.05, earlier D 0.

    Example:
        >>> stage_weights("ADDD"), stage_weights("D")
        ([1.0, 0.0, 0.05, 1.0], [1.0])
    """
    dense = cascade.count("D")
    weights = [1.0 if left == 0 else 0.05 if left == 1 else 0.0 for left in reversed(range(dense))]
    return ([1.0] if cascade.startswith("A") else []) + weights


class VTNLoss(nn.Module):
    """Weighted sum of the paper's losses over the stages of a cascade.

    Defaults are the paper's. After a call ``terms`` holds each term, detached and unweighted.

    Args:
        cascade: as in the network.
        similarity: of the final stage and the dense ones: "cc" (the paper) or "lncc" (better across subjects).
        radius: of the "lncc" window in voxels.
        affine_similarity, affine_radius: likewise for the affine stage; None takes the same.
        weights: similarity weight of each stage, None for Table I.
        tv_weight: of the smoothness of each dense flow. The public code's tf.nn.l2_loss halves eq. 8, and Table I was
            tuned with it, so this weight multiplies eq. 8 times 1/2.
        ortho_weight, det_weight: of eq. 9 and half of eq. 10 (the same factor).
        invertibility_weight: of eq. 12, 1e-3 in the paper's "+ inv"; needs batches with both orders of each pair.
        fold_weight: of a penalty on negative Jacobian determinants of the final field; not in the paper.
        foreground: count only windows that touch the fixed image's foreground (intensity > 0); not in the paper.
        endpoint_weight: of the mean distance in voxels to a given field (the paper's supervised row).
    """

    def __init__(
        self,
        cascade: str = "ADDD",
        similarity: str = "cc",
        radius: int = 4,
        affine_similarity: str | None = None,
        affine_radius: int | None = None,
        weights: Sequence[float] | None = None,
        tv_weight: float = 1.0,
        ortho_weight: float = 0.1,
        det_weight: float = 0.1,
        invertibility_weight: float = 0.0,
        fold_weight: float = 0.0,
        foreground: bool = False,
        endpoint_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.weights = list(weights) if weights is not None else stage_weights(cascade)
        if len(self.weights) != len(cascade):
            raise ValueError(f"cascade '{cascade}' needs {len(cascade)} similarity weights, got {len(self.weights)}")
        self.names = [f"{name}{i + 1}" for i, name in enumerate(cascade)]
        self.similarity = make_similarity(similarity, radius)
        affine = make_similarity(affine_similarity or similarity, affine_radius or radius)
        self.measures = [affine if name == "A" else self.similarity for name in cascade]
        self.radius, self.foreground = radius, foreground
        self.regular = {"tv": tv_weight, "ortho": ortho_weight, "det": det_weight}
        self.extra = {"inverse": invertibility_weight, "folds": fold_weight, "endpoint": endpoint_weight}
        self.terms: dict[str, Tensor] = {}

    def forward(self, stages: dict, targets: dict) -> Tensor:
        """Return the scalar loss.

        Args:
            stages: what ``VTN(image, return_stages=True)`` returns.
            targets: {"fixed": (B, 1, *spatial)} and, for the supervised variant, "ddf" (B, 3, *spatial) voxels.
        """
        fixed = targets["fixed"]
        mask = (box_sum((fixed > 0).float(), self.radius) > 0.5) if self.foreground else None
        total = fixed.new_zeros(())
        self.terms = {}
        for name, measure, weight, moved in zip(self.names, self.measures, self.weights, stages["moved"], strict=True):
            if weight:
                total = total + weight * self._note(f"similarity_{name}", measure(fixed, moved, mask))
        for name, value in self._regularity(stages).items():
            total = total + self.regular[name] * self._note(name, value)
        for name, value in self._extras(stages, targets).items():
            total = total + self.extra[name] * self._note(name, value)
        self._note("loss", total)
        return total

    def _note(self, name: str, value: Tensor) -> Tensor:
        self.terms[name] = value.detach()
        return value

    def _regularity(self, stages: dict) -> dict[str, Tensor]:
        found = {}
        if stages["flow"] and self.regular["tv"]:
            found["tv"] = 0.5 * sum(total_variation(flow) for flow in stages["flow"])
        if stages["A"] is not None:
            found["ortho"] = orthogonality(stages["A"])
            found["det"] = 0.5 * determinant(stages["A"])
        return found

    def _extras(self, stages: dict, targets: dict) -> dict[str, Tensor]:
        found, ddf = {}, stages["ddf"][-1]
        if self.extra["inverse"]:
            if ddf.shape[0] % 2:
                raise ValueError("the invertibility loss needs both orders of each pair in a batch: symmetric=True")
            found["inverse"] = inverse_consistency(*ddf.chunk(2))
        if self.extra["folds"]:
            found["folds"] = fold_penalty(ddf, margin=0.05)
        if self.extra["endpoint"]:
            found["endpoint"] = torch.linalg.vector_norm(ddf - targets["ddf"], dim=1).mean()
        return found
