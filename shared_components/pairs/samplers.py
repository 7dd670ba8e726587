"""How the pairs of an epoch, and those to validate on, are dealt out to the processes of a distributed training."""

from __future__ import annotations

from collections.abc import Iterator

import monai.data
import torch
from torch.utils.data import Dataset, DistributedSampler

from ..errors import InputError
from .datasets import PairDataset


class PairSampler(DistributedSampler):
    """Give each rank its share of an epoch's indices; the epoch is part of the index (see ``PairDataset``).

    MONAI's engines call ``set_epoch`` (from 1 on) because this is a DistributedSampler.
    """

    def __init__(
        self, dataset: PairDataset, shuffle: bool = True, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed:
            num_replicas, rank = num_replicas or 1, rank or 0
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=dataset.seed)

    def __iter__(self) -> Iterator[int]:
        """Yield indices ``epoch * len(dataset) + i``."""
        offset = self.epoch * len(self.dataset)
        return iter([offset + index for index in super().__iter__()])


class ValidationSampler(monai.data.DistributedSampler):
    """Deal a dataset out to the ranks in its order, each pair to one of them.

    Raises:
        InputError: there are fewer pairs than ranks; a rank without one would leave the others waiting for its metrics.
    """

    def __init__(self, dataset: Dataset, num_replicas: int | None = None, rank: int | None = None) -> None:
        ranks = torch.distributed.get_world_size() if num_replicas is None else num_replicas
        if len(dataset) < ranks:
            raise InputError(
                f"the number of pairs to validate on, {len(dataset)}, is too small for {ranks} processes: each needs "
                "one; list more under 'validation' in the datalist, or start fewer processes"
            )
        super().__init__(dataset, even_divisible=False, num_replicas=ranks, rank=rank, shuffle=False)
