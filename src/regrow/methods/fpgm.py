"""FPGM: remove filters near the geometric median (He et al., CVPR 2019, arXiv:1811.00250)."""

import torch
from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("geometric-median", revision=2)  # distances to the units that are left
def geometric_median(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the sum of its distances to the other units of its group (equation 5).

    The unit with the smallest sum is closest to the geometric median, so the others can replace it.
    A unit's vector concatenates the weights of all layers that produce it. Units that an earlier
    round removed do not count.
    """
    units = group.rows(probe.weight)
    others = units[probe.left(group)]
    return torch.cdist(units, others, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


register_method(
    "fpgm",
    criterion=geometric_median,
    allocation="uniform",
    scope="conv",
    reference="He et al., Filter Pruning via Geometric Median, CVPR 2019, arXiv:1811.00250",
)
