"""RigL: sparse training that drops and regrows weights (Evci et al., ICML 2020, arXiv:1911.11134).

A network starts with random masks. At intervals each layer drops its smallest weights and grows as
many where the gradient of the loss is largest; the share that moves decays along a cosine. As a
method, the final masks are the pruning; as an arm (``treatment: rigl``), it starts from the masks
of another method and moves them.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regrow.pruning.method import Scope, register_method
from regrow.train import MaskUpdates, Moment, Treatment
from regrow.units.masked import weight_groups

EVERY = 100  # steps between mask changes, as published; one epoch if that is less
DROPPED = 0.3  # share of a layer's kept weights that moves at the start of training
UNTIL = 0.75  # share of training, after which the masks stay fixed
SCOPE: tuple[Scope, ...] = ("conv", "linear")


def rigl(_strength: float, sparsity: float) -> Treatment:
    """Return the treatment for training at the same sparsity in every layer."""

    def start(model: nn.Module, moment: Moment) -> dict[str, Tensor]:
        generator = moment.generator("rigl")
        layers = layers_of(model)
        scores = {name: torch.rand(p.shape, generator=generator) for name, p in layers.items()}
        return {name: largest(s, round(s.numel() * (1 - sparsity))) for name, s in scores.items()}

    return Treatment(
        masks=MaskUpdates(
            start=start, when=due, change=move, dense_gradients=True, replaces_update=True
        )
    )


def due(moment: Moment) -> bool:
    """Return whether masks change on this step."""
    every = min(EVERY, moment.steps_per_epoch)
    return moment.step > 0 and moment.step % every == 0 and moment.progress < UNTIL


def move(model: nn.Module, masks: Mapping[str, Tensor], moment: Moment) -> None:
    """Drop each layer's smallest weights, and grow as many of largest gradient (algorithm 1)."""
    share = DROPPED / 2 * (1 + math.cos(math.pi * moment.progress / UNTIL))
    for name, mask in masks.items():
        weight, num_kept = model.get_parameter(name), int(mask.sum())
        assert weight.grad is not None
        num_moved = int(share * num_kept)
        stays = largest(weight.detach().abs() * mask - (mask == 0).float(), num_kept - num_moved)
        grown = largest(weight.grad.abs().masked_fill(stays, -1.0), num_moved)
        mask.copy_(stays | grown)


def layers_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that the method prunes, not those of embeddings, tokens and positions."""
    return {name: model.get_parameter(name) for name in weight_groups(model, SCOPE)}


def largest(scores: Tensor, num: int) -> Tensor:
    """Return the places of the ``num`` largest scores, as booleans."""
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    chosen[scores.flatten().argsort(stable=True, descending=True)[:num]] = True
    return chosen.view(scores.shape)


register_method(
    "rigl",
    criterion="trained-mask",
    allocation="nonzero",
    unit="weight",
    scope=SCOPE,
    treatment=rigl,
    treatment_revision=2,  # embeddings and positions are not masked
    each_sparsity=True,
    reference="Evci et al., Rigging the Lottery, ICML 2020, arXiv:1911.11134",
)
