"""Pruning methods as values: their parts, and the registries of these parts.

A criterion gives every unit of a group a score (high = keep); an allocation turns scores and a
sparsity into kept units; a method names one of each. k criteria and m allocations are k + m
functions.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from regrow.core.registry import Outside, Registry, calling_file, canonical
from regrow.core.units import UNITS
from regrow.core.validation import is_int, is_number, percent
from regrow.errors import ConfigError, unknown
from regrow.pruning.normalise import NORMALISATIONS, UNCHANGED
from regrow.train import Treatment

if TYPE_CHECKING:
    from torch import Tensor, nn

    from regrow.pruning.layers import Layers
    from regrow.pruning.probe import Probe
    from regrow.surgery import Group, Trace
    from regrow.surgery.mask import Mask

Criterion = Callable[["Group", "Probe"], "Tensor"]
Allocate = Callable[["Layers", float], "dict[str, Tensor]"]
A = TypeVar("A", bound=Allocate)
Repair = Callable[["nn.Module", "Mask", "Trace", "Probe"], None]
Choice = Callable[["Layers", "Mask", "Probe", "Allocation"], "dict[str, Tensor]"]
Treat = Callable[[float, float], Treatment]
Scope = Literal[
    "conv",
    "normed-conv",
    "linear",
    "normed-linear",
    "grouped",
    "stream",
    "view",
    "head",
    "block",
    "all",
]
# Scope -> what a method of this scope prunes.
SCOPES: Mapping[Scope, str] = {
    "conv": "filters of single convolutions",
    "normed-conv": "filters of single convolutions that are followed by a norm with a scale",
    "linear": "units of single linear layers",
    "normed-linear": "units of single linear layers that are followed by a norm with a scale",
    "grouped": "whole groups of grouped convolutions",
    "stream": "channels of residual streams",
    "view": "the channels that a norm selects from a stream",
    "head": "attention heads",
    "block": "residual blocks",
    "all": "channels and heads of every kind",
}
# What ``all`` stands for: every kind of group that is cut by its channels.
ALL: tuple[Scope, ...] = ("conv", "linear", "grouped", "stream", "view", "head")
NORMED: tuple[Scope, ...] = ("normed-conv", "view", "normed-linear")  # what network slimming prunes

NORMS = {"l1": "l1-norm", "l2": "l2-norm"}  # method -> its criterion
# Prefix of the names in pruning.adapters -> what follows the prefix, and a description.
ADAPTED: Mapping[str, tuple[str, str]] = {
    "torch-pruning": ("NAME", "An importance of Torch-Pruning, such as MagnitudeImportance(p=1)"),
    "nn-prune": (
        "NAME",
        "A method of torch.nn.utils.prune (l1_unstructured, ...), or file.py:Class",
    ),
    "mask-file": ("FILE", "Masks by parameter: .safetensors, .npz or .pt; takes no amount"),
}


def is_adapted(name: object) -> bool:
    """Return whether a name is that of an adapted method, such as ``nn-prune:l1_unstructured``."""
    prefix, colon, _ = name.partition(":") if isinstance(name, str) else ("", "", "")
    return bool(colon) and canonical(prefix) in ADAPTED


def _adapted(part: str) -> Outside[Any]:
    """Return the handler of such names; the adapters are imported when a name is used."""

    def ask(what: str) -> Callable[[str], Any]:
        return lambda name: getattr(import_module("regrow.pruning.adapters"), what)(name)

    return Outside(
        is_name=is_adapted,
        value=ask(part),
        origin=ask("origin"),
        identity=ask("identity"),
        code=ask("code"),
    )


CRITERIA: Registry[Criterion] = Registry(
    "criterion",
    "regrow.methods",
    register="criterion",
    outside=_adapted("criterion"),
    also=NORMS,
)
ALLOCATIONS: "Registry[Allocation]" = Registry(
    "allocation",
    "regrow.methods",
    register="allocation",
    modules=["regrow.pruning.allocations"],
    outside=_adapted("allocation"),
)
REPAIRS: Registry[Repair] = Registry("repair", "regrow.methods", register="repair")
CHOICES: Registry[Choice] = Registry("choice", "regrow.methods", register="choice")
METHODS: "Registry[Method]" = Registry(
    "method",
    "regrow.methods",
    register="register_method",
    outside=_adapted("method"),
    also={criterion: method for method, criterion in NORMS.items()},
)


def criterion_key(name: str) -> str:
    """Return a criterion's registered name; for a method's name, the error names its criterion."""
    try:
        return CRITERIA.key(name)
    except ConfigError as error:
        if name not in METHODS:
            raise
        raise ConfigError(
            f"{name!r} is a method, but a criterion is needed here: {METHODS.get(name).criterion}. "
            f"{error}"
        ) from error


@dataclass(frozen=True)
class Allocation:
    """A registered allocation: a function, and its sparsity if that is fixed (2:4).

    ``block``: the number of inputs that it chooses among, if that is fixed.
    """

    function: Allocate
    sparsity: float | None = None
    block: int | None = None

    def __call__(self, layers: "Layers", sparsity: float) -> "dict[str, Tensor]":
        """Return which units are kept."""
        return self.function(layers, sparsity)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A predefined architecture: for one model, the pruned share of each group in turn.

    Without shares it applies to any model, and the method's training decides what is removed.
    """

    model: str = ""
    shares: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published pruning method as parts.

    Attributes:
        criterion, allocation: names of registered functions.
        unit: what is removed: ``channel`` (cut out of all layers that hold it), ``block`` (its
            branch is dropped), ``weight`` or ``filter`` (one convolution's; both held at zero).
        scope: which kinds of groups it prunes, one name or several; see ``SCOPES``.
        trained: whether the criterion needs a trained network; if not, it gets the network at
            initialisation, and the choice needs no training.
        designed: whether the result depends on neither weights nor data, so that the small network
            could have been designed and trained without pruning.
        treatment: makes the method's changes to the parent's training, from its strength and the
            requested sparsity.
        treatment_revision: the version of the treatment; part of keys from 2 on.
        strength: the default strength for a model family (the key "" is for any other).
        each_sparsity: whether the treatment depends on the sparsity, so that each needs a parent.
        rounds: the number of pruning rounds. A method that needs trained weights is trained in
            between (a study's ``ticket``); any other does all rounds within one pruning.
        normalise: how scores of groups are made comparable before an allocation ranks them
            together; see ``NORMALISATIONS``. None leaves them as the criterion gave them.
        repair: name of a registered function that corrects the inherited weights after the cut.
        choice: name of a registered function that makes the choice within each layer itself, by
            scores that change while it chooses; the allocation gives the number of units.
        targets: predefined architectures by name.
        follows: name of the method whose pruned networks it takes its pattern from, unless a study
            names another: its allocation then works within each part of the pattern.
    """

    name: str
    criterion: str
    allocation: str = "global"
    unit: str = "channel"
    scope: tuple[Scope, ...] = ("conv",)
    trained: bool = True
    designed: bool = False
    treatment: Treat | None = None
    treatment_revision: int = 1
    strength: Mapping[str, float] = field(default_factory=dict)
    each_sparsity: bool = False
    rounds: int = 1
    normalise: str | None = None
    repair: str | None = None
    choice: str | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)
    follows: str | None = None
    reference: str = ""

    def __post_init__(self) -> None:
        try:
            UNITS.key(self.unit)
        except ConfigError as error:
            raise self._error(str(error)) from error
        object.__setattr__(self, "scope", self._kinds(self.scope))
        if self.normalise == UNCHANGED:
            object.__setattr__(self, "normalise", None)
        elif self.normalise is not None and self.normalise not in NORMALISATIONS:
            raise self._error(unknown("normalisation", str(self.normalise), NORMALISATIONS))
        unit = UNITS.get(self.unit)
        if self.repair is not None and not (unit.narrows or unit.unstructured):
            raise self._error(
                "A 'repair' corrects layers that lost inputs, so the 'unit' must be 'channel' or "
                "'weight'."
            )

        if self.choice is not None and not unit.unstructured:
            raise self._error("A 'choice' is among single weights, so the 'unit' must be 'weight'.")

    def _kinds(self, scope: object) -> tuple[Scope, ...]:
        """Return the kinds of groups that a scope names, each once."""
        given = (scope,) if isinstance(scope, str) else scope  # a text is one kind, not its letters
        if not isinstance(given, Iterable) or not (names := list(given)):
            raise self._error(f"The 'scope' must name one of {', '.join(SCOPES)}, or several.")
        for kind in names:
            if kind not in SCOPES:
                raise self._error(unknown("scope", str(kind), SCOPES))
        kinds = (ALL if kind == "all" else (kind,) for kind in names)
        return tuple(dict.fromkeys(kind for every in kinds for kind in every))

    def within(self, scope: Scope | Sequence[Scope] | None) -> "Method":
        """Return the method with another scope; None keeps its own."""
        return self if scope is None else replace(self, scope=_scope(scope))

    def _error(self, message: str) -> ConfigError:
        return ConfigError(f"The method {self.name!r}: {message}")

    def strength_for(self, family: str) -> float:
        """Return the published strength of the treatment for a model family."""
        return self.strength.get(family, self.strength.get("", 0.0))


def criterion(name: str, *, revision: int = 1) -> Callable[[Criterion], Criterion]:
    """Register a criterion: ``(group, probe) -> scores [units]``, high = keep (decorator).

    Of built-in criteria, the ``revision`` is raised when their scores change.
    """

    def register(function: Criterion) -> Criterion:
        CRITERIA.add(name, function, origin=function, revision=revision)
        return function

    return register


def allocation(
    name: str, *, sparsity: float | None = None, block: int | None = None, revision: int = 1
) -> Callable[[A], A]:
    """Register an allocation: ``(scores by group, sparsity) -> kept units by group`` (decorator).

    Kept units are booleans, shaped as the scores. If a group would be emptied, ``select`` keeps its
    channel with the highest score. The scores are ``Layers``: a mapping that also has the shapes of
    the weights, and counts the costs of a choice. ``sparsity`` is given if the allocation has a
    fixed one, such as one half for 2:4; ``block`` is then the number of inputs it chooses among.
    Of built-in allocations, the ``revision`` is raised when their choice changes.
    """

    def register(function: A) -> A:
        known = Allocation(function, sparsity, block)
        ALLOCATIONS.add(name, known, origin=function, revision=revision)
        return function

    return register


def repair(name: str) -> Callable[[Repair], Repair]:
    """Register a repair: ``(small, mask, trace, probe) -> None`` (decorator).

    It changes the weights of the cut network ``small`` in place; the mask says what was cut, trace
    and probe are of the uncut network.
    """

    def register(function: Repair) -> Repair:
        REPAIRS.add(name, function, origin=function)
        return function

    return register


def choice(name: str) -> Callable[[Choice], Choice]:
    """Register a choice: ``(layers, mask, probe, allocate) -> kept units by group`` (decorator).

    The mask is the choice of criterion and allocation; ``allocate`` is the allocation, to be used
    on parts of layers with the choice's own scores. Kept units have the form of an allocation's.
    """

    def register(function: Choice) -> Choice:
        CHOICES.add(name, function, origin=function)
        return function

    return register


def register_method(
    name: str,
    *,
    criterion: str | Criterion,
    allocation: str = "global",
    unit: str = "channel",
    scope: Scope | Sequence[Scope] = "conv",
    trained: bool = True,
    designed: bool = False,
    treatment: Treat | None = None,
    treatment_revision: int = 1,
    penalty: "Callable[[nn.Module, float], None] | None" = None,
    strength: Mapping[str, float] | None = None,
    each_sparsity: bool = False,
    rounds: int = 1,
    normalise: str | None = None,
    repair: str | None = None,
    choice: str | None = None,
    targets: Mapping[str, Target] | None = None,
    follows: str | None = None,
    reference: str = "",
) -> Method:
    """Register a method under a name; the criterion may be a registered function itself.

    ``penalty(model, strength)`` is shorthand for a treatment that only adds to the gradients. The
    other parts are those of ``Method``::

        register_method("l1-everywhere", criterion=l1_norm, scope=("conv", "stream"))
    """
    method = Method(
        name=name,
        criterion=criterion if isinstance(criterion, str) else _name_of(criterion),
        allocation=allocation,
        unit=unit,
        scope=_scope(scope),
        trained=trained,
        designed=designed,
        treatment=treatment if penalty is None else _penalising(penalty),
        treatment_revision=treatment_revision,
        strength=strength or {},
        each_sparsity=each_sparsity,
        rounds=rounds,
        normalise=normalise,
        repair=repair,
        choice=choice,
        targets=targets or {},
        follows=follows,
        reference=reference,
    )
    # The treatment first: its code is part of a training's key, the criterion's of a pruning's.
    METHODS.add(
        name,
        method,
        origin=treatment or penalty or (criterion if callable(criterion) else calling_file()),
    )
    return method


def _penalising(penalty: "Callable[[nn.Module, float], None]") -> Treat:
    return lambda strength, _: Treatment(gradients=lambda model, _: penalty(model, strength))


def _name_of(function: Criterion) -> str:
    if (name := CRITERIA.name_of(function)) is not None:
        return name
    raise ConfigError(
        f"The criterion {getattr(function, '__name__', function)!r} is not registered. Put "
        '@criterion("<name>") above it.'
    )


def general_method(
    criterion: str, *, scope: Scope | Sequence[Scope] = "all", allocation: str = "global"
) -> Method:
    """Make a method that removes channels of a user's network by a criterion.

    Groups are ranked together, after dividing their scores by each group's mean.
    """
    name = criterion_key(criterion)
    return Method(
        name=name, criterion=name, allocation=allocation, scope=_scope(scope), normalise="group"
    )


def _scope(scope: Scope | Sequence[Scope]) -> tuple[Scope, ...]:
    return (scope,) if isinstance(scope, str) else tuple(scope)


def checked_share(method: Method, share: float) -> float:
    """Check the removed share of one group; it may be 1 if layers may be emptied."""
    may_empty = UNITS.get(method.unit).keep_alive is None
    return 1.0 if may_empty and share == 1.0 else checked_sparsity(share)


def checked_sparsity(sparsity: float | None) -> float:
    """Return a sparsity if it is valid; else raise a ``ConfigError``."""
    if not is_number(sparsity) or not 0.0 <= sparsity < 1.0:
        raise ConfigError(
            f"A sparsity is the removed share of the units, a number in [0, 1). Got {sparsity!r}."
            f"{percent(sparsity)}"
        )
    return float(sparsity)


def checked_multiple(method: Method, multiple_of: Any) -> int:
    """Return ``multiple_of`` if it is valid for a method; else raise a ``ConfigError``."""
    if not is_int(multiple_of, least=1):
        raise ConfigError(f"'multiple_of' must be an int of at least 1. Got {multiple_of!r}.")
    if multiple_of > 1 and not UNITS.get(method.unit).narrows:
        raise ConfigError(
            f"Only widths can be multiples of {multiple_of}, and {method.name} removes "
            f"{method.unit}s. Leave out 'multiple_of', or use a method that cuts channels."
        )
    return multiple_of
