"""The Volume Tweening Network: an affine subnetwork A and dense subnetworks D in cascade (Zhao et al. 2019)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared_components.affine import affine_ddf, compose_affine, to_matrix
from shared_components.warp import compose, warp_image

_LAYOUT = torch.channels_last_3d  # 3x faster convolutions on CPU


def _on_cpu(x: Tensor) -> bool:
    """Whether the shortcuts below apply: they are for the CPU, and an exported network should have plain layers."""
    return x.device.type == "cpu" and not torch.jit.is_tracing() and not torch.compiler.is_compiling()


class _Conv(nn.Conv3d):
    """Conv3d that uses oneDNN on the CPU also for small single images, where PyTorch takes a path 2-5 times slower."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution."""
        if x.shape[0] > 1 or x.dtype != torch.float32 or not _on_cpu(x) or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if not torch.backends.mkldnn.is_available():
            return super().forward(x)
        where = self.padding, self.stride, self.dilation, self.groups
        return torch.mkldnn_convolution(x, self.weight, self.bias, *where)


class _Doubling(nn.ConvTranspose3d):
    """ConvTranspose3d of kernel 4, stride 2, padding 1 to few channels; on the CPU 2.5 times as fast.

    Each output voxel sees 2^3 input voxels with weights that depend on its parity along each axis: so the layer is a
    convolution of kernel 2 to 8 times as many channels, one set a parity, which fills the vector registers that three
    channels leave empty, and a rearrangement of its result.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return (B, outputs, 2 D, 2 H, 2 W)."""
        if not _on_cpu(x):
            return super().forward(x, output_size)
        inputs, outputs = self.weight.shape[:2]
        tap = torch.tensor([[3, 1], [2, 0]])  # [parity][position in the window]: which of the 4 weights applies
        views = tap.view(2, 2, 1, 1, 1, 1), tap.view(1, 1, 2, 2, 1, 1), tap.view(1, 1, 1, 1, 2, 2)
        weight = self.weight[(slice(None), slice(None), *views)].permute(2, 4, 6, 1, 0, 3, 5, 7)
        y = F.conv3d(x, weight.reshape(8 * outputs, inputs, 2, 2, 2).contiguous(memory_format=_LAYOUT), padding=1)
        # voxel 2 i + parity lies in window i + parity, channels of that parity: stepping the parity moves both at once
        pair, channel, *axes = y.stride()
        strides = [n for k, axis in enumerate(axes) for n in (axis, axis + (4 >> k) * outputs * channel)]
        size = x.shape[2:]
        shape = [x.shape[0], outputs, *(n for length in size for n in (length, 2))]
        taken = y.as_strided(shape, [pair, channel, *strides])
        return taken.reshape(x.shape[0], outputs, *(2 * n for n in size))


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3^3 convolution with bias and LeakyReLU 0.1; halves odd sizes upwards, 5 -> 3."""
    return nn.Sequential(_Conv(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1, inplace=True))


def _encoder(channels: int, levels: int) -> nn.ModuleList:
    """Strided convolutions 2 -> c -> 2c -> ...; from the third level on a second convolution follows each."""
    stages = []
    for level in range(levels):
        inputs, outputs = (2 if level == 0 else channels * 2 ** (level - 1)), channels * 2**level
        second = [_conv(outputs, outputs, 1)] if level >= 2 else []
        stages.append(nn.Sequential(_conv(inputs, outputs, 2), *second))
    return nn.ModuleList(stages)


def _crop(x: Tensor, like: Tensor) -> Tensor:
    """Cut the last voxel of axes that were odd before they were halved."""
    return x[(..., *(slice(n) for n in like.shape[2:]))]


class AffineSubnetwork(nn.Module):
    """Encoder and two full-extent linear heads: (B, 2, *image_size) -> A (B, 3, 3), b (B, 3), eq. 11.

    Args:
        image_size: grid of the input; the heads have its size after ``levels`` halvings.
        channels: of the first layer, 16 in the paper.
        levels: number of strided convolutions; 5 ends at 4^3 for 128^3 (the paper), 6 at 2^3 (the public code).
        identity_start: zero heads, so that an untrained network leaves the image alone.
    """

    def __init__(
        self, image_size: Sequence[int], channels: int = 16, levels: int = 5, identity_start: bool = True
    ) -> None:
        super().__init__()
        self.encoder = _encoder(channels, levels)
        features = channels * 2 ** (levels - 1) * prod(-(-n // 2**levels) for n in image_size)
        self.head_matrix = nn.Linear(features, 9, bias=False)
        self.head_shift = nn.Linear(features, 3, bias=False)
        if identity_start:
            nn.init.zeros_(self.head_matrix.weight)
            nn.init.zeros_(self.head_shift.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return A, the deviation from identity, and b, both in voxels about the middle of the grid."""
        for stage in self.encoder:
            x = stage(x)
        features = x.contiguous().flatten(1)
        return self.head_matrix(features).float().view(-1, 3, 3), self.head_shift(features).float()


class DenseSubnetwork(nn.Module):
    """Encoder-decoder with coarse flow predictions handed upwards: (B, 2, *spatial) -> flow (B, 3, *spatial).

    Args:
        channels: of the first layer, 16 in the paper.
        levels: number of strided convolutions, 6 in the paper (128^3 -> 2^3).
        identity_start: zero last layer, so that an untrained network predicts no motion.
    """

    def __init__(self, channels: int = 16, levels: int = 6, identity_start: bool = True) -> None:
        super().__init__()
        self.encoder = _encoder(channels, levels)
        self.predict, self.up_flow, self.up_feature = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        width = channels * 2 ** (levels - 1)
        for level in reversed(range(levels - 1)):
            skip = channels * 2**level
            self.predict.append(_Conv(width, 3, 3, padding=1))
            self.up_flow.append(nn.ConvTranspose3d(3, 3, 4, 2, 1, bias=False))
            up = nn.ConvTranspose3d(width, skip, 4, 2, 1, bias=False)
            self.up_feature.append(nn.Sequential(up, nn.LeakyReLU(0.1, inplace=True)))
            width = 2 * skip + 3
        self.last = _Doubling(width, 3, 4, 2, 1, bias=False)
        if identity_start:
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the flow of this stage, unscaled."""
        image, skips = x, []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for skip, predict, up_flow, up in zip(skips[-2::-1], self.predict, self.up_flow, self.up_feature, strict=True):
            x = torch.cat([skip, _crop(up(x), skip), _crop(up_flow(predict(x)), skip)], 1)
        return _crop(self.last(x), image)


class VTN(nn.Module):
    """Cascade of subnetworks; ``network(image) -> ddf``.

    Each stage sees the fixed image and the moving image as warped so far; flows are accumulated (eq. 3) and the
    original moving image is resampled, never a resampled one. The affine part is applied to the accumulated dense
    flow in closed form, (I + A) f + A (x - c) + b, exact also where the border would clamp it.
    Defaults build the paper's ADDD at 128^3 (88,452,497 weights).

    Args:
        cascade: "D", "DD", ..., "ADDD": an affine stage, if any, comes first.
        image_size: grid of the input, any size; only the affine heads depend on it.
        channels: width of the first layer of every subnetwork, 16 in the paper.
        levels: halvings in D, 6 in the paper.
        affine_levels: halvings in A, 5 in the paper (6 in the public code).
        flow_scale: a dense stage predicts ``flow_scale / number of D`` times its output, in voxels (public code: 20).
        identity_start: an untrained network is the identity.

    Raises:
        ValueError: for another cascade string.
    """

    def __init__(
        self,
        cascade: str = "ADDD",
        image_size: Sequence[int] = (128, 128, 128),
        channels: int = 16,
        levels: int = 6,
        affine_levels: int = 5,
        flow_scale: float = 20.0,
        identity_start: bool = True,
    ) -> None:
        super().__init__()
        if not re.fullmatch(r"A?D+|A", cascade):
            raise ValueError(f"cascade must be an optional A followed by Ds, such as 'ADDD', got '{cascade}'")
        self.cascade, self.image_size = cascade, tuple(image_size)
        self.scale = flow_scale / max(cascade.count("D"), 1)
        has_affine = cascade.startswith("A")
        self.affine = AffineSubnetwork(image_size, channels, affine_levels, identity_start) if has_affine else None
        self.dense = nn.ModuleList(DenseSubnetwork(channels, levels, identity_start) for _ in range(cascade.count("D")))
        self.to(memory_format=_LAYOUT)

    def forward(self, image: Tensor, return_stages: bool = False) -> Tensor | dict[str, list[Tensor] | Tensor | None]:
        """Return the ddf that pulls moving onto fixed.

        Args:
            image: (B, 2, *spatial), channel 0 fixed, 1 moving, intensities in about [0, 1].
            return_stages: for training. A dict instead: "ddf", the accumulated field after each stage; "flow", each
                dense stage's own flow; "A" and "b" (None without affine stage); "moved", the image after each stage.

        Returns:
            (B, 3, *spatial) voxels, pull-back; or the dict.
        """
        fixed, moving = image[:, :1], image[:, 1:2]
        stages: dict = {"ddf": [], "flow": [], "moved": [], "A": None, "b": None}
        moved, dense = moving, None
        if self.affine is not None:
            stages["A"], stages["b"] = self.affine(self._pair(fixed, moved))
            stages["ddf"].append(affine_ddf(stages["A"], stages["b"], fixed.shape[2:]))
        for index, subnetwork in enumerate(self.dense):
            if stages["ddf"]:
                moved = warp_image(moving, stages["ddf"][-1])
                stages["moved"].append(moved)
            flow = self.scale * subnetwork(self._pair(fixed, moved)).float().contiguous()
            dense = flow if index == 0 else compose(dense, flow)
            stages["flow"].append(flow)
            stages["ddf"].append(dense if self.affine is None else compose_affine(stages["A"], stages["b"], dense))
        if not return_stages:
            return stages["ddf"][-1]
        stages["moved"].append(warp_image(moving, stages["ddf"][-1]))
        return stages

    def affine_matrix(self, image: Tensor) -> Tensor:
        """Return the affine stage alone as (B, 4, 4), voxel to voxel; the identity where there is no such stage."""
        fixed, moving = image[:, :1], image[:, 1:2]
        if self.affine is None:
            return torch.eye(4, device=image.device).repeat(image.shape[0], 1, 1)
        return to_matrix(*self.affine(self._pair(fixed, moving)), image.shape[2:])

    @staticmethod
    def _pair(fixed: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([fixed, moved], 1).contiguous(memory_format=_LAYOUT)
