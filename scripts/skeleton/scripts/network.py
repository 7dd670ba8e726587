"""The network: put your method here, and keep ``network(image) -> ddf``."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import UNet
from torch import Tensor, nn

from shared_components.warp import warp_image


class Network(nn.Module):
    """``network(image) -> ddf``: a U-net that predicts the field at once.

    Args:
        size: grid of the input; its length is D. Each number must be divisible by 2^(levels - 1).
        channels: of the first level; they double from level to level.
        levels: of the U-net.
        scale: voxels that an output of 1 stands for.
    """

    def __init__(self, size: Sequence[int], channels: int = 16, levels: int = 4, scale: float = 2.0) -> None:
        super().__init__()
        broken = [n for n in size if n % 2 ** (levels - 1)]
        if broken:
            raise ValueError(f"size {list(size)} must be divisible by {2 ** (levels - 1)}")
        widths = [channels * 2**level for level in range(levels)]
        self.body = UNet(len(size), 2, len(size), widths, [2] * (levels - 1))
        self.scale = scale

    def forward(self, image: Tensor, return_stages: bool = False) -> Tensor | dict[str, list[Tensor]]:
        """Return the ddf that pulls moving onto fixed.

        Args:
            image: (B, 2, *spatial), channel 0 fixed, 1 moving, intensities in about [0, 1].
            return_stages: for training. A dict instead: "ddf" and "moved", lists with an entry a stage.

        Returns:
            (B, D, *spatial) voxels, pull-back; or the dict.
        """
        ddf = self.scale * self.body(image).float()
        if not return_stages:
            return ddf
        return {"ddf": [ddf], "moved": [warp_image(image[:, 1:2], ddf)]}
