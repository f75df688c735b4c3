"""Automated gradual pruning: a cubic schedule (Zhu and Gupta, 2017, arXiv:1710.01878).

While a network trains, a growing share of each layer's smallest weights is masked:

    sparsity(t) = target * (1 - (1 - t)**3), with t from 0 to 1 over 10 % to 70 % of the training.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regrow.methods.rigl import SCOPE, layers_of
from regrow.pruning.method import register_method
from regrow.train import MaskUpdates, Moment, Treatment

EVERY = 100  # steps between mask changes, as published; half an epoch if that is less
BEGIN, END = 0.1, 0.7  # shares of training


def schedule(moment: Moment) -> tuple[int, int, int]:
    """Return the first and last step on which masks change, and the interval between changes."""
    every = max(1, min(EVERY, moment.steps_per_epoch // 2))
    return round(BEGIN * moment.num_steps), round(END * moment.num_steps), every


def due(moment: Moment) -> bool:
    """Return whether masks change on this step."""
    begin, end, every = schedule(moment)
    step = moment.step
    return step == end or (begin <= step < end and (step - begin) % every == 0)


def sparsity_at(moment: Moment, target: float) -> float:
    """Return the cubic schedule's sparsity (equation 1)."""
    begin, end, _ = schedule(moment)
    t = (moment.step - begin) / max(1, end - begin)
    return target * (1 - (1 - min(1.0, t)) ** 3)


def gradual(_strength: float, sparsity: float) -> Treatment:
    """Return the treatment that masks each layer's smallest weights on the schedule."""

    def start(model: nn.Module, moment: Moment) -> dict[str, Tensor]:
        layers = layers_of(model)
        return {name: torch.ones_like(p, dtype=torch.bool) for name, p in layers.items()}

    def change(model: nn.Module, masks: Mapping[str, Tensor], moment: Moment) -> None:
        for name, mask in masks.items():
            sizes = model.get_parameter(name).detach().abs().flatten()
            gone = sizes.argsort(stable=True)[: int(sparsity_at(moment, sparsity) * len(sizes))]
            kept = torch.ones_like(sizes, dtype=torch.bool)
            kept[gone] = False
            mask.copy_(kept.view(mask.shape))

    return Treatment(masks=MaskUpdates(start=start, when=due, change=change))


register_method(
    "agp",
    criterion="trained-mask",
    allocation="nonzero",
    unit="weight",
    scope=SCOPE,
    treatment=gradual,
    treatment_revision=2,  # embeddings and positions are not masked
    each_sparsity=True,
    reference="Zhu and Gupta, To Prune or Not to Prune, 2017, arXiv:1710.01878",
)
