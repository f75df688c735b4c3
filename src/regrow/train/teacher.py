"""A teacher: a trained network whose outputs another one learns from."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from regrow.errors import ConfigError
from regrow.train.layout import lay_out_
from regrow.train.objective import Objective
from regrow.train.recipe import Recipe
from regrow.train.step import forward


def teacher_of(
    objective: Objective,
    network: nn.Module | None,
    *,
    recipe: Recipe,
    image: tuple[int, ...],
    device: torch.device,
) -> Callable[[Any], Any] | None:
    """Return a function that computes a teacher's outputs; None if the objective needs none.

    The teacher is in evaluation mode. Its inputs are those of the network that learns: the same
    images, augmented and mixed alike.
    """
    if not objective.needs_teacher:
        return None
    if network is None:
        raise ConfigError(
            f"The objective {objective.name!r} learns from a trained network, the unpruned one. "
            "Give it to an arm that trains after pruning, rather than to a recipe."
        )
    network = network.to(device).eval().requires_grad_(False)
    of_images = len(image) == 3
    channels_last = recipe.channels_last and of_images and lay_out_(network, {network: image})
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def outputs(inputs: Any) -> Any:
        x = inputs.contiguous(memory_format=layout)
        return forward(network, x, recipe.precision, engine=recipe.engine)

    return outputs
