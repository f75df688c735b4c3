"""Channels (or groups of a grouped convolution) as units: cut out of all layers that hold them."""

from collections.abc import Collection
from math import prod

from torch import nn

from regrow.core.units import Unit, register_unit
from regrow.surgery import Group, Trace
from regrow.surgery.cut import cut_, kept_positions
from regrow.surgery.mask import Mask
from regrow.surgery.oracle import silence_channels_
from regrow.units.keep_layers_alive import guard

# Not streams: there it also matters which positions stay, because other layers share them.
_PRIVATE = {"conv", "normed-conv", "linear", "normed-linear"}


def groups(_model: nn.Module, trace: Trace, scope: Collection[str]) -> dict[str, Group]:
    """Return the groups of channels in a scope."""
    return {name: g for name, g in trace.groups.items() if _why_not(g, scope) is None}


def left_out(trace: Trace, scope: Collection[str]) -> dict[str, str]:
    """Return the groups of channels outside a scope, each with the reason."""
    reasons = {name: _why_not(group, scope) for name, group in trace.groups.items()}
    return {name: why for name, why in reasons.items() if why is not None}


def sizes(mask: Mask, model: nn.Module, trace: Trace) -> dict[str, int]:
    """Return the number of elements that remain of each parameter that loses some."""
    parameters = dict(model.named_parameters())
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    touched = {}
    for (tensor, dim), positions in kept_positions(mask, trace).items():
        if tensor in shapes:
            shapes[tensor][dim] = len(positions)
            touched[tensor] = prod(shapes[tensor])
    return touched


def _why_not(group: Group, scope: Collection[str]) -> str | None:
    """Return why a group of channels is not in a scope; None if it is."""
    if group.kind in scope:
        return None
    if f"normed-{group.kind}" not in scope:
        return f"its kind is {group.kind}"
    if not group.norms:
        return f"its kind is {group.kind}, without a norm of its own"
    scales = {slot.tensor for slot in group.slots if slot.role == "norm"}
    if not any(f"{norm}.weight" in scales for norm in group.norms):
        return f"its kind is {group.kind}, and its norm {group.norms[0]!r} has no scale"
    return None


register_unit(
    "channel",
    Unit(
        about="Channels (or groups of a grouped convolution), cut out of all layers that hold them",
        groups=groups,
        cut=cut_,
        silence=silence_channels_,
        sizes=sizes,
        keep_alive=guard,
        left_out=left_out,
        given_by_shares=lambda scope: set(scope) <= _PRIVATE,
        narrows=True,
        exponent=2.0,  # a layer loses inputs and outputs
    ),
)
