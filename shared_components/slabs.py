"""Native grids are worked through slab by slab, so that what is made on the way stays small however large an image is.

The cut depends on the grid alone, never on how much memory there is: the same slabs give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

VOXELS = 1 << 19  # of a slab: some twenty arrays of 2 MB while it is worked on


def slabs(shape: Sequence[int], voxels: int = VOXELS) -> Iterator[slice]:
    """Yield slices of the first axis that make up a grid: as many planes as ``voxels`` hold, one at least.

    Example:
        >>> list(slabs((5, 10, 10), 200))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    planes = max(1, voxels // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], planes):
        yield slice(start, min(start + planes, shape[0]))
