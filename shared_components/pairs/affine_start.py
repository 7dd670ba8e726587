"""The affine map that starts a registration, found by the learned optimiser: ``initial_transform="meta_affine"``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..affine_search import AffineSearch, MetaOptimiser, compose, initial_guess, matrix_vox, rotation_starts
from ..checkpoints import read_tensors
from ..geometry import Frame
from .frames import bring, initial_world, intensity_window, network_frame, scale

WEIGHTS = Path(__file__).parents[1] / "affine_search" / "weights"


@dataclass(frozen=True)
class StartSettings:
    """How a start is searched, and by which network.

    Attributes:
        size, spacing: of the grid on which it is searched, see ``network_frame``.
        strides, expansion: of the network, see ``MetaOptimiser``.
        starts: rotations to begin from, see ``rotation_starts``.
        search: what polishes the result of each, and keeps the best.
        weights: file of the network's weights.
    """

    size: tuple[int, ...]
    spacing: float | str
    strides: tuple[int, ...]
    expansion: int
    starts: int
    search: AffineSearch
    weights: Path


SETTINGS = {
    2: StartSettings(
        size=(128, 128),
        spacing="fit",
        strides=(8, 8, 8, 8, 4, 4, 4),
        expansion=16,
        starts=5,
        search=AffineSearch((8, 4, 2), iterations=15, scaled=True, tolerance=1e-4),
        weights=WEIGHTS / "affine_2d.pt",
    ),
    3: StartSettings(
        size=(32, 32, 32),
        spacing=6.0,
        strides=(2, 2, 2, 2, 2, 1),
        expansion=8,
        starts=3,
        search=AffineSearch((2, 1), iterations=15, scaled=True, tolerance=1e-4),
        weights=WEIGHTS / "affine_3d.pt",
    ),
}


def learned_world(
    fixed: Tensor,
    fixed_frame: Frame,
    moving: Tensor,
    moving_frame: Frame,
    starts: int | None = None,
    learned: bool = True,
) -> np.ndarray:
    """Return the affine map fixed mm -> moving mm, (D+1, D+1), found from the images' centres of mass on.

    Learned steps from each start, then a few of L-BFGS on the squared difference of the images, normalised in mean and
    spread: for two images of one kind, in any pose up to some 60 degrees.

    Args:
        fixed: (1, *spatial) intensities, ``moving`` likewise.
        fixed_frame, moving_frame: their grids.
        starts: rotations to begin from; None takes that of ``SETTINGS``.
        learned: False leaves the network out: L-BFGS from the starts themselves.
    """
    settings = SETTINGS[fixed_frame.ndim]
    spacing = grid_spacing(fixed_frame, settings)
    if not isinstance(spacing, str):
        fixed, fixed_frame = thinned(fixed, fixed_frame, spacing)
        moving, moving_frame = thinned(moving, moving_frame, spacing)
    world = initial_world(fixed, fixed_frame, moving, moving_frame, "centre_of_mass")
    network = network_frame(fixed, fixed_frame, settings.size, spacing)
    views = [
        scale(bring(image, frame, network, through), intensity_window(image))[None]
        for image, frame, through in ((fixed, fixed_frame, None), (moving, moving_frame, world))
    ]
    start = rotation_starts(fixed_frame.ndim, starts or settings.starts)
    with torch.no_grad():
        if learned:
            start = optimiser(fixed_frame.ndim)(*views, start)[-1]
        else:
            start = compose(start, initial_guess(settings.size, len(start)))
        x = settings.search(*views, start).x
    inside = matrix_vox(x.double(), settings.size)[0].numpy()
    return world @ network.affine @ inside @ np.linalg.inv(network.affine)


def grid_spacing(fixed: Frame, settings: StartSettings) -> float | str:
    """Return the spacing of the settings, or "fit" for images far smaller or larger than what the weights have seen."""
    if isinstance(settings.spacing, str):
        return settings.spacing
    longest = float((np.asarray(fixed.shape) * fixed.spacing).max())
    return settings.spacing if 0.5 <= longest / (min(settings.size) * settings.spacing) <= 2 else "fit"


def thinned(image: Tensor, frame: Frame, spacing: float) -> tuple[Tensor, Frame]:
    """Return image (1, *spatial) and frame averaged over blocks of as many voxels as fit into ``spacing`` mm.

    What follows is then as fast for a scan of 0.5 mm as for one of 5 mm.
    """
    blocks = [max(1, min(int(spacing / step + 1e-6), n)) for step, n in zip(frame.spacing, frame.shape, strict=True)]
    if max(blocks) == 1:
        return image, frame
    pool = F.avg_pool2d if frame.ndim == 2 else F.avg_pool3d
    small = pool(image[None].float(), blocks, ceil_mode=True, count_include_pad=False)[0]
    affine = frame.affine.copy()
    affine[:-1, -1] = frame.to_mm((np.asarray(blocks) - 1) / 2)
    affine[:-1, :-1] = frame.matrix * np.asarray(blocks)
    return small, Frame(tuple(small.shape[1:]), affine)


def weights_file(ndim: int) -> str:
    """Return the path of the weights for D dimensions that this package holds."""
    return str(SETTINGS[ndim].weights)


@lru_cache(maxsize=2)
def optimiser(ndim: int) -> MetaOptimiser:
    """Return the learned optimiser for D dimensions, with the weights that this package holds."""
    settings = SETTINGS[ndim]
    network = MetaOptimiser(ndim, settings.strides, "trainable", expansion=settings.expansion)
    network.load_state_dict(read_tensors(settings.weights))
    return network.eval()
