"""Rebuild a network by its own code with narrower parameters, so that it initialises those.

Code initialises the weights of a network while it builds it, by rules that may depend on the width
of a layer. For a cut network, the code is run again, and each parameter is narrowed as soon as it
is registered with a module: the code then initialises the narrow parameter.
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
Numbers = Mapping[str, tuple[Any, Any]]  # attribute -> its value before and after the cut


@dataclass(frozen=True)
class Step:
    """The creation of a parameter: module class and attribute, and its final name, if any."""

    place: tuple[type[nn.Module], str]
    name: str | None


@dataclass(frozen=True)
class Widths:
    """The shapes of a cut network's parameters, and the layers' attributes that changed too."""

    shapes: Mapping[str, torch.Size]
    numbers: Mapping[str, Numbers]

    @classmethod
    def of(cls, small: nn.Module, whole: nn.Module) -> "Widths":
        """Compare a cut network with the uncut one."""
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
    """Return the name, in the uncut network, of a tensor or module of a cut one.

    A norm that surgery put behind a selection of channels is one level deeper in the cut network.
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
    """Build a network; return it, and its parameters in the order of their creation."""
    made: list[tuple[tuple[type[nn.Module], str], nn.Parameter]] = []
    with _listening(lambda module, name, value: made.append(((type(module), name), value))):
        network = build()
    names: dict[int, str] = {}
    # PyTorch's weight and spectral norm make another parameter that shares the memory.
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
    """The parameters of a rebuilt network that have the narrower shapes.

    Those in ``as_made`` were not initialised again after they were narrowed.
    """

    values: Mapping[str, torch.Tensor]
    as_made: frozenset[str]


def narrowed(build: Build, steps: Sequence[Step], widths: Widths) -> Narrowed:
    """Build a network again with narrower parameters.

    The result is empty if the code fails, or does not create the same parameters as in ``steps``.
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
    except Exception:  # anything may be raised by code that does not expect narrower tensors
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
    """Makes ``copy_`` into a narrowed tensor copy only the first part of a full-width one."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[int, torch.Size] = {}  # original shapes, by the address of the data

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function; for ``copy_`` into a narrowed tensor, slice the source first."""
        if function is torch.Tensor.copy_ and len(args) > 1 and isinstance(args[1], torch.Tensor):
            into, values = args[:2]
            if values.shape != into.shape and self.before.get(into.data_ptr()) == values.shape:
                args = (into, values[tuple(map(slice, into.shape))], *args[2:])
        return function(*args, **(kwargs or {}))


@contextmanager
def _listening(heard: Callable[[nn.Module, str, nn.Parameter], None]) -> Iterator[None]:
    """Call ``heard`` for each parameter when this thread first registers it with a module."""
    thread = get_ident()
    seen: dict[int, nn.Parameter] = {}  # holds references, so that ids are not reused

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
