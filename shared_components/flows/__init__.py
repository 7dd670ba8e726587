r"""Velocity fields and the maps they carry: smoothing of momenta, exponential, advection, inverse.

A ``dvf`` is a stationary velocity (B, D, *spatial) in voxels of its grid per unit of time, laid out like a ``ddf``.
With phi = id + ddf the map of the fixed grid into the moving image, advection by v for unit time gives phi o exp(-v)
(AVSM eq. 7): a positive velocity carries the picture along, and the pull-back points against it.
"""

from .advection import advect, cfl_limit, clamp_velocity, inverse_map
from .exponential import exponential
from .smoothing import MultiGaussian

__all__ = ["MultiGaussian", "advect", "cfl_limit", "clamp_velocity", "exponential", "inverse_map"]
