"""SET: sparse evolutionary training (Mocanu et al., Nature Communications 2018, arXiv:1707.04780).

A network starts with random masks, denser in small layers (Erdos-Renyi). After each epoch, each
layer drops its smallest weights and grows as many at random. As a method, the final masks are the
pruning; as an arm (``treatment: set``), it starts from the masks of another method and moves them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regrow.methods.rigl import SCOPE, largest, layers_of
from regrow.pruning.allocations import divide, whole_share
from regrow.pruning.method import register_method
from regrow.train import MaskUpdates, Moment, Treatment

MOVED = 0.3  # share of a layer's kept weights that moves after each epoch, as published


def evolving(_strength: float, sparsity: float) -> Treatment:
    """Return the treatment for training at a sparsity, with masks that change after each epoch."""

    def start(model: nn.Module, moment: Moment) -> dict[str, Tensor]:
        layers = layers_of(model)
        sizes = {name: p.numel() for name, p in layers.items()}
        total = sum(sizes.values()) - whole_share(sum(sizes.values()), sparsity)
        counts = divide({n: float(sum(p.shape)) for n, p in layers.items()}, sizes, total)
        generator = moment.generator("set")
        scores = {name: torch.rand(p.shape, generator=generator) for name, p in layers.items()}
        return {name: largest(score, counts[name]) for name, score in scores.items()}

    return Treatment(masks=MaskUpdates(start=start, when=is_due, change=evolve))


def is_due(moment: Moment) -> bool:
    """Return whether masks change on this step: the first of each epoch except epoch 0."""
    return moment.step > 0 and moment.step % moment.steps_per_epoch == 0


def evolve(model: nn.Module, masks: Mapping[str, Tensor], moment: Moment) -> None:
    """Drop each layer's smallest weights, and grow as many others at random."""
    generator = moment.generator("set")
    for name, mask in masks.items():
        weight, num_kept = model.get_parameter(name).detach(), int(mask.sum())
        num_moved = min(int(MOVED * num_kept), mask.numel() - num_kept)
        was = mask != 0
        stays = largest(weight.abs().masked_fill(~was, -1.0), num_kept - num_moved)
        chance = torch.rand(mask.shape, generator=generator).to(weight.device)
        mask.copy_(stays | largest(chance.masked_fill(was, -1.0), num_moved))


register_method(
    "set",
    criterion="trained-mask",
    allocation="nonzero",
    unit="weight",
    scope=SCOPE,
    treatment=evolving,
    treatment_revision=2,  # embeddings and positions are not masked
    each_sparsity=True,
    reference="Mocanu et al., Sparse evolutionary training, 2018, arXiv:1707.04780",
)
