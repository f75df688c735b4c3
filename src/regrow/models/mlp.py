"""Multilayer perceptrons, for rows of features."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from regrow.models import register_model


@register_model("mlp", family="mlp")
def mlp(
    *, features: int, outputs: int, hidden: Sequence[int] = (64, 64), width: float = 1.0
) -> nn.Module:
    """Build linear layers with ReLUs between them; ``hidden``: the units of each hidden layer."""
    units = [features, *(max(1, round(width * num)) for num in hidden)]
    layers: list[nn.Module] = [nn.Flatten()]
    for num_in, num_out in pairwise(units):
        layers += [nn.Linear(num_in, num_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(units[-1], outputs))
