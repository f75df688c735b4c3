"""Controls that any method has to beat: units chosen by chance, over the network or layer by layer.

``random`` draws the units from the whole network, so each layer loses about the same share, give or
take; ``uniform`` takes exactly the same share of every layer. ``uniform-sparsification`` draws for
each weight of a convolution on its own, with one probability throughout (the baseline of Figure 3,
right, in Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, arXiv:1810.05270).
"""

import torch
from torch import Tensor

from regrow.pruning.method import NORMED, criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("random")
def random_score(group: Group, probe: Probe) -> Tensor:
    """Score units by chance; the seed decides."""
    return probe.random(group)


@criterion("first")
def first(group: Group, probe: Probe) -> Tensor:
    """Keep the first units of each group: for widths that are given, before any training."""
    return -torch.arange(group.size, dtype=torch.float32)


# On the units that network slimming prunes too, so that the three compare.
register_method("random", criterion=random_score, allocation="global", scope=NORMED, trained=False)
register_method(
    "uniform", criterion=random_score, allocation="uniform", scope=NORMED, trained=False
)
register_method(
    "uniform-sparsification",
    criterion=random_score,
    allocation="independent",
    unit="weight",
    trained=False,
)
