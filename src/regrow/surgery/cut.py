"""Cut units out of a network, silence them in place, and compare the two."""

from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from regrow.errors import TraceError
from regrow.mask import Mask
from regrow.surgery.trace import Group, Trace


@runtime_checkable
class Narrows(Protocol):
    """A module that moves channels itself, and can follow a cut of what enters and leaves it."""

    def narrow_(self, kept_in: Tensor, kept_out: Tensor) -> None:
        """Adapt to the channels (positions before the cut) that still come in and go out."""


class Select(nn.Module):
    """Pass on a fixed choice of channels."""

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Select ``[N, C, ...] -> [N, len(index), ...]``."""
        return x.index_select(1, self.index)

    def narrow_(self, kept_in: Tensor, kept_out: Tensor) -> None:
        """Point at the same channels among those that still come in."""
        place = torch.full((int(self.index.max()) + 1 + int(kept_in.max()),), -1)
        place[kept_in] = torch.arange(len(kept_in))
        self.index = place[self.index[kept_out]]

    def extra_repr(self) -> str:
        """Say how many channels are passed on."""
        return f"channels={len(self.index)}"


def shrink(model: nn.Module, mask: Mask, trace: Trace) -> nn.Module:
    """Cut a mask's units out of a network and return the smaller one; the network itself stays.

    The result is an ordinary module of the same classes with narrower layers. A norm that reads a
    shared stream gets a ``Select`` before it when its view is cut.

    Raises:
        TraceError: the mask names groups that the trace lacks, has another width, would empty a
            group, or the smaller network does not run because its code fixes a number of channels.
    """
    _check(mask, trace)
    small = deepcopy(model)
    kept = _kept_positions(mask, trace)
    renamed = _insert_selects_(small, trace, mask)
    for name, module in small.named_modules(remove_duplicate=False):
        if isinstance(module, Narrows) and (f"{name}:in", 1) in kept:
            module.narrow_(kept_in=kept[f"{name}:in", 1], kept_out=kept[f"{name}:out", 1])
    _narrow_tensors_(small, kept, renamed)
    _try(small, trace)
    return small


def silence(model: nn.Module, mask: Mask, trace: Trace) -> nn.Module:
    """Return a copy of a network whose cut units are exactly zero: the reference for ``shrink``.

    Producers' weights and biases, and norms' affine parameters and running means, are zeroed there.
    """
    _check(mask, trace)
    quiet = deepcopy(model)
    tensors = dict(quiet.named_parameters()) | dict(quiet.named_buffers())
    with torch.no_grad():
        for name, stays in mask.kept.items():
            for slot in trace.groups[name].slots:
                # A variance of zero is as good as any other, its mean being zero; it must stay.
                if slot.role in ("producer", "norm") and not slot.tensor.endswith("running_var"):
                    cut = _is_cut(slot.units, stays)
                    tensors[slot.tensor].index_fill_(slot.dim, cut.nonzero().flatten(), 0.0)
    return quiet


def verify(model: nn.Module, mask: Mask, trace: Trace) -> float:
    """Return the largest difference between ``shrink`` and ``silence`` on random inputs (float64).

    Below 1e-9 for a cut that is right.
    """
    small = shrink(model, mask, trace).double().eval()
    quiet = silence(model, mask, trace).double().eval()
    shape = (2, *trace.example.shape[1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        return float((small(x) - quiet(x)).abs().max())


def _check(mask: Mask, trace: Trace) -> None:
    if mask.unit != "channel":
        raise TraceError(f"Only channels can be cut out. Got a mask over {mask.unit}s.")
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
    return (units >= 0) & ~kept[units.clamp(min=0)]


def _kept_positions(mask: Mask, trace: Trace) -> dict[tuple[str, int], Tensor]:
    """Return the positions that stay, for each dimension of each tensor that the cut touches."""
    stays: dict[tuple[str, int], Tensor] = {}
    for name, kept in mask.kept.items():
        for slot in trace.groups[name].slots:
            tensor = slot.tensor
            if slot.role.startswith("mover"):
                tensor = f"{tensor}:{slot.role.removeprefix('mover-')}"
            here = ~_is_cut(slot.units, kept)
            key = (tensor, slot.dim)
            stays[key] = stays[key] & here if key in stays else here
    for tensor, dim in list(stays):
        head, colon, side = tensor.rpartition(":")
        other = (f"{head}:{'out' if side == 'in' else 'in'}", dim)
        if colon and other not in stays:
            raise TraceError(f"The channels that pass {head!r} cannot be followed on both sides.")
    return {key: here.nonzero().flatten() for key, here in stays.items()}


def _insert_selects_(small: nn.Module, trace: Trace, mask: Mask) -> dict[str, str]:
    """Put a selection before each norm whose view is cut, relative to the stream as it will be.

    Returns the new names of these norms by their old ones.
    """
    renamed = {}
    for name, kept in mask.kept.items():
        group = trace.groups[name]
        if group.kind != "view" or bool(kept.all()):
            continue
        norm = next(s for s in group.slots if s.role == "norm")
        in_view = ~_is_cut(norm.units, kept)
        in_stream = torch.ones_like(in_view)
        for above, stream in _streams_above(trace, group, mask).items():
            for slot in stream.slots:
                if slot.tensor == norm.tensor and slot.dim == norm.dim:
                    in_stream &= ~_is_cut(slot.units, mask.kept[above])
        place = in_stream.long().cumsum(0) - 1
        index = place[in_view & in_stream]
        module = small.get_submodule(name)
        _replace(small, name, nn.Sequential(OrderedDict(select=Select(index), norm=module)))
        renamed[name] = f"{name}.norm"
    return renamed


def _streams_above(trace: Trace, view: Group, mask: Mask) -> dict[str, Group]:
    """Return the groups, other than a view itself, that the mask cuts and that pass its norm."""
    return {
        name: trace.groups[name]
        for name in mask.kept
        if name != view.name and any(s.role == "norm" for s in trace.groups[name].slots)
    }


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _narrow_tensors_(
    small: nn.Module, kept: Mapping[tuple[str, int], Tensor], renamed: Mapping[str, str]
) -> None:
    for tensor_name in dict.fromkeys(name for name, _ in kept):
        if ":" in tensor_name:
            continue
        owner, _, attribute = tensor_name.rpartition(".")
        module = small.get_submodule(renamed.get(owner, owner))
        old = getattr(module, attribute)
        new = old.data
        for dim in range(old.dim()):
            if (tensor_name, dim) in kept:
                new = new.index_select(dim, kept[tensor_name, dim].to(new.device))
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)
        setattr(module, attribute, new)
        _sync_(module)


def _sync_(module: nn.Module) -> None:
    """Bring a layer's own numbers in line with the shapes of its weights."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        out_dim, in_dim = (1, 0) if module.transposed else (0, 1)
        module.out_channels = weight.shape[out_dim]  # type: ignore[union-attr]
        if module.groups > 1:  # depthwise
            module.groups = module.in_channels = module.out_channels
        else:
            module.in_channels = weight.shape[in_dim]  # type: ignore[union-attr]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        shaped = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(shaped)


def _try(small: nn.Module, trace: Trace) -> None:
    was_training = small.training
    small.eval()
    try:
        with torch.no_grad():
            small(trace.example)
    except (RuntimeError, ValueError) as error:
        raise TraceError(
            f"The smaller network does not run: {error}. Its code probably fixes a number of "
            "channels; read it from the tensor there, or keep the layer whole: "
            "trace(..., keep=['<layer>'])."
        ) from error
    finally:
        small.train(was_training)
