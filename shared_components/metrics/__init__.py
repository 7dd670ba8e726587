r"""Named definitions of what a registration is measured by; nothing here is called plainly "SDlogJ" or "HD95".

| name | unit | definition |
|---|---|---|
| dice, iou | 1 | per label, 2 \|A n B\| / (\|A\| + \|B\|) and \|A n B\| / \|A u B\| |
| hd95_mm | mm | larger of the two directed 95th percentiles of surface distances, voxel surfaces |
| hd95_l2r | voxel | Learn2Reg: the same on surface elements weighted by area, spacing (1, 1, 1) whatever the image's |
| tre_mm | mm | distance of mapped fixed points to moving points |
| folds_percent | % | voxels with central-difference det J <= 0 |
| ndv_percent | % | non-diffeomorphic volume (area in 2-D), one-sided differences in all corners |
| sdlogj | 1 | std of log det J over voxels with det J > 0 |
| sdlogj_l2r | 1 | Learn2Reg: std of log(clip(det J + 3, 1e-9, 1e9)); about 1/4 of sdlogj, blind to folds |
| std_jacobian | 1 | VTN: std of det J itself, forward differences |
| inverse_consistency_error | mm | \|phi_inv(phi(x)) - x\| |
| log_asymmetry | 1 | AVSM: ln of the mean of \|phi_forth(phi_back(x)) - x\|^2 in voxels, away from the border |
| diagonal_folds_percent | % | AVSM's code: voxels with a negative product of the Jacobian's diagonal; no folds |

Labels and points are numpy (torch is converted), fields are torch (numpy is converted). All is 2-D and 3-D.
"""

from .jacobian import (
    diagonal_folds_percent,
    folded_cells,
    folds_percent,
    inverse_consistency_error,
    log_asymmetry,
    ndv_percent,
    non_diffeomorphic_volume,
    sdlogj,
    sdlogj_l2r,
    std_jacobian,
)
from .overlap import common_labels, dice, iou, mean_over_labels
from .points import distance_statistics, tre_mm
from .statistics import field_statistics, jacobian_statistics
from .summary import field_summary, label_summary, plain
from .surface import hd95_l2r, hd95_mm, surface_voxels

__all__ = [
    "common_labels",
    "diagonal_folds_percent",
    "dice",
    "distance_statistics",
    "field_statistics",
    "field_summary",
    "folded_cells",
    "folds_percent",
    "hd95_l2r",
    "hd95_mm",
    "inverse_consistency_error",
    "iou",
    "jacobian_statistics",
    "label_summary",
    "log_asymmetry",
    "mean_over_labels",
    "ndv_percent",
    "non_diffeomorphic_volume",
    "plain",
    "sdlogj",
    "sdlogj_l2r",
    "std_jacobian",
    "surface_voxels",
    "tre_mm",
]
