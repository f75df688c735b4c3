"""Treatments: changes that a method makes to a network while it trains, besides the loss.

The order within a step, where ``H`` is what the treatment adds::

    forward, loss, backward
    H gradients(model, moment)       adds to the gradients
    H masks.change(model, masks, moment)   on the steps of masks.when; may see dense gradients
    masked weights and their gradients are zeroed
    gradients are clipped, where the recipe says so
    update of the parameters by the optimiser   (both left out where masks.replaces_update)
    H updated(model, moment)
    masked weights are zeroed, weights are averaged where the recipe says so

and around the steps: ``begin``, ``masks.start`` and ``epoch`` before the first, ``epoch`` after
each epoch, ``end`` after the last.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regrow.core.seeds import seeded
from regrow.errors import ConfigError
from regrow.train.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Masks = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The progress of a training at the moment when it calls a hook.

    ``step`` and ``lr`` are tensors of one number within steps on a GPU, because those are recorded.

    Attributes:
        step: the number of updates so far.
        lr: the learning rate of the current step; between steps, of the next one (after the last
            step, of that step).
        steps_per_epoch: the updates of one epoch.
        recipe: the recipe of the training.
        seed: of the training; ``generator`` derives random streams from it.
    """

    step: int
    lr: float
    steps_per_epoch: int
    recipe: Recipe
    seed: int

    @property
    def num_steps(self) -> int:
        """The updates of the whole training."""
        return self.recipe.num_steps(self.steps_per_epoch)

    @property
    def epoch(self) -> int:
        """The number of epochs finished before."""
        return self.step // self.steps_per_epoch

    @property
    def progress(self) -> float:
        """The share of the training that is done, in [0, 1]."""
        return self.step / self.num_steps

    def generator(self, *purpose: str | int) -> "torch.Generator":
        """Make the random generator of a purpose at this step, on the CPU.

        It depends on the training's seed, the step and the purpose alone, so a training that was
        resumed draws the same.
        """
        if not isinstance(self.step, int):
            raise ConfigError(
                "A step that is recorded as a CUDA graph cannot make random generators. Draw in "
                "'begin', 'epoch' or 'masks', or with torch.rand(..., device=...) in the step."
            )
        return seeded(self.seed, "treatment", self.step, *purpose)


Hook = Callable[["nn.Module", Moment], None]


@dataclass(frozen=True, kw_only=True)
class MaskUpdates:
    """A treatment's changes to masks (weights held at zero) while a network trains.

    Masks are by parameter: tensors of 1 (kept) and 0 in the parameter's shape, which ``change``
    overwrites in place (``masks[name].copy_(kept)``). A weight that is unmasked starts at zero with
    an empty optimiser state. Steps on which masks change are never recorded.

    Attributes:
        start: makes the first masks of a network that has none, as booleans by parameter.
        when: whether masks change on the step of a moment.
        change: changes them, after the backward pass: ``(model, masks, moment)``.
        dense_gradients: whether ``change`` sees the gradients of masked weights (in ``.grad``);
            they then count as a dense backward pass. Otherwise they are zero.
        replaces_update: whether the parameter update is skipped on those steps.
    """

    start: "Callable[[nn.Module, Moment], Masks]"
    when: Callable[[Moment], bool]
    change: "Callable[[nn.Module, Masks, Moment], None]"
    dense_gradients: bool = False
    replaces_update: bool = False


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """A method's changes to training besides the loss; every part works on the model in place.

    Attributes:
        begin: called before anything else, for example to add parameters that the method learns.
        gradients: adds to the gradients after each backward pass.
        updated: called after each update.
        epoch: called before the first epoch and after each, including a partial last one;
            ``moment.epoch`` counts the finished epochs.
        end: called after the last epoch; removes what ``begin`` added.
        masks: changes to the masks of a network some of whose weights are held at zero.

    ``gradients`` and ``updated`` must be functions of the tensors of the model and the moment
    alone: on a GPU they are recorded with the step, once, and replayed. A treatment must keep its
    state in buffers of the model, so that a training can be resumed.
    """

    begin: Hook | None = None
    gradients: Hook | None = None
    updated: Hook | None = None
    epoch: Hook | None = None
    end: Hook | None = None
    masks: MaskUpdates | None = None


NO_TREATMENT = Treatment()
