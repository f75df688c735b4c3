"""Pruning by the norms of each unit's weights, for channels and heads of any network.

The criteria are those of ``l1_filter`` (Li et al., ICLR 2017, arXiv:1608.08710) and ``soft_filter``
(He et al., IJCAI 2018, arXiv:1808.06866). Here a unit's weights are those of all layers that
produce it (a residual stream or an attention head has several), and groups are ranked together
after dividing their scores by each group's mean, as in DepGraph (Fang et al., CVPR 2023,
arXiv:2301.12900).
"""

from regrow.methods.l1_filter import l1_norm
from regrow.methods.soft_filter import l2_norm
from regrow.pruning.method import register_method

REFERENCE = "Fang et al., DepGraph, CVPR 2023, arXiv:2301.12900"

register_method(
    "l1",
    criterion=l1_norm,
    allocation="global",
    scope="all",
    normalise="group",
    reference=REFERENCE,
)
register_method(
    "l2",
    criterion=l2_norm,
    allocation="global",
    scope="all",
    normalise="group",
    reference=REFERENCE,
)
