"""Treatments: changes that a method makes to a network while it trains, besides the loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

Hook = Callable[["nn.Module"], None]


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """Changes of a training besides descending its loss; every part works on the model in place.

    Attributes:
        begin: before anything else, such as adding parameters that the method learns.
        gradients: adds to the gradients after each backward pass.
        updated: after each update, given the learning rate (on a GPU a tensor there).
        epoch: before the first epoch, given 0, and after each, given how many are done.
        end: after the last epoch; what ``begin`` added is taken away again.

    ``gradients`` and ``updated`` must be functions of the model's tensors alone: on a GPU they are
    recorded with the step, once, and replayed. What they remember belongs into buffers, so that a
    training can be resumed.
    """

    begin: Hook | None = None
    gradients: Hook | None = None
    updated: "Callable[[nn.Module, float | Tensor], None] | None" = None
    epoch: "Callable[[nn.Module, int], None] | None" = None
    end: Hook | None = None


NO_TREATMENT = Treatment()
