"""A network built by its own code with narrower tensors, which that code draws at their widths.

Code draws the weights of a network while it builds it, by rules that may depend on the width of a
layer. For a network that was cut it is run again, and each parameter is narrowed at the moment when
a module first has it: what is drawn into it afterwards is drawn for what is left.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as hooks
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from regrow.models.layers import SelectChannels

Build = Callable[[], nn.Module]
Numbers = Mapping[str, tuple[Any, Any]]  # attribute -> what it was, and is in the cut network


@dataclass(frozen=True)
class Step:
    """A parameter as code makes it: where, and its name in the finished network, if it has one."""

    place: tuple[type[nn.Module], str]
    name: str | None


@dataclass(frozen=True)
class Widths:
    """The shapes of a cut network's parameters, and the numbers of its layers that follow them."""

    shapes: Mapping[str, torch.Size]
    numbers: Mapping[str, Numbers]

    @classmethod
    def of(cls, small: nn.Module, whole: nn.Module) -> "Widths":
        """Compare a cut network with the whole one."""
        known = dict(whole.named_modules())
        numbers = {}
        for name, module in small.named_modules():
            name = name_before(name, small)
            was, now = vars(known[name]) if name in known else {}, vars(module)
            changed = {
                attribute: (was[attribute], value)
                for attribute, value in now.items()
                if type(value) in (int, tuple)
                and type(was.get(attribute)) is type(value)
                and was[attribute] != value
            }
            if changed:
                numbers[name] = changed
        parameters = small.named_parameters(remove_duplicate=False)
        return cls({name_before(name, small): p.shape for name, p in parameters}, numbers)


def name_before(name: str, small: nn.Module) -> str:
    """Return what a tensor or module of a cut network is called in the whole one.

    A norm before which surgery put a selection of channels lies one level deeper.
    """
    parts, module = name.split("."), small
    kept = []
    for part in parts:
        wrapped = isinstance(module, nn.Sequential) and part == "norm"
        if not (wrapped and isinstance(getattr(module, "select", None), SelectChannels)):
            kept.append(part)
        module = getattr(module, part, module)
    return ".".join(kept)


def watched(build: Build) -> tuple[nn.Module, list[Step]]:
    """Build a network; returns also the parameters in the order in which its code made them."""
    made: list[tuple[tuple[type[nn.Module], str], nn.Parameter]] = []
    with _listening(lambda module, name, value: made.append(((type(module), name), value))):
        network = build()
    names: dict[int, str] = {}
    # PyTorch's norms of weights make another parameter of the same numbers.
    by_numbers: dict[tuple[int, torch.Size], str] = {}
    for name, value in network.named_parameters(remove_duplicate=False):
        if not is_lazy(value):
            names.setdefault(id(value), name)
            by_numbers.setdefault((value.data_ptr(), value.shape), name)
    return network, [
        Step(place, names.get(id(value)) or by_numbers.get((value.data_ptr(), value.shape)))
        for place, value in made
    ]


@dataclass(frozen=True)
class Narrowed:
    """Parameters of a network that was built with narrower ones, as far as they have those widths.

    Of those in ``as_made`` nothing was drawn once they were narrow.
    """

    values: Mapping[str, torch.Tensor]
    as_made: frozenset[str]


def narrowed(build: Build, steps: Sequence[Step], widths: Widths) -> Narrowed:
    """Build a network anew with narrower parameters.

    It has none of them if its code cannot be followed: it makes other ones this time, or fails.
    """
    left, is_lost = iter(steps), False
    fitting = _Fitting()
    blocks: dict[str, torch.Tensor] = {}

    def narrow(module: nn.Module, attribute: str, value: nn.Parameter) -> None:
        nonlocal is_lost
        step = next(left, None)
        is_lost = is_lost or step is None or step.place != (type(module), attribute)
        if is_lost or step is None or step.name is None or step.name not in widths.shapes:
            return
        shape = widths.shapes[step.name]
        if value.dim() != len(shape) or any(n < m for n, m in zip(value.shape, shape, strict=True)):
            is_lost = True
        elif value.shape != shape:
            whole, block = value.shape, value.detach()[tuple(map(slice, shape))]
            value.data = block.clone(memory_format=torch.contiguous_format)
            fitting.before[value.data_ptr()] = whole
            blocks[step.name] = block
        for number, (was, now) in widths.numbers.get(step.name.rpartition(".")[0], {}).items():
            if vars(module).get(number) == was:
                setattr(module, number, now)

    try:
        with _listening(narrow), fitting:
            network = build()
    except Exception:  # whatever code raises that does not expect narrower tensors
        return Narrowed({}, frozenset())
    if is_lost or next(left, None) is not None:
        return Narrowed({}, frozenset())
    values = {
        name: value.detach()
        for name, value in network.named_parameters(remove_duplicate=False)
        if value.shape == widths.shapes.get(name)
    }
    as_made = (name for name in blocks if name in values and values[name].equal(blocks[name]))
    return Narrowed(values, frozenset(as_made))


class _Fitting(TorchFunctionMode):
    """Lets a tensor that was narrowed take the first part of what code copies into it."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[int, torch.Size] = {}  # shapes, by where the numbers lie now

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function, or ``copy_`` with less."""
        if function is torch.Tensor.copy_ and len(args) > 1 and isinstance(args[1], torch.Tensor):
            into, values = args[:2]
            if values.shape != into.shape and self.before.get(into.data_ptr()) == values.shape:
                args = (into, values[tuple(map(slice, into.shape))], *args[2:])
        return function(*args, **(kwargs or {}))


@contextmanager
def _listening(heard: Callable[[nn.Module, str, nn.Parameter], None]) -> Iterator[None]:
    """Tell of each parameter when a module of this thread first has it: made, or copied."""
    thread = get_ident()
    seen: dict[int, nn.Parameter] = {}  # held, for another would get the place of one let go

    def on_parameter(module: nn.Module, name: str, value: nn.Parameter) -> None:
        if get_ident() == thread and id(value) not in seen and not is_lazy(value):
            seen[id(value)] = value
            heard(module, name, value)

    def on_module(_: nn.Module, __: str, child: nn.Module | None) -> None:
        for module in child.modules() if child is not None else ():
            for name, value in module._parameters.items():
                if value is not None:
                    on_parameter(module, name, value)

    handles = [
        hooks.register_module_parameter_registration_hook(on_parameter),
        hooks.register_module_module_registration_hook(on_module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
