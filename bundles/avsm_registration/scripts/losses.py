"""What AVSM learns from: similarity, regularity and symmetry of both parts (eq. 3-6 and 9-14)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared_components.mk_lncc import MultiKernelLNCC, Window
from shared_components.regularity import fold_penalty
from shared_components.similarity import make_similarity
from shared_components.warp import compose

PAPER_ENTRIES = 3 * 80 * 192 * 192  # eq. 10 is a sum: this makes it a mean that weighs as much on any grid


def affine_weight(epoch: float, constant: float = 10.0, decay: float = 4.0, plateau: int = 0) -> float:
    """Return lambda_ar of an epoch counted from 0, C K / (K + exp(n / K)) (eq. 13, 14), n from the plateau's end on.

    Example:
        >>> round(affine_weight(0), 2), round(affine_weight(20), 2)
        (8.0, 0.26)
    """
    n = max(0.0, epoch - plateau)
    return constant * decay / (decay + math.exp(min(n / decay, 700.0)))


def affine_regularity(affine: Tensor) -> Tensor:
    """Return |A - I|_F^2 + |b|^2 of maps (B, 3, 4), mean over the batch (eq. 4 without its weight)."""
    return (affine - torch.eye(3, 4, dtype=affine.dtype, device=affine.device)).square().sum((1, 2)).mean()


def affine_asymmetry(forth: Tensor, back: Tensor) -> Tensor:
    """Return |A' A - I|_F^2 + |A' b + b'|^2 of ``forth`` = (A, b) and ``back`` = (A', b'), mean (eq. 5)."""
    product = (back[:, :, :3, None] * forth[:, None]).sum(2)
    joined = torch.cat([product[..., :3], product[..., 3:] + back[..., 3:]], -1)
    return affine_regularity(joined)


def velocity_energy(momentum: Tensor, velocity: Tensor, voxel: Tensor, clamped: bool = False) -> Tensor:
    """Return <m, v>, an integral over the domain in its units, mean over the batch (eq. 9 without its weight).

    Args:
        momentum: (B, 3, *half) in voxels.
        velocity: v = K m, likewise.
        voxel: (3,) lengths of a voxel in units of the domain.
        clamped: leave out where a component of m and v differ in sign, as the paper's code does.
    """
    product = momentum * velocity * voxel.square().view(1, 3, 1, 1, 1)
    product = product.clamp_min(0) if clamped else product
    return product.flatten(1).sum(1).mean() * voxel.prod()


def asymmetry(forth: Tensor, back: Tensor, voxel: Tensor) -> Tensor:
    """Return the mean over voxels and components of |forth o back - id|^2 in units of the domain (eq. 10)."""
    return (compose(forth, back) * voxel.view(1, 3, 1, 1, 1)).square().mean()


class AVSMLoss(nn.Module):
    """The affine part's loss (eq. 6) where there are no vSVF steps, else the sum over those (eq. 11, 12).

    Both directions of a pair count in full, as in the paper, so the batch should hold both: the first half forth, the
    second half back. Defaults are the paper's. After a call ``terms`` holds each term, detached, with its weight.

    Args:
        similarity: a name of ``make_similarity``; "mk_lncc" in the paper.
        windows: of mk-LNCC, each [weight, samples an axis, dilation, stride]; None follows the grid.
        radius: of the windows of "lncc".
        affine_similarity: likewise for the affine part; None takes the same.
        symmetric: the batch holds both directions; else there is neither their sum nor their symmetry.
        affine_symmetry_weight: lambda_as.
        velocity_weight: lambda_vr.
        symmetry_weight: lambda_vs, of the sum over the paper's voxels.
        affine_constant, affine_decay, affine_plateau: C, K and, besides, n's start of lambda_ar, in epochs.
        clamped: see ``velocity_energy``.
        fold_weight: of ``regularity.fold_penalty`` of the last map, whose sampling can fold; none in the paper.
    """

    def __init__(
        self,
        similarity: str = "mk_lncc",
        windows: Sequence[Sequence[float]] | None = None,
        radius: int = 4,
        affine_similarity: str | None = None,
        symmetric: bool = True,
        affine_symmetry_weight: float = 10.0,
        velocity_weight: float = 10.0,
        symmetry_weight: float = 1e-4,
        affine_constant: float = 10.0,
        affine_decay: float = 4.0,
        affine_plateau: int = 0,
        clamped: bool = False,
        fold_weight: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = None if windows is None else [Window(float(w), *map(int, rest)) for w, *rest in windows]

        def make(name: str) -> nn.Module:
            return MultiKernelLNCC(sizes) if name == "mk_lncc" else make_similarity(name, radius)

        self.similarity, self.affine_similarity = make(similarity), make(affine_similarity or similarity)
        self.symmetric, self.clamped = symmetric, clamped
        self.affine_symmetry_weight, self.velocity_weight = affine_symmetry_weight, velocity_weight
        self.symmetry_weight, self.fold_weight = symmetry_weight, fold_weight
        self.affine_schedule = {"constant": affine_constant, "decay": affine_decay, "plateau": affine_plateau}
        self.epoch = 0
        self.terms: dict[str, Tensor] = {}

    def forward(self, stages: dict[str, Any], targets: dict[str, Tensor]) -> Tensor:
        """Return the scalar loss.

        Args:
            stages: what ``AVSM(image, return_stages=True)`` returns.
            targets: {"fixed": (B, 1, *spatial)}.
        """
        fixed = targets["fixed"]
        if self.symmetric and len(fixed) % 2:
            raise ValueError("a symmetric loss needs both orders of each pair in a batch: symmetric=True")
        terms = self._velocities(stages, fixed) if stages["ddf"] else self._affine(stages, fixed)
        self.terms = {name: value.detach() for name, value in terms.items()}
        return sum(terms.values(), fixed.new_zeros(()))

    def _affine(self, stages: dict[str, Any], fixed: Tensor) -> dict[str, Tensor]:
        affine, directions = stages["affines"][-1], 1 + self.symmetric
        weight = affine_weight(self.epoch, **self.affine_schedule)
        terms = {
            "affine_similarity": directions * self.affine_similarity(fixed, stages["affine_moved"]),
            "affine_regularity": directions * weight * affine_regularity(affine),
        }
        if self.symmetric and self.affine_symmetry_weight:
            terms["affine_symmetry"] = self.affine_symmetry_weight * affine_asymmetry(*affine.chunk(2))
        return terms

    def _velocities(self, stages: dict[str, Any], fixed: Tensor) -> dict[str, Tensor]:
        directions, voxel, half, terms = 1 + self.symmetric, stages["voxel"], stages["half_voxel"], {}
        for step, moved in enumerate(stages["moved"], 1):
            energy = velocity_energy(stages["momenta"][step - 1], stages["velocities"][step - 1], half, self.clamped)
            terms[f"similarity_{step}"] = directions * self.similarity(fixed, moved)
            terms[f"velocity_{step}"] = directions * self.velocity_weight * energy
            if self.symmetric and self.symmetry_weight:
                residual = asymmetry(*stages["ddf"][step - 1].chunk(2), voxel)
                terms[f"symmetry_{step}"] = self.symmetry_weight * PAPER_ENTRIES * residual
        if self.fold_weight:
            terms["folds"] = directions * self.fold_weight * fold_penalty(stages["ddf"][-1], margin=0.1)
        return terms
