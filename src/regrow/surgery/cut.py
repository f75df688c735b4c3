"""Cut units out of a network."""

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from regrow.errors import TraceError
from regrow.mask import Mask
from regrow.surgery.blocks import dropped
from regrow.surgery.groups import WIDTH, Trace
from regrow.surgery.tape import Narrows, evaluating


class Select(nn.Module):
    """Pass on a fixed choice of channels."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Select ``[N, C, ...] -> [N, len(index), ...]``."""
        return x.index_select(1, self.index)

    def narrow_(self, *, kept_in: Tensor, kept_out: Tensor) -> None:
        """Point at the same channels among those that still come in."""
        chosen = self.index[kept_out.to(self.index.device)]
        self.index = torch.searchsorted(kept_in.to(self.index.device), chosen)

    def extra_repr(self) -> str:
        """Say how many channels are passed on."""
        return f"channels={len(self.index)}"


def shrink(model: nn.Module, mask: Mask, trace: Trace) -> nn.Module:
    """Cut a mask's units out of a network and return the smaller one; the network itself stays.

    The result is an ordinary module of the same classes with narrower layers. A norm that reads a
    shared stream gets a ``Select`` before it when its view is cut. The blocks that a mask over
    blocks drops are replaced by what is left of them without a branch.

    Raises:
        TraceError: the mask names groups that the trace lacks, has another width, would empty a
            layer, or the smaller network does not run because its code fixes a number of channels.
    """
    small = deepcopy(model)
    if mask.unit == "block":
        for block in dropped(small, mask).values():
            assert isinstance(block, nn.Module)
            _replace(small, block, block.without_branch())
        _try(small, trace)
        return small
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
        if tensor.endswith(WIDTH):
            norm = small.get_submodule(tensor.removesuffix(WIDTH))
            _set_width_(norm, dim, len(kept[tensor, dim]))
    _narrow_tensors_(small, kept)
    _insert_selects_(small, trace, mask)
    _try(small, trace)
    return small


def check(mask: Mask, trace: Trace) -> None:
    """Raise a ``TraceError`` if a mask over channels is not one of this network."""
    if mask.unit != "channel":
        raise TraceError(f"Only channels and blocks can be cut out. Got a mask over {mask.unit}s.")
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


def is_cut(units: Tensor, kept: Tensor) -> Tensor:
    """Tell at which positions of a slot a unit lies that goes."""
    return (units >= 0) & ~kept.cpu()[units.clamp(min=0)]


def kept_positions(mask: Mask, trace: Trace) -> dict[tuple[str, int], Tensor]:
    """Return the positions that stay, for each dimension of each tensor that the cut touches."""
    stays: dict[tuple[str, int], Tensor] = {}
    for name, kept in mask.kept.items():
        for slot in trace.groups[name].slots:
            here = ~is_cut(slot.units, kept)
            key = (slot.tensor, slot.dim)
            stays[key] = stays[key] & here if key in stays else here
            if not bool(stays[key].any()):
                raise TraceError(
                    f"The mask would empty {slot.tensor!r}, which holds some of the units of "
                    f"{name!r} only, or of other groups as well. Keep another unit of {name!r}."
                )
    return {key: here.nonzero().flatten() for key, here in stays.items()}


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
        _replace(small, norm, chosen)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, under all the names that it has."""
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module is old and parent is not new:
                setattr(parent, child, new)


def _narrow_tensors_(small: nn.Module, kept: Mapping[tuple[str, int], Tensor]) -> None:
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
            new = new.index_select(dim, kept[name, dim].to(new.device))
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
        setattr(norm, "normalized_shape", (*shape[:dim], width, *shape[dim + 1 :]))  # noqa: B010
    else:
        setattr(norm, "num_features", width)  # noqa: B010


def _try(small: nn.Module, trace: Trace) -> None:
    try:
        with torch.no_grad(), evaluating(small):
            small(trace.example)
            if trace.idle:
                # Layers that run in training only may still read what was cut.
                deepcopy(small).train()(torch.cat([trace.example] * 2))
    except Exception as error:
        raise TraceError(
            f"The smaller network does not run: {error}. Its code probably fixes a number of "
            "channels, or a layer that runs in training only reads what was cut. Read the number "
            "from the tensor there, or keep the layer whole: trace(..., keep=['<layer>'])."
        ) from error
