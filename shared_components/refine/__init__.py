"""Test-time refinement: polish any field on the very pair it belongs to, and never make it worse.

The given field u0, smoothed so that what was found in the large stays, is where the descent begins. Over the levels
(a quarter, a half, all of the resolution) Adam moves a smooth update spanned by nodes (``basis``). Where the result
folds it is smoothed; then its loss at full resolution and its folds are compared with those of u0, and what is not
better is not returned.
"""

from .core import default_mask, refine
from .level import RefineSettings
from .post import RefineField

__all__ = ["RefineField", "RefineSettings", "default_mask", "refine"]
