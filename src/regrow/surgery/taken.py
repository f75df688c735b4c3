"""Checks of surgery's arguments: a network, a mask, a trace, examples and names of inputs."""

import inspect
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.core.validation import check_kind, is_int
from regrow.errors import ConfigError, TraceError, short, unknown
from regrow.models.inputs import Inputs, inputs_of
from regrow.surgery.dispatch import OperationMode
from regrow.surgery.groups import Trace
from regrow.surgery.mask import Mask
from regrow.surgery.tape import Arguments, call, evaluating


@dataclass(frozen=True)
class CallSignature:
    """The inputs that a network's ``forward`` names, in order; ``others``: it has ``**kwargs``.

    >>> CallSignature.by(nn.Linear(2, 2)).names
    ('input',)
    """

    names: tuple[str, ...]
    others: bool

    @classmethod
    def by(cls, network: nn.Module) -> "CallSignature":
        """Read the signature of a network; code without one takes anything."""
        try:
            parameters = inspect.signature(network.forward).parameters.values()
        except (TypeError, ValueError):
            return cls((), others=True)
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        return cls(
            tuple(p.name for p in parameters if p.kind in by_name),
            others=any(p.kind == p.VAR_KEYWORD for p in parameters),
        )


def check_network(network: object) -> None:
    """Raise a ``ConfigError`` if the argument is not a network."""
    if not isinstance(network, nn.Module):
        text = f"regrow.ModelOrigin({network!r}).build()" if isinstance(network, str) else "Net()"
        got = f"the class {network.__name__}" if isinstance(network, type) else short(network)
        raise ConfigError(f"A network must be a torch.nn.Module, such as {text}. Got {got}.")
    if any(_is_exported(module) for module in network.modules()):
        raise ConfigError(
            "The layers of an exported program (torch.export) are fixed, so it can neither be "
            "traced nor cut. Give the network that was exported, and export the smaller one."
        )


def _is_exported(module: nn.Module) -> bool:
    """Return whether a module was made by ``ExportedProgram.module``, which replaces ``eval``."""
    return getattr(vars(module).get("eval"), "__qualname__", "").startswith("ExportedProgram.")


def check_numbers(network: object) -> None:
    """Raise a ``ConfigError`` unless this is a network whose parameters have values."""
    check_network(network)
    assert isinstance(network, nn.Module)
    empty = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if empty:
        raise ConfigError(
            f"{len(empty)} parameters of the network, such as {empty[0]!r}, are on the device "
            "'meta', which holds no numbers. Build it on the CPU."
        )


def check_cut(network: nn.Module, mask: Mask, trace: Trace) -> None:
    """Raise an error if the arguments are not a network, a mask and a trace of that network."""
    check_numbers(network)
    made = "regrow.Mask(unit='channel', kept={GROUP: BOOLEANS}), or by regrow.select"
    check_kind(mask, Mask, f"The second argument must be a mask, made by {made}")
    check_kind(trace, Trace, "The third argument must be what regrow.trace(network, example) found")
    wrong = _misfit(network, mask, trace)
    if wrong is not None:
        raise TraceError(
            f"The trace is of another network, or of this one before it was cut: {wrong}. Trace "
            "the network that is given here, regrow.trace(network, example), and make the mask "
            "from that trace."
        )


def _misfit(network: nn.Module, mask: Mask, trace: Trace) -> str | None:
    """Say in which tensor the units that a mask cuts are not as in a trace; None if all fit."""
    shapes = {n: tuple(t.shape) for n, t in (*network.named_parameters(), *network.named_buffers())}
    modules = {name for name, _ in network.named_modules()}
    for slot in (s for n in mask.kept if n in trace.groups for s in trace.groups[n].slots):
        name, of_module, _ = slot.tensor.partition(":")
        if name not in (modules if of_module else shapes):
            return f"this network has no {name!r}"
        size = len(slot.units)
        if not of_module and shapes[name][slot.dim : slot.dim + 1] != (size,):
            return f"{name!r} had {size} in dimension {slot.dim}, and has the shape {shapes[name]}"
    return None


def check_keep(keep: Any, network: nn.Module | None = None) -> None:
    """Raise an error if ``keep`` is not a list of names of modules (of ``network``, if given)."""
    listed = isinstance(keep, Collection) and not isinstance(keep, str | bytes)
    if not (listed and all(isinstance(name, str) for name in keep)):
        raise ConfigError(
            f"'keep' must be a list of names of modules, such as ['stem.conv']. Got {short(keep)}."
        )
    known = set() if network is None else {name for name, _ in network.named_modules()}
    for name in keep if network is not None else ():
        if name not in known:
            raise TraceError(f"keep: the network has no module {name!r}.")


def example_of(example: Any) -> Any:
    """Return the example, built from its text if it is one; invalid ones are a ``ConfigError``."""
    if isinstance(example, str | Inputs):
        return inputs_of(example).example()
    is_sizes = isinstance(example, list | tuple) and all(is_int(size) for size in example)
    array = not torch.is_tensor(example) and hasattr(example, "__array__")
    single = example is None or isinstance(example, bool | int | float | complex | bytes | type)
    if single or array or (is_sizes and any(size < 1 for size in example[1:])):
        of_array = " Convert an array by torch.from_numpy(array)." if array else ""
        raise ConfigError(
            "An example must be a tensor or its shape, such as (1, 3, 224, 224), or several "
            f"inputs as a list, or by name as a mapping. Got {short(example)}.{of_array}"
        )
    return example


def batch_hint(network: nn.Module, example: Any) -> str:
    """Return a hint to add a batch dimension, if the network runs on batches of one; else ""."""
    try:
        given = inputs_of(example).inputs
        batches = Inputs(tuple(replace(one, shape=(1, *one.shape)) for one in given))
        with evaluating(network), torch.no_grad():
            call(network, batches.example())
    except Exception:  # whatever the network's own code raises
        return ""
    return f" The first number is the size of the batch: do you mean {batches}?"


def check_names(network: nn.Module, example: Any) -> None:
    """Refuse inputs whose names a network does not know: it would fail on them, or ignore them.

    If ``forward`` has ``**kwargs``, an input that it does not name is accepted if an operation
    reads it; the network runs once to find out.

    Raises:
        TraceError: a name is unknown; the message suggests similar ones.
    """
    given = example.kwargs if isinstance(example, Arguments) else example
    if not isinstance(given, Mapping):
        return
    taken = CallSignature.by(network)
    strangers = [name for name in given if name not in taken.names]
    if not strangers or (taken.others and not taken.names):
        return
    overlooked = _unread(network, example, given) if taken.others else strangers
    for name in strangers:
        if name in overlooked:
            others = f"; its **kwargs accept {name!r} too, but nothing reads it"
            raise TraceError(
                f"{unknown('input', name, taken.names)} These are the inputs that "
                f"{type(network).__name__}.forward names{others if taken.others else ''}."
                f"{_mapping_hint(network, given)}"
            )


def _mapping_hint(network: nn.Module, given: Mapping[str, Any]) -> str:
    """Return how to give several inputs as one mapping, if the network runs on it; else ""."""
    try:
        text = inputs_of((given,))
        with evaluating(network), torch.no_grad():
            call(network, (dict(given),))
    except Exception:  # whatever the network's own code raises
        return ""
    return f" It runs on one mapping of them: '{text}' as the input, or (mapping,) in Python."


def _unread(network: nn.Module, example: Any, given: Mapping[str, Any]) -> set[str]:
    """Return the names of inputs that no operation reads, even because the network fails before."""
    watch = _InputReads({name: tree_leaves(value) for name, value in given.items()})
    with evaluating(network), torch.no_grad(), watch, suppress(Exception):
        call(network, example)
    return given.keys() - watch.read


class _InputReads(OperationMode):
    """Records which inputs operations read."""

    def __init__(self, inputs: Mapping[str, list[Any]]) -> None:
        super().__init__()
        tensors = [(x, name) for name, leaves in inputs.items() for x in leaves]
        self.names = {id(x): name for x, name in tensors if isinstance(x, Tensor)}
        self.read = {name for name in inputs if name not in self.names.values()}

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        leaves = tree_leaves((args, dict(kwargs)))
        self.read |= {self.names[id(leaf)] for leaf in leaves if id(leaf) in self.names}
        return operation(*args, **kwargs)
