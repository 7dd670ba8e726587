"""SUITS: features of two modalities from a Y-shaped CNN, a regularised descent on them (Blendowski et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.features import mind_ssc, pool_to_grid, ssc_pairs
from shared_components.solvers import find_method
from shared_components.warp import warp_image

from .descent import UPSAMPLING, Step, dense, exporting

STRIDES = (1, 2, 2, 1, 1)
FEATURES = ("cnn", "mind")
FIXED, MOVING = 0, 1
PAPER_SIZE = (138, 187, 192)  # at 2 mm; any other works


class _Norm(nn.modules.instancenorm._InstanceNorm):
    """Instance norm that leaves the memory layout alone for a single image, which halves the time of a CPU.

    An exported network does the same sums in the same order, image by image: it refuses another batch size.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised channels."""
        if x.shape[0] > 1 and not exporting():
            return F.instance_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return torch.cat([self._one(one) for one in x.split(1)]) if exporting() else self._one(x)

    def _one(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


class FeatCNN(nn.Module):
    """Table 1: five convolutions, the first two of each modality's own, the others shared; features in (0, 1).

    97,484 weights in 3-D. The paper's table has a stride in the third layer only, its text a control point every fourth
    voxel; ``strides`` (1, 2, 2, 1, 1) follows the text, (1, 1, 2, 1, 1) the table.

    Args:
        strides: of the five layers.
        ndim: 3 in the paper.
        affine_norm: instance norm with learned scale and shift (97,804 weights).
    """

    def __init__(self, strides: Sequence[int] = STRIDES, ndim: int = 3, affine_norm: bool = False) -> None:
        super().__init__()
        conv = nn.Conv3d if ndim == 3 else nn.Conv2d
        self.layout = torch.channels_last_3d if ndim == 3 else torch.channels_last

        def block(inputs: int, outputs: int, stride: int, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
            layer = conv(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation)
            return nn.Sequential(layer, _Norm(outputs, affine=affine_norm), nn.ReLU(inplace=True))

        self.own = nn.ModuleList(
            nn.Sequential(block(1, 16, strides[0], 5, 2), block(16, 32, strides[1])) for _ in (FIXED, MOVING)
        )
        last = conv(32, len(ssc_pairs(ndim)), 3, strides[4], 1)
        self.shared = nn.Sequential(block(32, 32, strides[2]), block(32, 32, strides[3]), last, nn.Sigmoid())
        self.to(memory_format=self.layout)

    def forward(self, image: Tensor, branch: int) -> Tensor:
        """Return (B, 12, *ceil(n / product of strides)) of (B, 1, *spatial) with mean 0 and spread 1."""
        if image.device.type == "cpu" and len(image) > 1 and not exporting():
            return torch.cat([self(one, branch) for one in image.split(1)])
        own = self.own[branch](image.contiguous(memory_format=self.layout))
        return self.shared(own).float().contiguous()


class SUITS(nn.Module):
    """``network(image) -> ddf``: iterations of warp, features, one linear solve; differentiable through the solver.

    Every iteration warps the moving grey image by the field so far, takes its features R_m, and adds gamma times the z
    that minimises 1/2 sum_c |J_c z + R_m,c - R_f,c|^2 + lambda/2 |grad(u + z)|^2 (eq. 4-6), J = grad R_m.

    Args:
        strides: of the FeatCNN; their product is the spacing of the control points in voxels, 4 by default.
        iterations: of the descent, 15 in the paper.
        smoothness: lambda, 10 in the paper for registration.
        training_smoothness: lambda while training, 5 in the paper.
        gamma: share of each step that is taken, 1 in the paper.
        upsampling: from control points to voxels: "box" as in the paper, or "spline", see ``dense``.
        features: "cnn", or "mind" for MIND-SSC itself, pooled to the control points: no learning.
        swap: the images have each other's modality: the moving one goes through the first branch.
        grad_A: while training, let gradients through the matrix of the solve too (not in the paper).
        solver: name of a method of ``shared_components.solvers``.
        tolerance: of its relative residual.
        ndim: 3 in the paper.

    Raises:
        ValueError: for an unknown word.
    """

    def __init__(
        self,
        strides: Sequence[int] = STRIDES,
        iterations: int = 15,
        smoothness: float = 10.0,
        training_smoothness: float = 5.0,
        gamma: float = 1.0,
        upsampling: str = "box",
        features: str = "cnn",
        swap: bool = False,
        grad_A: bool = False,  # noqa: N803 (as in the paper)
        solver: str = "auto",
        tolerance: float = 1e-7,
        ndim: int = 3,
    ) -> None:
        super().__init__()
        for name, value, known in (("features", features, FEATURES), ("upsampling", upsampling, UPSAMPLING)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not '{value}'")
        self.cnn = FeatCNN(strides, ndim)
        self.factor, self.iterations, self.gamma = prod(strides), iterations, gamma
        self.smoothness, self.training_smoothness = smoothness, training_smoothness
        self.upsampling, self.features, self.swap = upsampling, features, swap
        self.step = Step(find_method(solver, tolerance=tolerance, max_iterations=500, on_failure="warn"), grad_A)
        self.image_size = PAPER_SIZE

    def forward(
        self,
        image: Tensor,
        return_stages: bool = False,
        labels: Tensor | None = None,
        steps: int = 1,
        target: bool = False,
    ) -> Tensor | dict:
        """Return the ddf that pulls moving onto fixed.

        Args:
            image: (B, 2, *spatial), channel 0 fixed, 1 moving.
            return_stages: a dict instead: "ddf", the dense field after each iteration.
            labels: for training: one-hot (B, 2, K, *spatial). ``steps`` - 1 updates on them, without gradient, then one
                on the features of the image (Algorithm 1); "moved_label" is the one-hot moving label, warped.
            steps: see ``labels``.
            target: for training: no descent, but "features" and "target", what MIND-SSC says, lists of both sides.

        Returns:
            (B, D, *spatial) voxels, pull-back; or the dict.
        """
        image = standardised(image)
        fixed, moving = image[:, :1], image[:, 1:2]
        if target:
            pairs = [(self.describe(x, side), self._mind(x)) for side, x in ((FIXED, fixed), (MOVING, moving))]
            return {"features": [pair[0] for pair in pairs], "target": [pair[1] for pair in pairs]}
        fixed_features = self.describe(fixed, FIXED)
        ddf = fixed_features.new_zeros(len(image), image.ndim - 2, *fixed_features.shape[2:])
        if labels is not None:
            return self._train(fixed_features, moving, ddf, labels, steps)
        stages = []
        for _ in range(self.iterations):
            moved = self.describe(warp_image(moving, self.dense(ddf, image)) if stages else moving, MOVING)
            ddf = ddf + self.gamma * self.step(moved, fixed_features, ddf, self.smoothness)
            stages.append(self.dense(ddf, image) if return_stages else ddf)
        return {"ddf": stages} if return_stages else self.dense(ddf, image)

    def _train(self, fixed_features: Tensor, moving: Tensor, ddf: Tensor, labels: Tensor, steps: int) -> dict:
        with torch.no_grad():
            ddf = self.descend_on_labels(labels, ddf, steps - 1)
            warped = warp_image(moving, self.dense(ddf, moving))
        moved = self.describe(warped, MOVING)
        ddf = ddf + self.gamma * self.step(moved, fixed_features, ddf, self.training_smoothness)
        field = self.dense(ddf, moving)
        return {"ddf": [field], "moved_label": warp_image(labels[:, 1], field)}

    def descend_on_labels(self, labels: Tensor, ddf: Tensor, steps: int) -> Tensor:
        """Return the control points after ``steps`` updates on one-hot labels (B, 2, K, *spatial) as features."""
        fixed = pool_to_grid(labels[:, 0], self.factor)
        for _ in range(steps):
            moved = pool_to_grid(warp_image(labels[:, 1], self.dense(ddf, labels[:, 1])), self.factor)
            ddf = ddf + self.gamma * self.step(moved, fixed, ddf, self.training_smoothness)
        return ddf

    def describe(self, image: Tensor, side: int) -> Tensor:
        """Return the features (B, C, *grid) of the fixed (0) or moving (1) image (B, 1, *spatial), standardised."""
        if self.features == "mind":
            return self._mind(image)
        return self.cnn(image, 1 - side if self.swap else side)

    def dense(self, ddf: Tensor, like: Tensor) -> Tensor:
        """Return control points as a field in voxels on the grid of ``like``."""
        return dense(ddf, self.factor, like.shape[2:], self.upsampling)

    def _mind(self, image: Tensor) -> Tensor:
        return pool_to_grid(mind_ssc(image), self.factor)


def standardised(image: Tensor) -> Tensor:
    """Return the image with mean 0 and standard deviation 1 in every channel."""
    axes = tuple(range(2, image.ndim))
    spread, mean = torch.std_mean(image.float(), axes, keepdim=True, correction=0)
    return (image - mean) / spread.clamp_min(1e-6)
