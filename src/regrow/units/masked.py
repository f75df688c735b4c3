"""Weights and filters as units: held at zero in a network of full size.

A weight can be held at zero only if it is a parameter that the layer uses unchanged. Layers whose
weight is computed (weight_norm, spectral_norm, the masks of nn.utils.prune, weight standardisation,
fake quantisation) raise an error, because pruning only the other layers would miss the sparsity.
"""

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from regrow.core.units import Unit, register_unit
from regrow.errors import TraceError
from regrow.surgery import Group, Kind, Slot, Trace, in_shortcuts
from regrow.surgery.mask import check_shape, filter_dim, layer_of

# An attribute of layers whose weight PyTorch computes -> the call that makes it a parameter.
_FOLDS = {
    "parametrizations": "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')",
    "weight_mask": "torch.nn.utils.prune.remove(layer, 'weight')",
    "weight_g": "torch.nn.utils.remove_weight_norm(layer)",
    "weight_u": "torch.nn.utils.remove_spectral_norm(layer)",
}


def weight_groups(model: nn.Module, scope: Collection[str]) -> dict[str, Group]:
    """Return the weights of convolutions (and linear layers) as groups of single weights.

    Biases and norms are never pruned; convolutions and linear layers only if in ``scope``. A weight
    that layers share is one group.
    """
    groups = {}
    for tensor, module in _weights(model):
        kind: Kind = "conv" if isinstance(module, nn.modules.conv._ConvNd) else "linear"
        if kind in scope:
            weight = _parameter(tensor, module)
            units = torch.arange(weight.numel())  # each element is a unit
            slot = Slot(tensor, 0, units, "producer")
            groups[tensor] = Group(tensor, kind, weight.numel(), (slot,), ())
    return groups


def filter_groups(model: nn.Module) -> dict[str, Group]:
    """Return the filters of every convolution as groups, except 1x1 projections of shortcuts."""
    shortcuts = in_shortcuts(model)
    groups = {}
    for tensor, module in _weights(model):
        if not isinstance(module, nn.modules.conv._ConvNd):
            continue
        if module in shortcuts and all(size == 1 for size in module.kernel_size):
            continue
        if module.transposed and module.groups > 1:
            raise TraceError(
                f"{_layer(tensor)!r} is a transposed convolution of {module.groups} groups, so no "
                "dimension of its weight is its filters. Prune its channels, or its weights."
            )
        weight, dim = _parameter(tensor, module), filter_dim(module)
        slot = Slot(tensor, dim, torch.arange(weight.shape[dim]), "producer")
        groups[tensor] = Group(tensor, "conv", weight.shape[dim], (slot,), ())
    return groups


def check_masked(groups: Mapping[str, Group], trace: Trace) -> None:
    """Raise a ``TraceError`` if zeros in one of the weights would not be zeros where it is used."""
    for tensor in groups:
        if tensor in trace.computed:
            layer = _layer(tensor)
            why = trace.whole.get(layer, trace.whole.get(tensor))
            raise TraceError(
                f"The weights of {layer!r} cannot be held at zero: {why}. Prune channels, which "
                "leaves such layers whole, or give the network a layer that uses its weights as "
                "they are."
            )


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the weights of convolutions and linear layers by name; a shared one only once."""
    seen: dict[int, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            continue
        tensor = f"{name}.weight" if name else "weight"
        weight = module._parameters.get("weight")
        known = seen.setdefault(id(module if weight is None else weight), (tensor, module))
        if known[1] is module:
            yield tensor, module
        elif filter_dim(known[1]) != filter_dim(module):
            raise TraceError(
                f"{_layer(known[0])!r} and {_layer(tensor)!r} share a weight whose filters are "
                "the outputs of one and the inputs of the other, so they cannot be held at zero. "
                "Prune channels."
            )


def _parameter(tensor: str, module: nn.Module) -> nn.Parameter:
    """Return a layer's weight; raise a ``TraceError`` if it is not a parameter."""
    weight = module._parameters.get("weight")
    if weight is None:
        fold = next((way for mark, way in _FOLDS.items() if hasattr(module, mark)), None)
        how = f"Make it a parameter first, by {fold}" if fold else "Make it a parameter"
        raise TraceError(
            f"The weights of {_layer(tensor)!r} cannot be held at zero, because they are not a "
            f"parameter but computed from others. {how}, or prune channels, which leaves such "
            "layers whole."
        )
    return weight


def _layer(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def _single_weights(kept: Tensor, name: str, model: nn.Module) -> Tensor:
    check_shape(kept, name, tuple(model.get_parameter(name).shape))
    return kept


def _whole_filters(kept: Tensor, name: str, model: nn.Module) -> Tensor:
    """Reshape a mask of filters so that it broadcasts over the weight."""
    weight, dim = model.get_parameter(name), filter_dim(layer_of(name, model))
    check_shape(kept, name, tuple(weight.shape[dim : dim + 1]))
    along = [1] * weight.dim()
    along[dim] = -1
    return kept.view(along)


def _groups_of_weights(model: nn.Module, trace: Trace, scope: Collection[str]) -> dict[str, Group]:
    groups = weight_groups(model, scope)
    check_masked(groups, trace)
    return groups


def _groups_of_filters(model: nn.Module, trace: Trace, _scope: Collection[str]) -> dict[str, Group]:
    groups = filter_groups(model)
    check_masked(groups, trace)
    return groups


register_unit(
    "weight",
    Unit(
        about="Single weights, held at zero in a network of full size",
        groups=_groups_of_weights,
        weights=_single_weights,
        shape=lambda model, group: tuple(model.get_parameter(group.name).shape),
        unstructured=True,
    ),
)
register_unit(
    "filter",
    Unit(
        about="Filters of convolutions, held at zero in a network of full size",
        groups=_groups_of_filters,
        weights=_whole_filters,
    ),
)
