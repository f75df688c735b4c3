"""Objectives: losses that trainings minimise, criteria differentiate and evaluations measure.

An objective is one function from a network's outputs and the targets to losses; everything else
(the mean over a batch, an epoch, a split, or the shares of several ranks) follows from their sum
and their number. A file given by ``--with`` can add one::

    @register_objective("huber")
    def huber(outputs: Tensor, targets: Tensor, *, delta: float = 1.0) -> Tensor:
        return F.huber_loss(outputs, targets, delta=delta, reduction="none").mean(dim=1)

A recipe uses it with ``objective: {name: huber, delta: 0.5}``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from regrow.core.choice import Choice
from regrow.core.registry import Registry, canonical, check_arguments, check_numbers
from regrow.errors import ConfigError, TrainingError
from regrow.tasks.base import logits_of

if TYPE_CHECKING:  # a study file is read without PyTorch
    from torch import Tensor

Losses = Callable[..., "Tensor"]
F = TypeVar("F", bound=Losses)
PASSED = ("outputs", "targets", "teacher")  # what a training passes to the function


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A function of losses, and the number of terms in their sum.

    Attributes:
        losses: (outputs, targets) -> one loss for each example or token, of any shape, or their
            sum; ``outputs`` is whatever the network returns, computed or cast to float32. It must
            be made of tensor operations that do not wait for the device, because on a GPU it is
            recorded with the step.
        count: targets -> the number of terms: an int, or a tensor if it depends on the values
            (tokens that are not padding).
        needs_teacher: whether ``losses`` also takes ``teacher``, the outputs of another network
            for the same inputs.
    """

    name: str
    losses: Losses
    count: "Callable[[Any], int | Tensor]" = len
    needs_teacher: bool = False

    def total(self, outputs: Any, targets: Any, *, teacher: Any = None) -> "Tensor":
        """Return the sum of the losses."""
        extra = {"teacher": teacher} if self.needs_teacher else {}
        losses = self.losses(outputs, targets, **extra)
        return losses.sum() if losses.dim() else losses

    def mean(self, outputs: Any, targets: Any, *, teacher: Any = None) -> "Tensor":
        """Return the mean of the losses, 0 if there are no terms."""
        count = self.count(targets)
        least = max(count, 1) if isinstance(count, int) else count.clamp(min=1)
        return self.total(outputs, targets, teacher=teacher) / least


@dataclass(frozen=True, kw_only=True)
class _ObjectiveEntry:
    objective: Objective
    bounds: Mapping[str, tuple[float, float]]  # the lowest and highest value of arguments


OBJECTIVES: Registry[_ObjectiveEntry] = Registry(
    "objective", "regrow.train", register="register_objective"
)


def register_objective(
    name: str,
    *,
    count: "Callable[[Any], int | Tensor]" = len,
    needs_teacher: bool = False,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> Callable[[F], F]:
    """Register a function of losses under a name; a study can set its keyword arguments.

    An argument must be a number if its default is one, and must lie within its ``bounds``.
    """

    def register(losses: F) -> F:
        value = Objective(
            name=canonical(name),
            losses=losses,
            count=count,
            needs_teacher=needs_teacher,
        )
        OBJECTIVES.add(name, _ObjectiveEntry(objective=value, bounds=bounds or {}), origin=losses)
        return losses

    return register


@cache
def make_objective(choice: Choice) -> Objective:
    """Return a registered objective with its arguments; a ``ConfigError`` suggests names."""
    entry = OBJECTIVES.get(choice.name)
    objective, arguments = entry.objective, choice.arguments
    where = f"objective {objective.name!r}"
    check_arguments(objective.losses, arguments, where=where, reserved=PASSED)
    check_numbers(objective.losses, arguments, where=where)
    for name, (low, high) in entry.bounds.items():
        if name in arguments and not low <= arguments[name] <= high:
            raise ConfigError(
                f"{where}: {name!r} must be in [{low:g}, {high:g}]. Got {arguments[name]!r}."
            )
    return replace(objective, losses=partial(objective.losses, **arguments))


CROSS_ENTROPY = Choice("cross-entropy")


@register_objective("cross-entropy", bounds={"label_smoothing": (0, 1)})
def cross_entropy(
    outputs: "Tensor", targets: "Tensor", *, label_smoothing: float = 0.0
) -> "Tensor":
    """Sum -log p(class) over images; of logits [N, classes] and class ids [N].

    With ``label_smoothing`` s the target is 1 - s for the class, plus s spread evenly over all
    classes (Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, arXiv:1512.00567).
    """
    from torch.nn import functional

    logits = logits_of(outputs)
    if logits.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
        # PyTorch would accept numbers as probabilities of classes, and tokens as classes.
        unit = "numbers" if targets.is_floating_point() else "targets"
        raise TrainingError(
            f"The network returns {tuple(logits.shape)} for {unit} of {tuple(targets.shape)}. It "
            "must return logits [examples, classes] for a class of each example."
        )
    return functional.cross_entropy(
        logits, targets, reduction="sum", label_smoothing=label_smoothing
    )


@register_objective(
    "distillation", needs_teacher=True, bounds={"temperature": (0.1, 1000), "weight": (0, 1)}
)
def distillation(
    outputs: "Tensor",
    targets: "Tensor",
    *,
    teacher: "Tensor",
    temperature: float = 4.0,
    weight: float = 0.9,
) -> "Tensor":
    """Sum weight * T^2 * KL(teacher at T || network at T) + (1 - weight) * cross-entropy.

    At a ``temperature`` T probabilities are softmax(logits / T). T^2 keeps the gradients of the
    first term as large as at T = 1. Reference: Hinton et al., Distilling the Knowledge in a Neural
    Network, 2015, arXiv:1503.02531; the defaults are those of Tian et al., ICLR 2020,
    arXiv:1910.10699.
    """
    from torch.nn import functional

    log_probabilities = functional.log_softmax(logits_of(outputs) / temperature, dim=1)
    teacher_log_probabilities = functional.log_softmax(logits_of(teacher) / temperature, dim=1)
    soft = (
        functional.kl_div(
            log_probabilities, teacher_log_probabilities, reduction="sum", log_target=True
        )
        * temperature**2
    )
    return weight * soft + (1 - weight) * cross_entropy(outputs, targets)


@register_objective("mean-squared-error")
def mean_squared_error(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Sum (output - target)^2 over examples, averaged over an example's outputs: [N, ...] both."""
    values = logits_of(outputs)
    if values.numel() != targets.numel():
        raise TrainingError(
            f"The network returns {tuple(values.shape)} for targets of {tuple(targets.shape)}. It "
            "must return a number for each of them."
        )
    num = len(targets)
    difference = values.reshape(num, -1) - targets.to(values.dtype).reshape(num, -1)
    return difference.square().mean(1)


IGNORED = -100  # a target without a loss, as in PyTorch


def count_tokens(targets: "Tensor") -> "Tensor":
    """Count the targets that are not ignored."""
    return (targets != IGNORED).sum()


@register_objective("token-cross-entropy", count=count_tokens)
def token_cross_entropy(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Sum -log p(token) over tokens; of logits [N, ..., vocabulary] and token ids [N, ...].

    Targets of -100 (padding) count neither in the sum nor in the mean.
    """
    from torch.nn import functional

    logits = logits_of(outputs)
    if logits.shape[:-1] != targets.shape:
        raise TrainingError(
            f"The network returns {tuple(logits.shape)} for targets of {tuple(targets.shape)}. It "
            "must return logits for each of them, in the last dimension."
        )
    return functional.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
