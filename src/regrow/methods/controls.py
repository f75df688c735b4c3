"""Baselines that any method has to beat: random units, scaled widths and random weights.

``random`` draws units from the whole network, so each layer loses roughly the same share;
``uniform`` removes exactly the same share of every layer. ``width`` is the smaller dense network:
every width, including residual streams, multiplied by one factor. Trained from scratch at equal
FLOPs, it is the rival that a pruned network has to beat. ``uniform-sparsification`` removes each
weight of a convolution independently, with one probability throughout (the baseline of Figure 3,
right, in Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, arXiv:1810.05270).
"""

import torch
from torch import Tensor

from regrow.pruning.method import ALL, NORMED, criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("random")
def random_score(group: Group, probe: Probe) -> Tensor:
    """Score units at random, from the seed."""
    return probe.random(group)


@criterion("first")
def first(group: Group, probe: Probe) -> Tensor:
    """Score units by position, so that the first are kept: for given widths, before training."""
    return -torch.arange(group.size, dtype=torch.float32)


# In the scope of network slimming, so that the three are comparable.
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
