"""The loss: put your method's terms here."""

from __future__ import annotations

from torch import Tensor, nn

from shared_components.regularity import fold_penalty, total_variation
from shared_components.similarity import make_similarity


class Loss(nn.Module):
    """Similarity of the moved to the fixed image, smoothness of the field, and a penalty on its folds.

    After a call ``terms`` holds each term, detached and unweighted; training writes them to TensorBoard.

    Args:
        similarity: name of a measure, see ``make_similarity``.
        radius: of its local windows in voxels.
        smoothness: weight of the total variation of the field.
        fold_weight: of the penalty.
    """

    def __init__(
        self, similarity: str = "lncc", radius: int = 2, smoothness: float = 1.0, fold_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.similarity = make_similarity(similarity, radius)
        self.weights = {"similarity": 1.0, "smoothness": smoothness, "folds": fold_weight}
        self.terms: dict[str, Tensor] = {}

    def forward(self, stages: dict[str, list[Tensor]], targets: dict[str, Tensor]) -> Tensor:
        """Return the scalar loss.

        Args:
            stages: what ``Network(image, return_stages=True)`` returns.
            targets: {"fixed": (B, 1, *spatial)}.
        """
        ddf, moved = stages["ddf"][-1], stages["moved"][-1]
        found = {
            "similarity": self.similarity(targets["fixed"], moved),
            "smoothness": total_variation(ddf),
            "folds": fold_penalty(ddf),
        }
        total = sum(self.weights[name] * value for name, value in found.items())
        self.terms = {name: value.detach() for name, value in {**found, "loss": total}.items()}
        return total
