"""Registration problems made to order: real images under random affine maps that are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from shared_components.affine_search import AffineSSD, align_group, compose, inverse, join, normalise
from shared_components.pairs.spare import Spare

Item = dict[str, Any]
_SEED_STEP = 1_000_003


class AffineSamples(Dataset):
    """Pairs with their true map x: the moving image is one with noise, the fixed one is that image under phi_x.

    Those are the roles of the authors' code: T(phi_x) = R, and x is the exact answer. A sample depends only on its
    index and the seed (``PairSampler`` hands out ``epoch * len + i``), so training can be resumed exactly. A few
    unusable files are left out, see ``Spare``.

    Args:
        data: items for ``transform``, single images or pairs, of which both images are taken. If items have a "group",
            each group is drawn equally often, however many images it has.
        transform: file to network grid, see ``make_preprocessing``.
        length: samples an epoch, 2000 in the paper; None makes as many as images.
        rotation: largest angle, degrees; in 3-D about an axis of any direction. 60 in the paper.
        translation: largest shift along each axis, as a fraction of the longest side. 1/4 in the paper.
        shear: largest change of each entry of A; 0.15 for the full affine maps of Table 5.
        noise: standard deviation of Gaussian noise on the moving image where it is brighter than its median, in units
            of the image's own standard deviation; clipped to the image's range.
        across: the moving image is another subject's. The true map then includes the affine map between the two, found
            by aligning all images with their mean.
        pose: extra rotation in degrees that the moving image gets too, so that neither lies straight.
        gamma: largest |log| of an exponent that each image's intensities are raised to.
        seed: of all drawing.
    """

    def __init__(
        self,
        data: Sequence[Item],
        transform: Callable[[Item], Item],
        length: int | None = 2000,
        rotation: float = 60.0,
        translation: float = 0.25,
        shear: float = 0.0,
        noise: float = 1 / 3,
        across: bool = False,
        pose: float = 0.0,
        gamma: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.data, self.transform, self.length = list(data), transform, length
        self.rotation, self.translation, self.shear = math.radians(rotation), 2 * translation, shear
        self.noise, self.across, self.pose, self.gamma, self.seed = noise, across, math.radians(pose), gamma, seed

    def __len__(self) -> int:
        """Samples in an epoch."""
        return (self.length or len(self.data)) if self.data else 0

    @cached_property
    def images(self) -> Tensor:
        """All images, (N, 1, *size), zero mean, unit standard deviation."""
        return normalise(torch.cat([view for _, view in self._usable])[:, None])

    @cached_property
    def _usable(self) -> list[tuple[Item, Tensor]]:
        """The items that can be used, each with its images on the network grid."""
        spare, found = Spare(len(self.data)), []
        for item in self.data:
            try:
                found.append((item, self.transform(dict(item))["image"]))
            except Exception as error:
                spare.bear(error)
        return found

    @cached_property
    def groups(self) -> list[list[int]]:
        """Indices of the images of each group."""
        found: dict[Any, list[int]] = {}
        names = [item.get("group") for item, _ in self._usable for _ in range(1 + ("moving" in item))]
        for index, name in enumerate(names):
            found.setdefault(name, []).append(index)
        return list(found.values())

    @cached_property
    def poses(self) -> Tensor:
        """Maps of the group's mean to each image, (N, D (D + 1))."""
        return align_group(self.images)

    def __getitem__(self, index: int) -> Item:
        """Return {"image": (2, *size), "truth": (D (D + 1),), "name"}."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several samples; PyTorch's loader asks for a batch at once, and warping them together is faster."""
        generators = [torch.Generator().manual_seed(self.seed * _SEED_STEP + int(index)) for index in indices]
        chosen = [self._choose(generator) for generator in generators]
        one, other = (self.images[[pair[side] for pair in chosen]] for side in (0, 1))
        x = torch.stack([self._map(generator, self.rotation, self.translation) for generator in generators])
        fixed, moving, truth = AffineSSD(one, one).moved(x), other, x
        if self.across:
            between = [compose(self.poses[j], inverse(self.poses[i])) for i, j in chosen]
            truth = compose(torch.stack(between), truth)
        if self.pose:
            back = torch.stack([self._map(generator, self.pose, 0.0) for generator in generators])
            moving, truth = AffineSSD(other, other).moved(back), compose(inverse(back), truth)
        moving = torch.stack([self._noisy(*pair) for pair in zip(moving, generators, strict=True)])
        image = torch.cat([self._toned(fixed, generators), self._toned(moving, generators)], 1)
        return [{"image": image[k], "truth": truth[k], "name": f"sample {index}"} for k, index in enumerate(indices)]

    def _choose(self, generator: torch.Generator) -> tuple[int, int]:
        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        group = self.groups[draw(len(self.groups)) if len(self.groups) > 1 else 0]
        one = draw(len(group))
        step = 1 + draw(len(group) - 1) if self.across and len(group) > 1 else 0
        return group[one], group[(one + step) % len(group)]

    def _map(self, generator: torch.Generator, rotation: float, translation: float) -> Tensor:
        ndim = self.images.ndim - 2
        angle = (2 * torch.rand((), generator=generator) - 1) * rotation
        axis = torch.randn(ndim * (ndim - 1) // 2, generator=generator)
        rows, columns = torch.triu_indices(ndim, ndim, 1)
        turn = torch.zeros(ndim, ndim)
        turn[rows, columns] = angle * axis / axis.norm()
        A = torch.matrix_exp(turn - turn.T)
        shear = 2 * torch.rand(ndim, ndim, generator=generator) - 1
        return join(A + self.shear * shear, (2 * torch.rand(ndim, generator=generator) - 1) * translation)

    def _noisy(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if not self.noise:
            return image
        noise = self.noise * torch.randn(image.shape, generator=generator)
        return (image + noise * (image > image.median())).clamp(image.min(), image.max())

    def _toned(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        if not self.gamma:
            return images
        axes = tuple(range(1, images.ndim))
        low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
        spread = (high - low).clamp_min(torch.finfo(images.dtype).tiny)
        power = torch.stack([torch.rand((), generator=g) * 2 - 1 for g in generators]).view(low.shape)
        return (high - low) * ((images - low) / spread).pow((self.gamma * power).exp()) + low
