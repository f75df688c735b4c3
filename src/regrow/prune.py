"""Choose which units stay: criteria, allocations, the probe that criteria look through, ``select``.

A criterion gives every unit of a group a score (high = keep); an allocation turns scores and a
sparsity into kept units; a method names one of each. k criteria and m allocations are k + m
functions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.errors import ConfigError, TraceError
from regrow.mask import Mask, Unit
from regrow.registry import Registry
from regrow.seeds import seeded
from regrow.surgery import Group, Kind, Slot, Trace

if TYPE_CHECKING:
    from regrow.data import Dataset

Criterion = Callable[[Group, "Probe"], Tensor]
Allocate = Callable[[Mapping[str, Tensor], float], dict[str, Tensor]]
Scope = Literal["conv", "normed-conv", "linear", "stream", "view"]
SCOPES: tuple[str, ...] = get_args(Scope)

CRITERIA: Registry[Criterion] = Registry("criterion", "regrow.methods")
ALLOCATIONS: Registry[Allocate] = Registry("allocation", "regrow.methods")
METHODS: "Registry[Method]" = Registry("method", "regrow.methods")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A predefined architecture: for one model, the pruned share of each group in turn."""

    model: str
    shares: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A published pruning method as parts.

    Attributes:
        criterion, allocation: names of registered functions.
        unit: what is removed: ``channel`` (whole filters, cut out) or ``weight`` (held at zero).
        scope: which kinds of groups it prunes: ``conv`` (one convolution's filters),
            ``normed-conv`` (those that a norm of their own follows), ``linear``, ``stream``
            (residual streams), ``view`` (a norm's selection of a stream's channels).
        trained: whether the criterion looks at trained weights; if not, the choice depends on the
            seed alone and needs no parent.
        penalty: adds to the gradients in every step of the parent's training, given its strength.
        strength: the penalty's default strength for a model family (the key "" is for any other).
        targets: predefined architectures by name.
    """

    name: str
    criterion: str
    allocation: str = "global"
    unit: Unit = "channel"
    scope: tuple[Scope, ...] = ("conv",)
    trained: bool = True
    penalty: Callable[[nn.Module, float], None] | None = None
    strength: Mapping[str, float] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    reference: str = ""

    def strength_for(self, family: str) -> float:
        """Return the published strength of the penalty for a model family."""
        return self.strength.get(family, self.strength.get("", 0.0))


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion: ``(group, probe) -> scores [units]``, high = keep (decorator)."""

    def register(function: Criterion) -> Criterion:
        CRITERIA.add(name, function, origin=function)
        return function

    return register


def allocation(name: str) -> Callable[[Allocate], Allocate]:
    """Register an allocation: ``(scores by group, sparsity) -> kept units by group`` (decorator).

    It may empty a group; ``select`` then keeps the unit that scores highest there.
    """

    def register(function: Allocate) -> Allocate:
        ALLOCATIONS.add(name, function, origin=function)
        return function

    return register


def register_method(
    name: str,
    *,
    criterion: str | Criterion,
    allocation: str = "global",
    unit: Unit = "channel",
    scope: Sequence[Scope] = ("conv",),
    **parts: Any,
) -> Method:
    """Register a method under a name; the criterion may be a registered function itself.

    >>> from regrow.methods.l1_filter import l1_norm
    >>> register_method("l1-everywhere", criterion=l1_norm, scope=("conv", "stream")).criterion
    'l1-norm'
    """
    origin = criterion if callable(criterion) else None
    method = Method(
        name=name,
        criterion=criterion if isinstance(criterion, str) else _name_of(criterion),
        allocation=allocation,
        unit=unit,
        scope=tuple(scope),
        **parts,
    )
    METHODS.add(name, method, origin=origin or parts.get("penalty"))
    return method


def _name_of(function: Criterion) -> str:
    for name in CRITERIA.names():
        if CRITERIA.get(name) is function:
            return name
    raise ConfigError(
        f"The criterion {getattr(function, '__name__', function)!r} is not registered. Put "
        '@criterion("<name>") above it.'
    )


class Probe:
    """What a criterion may look at: weights, gradients and activations of the trained network.

    Gradients and activations are taken on training images without augmentation, once, when first
    asked for.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: "Dataset | None" = None,
        *,
        seed: int = 0,
        num_images: int = 512,
    ) -> None:
        self._model = model
        self._parameters = dict(model.named_parameters())
        self._dataset = dataset
        self._seed = seed
        self._num_images = num_images
        self._gradients: dict[str, Tensor] | None = None

    def weight(self, name: str) -> Tensor:
        """Return a parameter's values."""
        return self._parameters[name].detach()

    def gradient(self, name: str) -> Tensor:
        """Return the gradient of the mean loss over the probe's images, shaped as the parameter."""
        if self._gradients is None:
            self._gradients = self._measure_gradients()
        return self._gradients[name]

    def activation(self, group: Group) -> Tensor:
        """Return what a group's units put out, ``[images, units]``: the mean over the map.

        Taken after the group's norm where it has one, else from its first producer, before any
        nonlinearity.
        """
        slot = next(s for s in group.slots if s.role in ("producer", "norm"))
        source = group.norms[0] if group.norms else slot.tensor.rpartition(".")[0]
        found: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            found.append(output.flatten(2).mean(2) if output.dim() > 2 else output)

        handle = self._model.get_submodule(source).register_forward_hook(keep)
        try:
            with torch.no_grad():
                for x, _ in self._batches():
                    self._model.eval()(x)
        finally:
            handle.remove()
        result = torch.zeros(sum(len(f) for f in found), group.size)
        return result.index_add(1, slot.units.clamp(min=0), torch.cat(found))

    def random(self, group: Group) -> Tensor:
        """Return uniform numbers ``[units]`` that depend on the seed and the group's name alone."""
        return torch.rand(group.size, generator=seeded(self._seed, "random-score", group.name))

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        from regrow.data import normalise

        if self._dataset is None:
            raise ConfigError(
                "This criterion looks at gradients or activations, so it needs images: give "
                "select(..., dataset=...)."
            )
        data = self._dataset
        order = torch.randperm(len(data.train), generator=seeded(self._seed, "probe"))
        return [
            (normalise(data.train.batch(part), data.mean, data.std), data.train.labels[part])
            for part in torch.split(order[: self._num_images], 128)
        ]

    def _measure_gradients(self) -> dict[str, Tensor]:
        model = self._model.eval()
        model.zero_grad(set_to_none=True)
        batches = self._batches()
        total = sum(len(y) for _, y in batches)
        for x, y in batches:
            loss = F.cross_entropy(model(x), y, reduction="sum") / total
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self._parameters.items()
        }
        model.zero_grad(set_to_none=True)
        return gradients


@allocation("global")
def allocate_global(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Remove the floor(N * sparsity) lowest scores of all groups together; ties go by position."""
    flat = torch.cat([s.flatten() for s in scores.values()])
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[torch.argsort(flat, stable=True)[: _share(len(flat), sparsity)]] = False
    parts = torch.split(kept, [s.numel() for s in scores.values()])
    return {name: part.clone() for name, part in zip(scores, parts, strict=True)}


@allocation("uniform")
def allocate_uniform(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Keep the floor(width * (1 - sparsity)) highest scores of every group."""
    return allocate_shares(scores, [sparsity] * len(scores))


def allocate_shares(scores: Mapping[str, Tensor], shares: Sequence[float]) -> dict[str, Tensor]:
    """Keep the floor(width * (1 - share)) highest scores of each group; a share for each."""
    kept = {}
    for (name, score), share in zip(scores.items(), shares, strict=True):
        num_kept = _share(score.numel(), 1.0 - share)
        order = torch.argsort(score.flatten(), stable=True, descending=True)
        kept[name] = torch.zeros(score.numel(), dtype=torch.bool)
        kept[name][order[:num_kept]] = True
    return kept


def _share(count: int, share: float) -> int:
    # 10 x (1 - 0.3) is 7 - 1e-15 in floating point, and 7 is meant.
    return floor(count * share + 1e-9)


def weight_groups(model: nn.Module, scope: Sequence[Scope]) -> dict[str, Group]:
    """List the weights of convolutions (and linear layers) as groups of single weights.

    Biases and norms are never pruned; linear layers only where ``scope`` says so.
    """
    groups = {}
    for name, module in model.named_modules():
        is_conv = isinstance(module, nn.modules.conv._ConvNd)
        kind: Kind = "conv" if is_conv else "linear"
        if (is_conv or isinstance(module, nn.Linear)) and kind in scope:
            tensor = f"{name}.weight" if name else "weight"
            size = module.weight.numel()
            slot = Slot(tensor, 0, torch.arange(size), "producer")  # every element a unit
            groups[tensor] = Group(tensor, kind, size, (slot,), ())
    return groups


def groups_in_scope(model: nn.Module, trace: Trace, method: Method) -> dict[str, Group]:
    """Return the groups that a method prunes in a network, in the order of computation."""
    if method.unit == "weight":
        groups = weight_groups(model, method.scope)
    else:
        groups = {n: g for n, g in trace.groups.items() if _in_scope(g, method.scope)}
    if not groups:
        raise TraceError(
            f"{method.name} prunes {' and '.join(method.scope)} groups, and this network has none "
            f"that can be cut. Its groups: {', '.join(trace.groups) or 'none'}."
        )
    return groups


def _in_scope(group: Group, scope: Sequence[str]) -> bool:
    return group.kind in scope or (
        "normed-conv" in scope and group.kind == "conv" and bool(group.norms)
    )


def select(
    model: nn.Module,
    trace: Trace,
    method: Method | str,
    *,
    sparsity: float | None = None,
    shares: Sequence[float] | None = None,
    dataset: "Dataset | None" = None,
    seed: int = 0,
) -> Mask:
    """Choose the units of a network that stay.

    Args:
        model: the trained network (or any, for a method that does not look at weights).
        trace: its trace.
        method: a method or its name.
        sparsity: removed share of all units in the method's scope, in [0, 1).
        shares: instead of a sparsity, the removed share of each group in the order of computation.
        dataset: images, for criteria that look at gradients or activations.
        seed: for criteria that draw.

    Returns:
        A mask over the groups in scope. A group that would have been emptied keeps its highest
        unit and is listed in ``mask.guarded``.
    """
    chosen = METHODS.get(method) if isinstance(method, str) else method
    groups = groups_in_scope(model, trace, chosen)
    probe = Probe(model, dataset, seed=seed)
    score = CRITERIA.get(chosen.criterion)
    scores = {name: _checked(chosen, group, score(group, probe)) for name, group in groups.items()}
    if shares is not None:
        if len(shares) != len(groups):
            raise ConfigError(
                f"{chosen.name}: expected a share for each of the network's {len(groups)} groups. "
                f"Got {len(shares)}."
            )
        kept = allocate_shares(scores, shares)
    else:
        kept = ALLOCATIONS.get(chosen.allocation)(scores, checked_sparsity(sparsity))
    guarded = tuple(name for name, stays in kept.items() if not bool(stays.any()))
    if chosen.unit == "weight":
        guarded = ()  # a layer without weights still passes on its bias and norm: nothing breaks
    for name in guarded:
        kept[name][int(scores[name].argmax())] = True
    shapes = dict(model.named_parameters())
    if chosen.unit == "weight":
        kept = {name: stays.reshape(shapes[name].shape) for name, stays in kept.items()}
    return Mask(unit=chosen.unit, kept=kept, guarded=guarded)


def checked_sparsity(sparsity: float | None) -> float:
    """Return a sparsity that is one; else raise a ``ConfigError``."""
    good = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
    if not good or not 0.0 <= float(sparsity) < 1.0:  # type: ignore[arg-type]
        raise ConfigError(
            f"A sparsity is the removed share of the units, a number in [0, 1). Got {sparsity!r}."
        )
    return float(sparsity)  # type: ignore[arg-type]


def _checked(method: Method, group: Group, scores: Tensor) -> Tensor:
    if scores.shape != (group.size,):
        raise ConfigError(
            f"The criterion {method.criterion!r} must return one score for each of the "
            f"{group.size} units of {group.name!r}. Got shape {tuple(scores.shape)}."
        )
    if not bool(torch.isfinite(scores).all()):
        raise ConfigError(
            f"The criterion {method.criterion!r} gave scores for {group.name!r} that are not all "
            "finite."
        )
    return scores
