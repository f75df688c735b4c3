"""Cut units out of a network, silence them in place, and compare the two."""

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from regrow.errors import TraceError
from regrow.mask import Mask
from regrow.surgery.blocks import dropped, silence_
from regrow.surgery.tape import Narrows, evaluating
from regrow.surgery.trace import Trace


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
    _check(mask, trace)
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
        norm, colon, part = tensor.rpartition(":")
        if colon and part == "width":  # a norm without tensors of its own
            setattr(small.get_submodule(norm), "num_features", len(kept[tensor, dim]))  # noqa: B010
    _narrow_tensors_(small, kept)
    _insert_selects_(small, trace, mask)
    _try(small, trace)
    return small


def silence(model: nn.Module, mask: Mask, trace: Trace) -> nn.Module:
    """Return a copy of a network whose cut units are exactly zero: the reference for ``shrink``.

    Producers' weights and biases, and norms' affine parameters and running means, are zeroed there;
    of a block that goes, the last layer of the branch.
    """
    quiet = deepcopy(model)
    if mask.unit == "block":
        for block in dropped(quiet, mask).values():
            silence_(block)
        return quiet
    _check(mask, trace)
    tensors = dict(quiet.named_parameters()) | dict(quiet.named_buffers())
    with torch.no_grad():
        for name, stays in mask.kept.items():
            for slot in trace.groups[name].slots:
                # A variance of zero is as good as any other, its mean being zero; it must stay.
                silenced = slot.role in ("producer", "bias", "norm")
                if silenced and not slot.tensor.endswith("running_var"):
                    tensor = tensors[slot.tensor]
                    cut = _is_cut(slot.units, stays).nonzero().flatten()
                    tensor.index_fill_(slot.dim, cut.to(tensor.device), 0.0)
    return quiet


def verify(model: nn.Module, mask: Mask, trace: Trace) -> float:
    """Return the largest difference between ``shrink`` and ``silence`` on random inputs (float64).

    Relative to the largest output; below 1e-9 for a cut that is right.
    """
    small = shrink(model, mask, trace).double()
    quiet = silence(model, mask, trace).double()
    generator = torch.Generator().manual_seed(0)
    shape = (2, *trace.example.shape[1:])
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(trace.example.device)
    with torch.no_grad(), evaluating(small), evaluating(quiet):
        pairs = list(zip(_tensors(small(x)), _tensors(quiet(x)), strict=True))
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def _tensors(output: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _check(mask: Mask, trace: Trace) -> None:
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


def _is_cut(units: Tensor, kept: Tensor) -> Tensor:
    return (units >= 0) & ~kept.cpu()[units.clamp(min=0)]


def kept_positions(mask: Mask, trace: Trace) -> dict[tuple[str, int], Tensor]:
    """Return the positions that stay, for each dimension of each tensor that the cut touches."""
    stays: dict[tuple[str, int], Tensor] = {}
    for name, kept in mask.kept.items():
        for slot in trace.groups[name].slots:
            here = ~_is_cut(slot.units, kept)
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
        in_view = ~_is_cut(slots.pop(name).units, mask.kept[name])
        in_stream = torch.ones_like(in_view)
        for stream, slot in slots.items():
            in_stream &= ~_is_cut(slot.units, mask.kept[stream])
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
        if module.groups > 1:  # depthwise
            module.groups = module.in_channels = module.out_channels = module.weight.shape[0]
        else:
            out_dim, in_dim = (1, 0) if module.transposed else (0, 1)
            module.out_channels = module.weight.shape[out_dim]
            module.in_channels = module.weight.shape[in_dim]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        shaped = module.weight if module.weight is not None else module.running_mean
        assert shaped is not None
        module.num_features = len(shaped)


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
