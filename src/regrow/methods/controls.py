"""Baselines that any method has to beat: units chosen at random, globally or layer by layer.

``random`` draws the units from the whole network, so each layer loses about the same share, give or
take; ``uniform`` takes exactly the same share of every layer. ``width`` is the small dense network:
every width of the network, residual streams too, times one factor. Trained from scratch at equal
FLOPs it is the rival that a pruned network has to beat. ``uniform-sparsification`` draws for
each weight of a convolution on its own, with one probability throughout (the baseline of Figure 3,
right, in Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, arXiv:1810.05270).
"""

import torch
from torch import Tensor

from regrow.pruning.method import ALL, NORMED, criterion, register_method
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
register_method(
    "random",
    criterion=random_score,
    allocation="global",
    scope=NORMED,
    trained=False,
    designed=True,
)
register_method(
    "uniform",
    criterion=random_score,
    allocation="uniform",
    scope=NORMED,
    trained=False,
    designed=True,
)
register_method(
    "width", criterion=first, allocation="uniform", scope=ALL, trained=False, designed=True
)
register_method(
    "uniform-sparsification",
    criterion=random_score,
    allocation="independent",
    unit="weight",
    trained=False,
    designed=True,
)
