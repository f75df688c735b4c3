"""Cut units out of a network."""

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from regrow.core.units import UNITS
from regrow.errors import TraceError
from regrow.models.layers import SelectChannels
from regrow.surgery.groups import NUMBER, WIDTH, Trace
from regrow.surgery.mask import Mask
from regrow.surgery.tape import Narrows, call, evaluating, output_tensors


class Select(SelectChannels):
    """A selection of channels that surgery put before a norm."""


def shrink(model: nn.Module, mask: Mask, trace: Trace) -> nn.Module:
    """Cut a mask's units out of a network and return the smaller one; the network itself stays.

    The result is an ordinary module of the same classes with narrower layers. A norm that reads a
    shared stream gets a ``Select`` before it when its view is cut. The blocks that a mask over
    blocks drops are replaced by what is left of them without a branch.

    Raises:
        TraceError: the mask names groups that the trace lacks, has another width, would empty a
            layer, or the smaller network does not run because its code fixes a number of channels.
    """
    cut = UNITS.get(mask.unit).cut
    if cut is None:
        raise TraceError(not_cut(mask))
    small = duplicate(model)
    cut(small, mask, trace)
    wrong = what_breaks(small, trace)
    if wrong:
        raise TraceError(
            f"The smaller network {wrong}. Its code probably fixes a number of channels, or a "
            "layer that runs in training only reads what was cut. Read the number from the tensor "
            "there, or keep the layer whole: trace(..., keep=['<layer>'])."
        )
    return small


def duplicate(model: nn.Module, *, sharing: bool = False) -> nn.Module:
    """Copy a network; of tensors that are results (a masked weight of the last step), the numbers.

    Args:
        model: any network.
        sharing: whether the copy has the same parameters rather than copies of them.
    """
    memo: dict[int, Any] = {id(p): p for p in model.parameters()} if sharing else {}
    for module in model.modules():
        for value in (*vars(module).values(), *module._buffers.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor) and not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone()
    return deepcopy(model, memo)


def cut_(small: nn.Module, mask: Mask, trace: Trace, *, for_trial: bool = False) -> None:
    """Cut channels out of a network, in place; for a trial, into parts of its tensors."""
    check(mask, trace)
    kept = kept_positions(mask, trace)
    for name, widths in trace.movers.items():
        sides = [
            kept.get((f"{name}:{side}", 1), torch.arange(width))
            for side, width in zip(("in", "out"), widths, strict=True)
        ]
        module = small.get_submodule(name)
        assert isinstance(module, Narrows)
        module.narrow_(kept_in=sides[0], kept_out=sides[1])
    for tensor, dim in kept:
        name, _, attribute = tensor.partition(NUMBER)
        if tensor.endswith(WIDTH):
            norm = small.get_submodule(tensor.removesuffix(WIDTH))
            _set_width_(norm, dim, len(kept[tensor, dim]))
        elif attribute:
            _set_number_(small.get_submodule(name), attribute, dim, len(kept[tensor, dim]))
    _narrow_tensors_(small, kept, copied=not for_trial)
    _insert_selects_(small, trace, mask)


def check(mask: Mask, trace: Trace) -> None:
    """Raise a ``TraceError`` if a mask over channels is not one of this network."""
    for name, kept in mask.kept.items():
        group = trace.group(name)
        if kept.numel() != group.size:
            raise TraceError(
                f"The mask of {name!r} has {kept.numel()} units, but the group has {group.size}. "
                "Use a mask made for this network."
            )
        if not bool(kept.any()):
            raise TraceError(
                f"The mask would empty {name!r}. Keep at least one unit of each group."
            )


def not_cut(mask: Mask) -> str:
    """Word the error for a mask over units that are held at zero."""
    return (
        f"Only channels and blocks can be cut out. Got a mask over {mask.unit}s, which are held at "
        "zero in a network of full size."
    )


def is_cut(units: Tensor, kept: Tensor) -> Tensor:
    """Tell at which positions of a slot a unit lies that goes."""
    return (units >= 0) & ~kept.cpu()[units.clamp(min=0)]


def kept_positions(mask: Mask, trace: Trace) -> dict[tuple[str, int], Tensor]:
    """Return the positions that stay, for each dimension of each tensor that the cut touches."""
    stays: dict[tuple[str, int], Tensor] = {}
    for name, kept in mask.kept.items():
        known: dict[int, Tensor] = {}  # many slots share their units: a norm's four, its reader
        for slot in trace.groups[name].slots:
            units = id(slot.units)
            if units not in known:
                known[units] = ~is_cut(slot.units, kept)
            key = (slot.tensor, slot.dim)
            stays[key] = stays[key] & known[units] if key in stays else known[units]
    for key, stays_in_dim in stays.items():
        if not bool(stays_in_dim.any()):
            raise TraceError(_emptied(key, mask, trace))
    return {key: stays_in_dim.nonzero().flatten() for key, stays_in_dim in stays.items()}


def _emptied(key: tuple[str, int], mask: Mask, trace: Trace) -> str:
    """Word the error for a tensor of which no position stays."""
    name = next(n for n in mask.kept for s in trace.groups[n].slots if (s.tensor, s.dim) == key)
    return (
        f"The mask would empty {key[0]!r}, which holds some of the units of {name!r} only, or of "
        f"other groups as well. Keep another unit of {name!r}."
    )


def _insert_selects_(small: nn.Module, trace: Trace, mask: Mask) -> None:
    """Put a selection before each norm whose view is cut, relative to the stream as it is now."""
    for name in mask.kept:
        view = trace.groups[name]
        if view.kind != "view":
            continue
        slots = {
            other: slot
            for other in mask.kept
            for slot in trace.groups[other].slots
            if slot.role == "norm" and slot.tensor == f"{name}.weight"
        }
        in_view = ~is_cut(slots.pop(name).units, mask.kept[name])
        in_stream = torch.ones_like(in_view)
        for stream, slot in slots.items():
            in_stream &= ~is_cut(slot.units, mask.kept[stream])
        if not bool((in_stream & ~in_view).any()):
            continue
        index = in_view[in_stream].nonzero().flatten()
        norm = small.get_submodule(name)
        device = next(norm.parameters()).device
        chosen = nn.Sequential(OrderedDict(select=Select(index.to(device)), norm=norm))
        replace_(small, norm, chosen)


def replace_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, under all the names that it has."""
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module is old and parent is not new:
                setattr(parent, child, new)


def _narrow_tensors_(
    small: nn.Module, kept: Mapping[tuple[str, int], Tensor], *, copied: bool
) -> None:
    dims: dict[str, list[int]] = {}
    for tensor, dim in kept:
        if ":" not in tensor:
            dims.setdefault(tensor, []).append(dim)
    tensors = dict(small.named_parameters()) | dict(small.named_buffers())
    narrow: dict[int, Tensor] = {}
    for name, cut in dims.items():
        old = tensors[name]
        new = old.detach()
        for dim in cut:
            new = _choose(new, dim, kept[name, dim])
        if copied:
            new = new.clone(memory_format=torch.contiguous_format)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        narrow[id(old)] = new
    # By identity and not by name, because modules may share a parameter.
    for module in small.modules():
        own = [*module._parameters.items(), *module._buffers.items()]
        found = {attribute: narrow[id(t)] for attribute, t in own if id(t) in narrow}
        for attribute, narrowed in found.items():
            setattr(module, attribute, narrowed)
        if found:
            _sync_(module)


def _choose(tensor: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Take positions along a dimension; the first ones without a copy."""
    if torch.equal(positions, torch.arange(len(positions))):
        return tensor.narrow(dim, 0, len(positions))
    return tensor.index_select(dim, positions.to(tensor.device))


def _sync_(module: nn.Module) -> None:
    """Bring a layer's own numbers in line with the shapes of its weights."""
    if isinstance(module, nn.modules.conv._ConvNd):
        first = module.in_channels if module.transposed else module.out_channels
        if module.groups > 1:  # of which whole ones go
            module.groups = module.groups * module.weight.shape[0] // first
        sides = (module.weight.shape[0], module.weight.shape[1] * module.groups)
        out_side, in_side = (1, 0) if module.transposed else (0, 1)
        module.out_channels, module.in_channels = sides[out_side], sides[in_side]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        shaped = module.weight if module.weight is not None else module.running_mean
        assert shaped is not None
        module.num_features = len(shaped)


def _set_width_(norm: nn.Module, dim: int, width: int) -> None:
    """Tell a norm how many channels are left, in one of the dimensions that it is over."""
    if isinstance(norm, nn.GroupNorm):
        # Of several groups whole ones go; a single one is narrowed.
        norm.num_groups = max(1, norm.num_groups * width // norm.num_channels)
        norm.num_channels = width
    elif hasattr(norm, "normalized_shape"):
        shape: Any = norm.normalized_shape
        shape = shape if isinstance(shape, tuple | list) else (shape,)
        setattr(norm, "normalized_shape", (*shape[:dim], width, *shape[dim + 1 :]))  # noqa: B010
    else:
        setattr(norm, "num_features", width)  # noqa: B010


def _set_number_(module: nn.Module, attribute: str, entry: int, number: int) -> None:
    """Let a number that a module keeps of its widths, alone or in a list, be another one."""
    old = getattr(module, attribute)
    if isinstance(old, int):
        setattr(module, attribute, number)
    else:
        setattr(module, attribute, type(old)((*old[:entry], number, *old[entry + 1 :])))


def _twice(value: Any) -> Any:
    """Return a batch of two, which norms need in training."""
    return torch.cat([value] * 2) if isinstance(value, Tensor) and value.dim() else value


def what_breaks(small: nn.Module, trace: Trace) -> str | None:
    """Say what a smaller network does wrong on the trace's example; None if it runs."""
    how = ""
    try:
        with torch.no_grad(), evaluating(small):
            output = call(small, trace.example)
            if trace.idle:
                how = " in training"  # where layers may read what was cut that run there only
                call(deepcopy(small).train(), tree_map(_twice, trace.example))
    except Exception as error:
        return f"does not run{how}: {error}"
    shapes = tuple(tuple(x.shape) for x in output_tensors(output))
    if trace.outputs is not None and shapes != trace.outputs:
        was, now = (", ".join(map(str, every)) for every in (trace.outputs, shapes))
        return f"returns another shape, {now} in place of {was}"
    return None
