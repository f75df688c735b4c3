"""Objectives: the loss that a training descends, a criterion differentiates, a test measures.

An objective is one function from a network's outputs and the targets to losses; everything else
(the mean over a batch, an epoch, a split, or the shares of several ranks) follows from their sum
and their number. A file given by ``--with`` adds one like any other::

    @register_objective("huber")
    def huber(outputs: Tensor, targets: Tensor, *, delta: float = 1.0) -> Tensor:
        return F.huber_loss(outputs, targets, delta=delta, reduction="none").mean(dim=1)

A recipe asks for it by ``objective: {name: huber, delta: 0.5}``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from regrow.core.choice import Choice
from regrow.core.registry import Registry, canonical, check_arguments
from regrow.errors import TrainingError

if TYPE_CHECKING:  # a study file is read without PyTorch
    from torch import Tensor

Losses = Callable[..., "Tensor"]
F = TypeVar("F", bound=Losses)
PASSED = ("outputs", "targets", "teacher")  # what a training hands to the function


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A sum of losses, and how many terms that sum has.

    Attributes:
        losses: (outputs, targets) -> one loss for each example or token, of any shape, or their
            sum; ``outputs`` is whatever the network returns, computed or cast to float32. It must
            be made of tensor operations that do not wait for the device, because on a GPU it is
            recorded with the step.
        count: targets -> the number of terms: an int, or a tensor where the values decide (tokens
            that are not padding).
        needs_teacher: whether ``losses`` also takes ``teacher``, the outputs of another network
            for the same inputs.
    """

    name: str
    losses: Losses
    count: "Callable[[Any], int | Tensor]" = len
    needs_teacher: bool = False

    def total(self, outputs: Any, targets: Any, *, teacher: Any = None) -> "Tensor":
        """Return the sum of the losses; divided by the ``count`` it is their mean."""
        extra = {"teacher": teacher} if self.needs_teacher else {}
        losses = self.losses(outputs, targets, **extra)
        return losses.sum() if losses.dim() else losses


OBJECTIVES: Registry[Objective] = Registry(
    "objective", "regrow.train", register="register_objective"
)


def register_objective(
    name: str, *, count: "Callable[[Any], int | Tensor]" = len, needs_teacher: bool = False
) -> Callable[[F], F]:
    """Register a function of losses under a name; its keyword arguments are a study's to give."""

    def register(losses: F) -> F:
        value = Objective(
            name=canonical(name), losses=losses, count=count, needs_teacher=needs_teacher
        )
        OBJECTIVES.add(name, value, origin=losses)
        return losses

    return register


@cache
def make_objective(choice: Choice) -> Objective:
    """Return a registered objective with its arguments; a ``ConfigError`` offers nearest names."""
    entry = OBJECTIVES.get(choice.name)
    given = choice.arguments
    check_arguments(entry.losses, given, where=f"objective {entry.name!r}", reserved=PASSED)
    return Objective(
        name=entry.name,
        losses=partial(entry.losses, **given),
        count=entry.count,
        needs_teacher=entry.needs_teacher,
    )


CROSS_ENTROPY = Choice("cross-entropy")


@register_objective("cross-entropy")
def cross_entropy(
    outputs: "Tensor", targets: "Tensor", *, label_smoothing: float = 0.0
) -> "Tensor":
    """Sum -log p(class) over images; of logits [N, classes] and class ids [N].

    With ``label_smoothing`` s the target gives 1 - s to the class, and s to all classes alike
    (Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, arXiv:1512.00567).
    """
    from torch.nn import functional

    return functional.cross_entropy(
        logits_of(outputs), targets, reduction="sum", label_smoothing=label_smoothing
    )


def logits_of(outputs: Any) -> "Tensor":
    """Return outputs that are a tensor; others are a ``TrainingError``."""
    from torch import Tensor

    if not isinstance(outputs, Tensor):
        raise TrainingError(
            f"The network must return a tensor of logits [images, classes]. Got "
            f"{type(outputs).__name__}."
        )
    return outputs
