"""FPGM: remove filters near the geometric median (He et al., CVPR 2019, arXiv:1811.00250)."""

import torch
from torch import Tensor

from regrow.pruning.method import criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("geometric-median")
def geometric_median(group: Group, probe: Probe) -> Tensor:
    """Score a unit by the sum of its distances to the others of its group (equation 5).

    The one with the least lies closest to their geometric median, so the others can stand for it.
    The vector of a unit holds the weights of all layers that make it, one after another.
    """
    units = group.rows(probe.weight)
    return torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


register_method(
    "fpgm",
    criterion=geometric_median,
    allocation="uniform",
    scope="conv",
    reference="He et al., Filter Pruning via Geometric Median, CVPR 2019, arXiv:1811.00250",
)
