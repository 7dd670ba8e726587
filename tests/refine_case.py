"""A pair of images under a known deformation, for the tests of refinement."""

import torch

from shared_components.synth import diffeomorphism
from shared_components.warp import warp_image


def scene(shape=(28, 30, 26), seed=0, mean=1.2):
    """A smooth random image in a dark surround, the same moved by a known diffeomorphism, that, its inverse, inside."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 1, *shape, generator=generator)
    pool = {2: torch.nn.functional.avg_pool2d, 3: torch.nn.functional.avg_pool3d}[len(shape)]
    for _ in range(2):
        image = pool(image, 3, 1, 1)
    image = (image - image.amin()) / (image.amax() - image.amin())
    axes = [torch.linspace(-1, 1, n) for n in shape]
    inside = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij")) < 0.8
    image = (image + 0.1) * inside
    ddf, inverse = diffeomorphism(shape, generator, mean=mean, smoothness=14.0)
    return image, warp_image(image, inverse), ddf, inside
