"""Test-time refinement of any field on the very pair it belongs to, and registration of a pair by optimisation alone.

``refine`` (method "field"): the given field u0, smoothed so that what was found in the large stays, is where the
descent begins. Over the levels (a quarter, a half, all of the resolution) Adam moves a smooth update spanned by nodes
(``basis``). Where the result folds it is smoothed.

``vsvf_opt`` (method "vsvf"): one stationary velocity is put in front of the given map, phi0 o exp(-v), which keeps it a
diffeomorphism, and has an inverse. L-BFGS over its momentum. With the paper's settings it is vSVF-opt of AVSM;
``affine_opt`` is the affine one.

``bspline_opt`` (method "bspline"): a cubic B-spline is added to the given map. Adam with AMSGrad over the control
points. With the paper's settings it is the baseline of R2N2.

In all, loss at full resolution and folds are compared with those of u0 in the end, and what is not better is not
returned. ``RefineField`` is the step of a pipeline.
"""

from .affine import AffineOptResult, AffineOptSettings, affine_opt
from .bspline import BsplineResult, BsplineSettings, bspline_opt
from .core import default_mask, refine
from .level import RefineSettings
from .post import METHODS, RefineField
from .vsvf import VsvfResult, VsvfSettings, vsvf_opt

__all__ = [
    "METHODS",
    "AffineOptResult",
    "AffineOptSettings",
    "BsplineResult",
    "BsplineSettings",
    "RefineField",
    "RefineSettings",
    "VsvfResult",
    "VsvfSettings",
    "affine_opt",
    "bspline_opt",
    "default_mask",
    "refine",
    "vsvf_opt",
]
