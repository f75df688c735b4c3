"""The layers and parameters that a trace keeps whole, each with the reason why."""

from collections.abc import Iterator, Mapping

from torch import nn

from regrow.surgery.colours import ZERO, Classes
from regrow.surgery.fold import behind_hooks
from regrow.surgery.groups import belongs
from regrow.surgery.painter import Painter
from regrow.surgery.tape import Tape, narrows

COMPILED = "torch.jit compiled it, and compiled code cannot be cut: trace the original network"
IDLE = "it was not used when the network ran on the example"
NUMBER = "it is one number, which belongs to no channel"
ENTERED = "its input is kept whole"
UNMADE = "no layer produces the channels that it belongs to"
PARAMETRIZED = ".parametrizations."


def whole_layers(
    model: nn.Module,
    painter: Painter,
    classes: Classes,
    *,
    owners: Mapping[str, str],
    is_producer: Mapping[str, bool],
) -> dict[str, str]:
    """Return the layers and parameters that are kept whole, with reasons (see ``Trace``).

    Args:
        model, painter, classes: the network, its painter, and the final classes of the colours.
        owners: producers, and norms with views, that are at least partly whole -> the reason.
        is_producer: tensors in slots of groups -> whether they are producers there.
    """
    reasons, hooked = dict(owners), behind_hooks(model)
    for name in _left_over(model, painter.tape):
        if name not in is_producer and name not in reasons:
            reasons[name] = _reason(name, painter, classes, hooked)
    containers = _containers(model, painter.tape)
    inside = {tensor: _layer(tensor, containers) for tensor in (*reasons, *is_producer)}
    layers: dict[str, list[str]] = {}
    for tensor in reasons:
        layers.setdefault(inside[tensor], []).append(tensor)
    cut: dict[str, set[str]] = {}
    for tensor in is_producer:
        cut.setdefault(inside[tensor], set()).add(tensor)
    whole: dict[str, str] = {}
    for layer, tensors in layers.items():
        producers = [tensor for tensor in tensors if tensor in owners]
        other_tensors = cut.get(layer, set()) - set(producers)
        if producers:
            other_tensors = {tensor for tensor in other_tensors if is_producer[tensor]}
        if other_tensors or len({reasons[tensor] for tensor in producers}) > 1:
            whole |= {tensor: reasons[tensor] for tensor in tensors}
        else:
            behind = [tensor for tensor in tensors if tensor in painter.computed]
            whole[layer] = reasons[(*producers, *behind, *tensors)[0]]
    known = list(painter.tape.names.values())
    order = sorted(whole, key=lambda name: next(i for i, t in enumerate(known) if belongs(t, name)))
    return {name: whole[name] for name in order if not _inside_another(name, whole)}


def _inside_another(name: str, whole: Mapping[str, str]) -> bool:
    """Return whether an enclosing layer is in ``whole`` too (as for the buffers of observers)."""
    outer = name.rpartition(".")[0]
    while outer and outer not in whole:
        outer = outer.rpartition(".")[0]
    return bool(outer)


def _left_over(model: nn.Module, tape: Tape) -> Iterator[str]:
    """Yield the names of all parameters, and of the non-scalar float buffers that were used."""
    used = {index for node in tape.nodes for index in node.refs()}
    movers = {name for name, module in model.named_modules() if narrows(module)}
    for index, name in tape.names.items():
        value = tape.values[index]
        numbers = (value.is_floating_point() or value.is_complex()) and value.numel() > 1
        is_own = name.rpartition(".")[0] not in movers
        if index in tape.parameters or (index in used and numbers and is_own):
            yield name


def _reason(name: str, painter: Painter, classes: Classes, hooked: Mapping[str, str]) -> str:
    """Return why a tensor that is in no group is kept whole.

    ``hooked``: tensors from which hooks compute a weight -> the weight's name.
    """
    tape = painter.tape
    if any(belongs(name, module) for module in tape.compiled):
        return COMPILED
    if name in hooked:
        return _computed(hooked[name], "a hook of torch.nn.utils")
    if PARAMETRIZED in name:
        weight = name.split(PARAMETRIZED)[1].split(".")[0]
        told = _computed(weight, "torch.nn.utils.parametrize")
        return f"{told}, if the parametrization is one of PyTorch's own"
    if name in painter.computed:
        return painter.computed[name]
    for mark in painter.marks:
        if mark.tensor == name:
            frozen = classes.root[mark.ids.clamp(min=ZERO)]
            frozen = frozen[frozen > ZERO]
            if not len(frozen):
                origin = painter.entered.get(name)
                return f"{ENTERED}: {origin}" if origin else ENTERED
            frozen = frozen[~classes.free(frozen)]
            return classes.reason(int(frozen[0])) if len(frozen) else UNMADE
    if name in painter.fixed:
        return painter.fixed[name]
    index = next(index for index, known in tape.names.items() if known == name)
    user = next((node for node in tape.nodes if index in node.refs()), None)
    if user is None:
        return IDLE
    if tape.values[index].numel() == 1:
        return NUMBER
    where = f" in {user.module!r}" if user.module else ""
    if index not in tape.parameters:
        return (
            f"it is a buffer that '{user.name}' reads{where}, and buffers used this way are not cut"
        )
    return f"'{user.name}' reads it{where}, but not together with channels that can be cut"


def _computed(weight: str, by: str) -> str:
    return (
        f"its {weight} is computed from other parameters ({by}): "
        "regrow.fold(network) makes it a plain parameter"
    )


def _containers(model: nn.Module, tape: Tape) -> set[str]:
    """Return the names of modules that contain layers, and of lists and dicts of parameters."""
    lists = nn.ParameterList | nn.ParameterDict
    containers = {
        "",
        *(name for name, module in model.named_modules() if isinstance(module, lists)),
    }
    for index in tape.parameters:
        outer = _module_of(tape.names[index]).rpartition(".")[0]
        while outer not in containers:
            containers.add(outer)
            outer = outer.rpartition(".")[0]
    return containers


def _layer(tensor: str, containers: set[str]) -> str:
    """Return the name of a tensor's module, or the tensor's own if that module contains layers."""
    module = _module_of(tensor)
    return tensor if module in containers else module


def _module_of(tensor: str) -> str:
    """Return the name of a tensor's module; for a parametrization, the parametrized module."""
    return tensor.split(PARAMETRIZED)[0] if PARAMETRIZED in tensor else tensor.rpartition(".")[0]
