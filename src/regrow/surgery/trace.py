"""Trace a network into groups: channels of several layers that can only be removed together."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import regrow.surgery.attention
import regrow.surgery.lookup
import regrow.surgery.recurrent
import regrow.surgery.views  # noqa: F401  (imported to register their rules)
from regrow.core.validation import check_kind
from regrow.errors import ConfigError, TraceError
from regrow.surgery.assumptions import Assumptions, Followed
from regrow.surgery.colours import ZERO, Classes, ViewConflictError
from regrow.surgery.cut import copied, train
from regrow.surgery.groups import Group, Kind, Slot, Trace, belongs
from regrow.surgery.likeness import Likeness
from regrow.surgery.norms import BATCH_NORMS
from regrow.surgery.numbers import Attribute, followed, numbers
from regrow.surgery.operators import COPIES, TURNS, VIEWS
from regrow.surgery.painter import Painter
from regrow.surgery.rules import RULES
from regrow.surgery.statistics import carry
from regrow.surgery.taken import batch_hint, check_keep, check_numbers, example_of
from regrow.surgery.tape import (
    Arguments,
    Node,
    Tape,
    Unrecorded,
    eagerly,
    is_dense,
    record,
    refuse_lazy,
    versions,
)
from regrow.surgery.trial import Trials, Tried
from regrow.surgery.whole import whole_layers

Example = Tensor | str | Sequence[int] | Sequence[Any] | Mapping[str, Any]


@eagerly()
def trace(
    model: nn.Module,
    example: Example,
    kwargs: Mapping[str, Any] | None = None,
    *,
    keep: Sequence[str] = (),
) -> Trace:
    """Find the groups of a network by running it once on an example.

    Args:
        model: any network; it is not changed.
        example: an input ``[N, ...]`` or its shape; or several inputs, as a list or tuple, or as a
            mapping of names to inputs; or their text form (``"1x3x224x224"``). If all inputs have
            the same number of samples, one sample is run.
        kwargs: further inputs by name.
        keep: names of modules (or prefixes of names) whose output channels must not be pruned.

    Raises:
        TraceError: the network fails on the example, a layer has no units, or ``keep`` is unknown.
        ConfigError: an argument has the wrong type.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    >>> [(g.name, g.kind, g.size) for g in trace(net, (1, 3, 8, 8)).groups.values()]
    [('0', 'conv', 8)]
    """
    check_numbers(model)
    check_keep(keep, model)
    sample = _sample(model, example, kwargs)
    tape = _recorded(model, sample, None if kwargs else example)
    movers = frozenset(name for name, _, _ in tape.movers)
    assumed = Assumptions(_candidate_views(tape), coupled=_coupled(model))
    tried = Tried(model, sample)
    while True:
        painter = _painter(tape, assumed, movers)
        try:
            painter.run()
            if assumed.ones:
                _unite_counted(model, painter, assumed.ones)
        except ViewConflictError as conflict:
            assumed.views -= {conflict.norm}
            continue
        _freeze(painter, keep, assumed.counted)
        classes = painter.colours.classes()
        needless = _needless_views(painter, classes)
        if needless:
            assumed.views -= needless
            continue
        base, numbering = _assemble(model, painter, classes, sample)
        if assumed.divide(base, base.groups, single=True):
            continue
        if assumed.divide_whole(base, painter.grouped):
            continue
        if base.idle and not _trains(model, base):
            base = replace(base, idle=())
        told = numbers(model, painter, classes)
        follow = partial(followed, base, told, numbering.named)
        trials = Trials(tried, numbering.likeness(painter))
        result = assumed.hold(trials, Followed(base, told, follow))
        if result is not None:
            return result


def _painter(tape: Tape, assumed: Assumptions, movers: frozenset[str]) -> Painter:
    return Painter(
        tape,
        assumed.views,
        movers,
        rules=RULES,
        after=carry,
        coupled=assumed.coupled,
        even=assumed.even,
    )


def _unite_counted(model: nn.Module, painter: Painter, places: Collection[Attribute]) -> None:
    """Unite all channels that a number may count, for the numbers of some attributes."""
    for number in numbers(model, painter, painter.colours.classes()):
        for counted in number.counted if number.place in places else ():
            painter.unite(number.counted[-1], counted)


def _freeze(painter: Painter, keep: Sequence[str], counted: Mapping[str, str]) -> None:
    """Keep whole the modules in ``keep``, the weights in ``counted``, and sparse ones."""
    named = painter.tape.names.items()
    sparse = {name for index, name in named if not is_dense(painter.tape.values[index])}
    for mark in painter.marks:
        if mark.tensor in sparse:
            painter.colours.freeze(
                mark.ids, f"{mark.tensor!r} is sparse, and only dense ones are cut"
            )
        if mark.role in ("producer", "norm") and any(belongs(mark.tensor, m) for m in keep):
            painter.colours.freeze(mark.ids, "asked to be kept")
        elif mark.role != "reader" and mark.tensor in counted:
            painter.colours.freeze(mark.ids, counted[mark.tensor])


def _trains(model: nn.Module, found: Trace) -> bool:
    """Return whether a network runs in training mode on inputs alone: many need targets there."""
    try:
        train(model, found)
    except Exception:
        return False
    return True


def _recorded(model: nn.Module, sample: Any, example: Any) -> Tape:
    """Record a network on one sample; if it fails, hint that ``example`` may lack a batch."""
    refuse_lazy(model)
    try:
        before = versions(model)
        tape = record(model, tree_map(copied, sample))
        # Code that changes parameters does so once, when it first runs: record what it does later.
        return tape if versions(model) == before else record(model, tree_map(copied, sample))
    except Unrecorded as error:
        hint = "" if example is None else batch_hint(model, example)
        raise Unrecorded(f"{error}{hint}", reached=error.reached) from error


def _sample(model: nn.Module, example: Any, kwargs: Mapping[str, Any] | None) -> Any:
    """Return inputs for one example, on the device and in the type of the network's parameters."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    example = example_of(example)
    several = isinstance(example, list | tuple)
    if several and example and all(isinstance(n, int) for n in example):
        example, several = torch.zeros(1, *tuple(example)[1:]), False
    if kwargs is not None:
        check_kind(kwargs, Mapping, "'kwargs' must be a mapping of names to inputs")
        given = tuple(example) if several else (example,)
        example = Arguments(given, dict(kwargs))
    one = _are_samples(example)

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_meta:
            raise ConfigError(
                "An input is on the device 'meta', which holds no numbers. Make it on the CPU."
            )
        sample = (value[:1] if one and value.dim() else value).detach().clone()
        if first is None:
            return sample
        return sample.to(first) if sample.is_floating_point() else sample.to(first.device)

    return tree_map(moved, example)


def _are_samples(example: Any) -> bool:
    """Return whether all tensors are inputs themselves, with equal numbers of samples."""
    inputs: list[Any] = [example]
    if isinstance(example, Arguments):
        inputs = [*example.args, *example.kwargs.values()]
    elif isinstance(example, Mapping):
        inputs = list(example.values())
    elif isinstance(example, list | tuple):
        inputs = list(example)
    held = sum(isinstance(leaf, Tensor) for leaf in tree_leaves(example))
    tensors = [value for value in inputs if is_dense(value)]
    return held == len(tensors) and len({len(t) for t in tensors if t.dim()}) == 1


_LAID_OUT = (*COPIES, *TURNS, *VIEWS)
_PRODUCERS = {"aten::convolution", "aten::_convolution", "aten::addmm", "aten::mm", "aten::linear"}


def _coupled(model: nn.Module) -> frozenset[str]:
    """Return the weights of PyTorch's attention, whose code derives heads from the input width."""
    attentions = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    weights = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    return frozenset(f"{name}.{weight}".lstrip(".") for name, _ in attentions for weight in weights)


def _candidate_views(tape: Tape) -> frozenset[str]:
    """Return the norms that read a shared stream rather than one producer's own output."""
    users: Counter[int] = Counter()
    makers: dict[int, Node] = {}
    for node in tape.nodes:
        users.update(node.refs())
        makers.update((output, node) for output in node.outputs if output is not None)
    views = set()
    for node in tape.nodes:
        if node.name in BATCH_NORMS:
            source = node.args[0].index
            while users[source] == 1 and source in makers and makers[source].name in _LAID_OUT:
                source = makers[source].refs()[0]  # a linear layer's output, laid out as one batch
            alone = users[source] == 1 and source in makers and makers[source].name in _PRODUCERS
            if not alone:
                views.add(node.module)
    return frozenset(views)


def _needless_views(painter: Painter, classes: Classes) -> frozenset[str]:
    """Return the views that are the only reader of one producer: cutting either is the same."""
    num_readers = torch.zeros_like(classes.root)
    num_producers = torch.zeros_like(classes.root)
    streams = {name: classes.above[classes.root[ids]] for name, ids in painter.opened.items()}
    for mark in painter.marks:
        if mark.role == "reader" or mark.tensor.endswith(":in"):
            num_readers[torch.unique(classes.root[mark.ids.clamp(min=ZERO)])] += 1
        elif mark.role == "producer":
            num_producers[classes.root[mark.ids]] += 1
    for stream in streams.values():
        num_readers[torch.unique(stream)] += 1
    once = (num_readers == 1) & (num_producers == 1)
    return frozenset(
        name
        for name, stream in streams.items()
        if bool((classes.free(stream) & once[stream]).all())
    )


def _assemble(
    model: nn.Module, painter: Painter, classes: Classes, sample: Any
) -> tuple[Trace, "_Numbering"]:
    """Collect classes of colours into groups, and their positions in tensors into slots."""
    owners = _owners(painter)
    frozen = {}
    for tensor, _, ids in owners:
        first = classes.root[ids][~classes.free(classes.root[ids])][:1]
        if len(first):
            frozen[tensor] = classes.reason(int(first))
    numbering = _Numbering.of(owners, classes)
    slots: dict[int, list[Slot]] = {group: [] for group in numbering.owners}
    for mark in painter.marks:
        for group, units in numbering.levels(mark.ids).items():
            slot = Slot(mark.tensor, mark.dim, units, mark.role, painter.zeroed(mark))
            slots[group].append(slot)
    norms: dict[int, dict[str, None]] = {group: {} for group in numbering.owners}
    for norm, ids in painter.norms.items():
        for group in numbering.own(ids):
            norms[group][norm] = None
    heads = {group for ids in painter.heads for group in numbering.own(ids)}
    added = {group for ids in painter.added for group in numbering.own(ids)}
    groups = {}
    for group, names in numbering.owners.items():
        kind = _kind(painter, names, has_heads=group in heads, is_added=group in added)
        size = numbering.sizes[group]
        groups[names[0]] = Group(names[0], kind, size, tuple(slots[group]), tuple(norms[group]))
    is_producer = {s.tensor: s.role == "producer" for own in slots.values() for s in own}
    tape = painter.tape
    widths = {
        name: (painter.shape(source)[1], painter.shape(result)[1])
        for name, source, result in tape.movers
    }
    used = {index for node in tape.nodes for index in node.refs()}
    idle = tuple(tape.names[i] for i in sorted(tape.parameters - used))
    found = Trace(
        groups,
        whole_layers(model, painter, classes, owners=frozen, is_producer=is_producer),
        views=frozenset(painter.opened),
        movers=widths,
        even=frozenset(painter.divided),
        measured=frozenset(painter.measured),
        idle=idle,
        computed=frozenset(painter.computed) - {mark.tensor for mark in painter.marks},
        outputs=tape.output_shapes(),
        example=sample,
    )
    return found, numbering


def _owners(painter: Painter) -> list[tuple[str, str, Tensor]]:
    """List what makes colours, in order of computation: producers, and norms that open views.

    Each entry is the tensor (or norm), the name of the group that it may form, and its colours.
    """
    order = [
        (mark.tensor, mark.tensor.removesuffix(".weight"), mark.ids)
        for mark in painter.marks
        if mark.role == "producer" and (mark.tensor, mark.dim) not in painter.held
    ]
    order += [(norm, norm, ids) for norm, ids in painter.opened.items()]
    for tensor, _, ids in order:
        if not ids.numel():
            raise TraceError(f"The layer of {tensor!r} has no units: give it at least one.")
    return sorted(order, key=lambda owner: int(owner[2].min()))


def _kind(painter: Painter, owners: Sequence[str], *, has_heads: bool, is_added: bool) -> Kind:
    if owners[0] in painter.opened:
        return "view"
    if any(owner in painter.grouped for owner in owners):
        return "grouped"
    if has_heads:
        tied = any({owner, f"{owner}.weight"} & painter.coupled for owner in owners)
        return "stream" if tied else "head"
    made = [painter.linear.get(f"{o}.weight", painter.linear.get(o, False)) for o in owners]
    linear = all(made)
    if len(owners) > 1 and (is_added or not linear):
        return "stream"
    return "linear" if linear else "conv"


@dataclass(frozen=True)
class _Numbering:
    """Numbers of groups, and of units in them; producers that share a class are in one group."""

    classes: Classes
    group: Tensor  # [colours] -> group, -1 where there is none
    unit: Tensor  # [colours] -> unit within its group
    owners: Mapping[int, list[str]]
    sizes: Mapping[int, int]
    _known: dict[bytes, dict[int, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, owners: Sequence[tuple[str, str, Tensor]], classes: Classes) -> "_Numbering":
        group = torch.full_like(classes.root, -1)
        unit = torch.full_like(classes.root, -1)
        names: dict[int, list[str]] = {}
        for number, (_, owner, ids) in enumerate(owners):
            roots = classes.root[ids]
            roots = roots[classes.free(roots)]
            if not len(roots):
                continue
            met = [g for g in torch.unique(group[roots]).tolist() if g >= 0]
            home = min(met, default=number)
            for level in met[1:]:
                # Two groups turn out to be one: append the units of the second to the first.
                moved = group == level
                unit[moved] += int((group == home).sum())
                group[moved] = home
                names[home] += names.pop(level)
            new = _first_places(roots[group[roots] < 0])
            unit[new] = int((group == home).sum()) + torch.arange(len(new))
            group[new] = home
            names.setdefault(home, []).append(owner)
        sizes = {number: int((group == number).sum()) for number in names}
        return cls(classes, group, unit, names, sizes)

    def levels(self, ids: Tensor) -> Mapping[int, Tensor]:
        """Convert colours along a dimension to units: of their own groups and of those above."""
        key = ids.numpy().tobytes()  # many tensors share their colours, such as a norm's four
        if key not in self._known:
            self._known[key] = self._levels(ids)
        return self._known[key]

    def likeness(self, painter: Painter) -> Likeness:
        """Return the record with which smaller networks are compared."""
        groups = {names[0]: number for number, names in self.owners.items()}
        return Likeness(painter, self.classes, self.group, self.unit, groups)

    def named(self, ids: Tensor) -> Mapping[str, Tensor]:
        """Convert colours to units, by name of group."""
        return {self.owners[group][0]: units for group, units in self.levels(ids).items()}

    def _levels(self, ids: Tensor) -> dict[int, Tensor]:
        levels: dict[int, Tensor] = {}
        for level in self.classes.levels(ids):
            groups = self.group[level]
            for group in torch.unique(groups[groups >= 0]).tolist():
                units = levels.setdefault(group, torch.full_like(ids, -1))
                in_group = groups == group
                units[in_group] = self.unit[level][in_group]
        return levels

    def own(self, ids: Tensor) -> list[int]:
        """Return the groups that colours belong to, without those above."""
        here = self.group[self.classes.root[ids.clamp(min=ZERO)]]
        groups: list[int] = torch.unique(here[here >= 0]).tolist()
        return groups


def _first_places(values: Tensor) -> Tensor:
    """Drop duplicates, in order of first appearance."""
    return torch.tensor(list(dict.fromkeys(values.tolist())), dtype=torch.long)
