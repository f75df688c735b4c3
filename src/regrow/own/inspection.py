"""The groups of a network that can be pruned, and the parameters and MACs of each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from regrow.core.texts import first_few, visible
from regrow.cost import Counted, count
from regrow.errors import TraceError
from regrow.models.inputs import inputs_of
from regrow.pruning.layers import Pruned
from regrow.pruning.method import SCOPES, Method
from regrow.pruning.select import select
from regrow.surgery import Group, Trace, trace
from regrow.surgery.fold import fold
from regrow.surgery.groups import NUMBER
from regrow.surgery.held import names_in_code
from regrow.surgery.taken import check_names, check_numbers

LAYERS_SHOWN = 6  # of one role in a group


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One group: its layers, and its part of the network's costs.

    ``parameters`` and ``macs`` are those of the layers that produce and normalise the units; layers
    that read them belong to the next group, and become smaller as well.
    """

    name: str
    kind: str
    width: int
    producers: Mapping[str, tuple[int, ...]]  # names of weights -> shapes
    norms: Sequence[str]
    between: Sequence[str]  # layers that act on single channels: depthwise convolutions, scales
    readers: Sequence[str]
    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A layer (or parameter) that is kept whole, with the reason and its costs."""

    name: str
    why: str
    parameters: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A network's groups, the layers kept whole, and the costs left at half of every width.

    ``unchanged``: numbers that equal a width and that a cut leaves, by class and attribute.
    """

    network: str  # the name of its class
    inputs: str
    parameters: int
    macs: int
    groups: Sequence[Branch]
    whole: Sequence[Whole]
    half_parameters: float  # the share that is left if every group has half of its units
    half_macs: float
    caveats: Sequence[str] = field(default=())
    unchanged: Sequence[str] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.network}: {self.parameters:,} parameters, {self.macs:,} MACs for {self.inputs}",
            *(f"Not counted: {caveat}." for caveat in self.caveats),
            *self._forest(),
        ]
        if self.unchanged:
            lines += [
                "",
                "A cut leaves these numbers, which equal a width, because no 'forward' reads them. "
                f"Check the code that does: {_shown(self.unchanged)}.",
            ]
        if not self.whole:
            return visible("\n".join([*lines, "", "Nothing is kept whole."]))
        reasons: dict[str, list[Whole]] = {}
        for layer in sorted(self.whole, key=lambda layer: -layer.parameters):
            reasons.setdefault(layer.why, []).append(layer)
        total = sum(layer.parameters for layer in self.whole)
        lines += ["", f"Kept whole, with {self._share(total, _macs(self.whole))}:"]
        for why, layers in reasons.items():
            share = self._share(sum(layer.parameters for layer in layers), _macs(layers))
            lines += [
                f"  {_shown([layer.name for layer in layers])}: {share}",
                f"  `- {why}",
            ]
        return visible("\n".join(lines))

    def _forest(self) -> list[str]:
        if not self.groups:
            return ["", "Nothing in it can be cut."]
        kinds = {group.kind for group in self.groups}
        some = "groups" if len(self.groups) > 1 else "group"
        return [
            f"With half of the units of every group, {self.half_parameters:.1%} of the parameters "
            f"and {self.half_macs:.1%} of the MACs are left.",
            "",
            f"{len(self.groups)} {some} of units can be cut, shown with the layers that compute "
            "and use them:",
            *(line for group in self.groups for line in self._branch(group)),
            "",
            *(f"{kind}: {words}." for kind, words in SCOPES.items() if kind in kinds),
        ]

    def _branch(self, group: Branch) -> list[str]:
        makers = [f"{name.removesuffix('.weight')} {list(shape)}" for name, shape in
                group.producers.items()]  # fmt: skip
        parts = [
            ("computed by", makers),
            ("normalised by", group.norms),
            ("through", group.between),
            ("used by", [name.removesuffix(".weight") for name in group.readers]),
        ]
        branches = [(words, names) for words, names in parts if names]
        units = "unit" if group.width == 1 else "units"
        return [
            f"  {group.name}: {group.kind}, {group.width} {units}, {group.parameters:,} "
            f"parameters, {group.macs:,} MACs: {self._share(group.parameters, group.macs)}",
            *(
                f"  {'`-' if number == len(branches) else '|-'} {words} {_shown(names)}"
                for number, (words, names) in enumerate(branches, start=1)
            ),
        ]

    def _share(self, parameters: int, macs: int) -> str:
        return (
            f"{parameters / max(self.parameters, 1):.1%} of the parameters, "
            f"{macs / max(self.macs, 1):.1%} of the MACs"
        )


def inspect(network: nn.Module, example: Any, *, keep: Sequence[str] = ()) -> Inspection:
    """Return the groups of a network that can be pruned, their costs, and why the rest cannot.

    Args:
        network: any network; it is not changed.
        example: an input, its shape, several inputs, or their text form (``"1x3x224x224"``).
        keep: names of modules that must not be pruned.

    Raises:
        TraceError: the network fails on the example.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    >>> [(group.name, group.width, group.parameters) for group in inspect(net, (1, 3, 8, 8)).groups]
    [('0', 8, 224)]
    """
    check_numbers(network)
    inputs = inputs_of(example)
    tensors = inputs.example() if isinstance(example, str | type(inputs)) else example
    kind, network = type(network).__name__, fold(network)
    check_names(network, tensors)
    traced = trace(network, tensors, keep=keep)
    counted = count(network, traced.example)
    parameters, macs = _half(network, traced, counted)
    return Inspection(
        network=kind,
        inputs=str(inputs),
        parameters=counted.cost.parameters,
        macs=counted.cost.macs,
        groups=[_branch(network, group, counted) for group in traced.groups.values()],
        whole=_whole(network, traced, counted),
        half_parameters=parameters,
        half_macs=macs,
        caveats=counted.cost.caveats,
        unchanged=_unchanged(network, traced),
    )


def _branch(network: nn.Module, group: Group, counted: Counted) -> Branch:
    parameters = dict(network.named_parameters(remove_duplicate=False))
    held = group.held()
    sizes = {name: parameters[name].numel() for name in held if name in parameters}
    return Branch(
        name=group.name,
        kind=group.kind,
        width=group.size,
        producers={
            slot.tensor: tuple(parameters[slot.tensor].shape)
            for slot in group.producers()
            if slot.tensor in parameters
        },
        norms=list(group.norms),
        between=_between(group),
        readers=list(dict.fromkeys(slot.tensor for slot in group.readers())),
        parameters=sum(round(size * held[name]) for name, size in sizes.items()),
        macs=sum(round(counted.by_parameter.get(name, 0) * held[name]) for name in sizes),
    )


def _between(group: Group) -> list[str]:
    """Return the layers that act on each unit separately, such as depthwise convolutions."""
    makers = {_layer(slot.tensor) for slot in group.producers()}
    passed = [_layer(s.tensor) for s in group.slots if s.role == "norm" and ":" not in s.tensor]
    return [name for name in dict.fromkeys(passed) if name not in {*makers, *group.norms}]


def _layer(tensor: str) -> str:
    """Return the layer that a tensor belongs to; one outside layers (a class token) is its own."""
    return tensor.rpartition(".")[0] or tensor


def _whole(network: nn.Module, traced: Trace, counted: Counted) -> list[Whole]:
    """Return the layers kept whole, with the parameters and MACs that are in no group."""
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    macs = counted.by_parameter
    return [
        Whole(
            name=layer,
            why=traced.whole[layer],
            parameters=sum(held.values()),
            macs=sum(
                round(macs.get(name, 0) * num / max(sizes[name], 1)) for name, num in held.items()
            ),
        )
        for layer, held in traced.held_whole(network).items()
    ]


def _unchanged(network: nn.Module, traced: Trace) -> list[str]:
    """Return the numbers that equal a width and stay, without those that ``forward`` reads."""
    names: dict[str, None] = {}
    for tensor, _ in sorted(traced.unneeded):
        module, _, attribute = tensor.partition(NUMBER)
        kind: Any = type(network.get_submodule(module))
        if attribute.rpartition(".")[2] not in names_in_code(kind):
            names[f"{kind.__name__}.{attribute}"] = None
    return list(names)


def _half(network: nn.Module, traced: Trace, counted: Counted) -> tuple[float, float]:
    """Return the shares of parameters and MACs left at half of every width."""
    method = Method(
        name="half", criterion="first", allocation="uniform", scope=("all",), trained=False
    )
    try:
        mask = select(network, traced, method, sparsity=0.5)
    except TraceError:  # there is nothing to cut
        return 1.0, 1.0
    half = Pruned(network=network, trace=traced, mask=mask, counts=counted)
    cost = counted.cost
    return half.parameters / max(cost.parameters, 1), half.macs / max(cost.macs, 1)


def _macs(layers: Sequence[Whole]) -> int:
    return sum(layer.macs for layer in layers)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(first_few(names, LAYERS_SHOWN))
