"""Wanda: weight magnitude times input norm (Sun et al., ICLR 2024, arXiv:2306.11695).

No remaining weight is changed and nothing is trained. Weights are compared within each output of a
layer, or with ``allocation: "2:4"`` within blocks of four.
"""

import torch
from torch import Tensor

from regrow.pruning.allocations import whole_share
from regrow.pruning.layers import Layers
from regrow.pruning.method import allocation, criterion, register_method
from regrow.pruning.probe import Probe
from regrow.surgery import Group


@criterion("wanda")
def wanda(group: Group, probe: Probe) -> Tensor:
    """Score a weight by |weight| x the L2 norm of the input that it multiplies (equation 1)."""
    return group.sum(lambda name: probe.weight(name).abs() * probe.input_norms(name))


@allocation("per-output", revision=2)  # all weights of a filter
def allocate_per_output(layers: Layers, sparsity: float) -> dict[str, Tensor]:
    """Keep the highest-scoring weights of each output, equally many for each.

    If the share of an output's weights is not a whole number, some outputs keep one more, so that
    the layer as a whole keeps its share.
    """
    kept = {}
    for name in layers:
        scores, left = layers.whole(name), layers.left[name].reshape(layers.shape(name))
        dim = 1 - layers.input_dim(name)  # of the outputs
        rows, is_left = (t.movedim(dim, 0).flatten(1) for t in (scores, left))
        stays = torch.zeros_like(is_left)
        order = torch.argsort(rows, dim=1, stable=True, descending=True)
        seen = given = 0
        for row in range(len(rows)):
            seen += int(is_left[row].sum())
            num = seen - whole_share(seen, sparsity) - given
            given += num
            stays[row, order[row, :num]] = True
        shape = scores.movedim(dim, 0).shape
        kept[name] = stays.reshape(shape).movedim(0, dim).flatten()[layers.left[name]]
    return kept


register_method(
    "wanda",
    criterion=wanda,
    allocation="per-output",
    unit="weight",
    scope=("linear",),
    reference="Sun et al., A Simple and Effective Pruning Approach (Wanda), arXiv:2306.11695",
)
